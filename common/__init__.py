"""Lowest layer: errors, console, flags, files; imports neither torch nor numpy."""

from common.errors import InputError, RunError

__all__ = ["InputError", "RunError"]
