"""Selective classification with experts, in float and quantized: areas below risk against coverage.

    python -m benchmarks.selective_experts --logits_dir LOGITS --splits_dir SPLITS \\
        --output_dir RUNS --experts ce_baseline balsoftmax_baseline --suffixes "" _w8a8 _w4a4
        trains a gate and all rules for the experts with each suffix, and prints two tables: all
        rules on float experts, and what each suffix costs

LOGITS holds the npz logits of recompute_logits.py; a quantized expert is named like the float one
with a suffix.
"""

from __future__ import annotations

from common.start import run_main

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.console import EXIT_OK
from experts.gate_files import ARGSE, PRETRAINED
from experts.gating_flags import build_argse_parser, build_gating_parser
from experts.gating_job import pretrain
from experts.risk_coverage import RISKS
from experts.selective_job import selective
from experts.selective_report import RECORD

LOWS = ("0", "0.2")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.selective_experts", description=__doc__)
    parser.add_argument("--logits_dir", type=Path, required=True, help="npz logits")
    parser.add_argument("--splits_dir", type=Path, required=True, help="splits of the logits")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of gates and tables")
    parser.add_argument("--experts", nargs="+", required=True, help="names of the float experts")
    parser.add_argument(
        "--suffixes", nargs="+", default=[""], help="endings of the sets of experts (default none)"
    )
    parser.add_argument("--groups", help="as for train_argse.py")
    return parser


def measured(options: argparse.Namespace, suffix: str) -> list[dict[str, Any]]:
    """The rules of one set of experts, as in selective_summary.json."""
    root = options.output_dir / f"experts{suffix}"
    common = ["--logits_dir", str(options.logits_dir), "--splits_dir", str(options.splits_dir)]
    common += ["--quiet", "--experts", *(f"{name}{suffix}" for name in options.experts)]
    gate = root / f"{PRETRAINED}.ckpt"
    pretrain(build_gating_parser().parse([*common, "--output_dir", str(root)]))
    flags = ["--gate", str(gate), "--output_dir", str(root), "--results_dir", str(root)]
    flags += [] if options.groups is None else ["--groups", options.groups]
    selective(build_argse_parser().parse([*common, *flags]), ARGSE)
    (record,) = root.glob(f"*/{ARGSE}/{RECORD}")
    return json.loads(record.read_text())["rules"]


def _cells(row: Mapping[str, Any], low: str) -> str:
    cells = []
    for risk in RISKS:
        key = f"aurc_{risk}_from_{low}"
        ends = f"{row[key + '_low']:.4f} to {row[key + '_high']:.4f}"
        cells.append(f"{row[key]:.4f} ({ends})")
    return " | ".join(cells)


def rules_table(rules: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """All rules of one set of experts, both lowest coverages."""
    yield f"| rule | mixture | coverages from | {' | '.join(RISKS)} |"
    yield "|---" * (3 + len(RISKS)) + "|"
    for row in rules:
        for low in LOWS:
            yield f"| {row['rule']} | {row['mixture']} | {low} | {_cells(row, low)} |"


def cost_table(sets: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """The rules on the gate for every set of experts."""
    yield f"| experts | rule | {' | '.join(RISKS)} |"
    yield "|---" * (2 + len(RISKS)) + "|"
    for suffix, rules in sets.items():
        for row in rules:
            if row["mixture"] == "gate":
                yield f"| {suffix.strip('_') or 'float'} | {row['rule']} | {_cells(row, '0')} |"


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    sets = {suffix: measured(options, suffix) for suffix in options.suffixes}
    lines = [*rules_table(sets[options.suffixes[0]]), "", *cost_table(sets)]
    sys.stdout.write("\n".join(lines) + "\n")
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(run_main(main))
