"""Logits on disk; uses numpy and pandas, neither torch nor scikit-learn."""

from logits_io.analyzer import LogitsAnalyzer
from logits_io.naming import RunName
from logits_io.saved import SavedLogits

__all__ = ["LogitsAnalyzer", "RunName", "SavedLogits"]
