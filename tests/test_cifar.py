"""The main job on the shared CIFAR-10 images and ResNet-20, against the reference figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from logits_io import LogitsAnalyzer
from main_imagenet import main

pytestmark = pytest.mark.data

FP_TOP1 = 88.21  # shared zoo/README.md
RTN_W4A4 = 84.69  # shared reference/RESULTS.md
ADAROUND_W4A4 = 87.28


def run(cifar: Path, shared: Path, output: Path, *flags: str) -> dict:
    """Run the main script on the shared network; returns its record."""
    torch.set_num_threads(2)
    command = ["--data_path", str(cifar), "--arch", "cifar_resnet20", "--save_results", "selected"]
    command += ["--checkpoint", str(shared / "zoo" / "cifar10_resnet20.pt")]
    command += ["--output_dir", str(output), *flags]
    assert main(command) == 0
    torch.set_num_threads(1)
    return json.loads(next(output.glob("*/run.json")).read_text())


@pytest.mark.slow
def test_round_to_nearest_w4a4(cifar, shared, tmp_path):
    record = run(cifar, shared, tmp_path, "--quant_method", "rtn")
    top1 = {kind: figures["top1_pct"] for kind, figures in record["figures"].items()}
    assert top1["fullprecision"] == pytest.approx(FP_TOP1, abs=0.3)
    assert top1["quantized"] >= RTN_W4A4 - 0.4
    assert top1["corrected"] >= top1["quantized"] + 0.5
    folder = next(tmp_path.glob("rtn/initial_logits_*"))
    names = sorted(path.name for path in folder.glob("*_quantized_chunk*"))
    chunks = [name.split("_quantized_")[1] for name in names]
    assert chunks == [f"chunk{i:03d}_of_010.csv" for i in range(1, 11)]
    saved = LogitsAnalyzer(tmp_path / "rtn").load(folder.name)
    assert saved.logits["quantized"].shape == (10_000, 10)
    right = saved.logits["quantized"].argmax(1) == saved.targets
    assert 100 * np.mean(right) == pytest.approx(top1["quantized"])


@pytest.mark.slow
def test_eight_bits_are_within_0_3_points_of_full_precision(cifar, shared, tmp_path):
    flags = ["--quant_method", "rtn", "--n_bits_w", "8", "--n_bits_a", "8"]
    record = run(cifar, shared, tmp_path, *flags, "--correction_samples", "1000")
    figures = record["figures"]
    assert abs(figures["quantized"]["top1_pct"] - figures["fullprecision"]["top1_pct"]) <= 0.3


@pytest.mark.slow
def test_adaround_w4a4_reaches_the_reference(cifar, shared, tmp_path):
    flags = ["--iters_w", "1000", "--lr_round", "3e-3", "--correction_samples", "1000"]
    record = run(cifar, shared, tmp_path, *flags)
    assert record["figures"]["quantized"]["top1_pct"] >= ADAROUND_W4A4 - 0.4
