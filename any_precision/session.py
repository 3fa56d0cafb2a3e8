"""A run of ``train_any_precision.py``; its summary is written even if the run fails."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from any_precision.checkpoints import read_checkpoint
from any_precision.run_folder import BEST_FILE, CONFIG_FILE, CONFIG_YAML_FILE
from any_precision.settings import Config
from any_precision.training import Trainer
from common.console import EXIT_OK, write_stdout
from common.errors import InputError, RunError
from common.files import atomic_file, write_json
from common.provenance import utc_now, versions
from common.torch_setup import pick_device
from models.checkpoints import state_digest
from quant.bitwidth.assignments import quantized_layers
from quant.bitwidth.statistics import interpretation

logger = logging.getLogger(__name__)


def choose_device(options: argparse.Namespace) -> torch.device:
    """The device; the CPU, with a warning, if ``--gpu`` names a GPU and there is no CUDA."""
    if options.device is not None:
        return pick_device(options.device)
    if options.gpu < 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        logger.warning("no CUDA device: running on the CPU")
        return torch.device("cpu")
    return pick_device(f"cuda:{options.gpu}")


def layer_table(network: torch.nn.Module) -> list[str]:
    return [
        f"{name}: {layer.num_weights} weights, {layer.macs} multiply-adds, options "
        f"{', '.join(map(str, layer.bitwidth_options))}"
        for name, layer in quantized_layers(network)
    ]


def write_config(folder: Path, config: Config) -> None:
    """Write the configuration as JSON and, if PyYAML is installed, as YAML."""
    write_json(folder / CONFIG_FILE, config.as_dict())
    try:
        import yaml
    except ImportError:
        return
    with atomic_file(folder / CONFIG_YAML_FILE) as part:
        part.write_text(yaml.safe_dump(config.as_dict()), encoding="utf-8")


class Session:
    """A run, whose summary is written even if it fails."""

    def __init__(self, options: argparse.Namespace, trainer: Trainer, argv: Sequence[str]):
        self.options, self.trainer, self.run = options, trainer, trainer.run
        self.start = time.perf_counter()
        config = trainer.config
        self.summary: dict[str, Any] = {
            "experiment_id": self.run.path.name,
            "argv": list(argv),
            "status": "failed",
            "started": utc_now(),
            "config": config.as_dict(),
            "versions": versions(),
        }
        write_config(self.run.path, config)

    def finish(self) -> int:
        """Train the epochs that are not done, or test a checkpoint; returns the exit status.

        Raises:
            RunError: training or writing fails.
        """
        try:
            if self.options.eval_only is not None:
                self._test(self.trainer.done)
            else:
                self._train()
            self.summary["status"] = "completed"
        except KeyboardInterrupt:
            self.summary["status"] = "interrupted"
            raise
        except (RunError, InputError, OSError) as error:
            self.summary["error"] = str(error)
            raise RunError(str(error)) from error
        finally:
            self._write_summary()
        write_stdout(self._last_line())
        return EXIT_OK

    def _train(self) -> None:
        if self.options.test_mode == "every_epoch":
            logger.warning(
                "test_mode every_epoch tests before training is done: report results of final only"
            )
        self.trainer.epochs(self._test_epoch if self.options.test_mode == "every_epoch" else None)
        if self.options.test_mode == "final":
            best, _ = read_checkpoint(self.run.model(BEST_FILE))
            self.trainer.load_weights(best, BEST_FILE)
            self._test(best["epoch"])

    def _test_epoch(self, epoch: int) -> None:
        self.trainer.test(self.options.num_test_configs, epoch)

    def _test(self, epoch: int) -> None:
        result = self.trainer.test(self.options.num_test_configs, epoch)
        self.summary["test"] = result.as_dict()
        if result.validation is not None:
            found = result.validation.statistics
            tolerance = self.trainer.config.validation.knee_tolerance
            self.summary["knee"] = None if found.knee is None else asdict(found.knee)
            self.summary["interpretation"] = interpretation(found, tolerance)
            for line in self.summary["interpretation"]:
                logger.info("%s", line)

    def _write_summary(self) -> None:
        trainer = self.trainer
        self.summary |= {
            "epochs": trainer.done,
            "best_acc": trainer.best_acc if trainer.best_epoch else None,
            "best_epoch": trainer.best_epoch or None,
            "validation": trainer.validation,
            "weights_digest": state_digest(trainer.network),
            "seconds": round(time.perf_counter() - self.start, 2),
        }
        figures = {"final/best_acc": trainer.best_acc}
        if self.summary["status"] == "completed":
            self.run.hparams(trainer.config.as_dict(), figures)
        self.run.summary(self.summary)
        self.run.close()

    def _last_line(self) -> str:
        knee = self.summary.get("knee")
        shown = f"knee {knee['bitwidth']:g} bits" if knee else "no knee"
        if self.options.eval_only is not None:
            return (
                f"Done: test mean_acc {self.summary['test']['accuracy']:.4f}, {shown}, "
                f"{self.run.path}"
            )
        return (
            f"Done: best mean_acc {self.trainer.best_acc:.4f} (epoch {self.trainer.best_epoch}), "
            f"{shown}, {self.run.path}"
        )
