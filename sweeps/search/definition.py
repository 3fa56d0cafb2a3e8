"""What a search is: network, bits, space, limits, and the flags that every trial shares."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common.errors import InputError
from logits_io.naming import file_name
from pipeline import RunOptions
from pipeline.command import read_command
from pipeline.flags import build_parser
from pipeline.method import require_settings
from sweeps.search.bench import Bench, identity_of
from sweeps.search.space import CORRECTION, Candidate, Space, read_space
from sweeps.search.study import Limits, Study
from sweeps.spec import CORRECTION_LISTS, SET_BY_GRID, arch_flags, parse_bits, require_free

DEFAULT_SEED = 1005
SET_BY_SEARCH = (SET_BY_GRID - set(CORRECTION_LISTS)) | {"cache_dir"}
PRINTING = ("lists", "print_config", "dry_run")  # commands that run nothing
# Flags of a run that make no sense in a trial.
REFUSED = ("recipe", "expect_top1", "resume")


@dataclass(frozen=True)
class Search:
    """A search.

    Attributes:
        root: folder of the search.
        extra: flags of ``main_imagenet.py`` that every run of it gets.
    """

    root: Path
    arch: str
    n_bits_w: int
    n_bits_a: int
    seed: int
    space: Space
    limits: Limits
    extra: tuple[str, ...]

    def flags(self, method: str, folder: Path) -> list[str]:
        """The flags of a run of a method with its defaults."""
        bits = ["--n_bits_w", str(self.n_bits_w), "--n_bits_a", str(self.n_bits_a)]
        own = ["--quant_method", method, *arch_flags(self.arch), *bits, "--seed", str(self.seed)]
        return [*own, "--output_dir", str(folder), *self._shared()]

    def _shared(self) -> list[str]:
        cache = ["--cache_dir", str(self.root / "cache")]
        return ["--save_results", "selected", *cache, *self.extra]

    def flags_of(self, candidate: Candidate, folder: Path) -> list[str]:
        """The flags of a run of a candidate."""
        own = build_parser().arguments(dict(sorted(candidate.flags().items())), "search")
        return [*self.flags(candidate.method, folder), *own]

    def options(self) -> dict[str, RunOptions]:
        """Method -> the options of its run with its defaults."""
        return {method: _options(self.flags(method, self.root)) for method in self.space.methods}

    def study(self, bench: Bench, slot: int | None = None) -> Study:
        """The study of the search, as in ``Study``."""
        defaults = {method: job.method.settings for method, job in bench.jobs.items()}
        return Study(self.root, self.space, defaults, self.limits, self.seed, slot)

    def identity(self, bench: Bench) -> dict[str, Any]:
        """Everything that determines the scores of trials and their order."""
        return {
            "arch": self.arch,
            "bits": f"{self.n_bits_w},{self.n_bits_a}",
            "seed": self.seed,
            "methods": list(self.space.methods),
            "search": self.limits.trials,
            "search_minutes": self.limits.minutes,
            "flags after --": list(self.extra),
            "search_space": self.space.plain(),
            **identity_of(bench),
        }


def read_search(options: argparse.Namespace, extra: Sequence[str]) -> Search:
    """The search that flags describe; nothing is loaded.

    Args:
        extra: flags for every run.

    Raises:
        InputError: a flag, a method, or an entry of the space cannot be used.
    """
    arch, bits, seed = _one_of_each(options)
    require_free(extra, SET_BY_SEARCH)
    name = f"search_{file_name(arch)}_w{bits[0]}a{bits[1]}_seed{seed}"
    root = options.output_dir.absolute() / name
    limits = Limits(options.search, options.search_minutes)
    empty = Search(root, arch, *bits, seed, Space({}, {}), limits, tuple(extra))
    space = read_space(options.search_space, options.methods, partial(_given, empty))
    found = Search(root, arch, *bits, seed, _with_correction(space, empty), limits, tuple(extra))
    count = len(found.space.methods)
    if limits.trials is not None and limits.trials < count:
        raise InputError(
            f"search must be at least {count}, a trial for the defaults of each method, "
            f"got {limits.trials}"
        )
    return found


def _one_of_each(options: argparse.Namespace) -> tuple[str, tuple[int, int], int]:
    """Architecture, bits and seed.

    Raises:
        InputError: there are several, or no bits.
    """
    rules: Mapping[str, tuple[Any, str]] = {
        "arch": (options.arch, "one architecture"),
        "bits": (options.bits, "one pair, as in --bits 2,4,"),
        "seeds": (options.seeds or [DEFAULT_SEED], "one seed"),
    }
    for name, (values, what) in rules.items():
        if len(dict.fromkeys(values or ())) != 1:
            got = " ".join(map(str, values or ())) or "none"
            raise InputError(f"{name} must be {what} with --search, got {got}")
    return options.arch[0], parse_bits(options.bits[0]), (options.seeds or [DEFAULT_SEED])[0]


def _options(flags: Sequence[str]) -> RunOptions:
    """The options of a run.

    Raises:
        InputError: a flag cannot be used, or not in a search.
    """
    command = read_command(build_parser(), flags)
    for name in PRINTING:
        if getattr(command, name):
            raise InputError(f"{name} must be left out after -- with --search, got it")
    options = command.options
    require_settings(options)
    for name in REFUSED:
        if getattr(options, name):
            raise InputError(f"{name} must be left out after -- with --search, got it")
    if options.correction.load_correction is not None:
        raise InputError("load_correction must be left out after -- with --search, got it")
    return options


def _given(search: Search, method: str) -> frozenset[str]:
    return frozenset(_options(search.flags(method, search.root)).settings)


def _with_correction(space: Space, search: Search) -> Space:
    """The space, without the correction where flags switch it off.

    Raises:
        InputError: flags set what the space searches.
    """
    if not space.correction:
        return space
    wanted = _options(search.flags(next(iter(space.methods)), search.root)).correction
    if not wanted.correction:
        if space.is_default:
            return space.without_correction()
        raise InputError(f"{CORRECTION} must be left out of the search space with --no-correction")
    for name in (*CORRECTION_LISTS, "shrinkage"):
        if getattr(wanted, name) is not None:
            raise InputError(
                f"{name} must be left out after --, because the search space sets it "
                "(one without correction leaves it to the flag)"
            )
    return space
