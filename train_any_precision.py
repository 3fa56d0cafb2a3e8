"""Train one network for several bitwidths and measure its accuracy at each.

    python train_any_precision.py
        the embedded digits at 2, 4 and 8 bits, in less than a minute
    python train_any_precision.py --yaml_path configs/digits.yaml --quantization_method lsq
    python train_any_precision.py --eval_only experiments/RUN/models/best_model.pth

In every training pass each layer has bits drawn at random; validation draws its own. Flags override
the file of --yaml_path, and the file overrides the defaults. Exit status: 0 done, 1 failed, 2 wrong
usage or unusable input, 130 interrupted (--resume continues).
"""

from __future__ import annotations

from common.start import run_main

import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from any_precision.data import load_images
from any_precision.flags import build_parser, check_flags, resolve
from any_precision.run_folder import RunFolder
from any_precision.session import Session, choose_device, layer_table, run_path
from any_precision.training import Trainer, build_network, read_checkpoint, require_same
from common.console import EXIT_OK, log_to_file, setup_logging, write_stdout
from common.files import require_writable
from common.torch_setup import seed_all


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process); returns the exit status."""
    return run_main(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    parser = build_parser(str(__doc__))
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
        return Session(options, trainer, argv).finish(content)


if __name__ == "__main__":
    raise SystemExit(main())
