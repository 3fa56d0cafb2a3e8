"""What is quantized, and to how many bits."""

from __future__ import annotations

from dataclasses import dataclass

NOT_QUANTIZED = 32
HEAD_STEM_BITS = 8
ACT_POINTS = ("inputs", "outputs")


@dataclass(frozen=True)
class QuantSpec:
    """What is quantized to how many bits; 32 bits means that it is left in float.

    The weights of the layers fed by the image (stem) and of the last layer (head), and the tensor
    that feeds the head, take at least 8 bits while ``head_stem_8bit`` holds.

    Attributes:
        float_ends: the first and the last convolution, all linear layers, the first and the last
            quantized tensor stay in float (LAPQ, code of Nahshan et al.).
        act_points: ``inputs``: the tensor that feeds a layer is quantized, once, where it is
            produced; ``outputs``: the output of each convolution, behind its ReLU where one follows
            directly, so that sums are not quantized, and that of the stem with at least 8 bits while
            ``head_stem_8bit`` holds (ACIQ, code of Banner et al.).
        fold: batch norms are folded into the layers before them.
    """

    n_bits_w: int
    n_bits_a: int
    channel_wise: bool = True
    head_stem_8bit: bool = True
    float_ends: bool = False
    act_points: str = "inputs"
    fold: bool = True

    def weight_bits(self, is_end: bool) -> int:
        """Bits of a weight; ``is_end``: it belongs to the stem or the head."""
        return self._bits(self.n_bits_w, is_end)

    def activation_bits(self, is_end: bool) -> int:
        """Bits of an activation; ``is_end``: it feeds the head, or the stem made it where outputs
        are quantized.
        """
        return self._bits(self.n_bits_a, is_end)

    def is_fixed(self, is_end: bool) -> bool:
        """Whether a tensor has bits of its own, which searches and bitwidth sweeps leave alone."""
        return is_end and self.head_stem_8bit

    def _bits(self, bits: int, is_end: bool) -> int:
        return max(bits, HEAD_STEM_BITS) if self.is_fixed(is_end) else bits
