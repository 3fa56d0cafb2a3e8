"""Fakes that need no data and no network, and the shared files for the tests marked ``data``."""

from __future__ import annotations

import functools
import gc
import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch._export import utils as export_utils

import quant.base
from common.files import locked
from common.machine import keep_freed_memory
from models.checkpoints import state_digest
from models.cifar_resnet import CifarResNet
from models.expert import Expert
from models.lenet import LeNet
from quant import CapturedNetwork, QuantModel, capture
from quant.arithmetic import ranges
from quant.arithmetic.range_search import Grid, Sample, search_qparams
from quant.arithmetic.spec import QuantSpec
from quant.methods.lapq import search as lapq_search
from quant.network.model import make_chain

PROJECT = Path(__file__).resolve().parent.parent
DRAW = Figure.draw

keep_freed_memory()  # as the scripts do
gc.freeze()  # what the imports made stays
gc.set_threshold(200_000, 20, 100)  # graphs of networks are many objects, few of them garbage
LISTING = "_materialize_cpp_cia_ops"  # of torch's operators, which it repeats in each export
if hasattr(export_utils, LISTING):
    setattr(export_utils, LISTING, functools.cache(getattr(export_utils, LISTING)))
torch.set_num_threads(1)  # two test processes share two cores
os.environ.setdefault("OMP_NUM_THREADS", "1")  # and so do the processes that they start

# The main script on the embedded digits in a second, and the tag of its files. Ranges are those of
# the values, not searched, and the correction is fitted on a quarter of the images.
GRID = ["--alpha_list", "0.5", "1", "--num_clusters_list", "4", "--pca_dim_list", "2", "5"]
RANGES = ["--init_wmode", "minmax", "--init_amode", "minmax"]
FEW = ["--num_samples", "64", "--correction_samples", "300"]
QUICK = ["--quant_method", "rtn", *FEW, *RANGES, "--no-plots", *GRID]
TAG = "digits_resnet_w4bit_a4bit_seed1005"


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, which may be missing
def pytest_xdist_make_scheduler(config, log):
    """Let ``-n`` hand out whole files, so that what the tests of a file share is made once."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write CIFAR-10's files with twenty training and four test images, accepted by torchvision."""
    import torchvision

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *a: True)
    base = root / "cifar-10-batches-py"
    base.mkdir()
    random = np.random.RandomState(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        content = {
            "data": random.randint(0, 256, (4, 3072), dtype=np.uint8),
            "labels": [0, 1, 2, 3],
        }
        (base / name).write_bytes(pickle.dumps(content))
    names = {"label_names": [f"class{i}" for i in range(10)]}
    (base / "batches.meta").write_bytes(pickle.dumps(names))


class TinyResNet(nn.Module):
    """Stem, a block with an identity path, a block with a projection, pooling and a head."""

    def __init__(self, classes: int = 5):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.first = Block(8, 8, 1)
        self.second = Block(8, 12, 2)
        self.head = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(self.stem(x)))
        return self.head(x.mean((2, 3)))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.project = None
        if stride != 1 or inputs != outputs:
            self.project = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        out += x if self.project is None else self.project(x)
        return F.relu(out, inplace=True)


def settle_norms(network: nn.Module) -> None:
    """Give the batch norms statistics and weights other than their start, so that folding shows."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.1)


def make_tiny_network() -> nn.Module:
    torch.manual_seed(0)
    network = TinyResNet()
    settle_norms(network)
    return network.eval()


CAPTURED: dict[tuple, CapturedNetwork] = {}


def captured_once(network: nn.Module, images: Tensor) -> CapturedNetwork:
    """``capture``, whose results for the networks that most tests use are kept."""
    if type(network) not in (TinyResNet, CifarResNet, LeNet, Expert):
        return capture(network, images)
    key = (repr(network), state_digest(network), images[:8].cpu().numpy().tobytes())
    if key not in CAPTURED:
        CAPTURED[key] = capture(network, images)
    return CAPTURED[key]


def chain_of(network: nn.Module, spec: QuantSpec, size: int = 8) -> QuantModel:
    """The chain of units of a network, captured with random images of ``size`` pixels."""
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    return make_chain(captured_once(network, images), spec)


def make_tiny_images() -> Tensor:
    return torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tiny_network() -> nn.Module:
    return make_tiny_network()


@pytest.fixture
def tiny_images() -> Tensor:
    return make_tiny_images()


@pytest.fixture
def toy_logits() -> tuple[np.ndarray, np.ndarray]:
    """Quantized and full-precision logits of 400 samples and 6 classes."""
    random = np.random.RandomState(0)
    fp = random.normal(0, 3, (400, 6)).astype(np.float32)
    q = (0.8 * fp + 0.3 + random.normal(0, 0.4, fp.shape)).astype(np.float32)
    return q, fp


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """Splits of digits and experts trained on them for two epochs; tests must not change them."""
    from tests.experts_lab import Lab, make_lab

    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # shared by the processes: the first makes the lab, the others wait
    root, done = base / "lab", base / "lab.done"
    with locked(base / "lab.lock"):
        if not done.exists():
            make_lab(root)
            done.touch()
    return Lab(root)


@pytest.fixture(scope="session", autouse=True)
def networks_captured_once():
    """Capture the same network with the same images once, for tests of what comes after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quant.base, "capture", captured_once)
        yield


@pytest.fixture(scope="session", autouse=True)
def plots_are_blank():
    """Write the files of plots without anything on them, for tests of everything else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "draw", lambda figure, renderer: None)
        yield


@pytest.fixture
def real_plots(monkeypatch):
    """Draw plots as users get them."""
    monkeypatch.setattr(Figure, "draw", DRAW)


SEARCHED: dict[tuple, tuple[Tensor, Tensor]] = {}


@pytest.fixture(scope="module")
def ranges_searched_once():
    """Search the range of a tensor once, for tests of what comes after the search."""

    def search(sample: Sample, grid: Grid) -> tuple[Tensor, Tensor]:
        tensors = [sample.rows] if sample.counts is None else [sample.rows, sample.counts]
        content = [(value.shape, value.detach().cpu().numpy().tobytes()) for value in tensors]
        key = (grid, sample.rows.device, *content)
        if key not in SEARCHED:
            SEARCHED[key] = search_qparams(sample, grid)
        scale, zero_point = SEARCHED[key]
        return scale.clone(), zero_point.clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "search_qparams", search)
        patch.setattr(lapq_search, "search_qparams", search)
        yield


@pytest.fixture(scope="session")
def one_operator_table():
    """Let torch's ONNX exporter keep its table of operators, which it builds in each export."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        kept = functools.cache(ONNXRegistry.from_torchlib)
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(kept))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared images and networks; the test is skipped where there is none."""
    folder = Path(os.environ.get("PTQ_SHARED", PROJECT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("no shared data: set PTQ_SHARED to the folder that holds them")
    return folder


@pytest.fixture(scope="session")
def cifar(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked CIFAR-10 JPEG folder."""
    import tarfile

    target = tmp_path_factory.mktemp("data")
    with tarfile.open(shared / "data" / "cifar10_jpeg.tar.xz") as archive:
        archive.extractall(target, filter="data")
    return target / "cifar10_jpeg"


@pytest.fixture(autouse=True)
def restore_logging():
    """Undo what a script does to the root logger, whose stream ends with its test."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level
