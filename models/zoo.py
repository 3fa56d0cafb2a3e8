"""torchvision's classification networks by name, with RegNetX-600MF and MNASNet of double width.

torchvision holds the code of the latter two but no name for them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from common.errors import InputError, first_line
from common.files import sha256_file
from common.torch_setup import import_torchvision
from loaders.transforms import Preprocess
from models.entries import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD, ModelEntry

ALIASES = {
    "mobilenetv2": "mobilenet_v2",
    "mnasnet": "mnasnet1_0",
    "regnetx_3200m": "regnet_x_3_2gf",
}
# First digits of the SHA-256 of the published weights that expect ``transform_input``.
PUBLISHED_WITH_TRANSFORM = {"googlenet": "1378be20", "inception_v3": "0cc3c7bd"}
REGNETX_600M = "regnetx_600m"
MNASNET_2_0 = "mnasnet2_0"
CIFAR_RESNET18 = "cifar_resnet18"

# Settings in the code of QDrop and PD-Quant: weight of the rounding penalty (0.01 for the other
# networks), temperature T (4.0) and lamb_c (0.02) of PD-Quant.
MNASNET_DEFAULTS = {"weight": 0.2, "T": 1.0, "lamb_c": 0.001}
METHOD_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "mobilenet_v2": {"weight": 0.1, "T": 1.0, "lamb_c": 0.005},
    "mnasnet1_0": MNASNET_DEFAULTS,
    MNASNET_2_0: MNASNET_DEFAULTS,
    "regnet_x_3_2gf": {"lamb_c": 0.01},
    REGNETX_600M: {"lamb_c": 0.01},
}


logger = logging.getLogger(__name__)


def list_zoo() -> list[str]:
    """Names of the torchvision networks that the suite accepts, aliases included."""
    models = import_torchvision().models
    return sorted([*models.list_models(module=models), *ALIASES, *UNNAMED])


def zoo_entry(arch: str, arch_args: Mapping[str, Any]) -> ModelEntry:
    """The entry of a name of ``list_zoo``.

    Args:
        arch_args: further arguments of torchvision's function.
    """
    if arch in UNNAMED:
        preprocess = Preprocess(IMAGENET_MEAN, IMAGENET_STD, resize=256, crop=224)
        return ModelEntry(
            arch,
            partial(UNNAMED[arch], **arch_args),
            1000,
            preprocess,
            method_defaults=METHOD_DEFAULTS[arch],
        )
    name = ALIASES.get(arch, arch)
    transforms = None if "transform_input" in arch_args else PUBLISHED_WITH_TRANSFORM.get(name)
    weights = list(import_torchvision().models.get_model_weights(name))
    return ModelEntry(
        arch=arch,
        build=partial(_build, name, dict(arch_args)),
        num_classes=1000,
        preprocess=_preprocess_of(weights[0]),
        method_defaults=METHOD_DEFAULTS.get(name, {}),
        pretrained=partial(_download, name),
        complete=None if transforms is None else partial(_transform_input, arch, transforms),
        pretrained_preprocess=_preprocess_of(
            import_torchvision().models.get_model_weights(name).DEFAULT
        ),
    )


def cifar_resnet18_entry() -> ModelEntry:
    """ResNet-18 for 32 x 32 images: 3 x 3 stem of stride 1, no max-pool; torchvision's names."""
    return ModelEntry(
        CIFAR_RESNET18, _cifar_resnet18, 10, Preprocess(CIFAR_MEAN, CIFAR_STD), image_size=32
    )


def _cifar_resnet18(num_classes: int) -> nn.Module:
    network = import_torchvision().models.resnet18(num_classes=num_classes)
    network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    network.maxpool = nn.Identity()
    return network


def _build(name: str, arch_args: Mapping[str, Any], num_classes: int) -> nn.Module:
    extra = {"init_weights": False} if name in PUBLISHED_WITH_TRANSFORM else {}
    try:
        return import_torchvision().models.get_model(
            name, weights=None, num_classes=num_classes, **{**extra, **arch_args}
        )
    except (TypeError, ValueError) as error:
        reason = first_line(error)
        raise InputError(f"arch_args must be arguments of {name}, got: {reason}") from None


def _transform_input(arch: str, published: str, network: nn.Module, path: Path) -> None:
    """Let the network normalise its input as the published weights require.

    These were trained on images of another normalisation, which torchvision's networks undo in
    front of the first layer (``transform_input``). The file tells them from other weights.
    """
    is_published = sha256_file(path).startswith(published)
    setattr(network, "transform_input", is_published)  # noqa: B010  (not declared by nn.Module)
    if not is_published:
        logger.warning(
            "%s: taken as weights without transform_input; weights trained from the published "
            "ones need --arch_args transform_input=true with --arch %s",
            path,
            arch,
        )


def _regnetx_600m(num_classes: int) -> nn.Module:
    """RegNetX-600MF (Radosavovic et al., CVPR 2020, arXiv:2003.13678)."""
    regnet = import_torchvision().models.regnet
    blocks = regnet.BlockParams.from_init_params(
        depth=16, w_0=48, w_a=36.97, w_m=2.24, group_width=24
    )
    return regnet.RegNet(blocks, num_classes=num_classes)


def _mnasnet2_0(num_classes: int) -> nn.Module:
    """MNASNet of double width (Tan et al., CVPR 2019, arXiv:1807.11626)."""
    return import_torchvision().models.MNASNet(2.0, num_classes=num_classes)


UNNAMED = {REGNETX_600M: _regnetx_600m, MNASNET_2_0: _mnasnet2_0}


def _preprocess_of(weights: Any) -> Preprocess:
    """The evaluation transform that torchvision documents for a set of weights."""
    preset = weights.transforms()
    return Preprocess(
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        resize=preset.resize_size[0],
        crop=preset.crop_size[0],
        interpolation=preset.interpolation.value,
    )


def _download(name: str) -> nn.Module:
    models = import_torchvision().models
    weights = models.get_model_weights(name).DEFAULT
    try:
        return models.get_model(name, weights=weights)
    except OSError as error:
        raise InputError(
            f"weights of {name} must be downloadable from {weights.url}, got: {error}"
        ) from error
