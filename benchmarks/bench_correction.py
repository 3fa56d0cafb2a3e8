"""Time and memory of the correction grid at ImageNet's scale, compared with a plain procedure.

    python -m benchmarks.bench_correction
        3 alphas x 3 numbers of clusters x 3 dimensions on 50,000 x 1,000 logits, fitted on 10,000;
        the plain procedure for three settings, times 9; then N and C doubled: about 5 minutes

For each setting the plain procedure does what the published script does: it fits PCA and KMeans
again, and a torch loop corrects and scores one sample at a time, with the metrics of our table. The
logits are synthetic: 20 groups of samples in 64 latent dimensions, and noise.
"""

from __future__ import annotations

from common.start import run_main

import argparse
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import Tensor

from benchmarks.cifar_runs import table_head, table_line
from common.console import EXIT_OK
from correction import GridRequest, Setting, fit_grid
from evaluation.metrics import Scorer
from logits_io.naming import FULL_PRECISION
from pipeline.results import score

ALPHAS, CLUSTERS, DIMS = (0.2, 0.6, 1.0), (8, 16, 64), (25, 50, 100)
FIT = 10_000
PLAIN_SAMPLES = 5_000  # evaluation samples of the plain loop, whose time is scaled up to all
HEADER = ("N", "C", "grid, s", "peak memory, GB", "plain, s (27 settings)", "ratio")


def synthetic(samples: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Full-precision and quantized logits, (samples, classes) float32, and (samples,) targets."""
    random = np.random.default_rng(0)
    directions = random.normal(size=(64, classes)).astype(np.float32)
    groups = 2 * random.normal(size=(20, 64)).astype(np.float32)
    random = np.random.default_rng(seed)
    latent = groups[random.integers(0, 20, samples)]
    latent = latent + random.standard_normal(latent.shape, dtype=np.float32)
    fp = latent @ directions / 8
    q = 0.8 * fp + 0.5 * random.standard_normal(fp.shape, dtype=np.float32)
    return fp, q, random.integers(0, classes, samples)


def our_grid(fitting: tuple, evaluation: tuple) -> float:
    """Wall seconds to fit all settings, and to correct and score with each."""
    start = time.perf_counter()
    grid = fit_grid(fitting[1], fitting[0], GridRequest(ALPHAS, CLUSTERS, DIMS))
    scorer = Scorer(evaluation[0], evaluation[2])
    score(FULL_PRECISION, evaluation[0], scorer)
    for result, logits in grid.corrected(evaluation[1]):
        score(result.kind, logits, scorer, result.setting, result.heldout_kl)
    return time.perf_counter() - start


def plain_figures(logits: Tensor, fp: Tensor, target: int) -> Tensor:
    """Top-1, Top-5, agreement, KL and MSE of one sample."""
    best = logits.topk(5).indices
    log_p = fp.log_softmax(0)
    return torch.stack(
        [
            (best[0] == target).float(),
            (best == target).any().float(),
            (best[0] == fp.argmax()).float(),
            (log_p.exp() * (log_p - logits.log_softmax(0))).sum(),
            (logits - fp).square().mean(),
        ]
    )


def plain_setting(fitting: tuple, evaluation: tuple, setting: Setting) -> float:
    """Wall seconds of the plain procedure for one setting, scaled to all evaluation samples."""
    start = time.perf_counter()
    pca = PCA(setting.pca_dim).fit(fitting[1])
    kmeans = KMeans(setting.num_clusters, n_init=10, random_state=0).fit(pca.transform(fitting[1]))
    slopes, shifts = [], []
    for k in range(setting.num_clusters):
        q, fp = (torch.from_numpy(part[kmeans.labels_ == k]) for part in fitting[1::-1])
        centred = q - q.mean(0)
        slope = (centred * (fp - fp.mean(0))).sum(0) / centred.square().sum(0).clamp(min=1e-12)
        slopes.append(slope)
        shifts.append(fp.mean(0) - slope * q.mean(0))
    fitted = time.perf_counter() - start
    start = time.perf_counter()
    labels = kmeans.predict(pca.transform(evaluation[1][:PLAIN_SAMPLES]))
    totals = torch.zeros(5)
    for i in range(PLAIN_SAMPLES):
        q, fp = torch.from_numpy(evaluation[1][i]), torch.from_numpy(evaluation[0][i])
        line = slopes[labels[i]] * q + shifts[labels[i]]
        totals += plain_figures(q + setting.alpha * (line - q), fp, int(evaluation[2][i]))
    loop = time.perf_counter() - start
    return fitted + loop * len(evaluation[1]) / PLAIN_SAMPLES


def plain_grid(fitting: tuple, evaluation: tuple) -> float:
    """Seconds for all settings: one setting per number of clusters, times dimensions and alphas."""
    seconds = [plain_setting(fitting, evaluation, Setting(1.0, k, DIMS[1])) for k in CLUSTERS]
    return sum(seconds) * len(ALPHAS) * len(DIMS)


def in_own_process(function: Callable[..., None], *arguments: Any) -> None:
    """Run in a child process, so that peak memory is that of ``function`` alone."""
    context = torch.multiprocessing.get_context("fork")
    child = context.Process(target=function, args=arguments)
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(child.exitcode)


def report(samples: int, classes: int, plain: bool) -> None:
    """Print the row of one size."""
    fitting, evaluation = synthetic(FIT, classes, 1), synthetic(samples, classes, 2)
    ours = our_grid(fitting, evaluation)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    cells = [f"{samples}", f"{classes}", f"{ours:.1f}", f"{peak:.2f}", "-", "-"]
    if plain:
        theirs = plain_grid(fitting, evaluation)
        cells[4:] = [f"{theirs:.0f}", f"{theirs / ours:.1f}"]
    sys.stdout.write(table_line(cells))
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(prog="benchmarks.bench_correction", description=__doc__).parse_args(
        argv
    )
    sys.stdout.write(table_head(HEADER))
    sys.stdout.flush()
    for samples, classes, plain in (
        (50_000, 1000, True),
        (100_000, 1000, False),
        (50_000, 2000, False),
    ):
        in_own_process(report, samples, classes, plain)
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(run_main(main))
