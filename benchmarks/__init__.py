"""Measurements behind the tables of the README."""
