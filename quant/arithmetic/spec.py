"""Specification of the tensors to quantize and of their bits."""

from __future__ import annotations

from dataclasses import dataclass

NOT_QUANTIZED = 32
HEAD_STEM_BITS = 8
ACT_POINTS = ("inputs", "outputs")


@dataclass(frozen=True)
class QuantSpec:
    """Tensors to quantize, and their bits; 32 bits leave a tensor in float.

    With ``head_stem_8bit`` the weights of the layers that read the image (stem) and of the last
    layer (head), and the tensor that feeds the head, have at least 8 bits.

    Attributes:
        float_ends: leave the first and the last convolution, all linear layers, and the first and
            the last activation in float (LAPQ, code of Nahshan et al.).
        act_points: ``inputs`` quantizes each tensor that feeds a layer, once, where it is produced.
            ``outputs`` quantizes the output of each convolution, after a ReLU that directly follows
            it, so that sums are not quantized; with ``head_stem_8bit`` that of the stem has at
            least 8 bits (ACIQ, code of Banner et al.).
        fold: fold batch norms into the layers before them.
    """

    n_bits_w: int
    n_bits_a: int
    channel_wise: bool = True
    head_stem_8bit: bool = True
    float_ends: bool = False
    act_points: str = "inputs"
    fold: bool = True

    def weight_bits(self, is_end: bool) -> int:
        """Bits of a weight; ``is_end`` if it belongs to the stem or the head."""
        return self._bits(self.n_bits_w, is_end)

    def activation_bits(self, is_end: bool) -> int:
        """Bits of an activation.

        Args:
            is_end: whether it feeds the head or, if outputs are quantized, is that of the stem.
        """
        return self._bits(self.n_bits_a, is_end)

    def is_fixed(self, is_end: bool) -> bool:
        """Whether a tensor has fixed bits, which searches and random assignments do not change."""
        return is_end and self.head_stem_8bit

    def _bits(self, bits: int, is_end: bool) -> int:
        return max(bits, HEAD_STEM_BITS) if self.is_fixed(is_end) else bits
