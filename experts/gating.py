"""A gate that mixes the experts for each sample.

A small network computes weights w of the experts from statistics of their softmax outputs p_e, and
the mixture is sum_e w_e p_e. It is trained on logits alone, towards the targets of ``tunev``.

Letters: E experts, N samples, C classes, F = 7 E + 3 features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import RunError
from evaluation.metrics import log_softmax
from experts.calibration import fit_temperature
from experts.expert_logits import ExpertLogits

TOP = 5
TINY = 1e-12
WIDTHS = (128, 64)
DROPOUT = 0.1


@dataclass(frozen=True)
class GateOptions:
    """How a gate is trained.

    Attributes:
        balance: weight of KL(mean weights || uniform).
        clip: largest norm of the gradient.
    """

    epochs: int = 25
    batch_size: int = 128
    lr: float = 8e-4
    weight_decay: float = 2e-4
    balance: float = 0.002
    clip: float = 0.5
    seed: int = 42


@dataclass(frozen=True)
class GateRecord:
    """The course of a training: losses in nats on both halves of ``tunev`` after each epoch."""

    train: list[float]
    held_out: list[float]
    best_epoch: int


class Gate(nn.Module):
    """Weights (N, E) of the experts from features (N, F); each row sums to 1."""

    mean: Tensor  # (F,), subtracted from the features
    deviation: Tensor  # (F,), divides them

    def __init__(self, experts: int):
        super().__init__()
        self.experts = experts
        features = num_features(experts)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))
        layers: list[nn.Module] = []
        for before, after in zip((features, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
            layers += [nn.Dropout(DROPOUT)]
        last = nn.Linear(WIDTHS[-1], experts)
        nn.init.zeros_(last.weight)  # so that the weights are uniform before training
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, features: Tensor) -> Tensor:
        return self.layers((features - self.mean) / self.deviation).softmax(1)


def num_features(experts: int) -> int:
    return 7 * experts + 3


def posteriors(logits: np.ndarray, temperatures: Sequence[float]) -> np.ndarray:
    """softmax(logits / temperature) of each expert, (E, N, C)."""
    scaled = logits / np.asarray(temperatures)[:, None, None]
    return np.exp(np.stack([log_softmax(values) for values in scaled]))


def fit_temperatures(data: ExpertLogits) -> list[float]:
    """One temperature per expert, of the least negative log-likelihood."""
    return [fit_temperature(values, data.known_targets()) for values in data.logits]


def features(p: np.ndarray) -> np.ndarray:
    """Statistics of (E, N, C) posteriors, (N, F) float32.

    Seven blocks of E columns: entropy, mass of the five largest, the rest of the mass, the largest,
    the largest less the second, cosine to the mean posterior, KL divergence to it. Then entropy of
    the mean, mean variance over experts of a class, standard deviation of the largest over experts.
    """
    mean = p.mean(axis=0)
    ordered = -np.sort(-p, axis=2)
    top = ordered[:, :, :TOP].sum(axis=2)
    log_p, log_mean = np.log(p + TINY), np.log(mean + TINY)
    largest = ordered[:, :, 0]
    norms = np.linalg.norm(p, axis=2) * np.linalg.norm(mean, axis=1)
    blocks = [
        -(p * log_p).sum(axis=2),
        top,
        1.0 - top,
        largest,
        largest - ordered[:, :, 1],
        (p * mean).sum(axis=2) / norms,
        (p * (log_p - log_mean)).sum(axis=2),
    ]
    single = [-(mean * log_mean).sum(axis=1), p.var(axis=0).mean(axis=1), largest.std(axis=0)]
    return np.concatenate([*blocks, np.stack(single)]).T.astype(np.float32)


def mixture(weights: np.ndarray, p: np.ndarray) -> np.ndarray:
    """sum_e w_e p_e, (N, C), of (N, E) weights and (E, N, C) posteriors."""
    return np.einsum("ne,enc->nc", weights, p)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread, so that the bytes do not depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def gate_weights(gate: Gate, p: np.ndarray) -> np.ndarray:
    """The weights (N, E) that a gate gives to (E, N, C) posteriors."""
    gate.eval()
    with torch.no_grad(), _one_thread():
        return gate(torch.from_numpy(features(p))).double().numpy()


def gate_loss(weights: Tensor, likelihoods: Tensor, balance: float) -> Tensor:
    """-log of the mixture's probability of the target, plus balance * KL(mean weights || uniform).

    Args:
        weights: (N, E).
        likelihoods: (N, E) probability of the target by each expert.
    """
    own = -((weights * likelihoods).sum(1) + TINY).log().mean()
    mean = weights.mean(0)
    return own + balance * (mean * ((mean + TINY).log() + math.log(len(mean)))).sum()


def halves(targets: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two halves of the samples, each with half the samples of every class; sorted positions."""
    random = np.random.RandomState(seed)
    first: list[int] = []
    for label in np.unique(targets):
        places = random.permutation(np.flatnonzero(targets == label))
        first += places[: (len(places) + 1) // 2].tolist()
    chosen = np.zeros(len(targets), dtype=bool)
    chosen[first] = True
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)


def train_gate(p: np.ndarray, targets: np.ndarray, options: GateOptions) -> tuple[Gate, GateRecord]:
    """Train a gate on half of the samples; the other half chooses the epoch, epoch 0 included.

    Args:
        p: (E, N, C) posteriors.
        targets: (N,) classes, each of at least two samples.

    Raises:
        RunError: the loss is not finite.
    """
    train, held_out = (torch.from_numpy(part) for part in halves(targets, options.seed))
    x = torch.from_numpy(features(p))
    likelihoods = torch.from_numpy(p[:, np.arange(len(targets)), targets].T.copy()).float()
    generator = torch.Generator().manual_seed(options.seed)
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(options.seed)
        gate = Gate(len(p))
        gate.mean.copy_(x[train].mean(0))
        gate.deviation.copy_(x[train].std(0).clamp(min=1e-6))
        optimizer = torch.optim.AdamW(
            gate.parameters(), lr=options.lr, weight_decay=options.weight_decay
        )
        losses: tuple[list[float], list[float]] = ([], [])
        best = {key: value.clone() for key, value in gate.state_dict().items()}
        for epoch in range(options.epochs + 1):
            if epoch > 0:
                _train_epoch(gate, optimizer, x, likelihoods, train, options, generator)
            for found, part in zip(losses, (train, held_out), strict=True):
                gate.eval()
                with torch.no_grad():
                    found.append(float(gate_loss(gate(x[part]), likelihoods[part], 0.0)))
            if not math.isfinite(losses[0][-1] + losses[1][-1]):
                raise RunError(
                    f"loss of the gate must be finite, got {losses[0][-1]} in epoch {epoch}; a "
                    "lower lr may help"
                )
            if losses[1].index(min(losses[1])) == epoch:
                best = {key: value.clone() for key, value in gate.state_dict().items()}
    gate.load_state_dict(best)
    return gate.eval(), GateRecord(*losses, int(np.argmin(losses[1])))


def _train_epoch(
    gate: Gate,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    likelihoods: Tensor,
    train: Tensor,
    options: GateOptions,
    generator: torch.Generator,
) -> None:
    gate.train()
    order = train[torch.randperm(len(train), generator=generator)]
    for pick in order.split(options.batch_size):
        if len(pick) < 2:  # a batch norm has no variance
            continue
        optimizer.zero_grad()
        gate_loss(gate(x[pick]), likelihoods[pick], options.balance).backward()
        nn.utils.clip_grad_norm_(gate.parameters(), options.clip)
        optimizer.step()


def gate_state(gate: Gate) -> dict[str, Any]:
    """The tensors of a gate, for a file."""
    return {key: value.clone() for key, value in gate.state_dict().items()}


def gate_of(state: Mapping[str, Any], experts: int) -> Gate:
    """The gate in the tensors of a file."""
    gate = Gate(experts)
    gate.load_state_dict(dict(state))
    return gate.eval()
