"""Where the trials of a search are measured: the networks and images, loaded once.

The evaluation images are not on it. A part of the calibration images is held out: the others
calibrate, these score. The score needs no label: it is the mean KL divergence of the quantized
network, corrected where settings of the correction are searched, from the float network.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.provenance import SaveLog
from common.sealed import seal_of
from common.torch_setup import full_float32, seed_all
from correction import fit_grid
from correction.selection import holdout_size
from evaluation.metrics import agreement, sample_divergences
from loaders import DataPlan, ImageSet
from logits_io.naming import FULL_PRECISION, QUANTIZED
from pipeline import RunOptions, prepare
from pipeline.job import Job, plan_images
from pipeline.method import make_method
from pipeline.networks import NetworkPair
from quant import BaseQuantizationMethod, CapturedNetwork, QuantModel, UnitReport, capture
from quant.network.calibration import collect_calibration
from quant.network.capture import EXAMPLES
from sweeps.search.space import Candidate

HELD_OUT = 4  # one of so many calibration images
FEWEST_IMAGES = 8  # calibration images

OnPart = Callable[[int, float], None]  # called with units done and the KL with these quantized

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Score:
    """How far a quantized network is from the float one on the held-out images.

    Attributes:
        kl: mean KL divergence from the float network, nats.
        kl_error: standard error of that mean.
        agreement_pct: images with the same prediction, percent.
    """

    kl: float
    kl_error: float
    agreement_pct: float


@dataclass(frozen=True)
class Bench:
    """The float network, the images and the methods of a search.

    Attributes:
        jobs: method -> its run by default, loaded and checked.
        plans: method -> its images, without those that are held out or evaluated.
        scoring: the held-out images.
        network: the captured float network, on its device.
        is_corrected: whether settings of the correction are searched.
    """

    jobs: Mapping[str, Job]
    plans: Mapping[str, DataPlan]
    scoring: ImageSet
    pair: NetworkPair
    network: CapturedNetwork
    is_corrected: bool

    @property
    def fitting_images(self) -> int:
        """Images that corrections are fitted on; 0 where none is."""
        plan = next(iter(self.plans.values()))
        return 0 if plan.correction is None else len(plan.correction)

    def method_of(self, candidate: Candidate) -> BaseQuantizationMethod:
        """The method with the settings of a candidate.

        Raises:
            InputError: they do not fit together.
        """
        options = self.jobs[candidate.method].options
        settings = {**options.settings, **candidate.settings}
        return make_method(dataclasses.replace(options, settings=settings))

    def digest(self, candidate: Candidate) -> str:
        """Digest of what distinguishes the scores of candidates.

        Raises:
            InputError: its settings do not fit together.
        """
        settings = self.method_of(candidate).get_quantization_params()
        correction = dict(candidate.correction) if self.is_corrected else {}
        return seal_of({"method": candidate.method, "settings": settings, "correction": correction})

    @full_float32()
    def score(self, candidate: Candidate, on_part: OnPart | None = None) -> Score:
        """Quantize the network as a candidate says, and compare it with the float one.

        Args:
            on_part: called when a quarter and a half of the units are quantized, unless all of
                them are trained later.

        Raises:
            InputError, RunError: the method refuses the settings or cannot go on.
        """
        job, plan = self.jobs[candidate.method], self.plans[candidate.method]
        method = self.method_of(candidate)
        seed_all(method.settings.seed)
        quantized = method.quantize_model(
            self.network,
            None,
            plan.calibration.batches(self.pair.batch_size),
            on_model=self._watch(method, on_part),
            cache_dir=self.pair.cache_dir,
        )
        logits = self._both(quantized, self.scoring)
        found = logits[QUANTIZED]
        if self.is_corrected and plan.correction is not None:
            fitting = self._both(quantized, plan.correction)
            request = candidate.request(job.grid)
            grid = fit_grid(fitting[QUANTIZED], fitting[FULL_PRECISION], request)
            found = grid.selected_correction().transform(found)
        return _score(logits[FULL_PRECISION], found)

    def _both(self, quantized: QuantModel, images: ImageSet) -> dict[str, np.ndarray]:
        return self.pair.infer_both(quantized, images, "held-out images").logits

    def _watch(
        self, method: BaseQuantizationMethod, on_part: OnPart | None
    ) -> Callable[[QuantModel, UnitReport], None] | None:
        if on_part is None or method.settings.distill_steps > 0:
            return None

        def watch(model: QuantModel, report: UnitReport) -> None:
            done, units = report.index + 1, len(model.units)
            if done in (math.ceil(units / 4), math.ceil(units / 2)) and done < units:
                logits = self._both(model, self.scoring)
                kl = _score(logits[FULL_PRECISION], logits[QUANTIZED]).kl
                on_part(done, kl)

        return watch


def _score(reference: np.ndarray, logits: np.ndarray) -> Score:
    kl = sample_divergences(reference, logits)
    error = float(kl.std(ddof=1)) / math.sqrt(len(kl))
    return Score(float(kl.mean()), error, 100 * agreement(logits, reference))


def load_bench(options: Mapping[str, RunOptions], is_corrected: bool) -> Bench:
    """Load network and images, and hold out those that score; nothing is written but caches.

    Args:
        options: method -> the options of its run by default.
        is_corrected: whether settings of the correction are searched.

    Raises:
        InputError: network, images or an option cannot be used.
    """
    first = prepare(next(iter(options.values())))
    jobs = {method: _job_of(first, some) for method, some in options.items()}
    largest = max((job.plan for job in jobs.values()), key=lambda plan: len(plan.calibration))
    scoring = held_out(largest.calibration, first.method.settings.seed)
    held = frozenset(scoring.ids)
    plans = {method: _without(job.plan, held, is_corrected) for method, job in jobs.items()}
    cache = first.options.output.cache_dir
    decoded: dict[int, DataPlan] = {}
    for plan in plans.values():
        size = len(plan.calibration)
        decoded[size] = decoded.get(size) or _decoded(plan, cache)
    plans = {method: decoded[len(plan.calibration)] for method, plan in plans.items()}
    pair = NetworkPair(
        network=first.model.network.to(first.device),
        weights_digest=first.model.digest,
        device=first.device,
        batch_size=first.options.data.batch_size,
        cache_dir=cache,
        saves=SaveLog(),
    )
    calibration = max(plans.values(), key=lambda plan: len(plan.calibration)).calibration
    images, _ = collect_calibration(calibration.batches(pair.batch_size), EXAMPLES)
    return Bench(
        jobs, plans, scoring.loaded(cache), pair, capture(pair.network, images), is_corrected
    )


def _job_of(first: Job, options: RunOptions) -> Job:
    """The run of another method on the same network and data set."""
    method = make_method(options)
    plan = plan_images(options, method, first.dataset)
    return dataclasses.replace(first, options=options, method=method, plan=plan)


def held_out(calibration: ImageSet, seed: int) -> ImageSet:
    """The calibration images that score, drawn by the seed.

    Raises:
        InputError: there are too few calibration images.
    """
    if len(calibration) < FEWEST_IMAGES:
        raise InputError(
            f"num_samples must be at least {FEWEST_IMAGES} with --search, which holds out one of "
            f"{HELD_OUT}, got {len(calibration)} calibration images"
        )
    order = np.random.RandomState(seed).permutation(len(calibration))
    return calibration.subset(np.sort(order[: len(calibration) // HELD_OUT]))


def _without(plan: DataPlan, held: frozenset[str], is_corrected: bool) -> DataPlan:
    """The images of a method without the held-out and the evaluation images."""
    correction = plan.correction if is_corrected else None
    if correction is not None:
        correction = _others(correction, held)
        holdout_size(len(correction))
    calibration = _others(plan.calibration, held)
    return DataPlan(calibration, correction, calibration.subset([]), plan.correction_source)


def _decoded(plan: DataPlan, cache: Path | None) -> DataPlan:
    """The plan with its images in memory; there are none to evaluate."""
    correction = None if plan.correction is None else plan.correction.loaded(cache)
    calibration = plan.calibration.loaded(cache)
    return dataclasses.replace(plan, calibration=calibration, correction=correction)


def _others(images: ImageSet, held: frozenset[str]) -> ImageSet:
    return images.subset([i for i, name in enumerate(images.ids) if name not in held])


def describe_images(bench: Bench) -> str:
    """The images of a search in words."""
    sizes: Sequence[int] = [len(plan.calibration) for plan in bench.plans.values()]
    many = f"{min(sizes)} to {max(sizes)}" if min(sizes) < max(sizes) else f"{max(sizes)}"
    text = f"{many} calibrate, {len(bench.scoring)} score"
    return f"{text}, {bench.fitting_images} fit the correction" if bench.fitting_images else text


def identity_of(bench: Bench) -> dict[str, Any]:
    """Digests of what determines every score: weights and images."""
    plan = max(bench.plans.values(), key=lambda plan: len(plan.calibration))
    return {
        "weights": bench.pair.weights_digest,
        "calibration images": plan.calibration.digest(),
        "scoring images": bench.scoring.digest(),
        "correction images": None if plan.correction is None else plan.correction.digest(),
        "device": bench.pair.device.type,
    }
