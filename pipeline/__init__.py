"""One run: quantize a network, compare it with the float one, correct its logits, save everything.

from pipeline import RunOptions, prepare, run
outcome = run(prepare(RunOptions(quant_method="rtn", settings={"n_bits_w": 3})))
outcome = run(prepare(RunOptions(data=DataOptions(data_path=Path("IMAGES"))), network=network))
"""

from pipeline.job import Job, prepare
from pipeline.options import (
    CorrectionOptions,
    DataOptions,
    InputOptions,
    NetworkOptions,
    OutputOptions,
    RunOptions,
)
from pipeline.results import Results
from pipeline.stages import Outcome, run

__all__ = [
    "CorrectionOptions",
    "DataOptions",
    "InputOptions",
    "Job",
    "NetworkOptions",
    "Outcome",
    "OutputOptions",
    "Results",
    "RunOptions",
    "prepare",
    "run",
]
