"""The distribution correction of PD-Quant.

Liu et al., "PD-Quant: Post-Training Quantization based on Prediction Difference Metric", CVPR 2023,
arXiv:2212.07048, section 3.3.

Adam changes the float inputs x of a unit so that the inputs of its batch norms have the mean and
the standard deviation that were stored in training, while x stays near its first value x0. The
objective is

    sum over batch norms of  mean_b sum_c (mean_hw(in) - mu)^2
                           + mean_b sum_c (sqrt(var_hw(in) + EPS) - sqrt(var + EPS))^2
    + mean_bhw sum_c (x - x0)^2 / lamb_c

The last term is the anchor. The result depends only on the float network and the calibration
images, so it is kept in a folder and reused for all bit settings. Differences from the published
code: no gradient of the weights is computed, the gradient of the anchor is computed in closed form,
and units without batch norm are left unchanged.

Letters: N images, B images in a batch.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.console import progress
from common.errors import InputError, RunError
from common.files import lock_of, locked
from common.sealed import read_array, write_array
from quant.network.capture import CapturedNetwork
from quant.network.model import UNFOLDED_SPEC, QuantModel, make_chain
from quant.network.observe import watch

EPS = 1e-6
BATCH = 32
PLATEAU_FACTOR = 0.1
PLATEAU_THRESHOLD = 1e-4  # relative decrease below which a step is no improvement
MIN_LR = 1e-5

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CorrectionSchedule:
    """Settings of the optimisation of the inputs.

    Attributes:
        lamb_c: divisor of the anchor; the smaller, the closer the inputs stay to their first value.
        steps: steps of Adam per batch.
        lr: initial learning rate, divided by 10 after ``patience`` steps without improvement.
    """

    lamb_c: float
    steps: int
    lr: float

    @property
    def patience(self) -> int:
        return max(1, self.steps // 5)


class InputCorrection:
    """Corrected inputs of all units of one network on one set of calibration images.

    Args:
        network: the float network.
        images: (N, channels, height, width) calibration images.
        folder: folder that keeps the corrected inputs; None keeps nothing.
        device: device of the computation.
    """

    def __init__(
        self,
        network: CapturedNetwork,
        images: Tensor,
        schedule: CorrectionSchedule,
        folder: Path | None,
        device: torch.device,
    ):
        self.chain = make_chain(network, UNFOLDED_SPEC).to(device)
        self.schedule = schedule
        self.folder = None
        if folder is not None:
            self.origin = _origin(self.chain, images, schedule)
            self.folder = folder / f"distribution_{self.origin[:16]}"

    def unit(self, index: int, name: str) -> nn.Module | None:
        """The float unit with its batch norms; None if it has none, so that nothing is corrected.

        Raises:
            InputError: the network is cut into other units with its batch norms than without.
        """
        if self.chain.unit_names[index : index + 1] != [name]:
            raise InputError(
                "network must be cut into the same units with and without batch norms for the "
                f"distribution correction, got none named {name!r} at place {index}"
            )
        unit = self.chain.units[index]
        return unit if _norms(unit) else None

    def corrected(self, index: int, name: str, inputs: Tensor) -> Tensor:
        """Correct the float inputs (N, ...) of unit ``index``, or read the result from the folder.

        Raises:
            RunError: the objective is not finite.
        """
        if self.folder is None:
            return self._correct(index, name, inputs)
        path = self.folder / f"unit_{index:03d}.npy"
        with locked(lock_of(path)):
            known = read_array(path, self.origin)
            if known is not None:
                return torch.from_numpy(known).to(inputs.device)
            found = self._correct(index, name, inputs)
            _keep(path, found, self.origin)
        return found

    def _correct(self, index: int, name: str, inputs: Tensor) -> Tensor:
        start = time.perf_counter()
        unit = self.chain.units[index]
        try:
            found = correct_inputs(unit, inputs, self.schedule, self.chain.device)
        except RunError as error:
            raise RunError(f"unit {index} {name}: {error}") from None
        logger.info(
            "unit %d: distribution correction changed its inputs by %.1f %%, %.1f s",
            index,
            100 * float((found - inputs).norm() / inputs.norm()),
            time.perf_counter() - start,
        )
        return found


def _keep(path: Path, inputs: Tensor, origin: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_array(path, inputs.cpu().numpy(), origin)
    except OSError as error:
        logger.warning("corrected inputs are not kept for later runs: %s", error)


def _origin(chain: QuantModel, images: Tensor, schedule: CorrectionSchedule) -> str:
    """SHA-256 in hexadecimal that identifies network, images, schedule and machine.

    The machine counts by device type, torch version and number of threads, which affect the
    rounding of sums.
    """
    machine = (chain.device.type, torch.__version__, torch.get_num_threads())
    digest = hashlib.sha256(repr((schedule, machine)).encode())
    for tensor in (*chain.state_dict().values(), images):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _norms(unit: nn.Module) -> list[nn.BatchNorm2d]:
    return [
        module
        for module in unit.modules()
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
    ]


def correct_inputs(
    unit: nn.Module, inputs: Tensor, schedule: CorrectionSchedule, device: torch.device
) -> Tensor:
    """Correct (N, ...) ``inputs`` of a float unit batch by batch; the result is on their device.

    Raises:
        RunError: the objective is not finite.
    """
    batches = inputs.split(BATCH)
    bar = progress(batches, "distribution correction", len(batches))
    return torch.cat([_correct_batch(unit, b.to(device), schedule).to(b.device) for b in bar])


def _correct_batch(unit: nn.Module, first: Tensor, schedule: CorrectionSchedule) -> Tensor:
    inputs = first.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([inputs], lr=schedule.lr, fused=True)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        factor=PLATEAU_FACTOR,
        patience=schedule.patience,
        threshold=PLATEAU_THRESHOLD,
        min_lr=MIN_LR,
    )
    for step in range(schedule.steps):
        value = float(_objective_and_gradient(unit, inputs, first, schedule.lamb_c))
        if not math.isfinite(value):
            raise RunError(
                f"objective of the distribution correction must be finite, got {value} at "
                f"iteration {step + 1}; a lower bn_lr may help"
            )
        optimizer.step()
        plateau.step(value)
    return inputs.detach()


def objective(unit: nn.Module, inputs: Tensor, first: Tensor, lamb_c: float) -> float:
    """Value of the objective at ``inputs``; ``first`` are the uncorrected inputs."""
    probe = inputs.clone().requires_grad_(True)
    return float(_objective_and_gradient(unit, probe, first, lamb_c))


def _objective_and_gradient(
    unit: nn.Module, inputs: Tensor, first: Tensor, lamb_c: float
) -> Tensor:
    """Return the value of the objective and store its gradient in ``inputs.grad``."""
    inputs.grad = None
    with torch.enable_grad(), _distances(unit) as distances:
        unit(inputs)
        distance = torch.stack(distances).sum()
        distance.backward()
    moved = inputs.detach() - first
    positions = moved.numel() / moved.shape[1]
    assert inputs.grad is not None
    inputs.grad.add_(moved, alpha=2.0 / (lamb_c * positions))
    return distance.detach() + moved.square().sum() / (lamb_c * positions)


@contextmanager
def _distances(unit: nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list that collects the statistics distance at each batch norm of a running unit."""
    distances: list[Tensor] = []

    def note(norm: Any, tensor: Tensor) -> None:
        deviation = (norm.running_var + EPS).sqrt()
        distances.append(_StatisticsDistance.apply(tensor, norm.running_mean, deviation))

    with watch(_norms(unit), note):
        yield distances


class _StatisticsDistance(torch.autograd.Function):
    """Squared distance of channel means and standard deviations from the stored ones.

    It is summed over channels and averaged over images. The gradient is an affine function of the
    input for each image and channel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        variances, means = torch.var_mean(x, (2, 3), correction=min(1, x[0, 0].numel() - 1))
        deviations = (variances + EPS).sqrt()
        ctx.save_for_backward(x, means, deviations, mean, deviation)
        distance = (means - mean).square().sum() + (deviations - deviation).square().sum()
        return distance / len(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, means, deviations, mean, deviation = ctx.saved_tensors
        positions = x.shape[2] * x.shape[3]
        factor = 2.0 * grad / len(x)
        slope = factor * (deviations - deviation) / deviations / max(1, positions - 1)
        offset = factor * (means - mean) / positions - slope * means
        return x * slope[:, :, None, None] + offset[:, :, None, None], None, None
