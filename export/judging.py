"""What the check of an exported file found, judged: problems, and a hint for the user."""

from __future__ import annotations

import math
from typing import Any

from export.runtimes import adds_in_32_bits
from export.tools import EXACT
from export.verification import REORDERED
from quant.arithmetic.spec import NO_TARGET, QuantSpec

# Mean differences of logits that the sums of a runtime may make: in those of the simulation with
# itself when it sums in another order, or as a share of the mean size of the logits.
OWN_DIFFERENCES, LEAST_DIFFERENCE = 4, 0.005
QUANTIZE = "for integers quantize with --quant_target openvino or onnxruntime"
OVERFLOW = (
    "this processor lacks VNNI, so that sums of products overflow here: run the file, which was "
    "made with target_vnni, on a processor that has it"
)
SLOW_INTEGERS = "this processor lacks VNNI, with which integer kernels are faster"


def agreement_limit(found: dict[str, Any], min_agreement: float) -> float:
    """The agreement that the file must reach.

    It is ``min_agreement`` or, if that is lower, the agreement of the simulation with itself when
    it sums in another order, less two standard errors.
    """
    own = found[REORDERED]["agreement"]
    return min(min_agreement, own - 2 * math.sqrt(own * (1 - own) / found["images"]))


def problems_of(found: dict[str, Any], limit: float, target: str) -> list[str]:
    """What is wrong with a file, one line each; empty if nothing is.

    Args:
        found: the result of ``verify``.
        limit: the agreement that the file must reach.
    """
    problems = []
    if found["wrong_integers"]:
        problems.append(
            "integers in the file must be the model's, got others in "
            f"{', '.join(found['wrong_integers'][:5])}"
        )
    low = [
        f"{level['agreement']:.4f} at {name}"
        for name, level in found["levels"].items()
        if level["agreement"] < limit
    ]
    if low:
        problems.append(
            f"argmax agreement with the simulation must be at least {limit:.4f} (min_agreement), "
            f"got {', '.join(low)}"
        )
    if target != EXACT:
        problems += _differences(found)
    return problems


def _differences(found: dict[str, Any]) -> list[str]:
    """What to say if the logits of the file are not those of the simulation."""
    own, size = found[REORDERED]["mean_difference"], found["mean_logit"]
    limit = max(OWN_DIFFERENCES * own, LEAST_DIFFERENCE * size)
    worst = max(level["mean_difference"] for level in found["levels"].values())
    if worst <= limit:
        return []
    return [
        f"mean difference of the logits to the simulation's must be at most {limit:.3g} (their "
        f"mean size is {size:.3g}), got {worst:.3g}"
    ]


def hint_for(target: str, spec: QuantSpec) -> str:
    """How to get a file that runs in integers, or why one that does is not faster here."""
    if target != EXACT:
        if adds_in_32_bits():
            return ""
        return OVERFLOW if spec.target_vnni else SLOW_INTEGERS
    if spec.target == NO_TARGET:
        return QUANTIZE
    return f"for integers use --export_target {spec.target}"
