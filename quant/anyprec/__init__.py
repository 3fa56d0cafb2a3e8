"""Networks whose layers are trained to work at several bitwidths."""
