"""A quantized network made trainable as a whole: latent weights behind the rounding.

The weight of a layer is ``(round(v) - zero_point) * scale * ratio``, with the straight-through
gradient in the latent codes ``v`` (Bengio et al. 2013, arXiv:1308.3432) where they are within the
codes, and one ratio per scale (LSQ, Esser et al. 2020). At first ``v`` is the code of the float
weight, moved into the cell of the stored code, so that the network computes what it did before; a
weight whose scale was stretched is stretched too.
"""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor

from quant.arithmetic.primitives import MIN_SCALE, quant_max
from quant.distillation.normalised import Normalisation, NormalisedOutput
from quant.network.layers import QuantLayer
from quant.network.model import QuantModel, activation_quantizers, quant_layers

REACH = 0.45  # of a step: farthest that a latent code starts from its code
MIN_RATIO = 1e-3


class LatentWeight:
    """The weight of one layer while its latent codes are trained.

    Attributes:
        codes: latent codes, float32 in the shape of the weight; trained.
        ratio: (O, 1, ...) or (1, 1, ...), factors of the scale; trained.
    """

    def __init__(self, layer: QuantLayer):
        self.layer = layer
        stored = layer.codes.float()
        shift = 0.0 if layer.offset is None else layer.offset
        weight = layer.full_precision_weight()
        weight = weight if layer.gain is None else weight * layer.gain
        wanted = (weight - shift) / layer.scale + layer.zero_point
        codes = torch.minimum(torch.maximum(wanted, stored - REACH), stored + REACH)
        self.most = quant_max(layer.bits).float()
        self.codes = codes.requires_grad_(True)
        self.ratio = torch.ones_like(layer.scale).requires_grad_(True)

    def weight(self) -> Tensor:
        """The weight on the grid, differentiable in latent codes and ratio."""
        hard = self._hard()
        codes = _StraightThrough.apply(self.codes, hard, self.most)
        layer = self.layer
        weight = (codes - layer.zero_point) * (layer.scale * self.ratio)
        if layer.gap is not None:
            weight = weight + layer.gap * weight.detach().sign()
        return weight if layer.offset is None else weight + layer.offset

    def _hard(self) -> Tensor:
        return torch.minimum(self.codes.detach().round().clamp_(min=0), self.most)

    @torch.no_grad()
    def store(self) -> None:
        """Give the layer the hard codes and the scale."""
        self.layer.codes = self._hard().to(self.layer.codes.dtype)
        self.layer.scale = self.layer.scale * self.ratio.detach()


class _StraightThrough(torch.autograd.Function):
    """Hard codes, with the gradient of the latent ones; 0 where these are beyond the last cell."""

    @staticmethod
    def forward(ctx, codes: Tensor, hard: Tensor, most: Tensor) -> Tensor:
        ctx.save_for_backward(codes, most)
        return hard

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        codes, most = ctx.saved_tensors
        inside = (codes >= -0.5) & (codes <= most + 0.5)
        return grad * inside, None, None


class TrainableNetwork:
    """Makes a quantized network trainable while the block runs, and hard again at its end.

    Attributes:
        weights: latent weights of the quantized layers.
        quantizers: activation quantizers; their ``scale`` is trained.
        normalisation: of the outputs of convolutions while they are trained; None without.
    """

    def __init__(self, network: QuantModel):
        self.normalisation: Normalisation | None = None
        layers = quant_layers(network).values()
        self.layers = [layer for layer in layers if layer.quantized]
        quantizers = activation_quantizers(network).values()
        self.quantizers = [quantizer for quantizer in quantizers if quantizer.quantized]
        self.weights: list[LatentWeight] = []

    def __enter__(self) -> TrainableNetwork:
        for layer in self.layers:
            weight = LatentWeight(layer)
            layer.rounding = weight
            self.weights.append(weight)
            if layer.bias is not None:
                layer.bias = layer.bias.detach().clone().requires_grad_(True)
        for quantizer in self.quantizers:
            quantizer.scale = quantizer.scale.detach().clone().requires_grad_(True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.normalisation is not None:
            self.normalisation.remove()
        for weight in self.weights:
            weight.store()
        for layer in self.layers:
            layer.rounding = None
            layer.bias = None if layer.bias is None else layer.bias.detach()
        for quantizer in self.quantizers:
            quantizer.scale = quantizer.scale.detach()

    def normalise(self, normalisation: Normalisation) -> None:
        """Train gain and shift of normalised outputs instead of the scale and bias of the layer."""
        self.normalisation = normalisation
        normalised = {output.layer for output in normalisation.outputs}
        for weight in self.weights:
            if weight.layer in normalised:
                weight.ratio.requires_grad_(False)
        for layer in normalised:
            layer.bias = None if layer.bias is None else layer.bias.detach()

    @property
    def parameters(self) -> list[Tensor]:
        """All trained tensors, in a fixed order."""
        return [*self.codes, *self.factors, *self.summands, *self.scales]

    @property
    def codes(self) -> list[Tensor]:
        """The latent codes of all weights."""
        return [weight.codes for weight in self.weights]

    @property
    def factors(self) -> list[Tensor]:
        """Factors of weights and of normalised outputs, 1 at the start."""
        ratios = [weight.ratio for weight in self.weights if weight.ratio.requires_grad]
        return ratios + [output.gain for output in self._normalised]

    @property
    def summands(self) -> list[Tensor]:
        """Biases, and shifts of normalised outputs."""
        biases = [layer.bias for layer in self.layers if layer.bias is not None]
        shifts = [output.shift for output in self._normalised]
        return [bias for bias in biases if bias.requires_grad] + shifts

    @property
    def _normalised(self) -> list[NormalisedOutput]:
        return [] if self.normalisation is None else self.normalisation.outputs

    @property
    def scales(self) -> list[Tensor]:
        """The scales of the activation quantizers."""
        return [quantizer.scale for quantizer in self.quantizers]

    @torch.no_grad()
    def keep_positive(self) -> None:
        """Clamp all scales to positive values."""
        for scale in self.scales:
            scale.clamp_(min=MIN_SCALE)
        for factor in self.factors:
            factor.clamp_(min=MIN_RATIO)
