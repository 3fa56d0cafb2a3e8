"""Make plot and summary of a validation at random bitwidths again from its table.

python -m quant.bitwidth --from outputs/rtn/bitwidth_sweep_X/bitwidth_configs.csv
"""

from __future__ import annotations

from common.start import run_main

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.console import EXIT_OK, write_stdout
from common.errors import InputError
from common.flags import FlagParser
from plots.axes import save_figure
from plots.bitwidth import sweep_figure
from quant.bitwidth.assignments import WEIGHTINGS
from quant.bitwidth.report import (
    FIGURE_FILE,
    known_about,
    open_sweep_folder,
    read_table,
    require_own_sweep,
    sweep_statistics,
    write_sweep,
)
from quant.bitwidth.statistics import DEFAULT_TOLERANCE


def main(argv: Sequence[str] | None = None) -> int:
    """Run with the arguments ``argv`` (default: those of the process); return the exit status."""
    return run_main(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    parser = FlagParser(prog="python -m quant.bitwidth", description=__doc__)
    parser.add_argument(
        "--from",
        dest="table",
        type=Path,
        required=True,
        help="table to read (bitwidth_configs.csv)",
    )
    parser.add_argument("--out", type=Path, help="output folder (default: that of the table)")
    parser.add_argument(
        "--weighting", choices=WEIGHTINGS, default="params", help="weights of the average bitwidth"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=DEFAULT_TOLERANCE,
        help="largest drop of accuracy at the knee, as a fraction",
    )
    parser.add_argument("--title", help="title of the plot (default: that of the summary)")
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace files of the same names that this suite did not write",
    )
    options = parser.parse(argv)
    if not 0 <= options.tolerance <= 1:
        raise InputError(f"tolerance must be from 0 to 1, got {options.tolerance}")
    rows = read_table(options.table)
    folder = options.out or options.table.parent
    require_own_sweep(folder, options.force)
    about = known_about(options.table.parent)
    known = str(about.pop("title", options.table.parent.name))
    title = options.title or known
    result = sweep_statistics(rows, options.weighting, options.tolerance)
    try:
        open_sweep_folder(folder)
        save_figure(folder / FIGURE_FILE, sweep_figure(result, title, _samples(about)))
        write_sweep(folder, rows, result, about, title)
    except OSError as error:
        raise InputError(f"out must be writable, got: {error}") from None
    for line in result.interpretation:
        write_stdout(line)
    return EXIT_OK


def _samples(about: Mapping[str, Any]) -> int | None:
    """The number of images that a sweep was evaluated on; None if its summary does not say."""
    settings = about.get("settings")
    found = settings.get("samples") if isinstance(settings, dict) else None
    return found if isinstance(found, int) and found > 0 else None


if __name__ == "__main__":
    raise SystemExit(main())
