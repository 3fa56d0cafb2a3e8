"""The command of a search: checks, processes that run trials, ranking, two final runs."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Sequence

import yaml

from common.console import EXIT_FAILED, EXIT_OK, write_stdout
from common.errors import InputError
from common.files import locked, require_writable
from common.marks import mark, require_replaceable
from common.sealed import read_record, write_record
from sweeps.running import Choice, log_failures, require_own_folders, run_open
from sweeps.search.bench import Bench, describe_images, load_bench
from sweeps.search.definition import Search, read_search
from sweeps.search.follow import followed
from sweeps.search.ranking import print_ranking, write_ranking
from sweeps.search.records import COMPLETE, Ended
from sweeps.search.report import WRITTEN, final_runs, write_results
from sweeps.search.specs import Worker, free_slots, workers_of
from sweeps.search.study import JOURNAL, Study, import_optuna
from sweeps.search.trials import run_trials

SEARCH_FILE = "search.json"  # what the search in a folder is
LOCK = ".search.lock"  # held while a search of the folder runs
OWN = (SEARCH_FILE, JOURNAL, *WRITTEN)

logger = logging.getLogger(__name__)


def run_search(
    options: argparse.Namespace, extra: Sequence[str], choice: Choice, argv: Sequence[str]
) -> int:
    """Run or continue a search; returns the exit status.

    Args:
        options: the flags of ``run_script.py``.
        extra: flags of ``main_imagenet.py`` for every run.
        argv: the whole command line.

    Raises:
        InputError: something in them cannot be used, or the folder holds another search.
    """
    import_optuna()
    search = read_search(options, extra)
    require_writable(search.root)
    bench = load_bench(search.options(), is_corrected=bool(search.space.correction))
    classes = next(iter(bench.jobs.values())).model.num_classes
    space = search.space
    if space.correction:
        space = space.fitted_to(bench.fitting_images, classes)
    search = dataclasses.replace(search, space=space)
    if options.search_worker is not None:
        worker = workers_of(search.root, search.arch, _without_worker(argv), 1)[0]
        return _work(search, bench, dataclasses.replace(worker, slot=options.search_worker))
    if choice.report_only and not (search.root / SEARCH_FILE).is_file():
        raise InputError(f"report_only must have a search to report, got none in {search.root}")
    _require_same(search, bench, choice.force)
    if options.dry_run:
        shown = yaml.safe_dump(search.space.plain(), sort_keys=False).rstrip()
        write_stdout(f"images:    {describe_images(bench)}\nwrites to: {search.root}\n{shown}")
        return EXIT_OK
    with locked(search.root / LOCK, lambda: logger.warning("another process runs this search")):
        _open_folder(search, bench)
        study = search.study(bench)
        del bench
        if not choice.report_only:
            _run_workers(search, study, choice, argv)
        return _conclude(search, study, choice)


def _without_worker(argv: Sequence[str]) -> list[str]:
    """The command of the search that a worker belongs to."""
    at = list(argv).index("--search_worker")
    return [*argv[:at], *argv[at + 2 :]]


def _work(search: Search, bench: Bench, worker: Worker) -> int:
    """Run trials as one process of a search.

    Raises:
        InputError: there is no such search.
    """
    if not (search.root / SEARCH_FILE).is_file():
        raise InputError(f"search_worker must be of a search, got none in {search.root}")
    _require_same(search, bench, force=True)
    study = search.study(bench, worker.slot)
    study.give_up(frozenset({worker.slot}))
    for slot in free_slots(search.root):
        study.give_up(frozenset({slot}))
    if run_trials(study, bench):
        worker.note_end()
    return EXIT_OK


def _require_same(search: Search, bench: Bench, force: bool) -> None:
    """Check that the folder is new or holds this search, and no file of the user.

    Raises:
        InputError: it holds another search, or a file that would be replaced.
    """
    root = search.root
    require_replaceable(root, OWN, force=force)
    if not (root / SEARCH_FILE).exists():
        if (root / JOURNAL).exists():
            raise InputError(f"{root / JOURNAL} must be beside its {SEARCH_FILE}, got it alone")
        return
    stored = read_record(root / SEARCH_FILE, needs_seal=True)
    if stored is None:
        raise InputError(f"{root / SEARCH_FILE} must be as it was written, got other content")
    for key, now in search.identity(bench).items():
        before = stored.get(key)
        if before != now:
            raise InputError(
                f"{key} must be {before} as in the search in {root}, got {now} "
                "(another search needs another --output_dir)"
            )


def _open_folder(search: Search, bench: Bench) -> None:
    search.root.mkdir(parents=True, exist_ok=True)
    mark(search.root, OWN)
    if not (search.root / SEARCH_FILE).exists():
        write_record(search.root / SEARCH_FILE, search.identity(bench))


def _run_workers(search: Search, study: Study, choice: Choice, argv: Sequence[str]) -> None:
    """Run processes until the search is over; what ends one for good is the end of its trial.

    Raises:
        InputError: a folder of theirs cannot be used.
    """
    while not study.is_over():
        limit = study.limits.trials
        count = choice.jobs if limit is None else min(choice.jobs, limit - len(study.ended()))
        workers = workers_of(search.root, search.arch, argv, count)
        require_own_folders(workers, choice.force)
        for worker in workers:
            worker.begin()
        with followed(study):
            choice.make_engine().run(workers, lambda spec: None)
        failed = [worker for worker in workers if worker.failure() is not None]
        lost = sum(_note_loss(study, worker) for worker in failed)
        log_failures(failed)
        if failed and not lost:
            return


def _note_loss(study: Study, worker: Worker) -> int:
    """End the trial that a process was at when it failed; returns 1, or 0 if it was at none."""
    failure = worker.failure() or {"status": None}
    reason = f"its process ended in status {failure['status']}: {worker.reason() or 'no output'}"
    return study.give_up(frozenset({worker.slot}), reason)


def _conclude(search: Search, study: Study, choice: Choice) -> int:
    """Write the ranking, evaluate the best and the default configuration; the exit status."""
    ended = study.ended()
    write_ranking(search.root, ended)
    print_ranking(ended)
    complete = sorted((one for one in ended if one.state == COMPLETE), key=lambda one: one.order)
    if not complete:
        reason = f": {ended[0].reason}" if ended else ""
        logger.error("none of %d trials gave a score%s", len(ended), reason)
        return EXIT_FAILED
    runs = final_runs(search, *best_and_default(complete))
    require_own_folders(runs, choice.force)
    if study.is_over():  # nobody sees the evaluation before
        run_open(runs, search.root, dataclasses.replace(choice, retry_failed=True))
    write_results(search, study, complete[0], runs)
    log_failures(runs)
    is_whole = study.is_over() and all(run.record() is not None for run in runs)
    if not study.is_over():
        logger.error("the search is not over: %d trials have ended", len(ended))
    return EXIT_OK if is_whole else EXIT_FAILED


def best_and_default(complete: Sequence[Ended]) -> tuple[Ended, Ended | None]:
    """The best trial and the best one with the defaults of its method; None: the latter failed.

    Args:
        complete: the trials with a score, best first.
    """
    return complete[0], next((one for one in complete if one.is_default), None)
