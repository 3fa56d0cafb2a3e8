"""Specification of the tensors to quantize and of their bits."""

from __future__ import annotations

from dataclasses import dataclass

NOT_QUANTIZED = 32
HEAD_STEM_BITS = 8
ACT_POINTS = ("inputs", "outputs")
NO_TARGET, OPENVINO, ONNXRUNTIME = "none", "openvino", "onnxruntime"
TARGETS = (NO_TARGET, OPENVINO, ONNXRUNTIME)
UNIFORM, LOG2 = "uniform", "log2"
SOFTMAX_QUANTIZERS = (UNIFORM, LOG2)
TARGET_BITS = 8  # of the activations of a target, and at most of its weights
# Largest integers of weights. A processor without VNNI adds two products of a weight and an 8-bit
# activation in 16 bits: 2 * 255 * 64 fits, 2 * 255 * 65 does not.
MAX_LEVEL, MAX_LEVEL_VNNI = 64, 128


@dataclass(frozen=True)
class QuantSpec:
    """Tensors to quantize, and their bits; 32 bits leave a tensor in float.

    With ``head_stem_8bit`` the weights of the layers that read the image (stem) and of the last
    layer (head), and the tensor that feeds the head, have at least 8 bits.

    Attributes:
        float_ends: leave the first and the last convolution, all linear layers, and the first and
            the last activation in float (LAPQ, code of Nahshan et al.).
        act_points: ``inputs`` quantizes each tensor that feeds a layer, once, where it is produced;
            where only linear layers read it, its other readers read it in float.
            ``outputs`` quantizes the output of each convolution, after a ReLU that directly follows
            it, so that sums are not quantized; with ``head_stem_8bit`` that of the stem has at
            least 8 bits (ACIQ, code of Banner et al.).
        fold: fold batch norms into the layers before them.
        symmetric: weights have the zero point 2^(bits - 1), the middle code.
        target: of ``TARGETS``, the runtime whose integer kernels run the network. The image is
            quantized too and, for ``onnxruntime``, what a convolution gives to a sum. Weights have
            no more bits than their integers allow, and are symmetric where their zero point would
            need more.
        target_vnni: whether the target's processor has VNNI or AMX, which adds in 32 bits.
        softmax_quantizer: of ``SOFTMAX_QUANTIZERS``, the grid of softmax outputs.
    """

    n_bits_w: int
    n_bits_a: int
    channel_wise: bool = True
    head_stem_8bit: bool = True
    float_ends: bool = False
    act_points: str = "inputs"
    fold: bool = True
    symmetric: bool = False
    target: str = NO_TARGET
    target_vnni: bool = False
    softmax_quantizer: str = UNIFORM

    def weight_bits(self, is_end: bool, depthwise: bool = False) -> int:
        """Bits of a weight; ``is_end`` if it belongs to the stem or the head."""
        bits = self._bits(self.n_bits_w, is_end)
        return bits if self.target == NO_TARGET else min(bits, self.most_weight_bits(depthwise))

    def activation_bits(self, is_end: bool) -> int:
        """Bits of an activation.

        Args:
            is_end: whether it feeds the head or, if outputs are quantized, is that of the stem.
        """
        return self._bits(self.n_bits_a, is_end)

    def is_fixed(self, is_end: bool) -> bool:
        """Whether a tensor has fixed bits, which searches and random assignments do not change."""
        return is_end and self.head_stem_8bit

    def max_level(self, depthwise: bool = False) -> int:
        """The largest integer, zero point subtracted, that a weight of a target may have.

        The products of a depthwise convolution are added in 32 bits everywhere.
        """
        return MAX_LEVEL_VNNI if self.target_vnni or depthwise else MAX_LEVEL

    def most_weight_bits(self, depthwise: bool = False) -> int:
        """The most bits that a weight of a target has."""
        return (2 * self.max_level(depthwise) - 1).bit_length()

    def is_symmetric(self, bits: int, depthwise: bool = False) -> bool:
        """Whether a weight of these bits has the middle code as its zero point."""
        has_wide = self.target != NO_TARGET and 2**bits - 1 > self.max_level(depthwise)
        return self.symmetric or has_wide

    def _bits(self, bits: int, is_end: bool) -> int:
        return max(bits, HEAD_STEM_BITS) if self.is_fixed(is_end) else bits
