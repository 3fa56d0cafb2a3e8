"""Every drawing, from arrays, without a screen."""
