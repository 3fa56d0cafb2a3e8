"""Train one network for several bitwidths and measure its accuracy at each.

    python train_any_precision.py
        the embedded digits at 2, 4 and 8 bits, in less than a minute
    python train_any_precision.py --yaml_path configs/digits.yaml --quantization_method lsq
    python train_any_precision.py --eval_only experiments/RUN/models/best_model.pth

In every training pass each layer has bits drawn at random; validation draws its own. Flags override
the file of --yaml_path, and the file overrides the defaults. Exit status: 0 done, 1 failed, 2 wrong
usage or unusable input, 130 interrupted (--resume RUN continues).
"""

from __future__ import annotations

from common.start import run_main

import sys
from collections.abc import Sequence

import torch

from any_precision.data import load_images
from any_precision.flags import build_parser, check_flags
from any_precision.opening import configuration, open_run, run_path
from any_precision.run_folder import RunFolder
from any_precision.session import Session, choose_device, layer_table
from any_precision.training import Trainer, build_network
from common.console import EXIT_OK, log_to_file, setup_logging, write_stdout
from common.files import written_alone
from common.torch_setup import seed_all


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process); returns the exit status."""
    return run_main(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    parser = build_parser(str(__doc__))
    options = parser.parse(argv)
    setup_logging(options.verbose, plain=True)
    check_flags(parser, options)
    config = configuration(options)
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
    with written_alone(folder):
        trainer = Trainer(config, network, images, device, RunFolder(folder))
        open_run(options, trainer)
        with log_to_file(trainer.run.log, append=options.resume is not None):
            return Session(options, trainer, argv).finish()


if __name__ == "__main__":
    raise SystemExit(main())
