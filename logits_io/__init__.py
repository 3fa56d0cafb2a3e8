"""Logits on disk. Knows numpy and pandas; no torch, no scikit-learn."""

from logits_io.analyzer import LogitsAnalyzer, SavedLogits
from logits_io.naming import RunName

__all__ = ["LogitsAnalyzer", "RunName", "SavedLogits"]
