"""Experts trained for two epochs on digits, shared by the tests of a process."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import create_splits_fixed
import recompute_logits
import train_experts
import verify_logits

SLUG = "digits_lt_if10"


@dataclass(frozen=True)
class Lab:
    """A working folder: splits and experts, read-only for tests, which write to ``out``."""

    root: Path

    @property
    def splits(self) -> Path:
        return self.root / "data" / f"{SLUG}_splits_fixed"

    @property
    def experts(self) -> Path:
        return self.root / "checkpoints"

    @property
    def folder(self) -> Path:
        return self.experts / SLUG

    def copy(self, root: Path) -> Lab:
        """The same for a test that damages it."""
        shutil.copytree(self.root, root, dirs_exist_ok=True)
        return Lab(root)

    def recompute(self, out: Path, *flags: str) -> int:
        where = ["--splits-dir", self.splits, "--experts-dir", self.experts, "--output-dir", out]
        return recompute_logits.main([*map(str, where), *flags])

    def verify(self, out: Path, *flags: str) -> int:
        where = ["--splits-dir", str(self.splits), "--logits-dir", str(out)]
        return verify_logits.main([*where, *flags])

    def train(self, folder: Path, *flags: str) -> int:
        where = ["--splits-dir", str(self.splits), "--output-dir", str(folder)]
        return train_experts.main([*where, *flags])


def make_lab(root: Path) -> Lab:
    lab = Lab(root)
    few = ["--max-per-class", "60"]  # images of the head class, so that an epoch takes a second
    assert create_splits_fixed.main(["--dataset", "digits", *few, "--output", str(lab.splits)]) == 0
    assert lab.train(lab.folder, "--epochs", "2", "--stage2-epochs", "2", "--quiet") == 0
    return lab
