"""Train one network for many bitwidths and see what each costs.

    python train_any_precision.py
        the embedded digits, 2 4 and 8 bits, in less than a minute
    python train_any_precision.py --yaml_path configs/digits.yaml --quantization_method lsq --epochs 20
    python train_any_precision.py --eval_only experiments/RUN/models/best_model.pth

Every layer has its own bits, drawn anew for every pass; validation draws others. Exit status: 0 done, 1
failed, 2 wrong usage or unusable input, 130 interrupted (--resume goes on).
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from any_precision.config import Resolver, read_file
from any_precision.data import load_images
from any_precision.run_folder import BEST_FILE, RunFolder, new_run_folder
from any_precision.settings import SIMPLE, VANILLA, Config, Optimizer, Validation
from any_precision.training import Trainer, build_network, read_checkpoint, require_same
from common.console import EXIT_OK, log_to_file, run_main, setup_logging, write_stdout
from common.errors import InputError, RunError, require_known
from common.files import require_writable, write_json
from common.flags import FlagParser
from common.provenance import utc_now, versions
from common.torch_setup import pick_device, seed_all
from models.checkpoints import state_digest
from quant.bitwidth.assignments import quantized_layers
from quant.bitwidth.statistics import interpretation

MODELS = ("ResNet",)
FLAG_FIELDS = {  # flag -> field of the configuration
    "optimizer": "name",
    "lr": "start_lr",
    "loss": "loss_name",
}

FIELD_FLAGS = {field: flag for flag, field in FLAG_FIELDS.items()}
RUN_FIELDS = ("experiments_dir", "data_root")  # where things lie, for a checkpoint as well
OF_RANDOM_VALIDATION = (
    *("num_bitwidths", "sampling", "anchors", "fixed_val_configs", "weighting", "bin_width"),
    *("knee_tolerance", "plot_every", "num_test_configs"),
)

logger = logging.getLogger(__name__)


def build_parser() -> FlagParser:
    parser = FlagParser(prog="train_any_precision.py", description=__doc__)
    add = parser.add_argument
    add("--model", default=MODELS[0], help="ResNet")
    add("--model_variant", help="resnet8 (default), 20, 32, 18, 34, 50")
    add("--yaml_path", type=Path, help="configuration, YAML or JSON")
    add("--quantization_method", default="any_precision", help="a section below quantization")
    add("--gpu", type=int, default=0, help="index; -1: the CPU")
    add("--device", help="cpu, cuda, cuda:N; overrides --gpu")
    add("--loss", help="cross_entropy, label_smoothing_ce")
    add("--dataset", type=str.lower, help="digits (default), cifar10, cifar100, imagenet")
    add("--data_root")
    add("--download", action="store_true", help="fetch CIFAR first")
    for name in ("epochs", "batch_size", "joint_quantization_batch_size", "num_bitwidths"):
        add(f"--{name}", type=int)
    for name in ("lr", "weight_decay", "clip_grad"):
        add(f"--{name}", type=float)
    add("--optimizer", help="AdamW, Adam, SGD")
    add("--bitwidth_options", type=int, nargs="+", help="2..16, 32")
    for name in ("training_method", "validation_function", "weight_quantization"):
        add(f"--{name}")
    add("--activation_quantization", help="dorefa, pact, lsq, lsqplus")
    add("--switchable_bn", help="own, off")
    add("--distillation", help="none, recursive")
    add("--sampling", help="uniform, spread")
    add("--anchors", help="plot, always, never")
    add("--fixed_val_configs", action="store_const", const=True, help="the same in every epoch")
    add("--weighting", help="of the average: layers, params, macs")
    add("--bin_width", type=float)
    add("--knee_tolerance", type=float)
    add("--plot_every", type=int, help="epochs")
    add("--test_mode", choices=("off", "final", "every_epoch"), default="final")
    add("--num_test_configs", type=int, default=10)
    add("--seed", type=int)
    add("--experiments_dir")
    add("--run_name", help="of the folder (default: the time)")
    add("--resume", type=Path, help="last_epoch.pth of an interrupted run")
    add("--eval_only", type=Path, help="test a checkpoint, train nothing")
    add("--tensorboard", action=argparse.BooleanOptionalAction, default=True)
    add("--no_tensorboard", dest="tensorboard", action="store_false", help=argparse.SUPPRESS)
    add("--strict_config", action="store_true", help="unknown keys are errors")
    add("--dry_run", action="store_true", help="print configuration and layers only")
    add("--threads", type=int, help="of the CPU")
    add("--verbose", action="store_true")
    return parser


def given_flags(options: argparse.Namespace) -> dict[str, Any]:
    """The flags that set a field of the configuration, under its name."""
    names = {f.name for part in (Config, Validation, Optimizer) for f in fields(part)}
    found = {}
    for flag, value in vars(options).items():
        name = FLAG_FIELDS.get(flag, flag)
        if value is not None and name in names:
            found[name] = value
    if "bitwidth_options" in found:
        found["bitwidth_options"] = list(found["bitwidth_options"])
    return found


def resolve(options: argparse.Namespace) -> Config:
    """The configuration of the command.

    Raises:
        InputError: a flag, the file or their combination is unusable.
    """
    require_known("model", options.model, MODELS)
    content = read_file(options.yaml_path) if options.yaml_path else {}
    resolver = Resolver(options.strict_config)
    config = resolver.resolve(content, given_flags(options), options.quantization_method)
    for text in resolver.warnings:
        logger.warning(text)
    return config


def check_flags(parser: FlagParser, options: argparse.Namespace) -> None:
    """Check the flags that are no part of the configuration, and that every flag applies.

    Raises:
        InputError: one is out of range, or does not apply.
    """
    if options.num_test_configs < 1:
        raise InputError(f"num_test_configs must be at least 1, got {options.num_test_configs}")
    if options.threads is not None and options.threads < 1:
        raise InputError(f"threads must be at least 1, got {options.threads}")
    if options.eval_only is not None:
        ours = [
            FIELD_FLAGS.get(name, name) for name in given_flags(options) if name not in RUN_FIELDS
        ]
        others = ("resume", "yaml_path", "quantization_method", "strict_config", "test_mode")
        parser.refuse(options, [*ours, *others], "with --eval_only, whose checkpoint says it")
    if options.resume is not None:
        parser.refuse(options, ("run_name",), "with --resume, which goes on in its folder")
    if options.test_mode == "off":
        parser.refuse(options, ("num_test_configs",), "with --test_mode off")
    if options.device is not None:
        parser.refuse(options, ("gpu",), "with --device")
    if options.validation_function == SIMPLE:
        parser.refuse(options, OF_RANDOM_VALIDATION, f"with {SIMPLE}")
    if options.training_method == VANILLA or options.distillation == "recursive":
        parser.refuse(
            options, ("joint_quantization_batch_size",), "where passes do not draw their bits"
        )


def choose_device(options: argparse.Namespace) -> torch.device:
    """The device; the CPU, with one warning, where --gpu names one and there is no CUDA."""
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process); returns the exit status."""
    return run_main(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    parser = build_parser()
    options = parser.parse(argv)
    setup_logging(options.verbose, plain=True)
    check_flags(parser, options)
    content = None
    if options.eval_only is not None or options.resume is not None:
        content, stored = read_checkpoint(options.eval_only or options.resume)
    if content is not None and options.eval_only is not None:
        config = replace(stored, data_root=options.data_root or stored.data_root)
    else:
        config = resolve(options)
    if options.resume is not None and content is not None:
        require_same(config, stored, options.resume)
    device = choose_device(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    seed_all(config.seed)
    images = load_images(config, options.download)
    network = build_network(config, images.num_classes, images.sample_size()).to(device)
    if options.dry_run:
        settings = (f"{key}: {value}" for key, value in config.as_dict().items())
        for line in [*settings, *layer_table(network)]:
            write_stdout(line)
        return EXIT_OK
    folder = run_path(options, config)
    require_writable(folder)
    run = RunFolder(
        folder, options.tensorboard, content["epoch"] if options.resume and content else 0
    )
    trainer = Trainer(config, network, images, device, run)
    with log_to_file(run.log, append=options.resume is not None):
        return _Session(options, trainer, argv).finish(content)


def run_path(options: argparse.Namespace, config: Config) -> Path:
    """The folder of the run: that of the checkpoint to resume, else a new one."""
    if options.resume is not None:
        return options.resume.resolve().parent.parent
    root = Path(options.experiments_dir or config.experiments_dir)
    suffix = "_eval" if options.eval_only is not None else ""
    return new_run_folder(root, options.run_name, f"{options.model}_{config.model_variant}{suffix}")


def write_config(folder: Path, config: Config) -> None:
    """The configuration as JSON and, where PyYAML is there, as YAML."""
    write_json(folder / "config.json", config.as_dict())
    try:
        import yaml
    except ImportError:
        return
    (folder / "config.yaml").write_text(yaml.safe_dump(config.as_dict()), encoding="utf-8")


class _Session:
    """A run with everything opened; whatever happens, its summary is written."""

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

    def finish(self, content: dict[str, Any] | None) -> int:
        """Train, or evaluate a checkpoint; the exit status."""
        try:
            if self.options.eval_only is not None and content is not None:
                self.trainer.load(content, str(self.options.eval_only), resume=False)
                self._test(content["epoch"])
            else:
                self._train(content)
            self.summary["status"] = "completed"
        except KeyboardInterrupt:
            self.summary["status"] = "interrupted"
            raise
        except (RunError, OSError) as error:
            self.summary["error"] = str(error)
            raise RunError(str(error)) from error
        finally:
            self._write_summary()
        write_stdout(self._last_line())
        return EXIT_OK

    def _train(self, content: dict[str, Any] | None) -> None:
        if content is not None:
            self.trainer.load(content, str(self.options.resume), resume=True)
            self.run.cut(self.trainer.done)
        if self.options.test_mode == "every_epoch":
            logger.warning(
                "test_mode every_epoch looks at the test images while choosing: report final"
            )
        self.trainer.epochs(self._test_epoch if self.options.test_mode == "every_epoch" else None)
        if self.options.test_mode == "final":
            best, _ = read_checkpoint(self.run.model(BEST_FILE))
            self.trainer.load(best, BEST_FILE, resume=False)
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
            "validation": trainer.last_result and trainer.last_result.as_dict(),
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
            return f"Done: test mean_acc {self.summary['test']['accuracy']:.4f}, {shown}, {self.run.path}"
        return (
            f"Done: best mean_acc {self.trainer.best_acc:.4f} (epoch {self.trainer.best_epoch}), {shown}, "
            f"{self.run.path}"
        )


if __name__ == "__main__":
    raise SystemExit(main())
