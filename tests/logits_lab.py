"""Names and numbers of the tests that write logits."""

from __future__ import annotations

import numpy as np

from logits_io import RunName

NAME = RunName("resnet18", 4, 2, 1005)
STEM = "logits_resnet18_w4bit_a2bit_seed1005"
META = {"arch": "resnet18", "method": "rtn"}
TARGETS = np.arange(25) % 4


def made_up_logits() -> dict[str, np.ndarray]:
    random = np.random.RandomState(1)
    return {
        kind: random.normal(0, 3, (25, 4)).astype(np.float32)
        for kind in ("quantized", "fullprecision")
    }
