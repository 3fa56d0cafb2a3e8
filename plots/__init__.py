"""Plots of arrays, drawn without a display."""
