"""The release checkpoints of BRECQ (github.com/yhhhli/BRECQ, v1.0).

They are of six ImageNet networks; QDrop and PD-Quant use them as well. Our networks are
torchvision's, three of which have other module names. A table maps BRECQ's module names to ours; a
checkpoint with any other name is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from common.errors import InputError, require_known

FORMAT = "brecq"
ARCHS = {  # BRECQ's name -> ours
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "mobilenetv2": "mobilenetv2",
    "regnetx_600m": "regnetx_600m",
    "regnetx_3200m": "regnetx_3200m",
    "mnasnet": "mnasnet2_0",
}

# MobileNetV2: BRECQ numbers the layers of a block, torchvision groups convolution and norm.
MOBILENET_ENDS = {
    name: name for name in ("features.0.0", "features.0.1", "features.18.0", "features.18.1")
} | {"classifier.1": "classifier.1"}
MOBILENET_FIRST_BLOCK = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}
MOBILENET_BLOCK = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}
MOBILENET_BLOCKS = range(2, 18)

# RegNetX: BRECQ's stages are s1, s2, ..., its blocks b1, b2, ...
REGNET_ENDS = {"stem.conv": "stem.0", "stem.bn": "stem.1", "head.fc": "fc"}
REGNET_SHORTCUT = {"proj": "proj.0", "bn": "proj.1"}
REGNET_BLOCK = {
    "f.a": "f.a.0",
    "f.a_bn": "f.a.1",
    "f.b": "f.b.0",
    "f.b_bn": "f.b.1",
    "f.c": "f.c.0",
    "f.c_bn": "f.c.1",
}
REGNET_DEPTHS = {"regnetx_600m": (1, 3, 5, 7), "regnetx_3200m": (2, 6, 15, 2)}


def resolve_arch(arch: str) -> str:
    """Our name of an architecture, given under BRECQ's name or ours.

    Raises:
        InputError: BRECQ has no checkpoint of it.
    """
    if arch in ARCHS.values():
        return arch
    return ARCHS[require_known("arch of a BRECQ checkpoint", arch, ARCHS)]


def their_arch(arch: str) -> str:
    """BRECQ's name of an architecture, given under ours; unchanged if there is none."""
    return {our: their for their, our in ARCHS.items()}.get(arch, arch)


def rename_table(arch: str) -> dict[str, str]:
    """Map BRECQ's name of every module with weights to ours; empty if all names are the same.

    Args:
        arch: a value of ``ARCHS``.
    """
    if arch == "mobilenetv2":
        return _mobilenet_table()
    if arch in REGNET_DEPTHS:
        return _regnet_table(REGNET_DEPTHS[arch])
    return {}


def _mobilenet_table() -> dict[str, str]:
    first = {
        f"features.1.conv.{their}": f"features.1.conv.{our}"
        for their, our in MOBILENET_FIRST_BLOCK.items()
    }
    blocks = {
        f"features.{block}.conv.{their}": f"features.{block}.conv.{our}"
        for block in MOBILENET_BLOCKS
        for their, our in MOBILENET_BLOCK.items()
    }
    return MOBILENET_ENDS | first | blocks


def _regnet_table(depths: tuple[int, ...]) -> dict[str, str]:
    table = dict(REGNET_ENDS)
    for stage, depth in enumerate(depths, 1):
        for block in range(1, depth + 1):
            parts = REGNET_BLOCK | (REGNET_SHORTCUT if block == 1 else {})
            prefix = f"trunk_output.block{stage}.block{stage}-{block - 1}"
            table |= {
                f"s{stage}.b{block}.{their}": f"{prefix}.{our}" for their, our in parts.items()
            }
    return table


def renamed(arch: str, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Rename the weights of a BRECQ checkpoint to our names.

    Raises:
        InputError: a name is not in BRECQ's network.
    """
    table = rename_table(arch)
    out = {}
    for name, value in state.items():
        new = _translate(table, name)
        if new is None:
            raise InputError(
                f"{source}: names must be those of BRECQ's {arch}, got {name!r} "
                "(leave --checkpoint_format out for torchvision's names)"
            )
        out[new] = value
    return out


def their_name(arch: str, name: str) -> str:
    """BRECQ's name of a parameter or buffer, given under our name."""
    back = {our: their for their, our in rename_table(arch).items()}
    return _translate(back, name) or name


def _translate(table: Mapping[str, str], name: str) -> str | None:
    module, _, what = name.rpartition(".")
    if not table:
        return name
    return f"{table[module]}.{what}" if module in table else None
