"""Published results with their settings, ``configs/recipes/{arch}_{method}_{bits}.yaml``.

``timm/NAME.WEIGHTS`` is ``timm_NAME`` in the name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.configs import read_config
from common.errors import InputError, require_known
from models import brecq

FOLDER = Path(__file__).resolve().parent.parent / "configs" / "recipes"
FLOAT_TOLERANCE = 1.0  # points of Top-1


@dataclass(frozen=True)
class Recipe:
    """A published result.

    Attributes:
        source: where the result is published.
        settings: where the settings are published.
        float_top1, top1: Top-1 in percent of the float and the quantized network on ImageNet's val.
        flags: flags of ``main_imagenet.py`` with their values.
        note: how the published code differs from this suite.
    """

    name: str
    source: str
    settings: str
    float_top1: float
    top1: float
    flags: Mapping[str, Any]
    note: str = ""

    def describe(self) -> str:
        """Name and published accuracies in one line."""
        return f"{self.name}, published Top-1 {self.top1:.2f}, float {self.float_top1:.2f}"

    def require_float(self, top1: float, images: int) -> None:
        """Check that the float network is as accurate as the recipe's.

        Args:
            top1: Top-1 of the float network, percent.
            images: number of evaluation images.

        Raises:
            InputError: it differs by more than ``FLOAT_TOLERANCE`` points.
        """
        if abs(top1 - self.float_top1) > FLOAT_TOLERANCE:
            raise InputError(
                f"float Top-1 must be within {FLOAT_TOLERANCE:g} point of {self.float_top1:.2f}, "
                f"the recipe's, got {top1:.2f} on {images} images; likely reasons: other weights "
                f"(the recipe needs {self.weights}), labels in another order (class folders must "
                "be the synsets), another preprocessing, or too few images (--force continues)"
            )

    @property
    def weights(self) -> str:
        """Which weights the recipe starts from, in words."""
        if self.flags.get("checkpoint_format") == brecq.FORMAT:
            return "BRECQ's release checkpoints"
        return f"the published weights of {self.flags.get('arch')}"

    def changed(self, config: Mapping[str, Any]) -> list[str]:
        """One line for each flag whose value in ``config`` differs from the recipe's."""
        return [
            f"{flag} is {config.get(flag)} here, {value} in the recipe"
            for flag, value in self.flags.items()
            if config.get(flag) != value
        ]

    def comparison(self, float_top1: float, top1: float) -> str:
        """Table of the published accuracies, those of this run, and the differences."""
        lines = [f"recipe {self.name}", f"{'':<12}{'published':>10}{'ours':>8}{'difference':>12}"]
        pairs = (("float", self.float_top1, float_top1), ("quantized", self.top1, top1))
        for what, published, ours in pairs:
            lines.append(f"{what:<12}{published:>10.2f}{ours:>8.2f}{ours - published:>+12.2f}")
        return "\n".join([*lines, f"published: {self.source}"])


def list_recipes() -> list[str]:
    """Names of all recipes, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        InputError: there is none (the error names the closest one), or its file lacks a key or has
            an unknown one.
    """
    path = FOLDER / f"{require_known('recipe', name, list_recipes())}.yaml"
    content = read_config(path, "recipe")
    known = {field.name: field for field in dataclasses.fields(Recipe) if field.name != "name"}
    for key in content:
        require_known(f"key of {path}", str(key), known)
    for key, field in known.items():
        if key not in content and field.default is dataclasses.MISSING:
            raise InputError(f"{path}: must have the key {key}, got {', '.join(content)}")
    return Recipe(name, **content)
