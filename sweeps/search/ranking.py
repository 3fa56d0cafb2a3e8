"""The ranking of a search: a CSV with every trial, and a short table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.console import write_stdout
from common.files import atomic_file
from sweeps.results import as_csv
from sweeps.search.records import Ended

RANKING_FILE = "ranking.csv"
COLUMNS = (
    "rank",
    "trial",
    "method",
    "default",
    "state",
    "kl",
    "kl_error",
    "agreement_pct",
    "settings",
    "correction",
    "same_as",
    "reason",
)
SHOWN = 10  # rows of the short table
DECIMALS = 6


def ranking_rows(ended: Sequence[Ended]) -> list[dict[str, Any]]:
    """A row per trial, the best first; what was pruned or failed comes last.

    Settings are JSON: those that differ from the defaults, which are empty for them.
    """
    ranked = sorted(ended, key=lambda one: one.order)
    return [
        {
            "rank": place,
            "trial": one.index,
            "method": one.method,
            "default": one.is_default,
            "state": one.state,
            "kl": _rounded(one.kl),
            "kl_error": _rounded(one.kl_error),
            "agreement_pct": _rounded(one.agreement_pct),
            "settings": _json(one.settings),
            "correction": _json(one.correction),
            "same_as": one.same_as,
            "reason": one.reason,
        }
        for place, one in enumerate(ranked, 1)
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DECIMALS)


def _json(values: Any) -> str:
    return json.dumps(dict(sorted(values.items()))) if values else ""


def write_ranking(root: Path, ended: Sequence[Ended]) -> None:
    """Write the ranking as CSV.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_file(root / RANKING_FILE) as part:
        part.write_text(as_csv(ranking_rows(ended), COLUMNS), encoding="utf-8")


def print_ranking(ended: Sequence[Ended]) -> None:
    """Print the best trials and how many there are of each state."""
    ranked = sorted(ended, key=lambda one: one.order)
    rows = [("rank", "method", "KL", "agree %", "settings")]
    for place, one in enumerate(ranked[:SHOWN], 1):
        score = "-" if one.kl is None else f"{one.kl:.4g} ± {one.kl_error:.1g}"
        agree = "-" if one.agreement_pct is None else f"{one.agreement_pct:.2f}"
        text = one.candidate.describe() if one.kl is not None else f"{one.state}: {one.reason}"
        rows.append((str(place), one.method, score, agree, text))
    write_stdout(aligned(rows))
    states = [one.state for one in ended]
    counts = (f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states)))
    write_stdout(f"{len(ended)} trials: {', '.join(counts) or 'none'}")


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of texts as columns; the last one is not filled."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)
