"""Logits on disk; uses numpy and pandas, neither torch nor scikit-learn."""

from logits_io.analyzer import LogitsAnalyzer, SavedLogits
from logits_io.naming import RunName

__all__ = ["LogitsAnalyzer", "RunName", "SavedLogits"]
