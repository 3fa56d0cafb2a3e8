"""Sweeps, that is grids of runs of main_imagenet.py: their runs, engines, results and report."""
