"""Base class of the quantization methods: a settings dataclass and ``quantize_model``."""

from __future__ import annotations

import dataclasses
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, fx, nn

from common.errors import InputError, RunError, first_line, require_known
from common.machine import in_gb
from common.torch_setup import full_float32
from quant.arithmetic.spec import LOG2, NOT_QUANTIZED
from quant.distillation.stage import distill
from quant.network.cached import ActivationCache, choose_cache
from quant.network.calibration import collect_calibration
from quant.network.capture import CapturedNetwork, capture
from quant.network.chain import Task
from quant.network.layernorms import Move, find_moves, layer_norms, with_moves
from quant.network.layers import Log2Quantizer
from quant.network.model import (
    FLOAT_SPEC,
    QuantModel,
    activation_quantizers,
    make_chain,
    quant_layers,
)
from quant.network.needs import cached_bytes, kept_bytes, passing_bytes
from quant.network.operations import has_attention, is_softmax
from quant.network.states import UnitReport, UnitStates
from quant.network.targets import fit_to_target_
from quant.settings import MethodSettings, ShortForms, spelled_out

logger = logging.getLogger(__name__)


class BaseQuantizationMethod(ABC):
    """One quantization method with its settings.

    A new method is one file in ``quant/methods``: a subclass with ``name``, ``summary`` and
    ``settings_class``, ``_quantize``, and the ``register_method`` decorator (docs/extending.md).

    Attributes:
        short_forms: settings that set other settings.
        beats_rtn: claim, checked by the contract tests, that the error on the calibration images is
            not above that of ``rtn``.
        walks_units: whether the activations of one unit at a time are cached (``walk_chain``), not
            those of all.
        settings: values of all settings.
        given: names of the settings that were given, directly or by a short form.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    settings_class: ClassVar[type[MethodSettings]] = MethodSettings
    short_forms: ClassVar[ShortForms] = {}
    beats_rtn: ClassVar[bool] = False
    walks_units: ClassVar[bool] = True

    def __init__(self, **settings: Any):
        known = [field.name for field in dataclasses.fields(self.settings_class)]
        for key in settings:
            require_known(f"setting of {self.name}", key, known)
        spelled = spelled_out(self.settings_class, self.short_forms, settings)
        self.settings: Any = self.settings_class(**spelled)
        self.given = frozenset(spelled)

    def get_method_name(self) -> str:
        return self.name

    def get_quantization_params(self) -> dict[str, Any]:
        """All settings with their values."""
        return dataclasses.asdict(self.settings)

    @full_float32()
    def quantize_model(
        self,
        model: nn.Module | CapturedNetwork,
        fp_model: nn.Module | CapturedNetwork | None,
        train_loader: Iterable,
        on_unit: Callable[[UnitReport], None] | None = None,
        states: UnitStates | None = None,
        cache_dir: Path | None = None,
        on_scalar: Callable[[str, float, int], None] | None = None,
        on_model: Callable[[QuantModel, UnitReport], None] | None = None,
    ) -> QuantModel:
        """Quantize a copy of ``model``; neither ``model`` nor ``fp_model`` changes.

        Args:
            model: trained float network, or the result of ``capture``; all computation is on its
                device.
            fp_model: float network whose outputs are the target; None means ``model`` itself.
            train_loader: yields (images, labels, ...) batches or image tensors; the first
                ``num_samples`` images are the calibration set; labels are used only if a setting
                requires them.
            on_unit: called after each unit with its report.
            states: storage of finished units, from which a resumed run continues.
            cache_dir: folder of results that other settings on the same network and images reuse.
            on_scalar: called with name, value and step of each further scalar of the method.
            on_model: called after each unit with the model, whose later units are still in float,
                by the methods that finish one unit after the other; an error of its own ends
                the quantization.

        Raises:
            InputError: the network cannot be captured exactly, or the images cannot be used.
            RunError: a loss is not finite, or GPU memory is too small.
        """
        self._log_target()
        images, labels = collect_calibration(train_loader, self.settings.num_samples)
        try:
            task = dataclasses.replace(
                self._task(model, fp_model, images),
                labels=labels if self.settings.uses_labels else None,
                on_unit=on_unit,
                on_model=on_model,
                on_scalar=on_scalar,
                states=states,
                cache_dir=cache_dir,
            )
            self._warn_of_unused(task.model)
            task = dataclasses.replace(task, cache=self._cache(task))
            self._quantize(task)
            self._distill(task)
            for layer in quant_layers(task.model).values():
                layer.gain = None
            if self.settings.has_target:
                fit_to_target_(task.model.named_units(), task.model.spec)
        except torch.OutOfMemoryError as error:
            raise RunError(self._out_of_memory(error, resumable=states is not None)) from error
        return task.model

    @full_float32()
    def check(self, model: nn.Module, images: Tensor) -> None:
        """Capture the network and place its quantizers as ``quantize_model`` does, and no more.

        Args:
            images: (N, channels, height, width) float32; a few are enough.

        Raises:
            InputError: the network cannot be captured exactly, or the settings do not suit it.
        """
        make_chain(capture(model, images), self.settings.spec)

    def _log_target(self) -> None:
        settings = self.settings
        if settings.has_target and not settings.target_vnni:
            logger.info(
                "quant_target %s: weights have at most %d bits, except for depthwise convolutions, "
                "since products of more overflow on processors without VNNI (--target_vnni for "
                "those that have it)",
                settings.quant_target,
                settings.spec.most_weight_bits(),
            )

    def _task(
        self,
        model: nn.Module | CapturedNetwork,
        fp_model: nn.Module | CapturedNetwork | None,
        images: Tensor,
    ) -> Task:
        network = _captured(model, images)
        source = network if fp_model is None or fp_model is model else _captured(fp_model, images)
        moves = self._moves(network, images)
        network, source = with_moves(network, moves), with_moves(source, moves)
        device = network.images.device
        if device.type == "cpu" and self.settings.keep_cpu:
            logger.info("keep_cpu changes nothing: the network is on the CPU")
        elif self.settings.keep_cpu:
            images = images.pin_memory()
        return Task(
            model=make_chain(network, self.settings.spec),
            reference=make_chain(source, FLOAT_SPEC),
            network=source,
            images=images if self.settings.keep_cpu else images.to(device),
        )

    def _moves(self, network: CapturedNetwork, images: Tensor) -> dict[str, Move]:
        """What ``reparam_layernorm`` moves from ranges behind LayerNorms into weights."""
        wanted, is_float = self.settings.reparam_layernorm, self.settings.n_bits_a == NOT_QUANTIZED
        if wanted == "on" and is_float:
            logger.warning("reparam_layernorm on changes nothing: activations stay in float")
        if wanted == "off" or is_float or (wanted == "auto" and not has_attention(network.graph)):
            return {}
        moves = find_moves(network, images)
        if wanted == "on" and not moves:
            logger.warning(
                "reparam_layernorm on changes nothing: the network has no LayerNorm that only "
                "linear layers read"
            )
        text = "channels of %d of %d LayerNorms have equal ranges (reparam_layernorm %s)"
        logger.info(text, len(moves), len(layer_norms(network.graph)), wanted)
        return moves

    def _warn_of_unused(self, model: QuantModel) -> None:
        """Warn where powers of two were asked for and no softmax output takes them."""
        if self.settings.softmax_quantizer != LOG2:
            return
        if self.settings.n_bits_a == NOT_QUANTIZED:
            logger.warning("softmax_quantizer log2 changes nothing: activations stay in float")
            return
        quantizers = activation_quantizers(model).values()
        taken = sum(isinstance(quantizer, Log2Quantizer) for quantizer in quantizers)
        graphs = (cast(fx.GraphModule, unit).graph for unit in model.units)
        every = sum(is_softmax(node) for graph in graphs for node in graph.nodes)
        if not taken:
            logger.warning(
                "softmax_quantizer log2 changes nothing: the network multiplies no softmax output "
                "(it has %d softmax operations)",
                every,
            )
        elif taken < every:
            logger.warning(
                "softmax_quantizer log2 acts on %d of %d softmax outputs; no product of two "
                "activations reads the others as they are",
                taken,
                every,
            )

    def _cache(self, task: Task) -> ActivationCache:
        """Choose where cached activations are, and log what they take."""
        place, count = self.settings.cache_activations, len(task.images)
        on_gpu = task.images.device.type != "cpu"
        if place == "disk" and on_gpu:
            raise InputError("keep_cpu must be given with cache_activations disk, got a GPU")
        if place == "disk" and not self.walks_units:
            raise InputError(
                f"cache_activations must be left out for {self.name}, which keeps the activations "
                "of all units in memory, got disk"
            )
        size = (cached_bytes if self.walks_units else kept_bytes)(task.reference, count)
        cache = ActivationCache()
        if self.walks_units and not on_gpu:
            cache = choose_cache(place, size, task.cache_dir)
        memory = "GPU memory" if on_gpu else "memory"
        logger.info(
            "plan: %d units, %d calibration images; cached activations take up to %s of %s, one "
            "pass through a unit up to %s of memory",
            len(task.model.units),
            count,
            in_gb(size),
            memory if cache.folder is None else f"the disk of {cache.folder}",
            in_gb(passing_bytes(task.reference, count)),
        )
        return cache

    def _distill(self, task: Task) -> None:
        try:
            distill(task, self.settings)
        except torch.OutOfMemoryError as error:
            raise RunError(
                "GPU memory must hold one step of the distillation, which trains the whole "
                f"network, got: {first_line(error)}; start again with a smaller --distill_batch"
            ) from error

    def _out_of_memory(self, error: Exception, resumable: bool) -> str:
        advice = "start again with a smaller --batch_size_recon"
        if not self.settings.keep_cpu:
            resume = "--resume, which keeps the finished units, and " if resumable else ""
            advice = f"continue with {resume}--keep_cpu, or {advice}"
        return (
            "GPU memory must hold the cached activations and one step of a unit, got: "
            f"{first_line(error)}; {advice}"
        )

    @abstractmethod
    def _quantize(self, task: Task) -> None:
        """Quantize ``task.model`` in place."""


def _captured(model: nn.Module | CapturedNetwork, images: Tensor) -> CapturedNetwork:
    return model if isinstance(model, CapturedNetwork) else capture(model, images)
