"""Lowest layer: errors, console, flags, files; imports neither torch nor numpy."""
