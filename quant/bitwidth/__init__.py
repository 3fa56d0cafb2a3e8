"""Bitwidths of layers: averages, random assignments, validation, knee."""

from quant.bitwidth.assignments import (
    BitwidthControlled,
    cost_of_configuration,
    draw_configuration,
    get_average_bitwidth,
    measure_macs,
    quantized_layers,
)
from quant.bitwidth.statistics import bin_statistics, find_knee, interpretation
from quant.bitwidth.validation import evaluate_loader, validate_random_bitwidths

__all__ = [
    "BitwidthControlled",
    "bin_statistics",
    "cost_of_configuration",
    "draw_configuration",
    "evaluate_loader",
    "find_knee",
    "get_average_bitwidth",
    "interpretation",
    "measure_macs",
    "quantized_layers",
    "validate_random_bitwidths",
]
