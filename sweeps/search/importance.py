"""How much the settings of a search matter: the share of the variance of the score each explains.

Hutter et al., "An Efficient Approach for Assessing Hyperparameter Importance", ICML 2014 (fANOVA),
as in Optuna. A setting belongs to one method, so that each method has shares of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from sweeps.search.records import COMPLETE
from sweeps.search.space import METHOD
from sweeps.search.study import RESULT, Study

FEWEST_TRIALS = 4  # of which something can be said


def importances(study: Study) -> dict[str, dict[str, float]]:
    """Group -> setting -> share; the groups are all trials, then each method.

    Groups and settings of which too few trials are known are left out.
    """
    done = {one.index for one in study.ended() if one.state == COMPLETE and one.same_as is None}
    trials = [
        trial
        for trial in study.complete()
        if trial.user_attrs[RESULT]["index"] in done and trial.value is not None
    ]
    found = {}
    names = study.space.names()
    if METHOD in names and len(trials) >= FEWEST_TRIALS:
        pairs = [(trial.params[METHOD], trial.value) for trial in trials]
        found["all methods"] = {METHOD: share_between(pairs)}
    for method in study.space.methods:
        own = [trial for trial in trials if trial.params.get(METHOD) == method]
        wanted = [name for name in names if name.partition(".")[0] in (method, "correction")]
        shares = _shares(study, own, wanted)
        found[method] = {name.removeprefix(f"{method}."): value for name, value in shares.items()}
    return {group: shares for group, shares in found.items() if shares}


def _shares(study: Study, trials: Sequence[Any], names: Sequence[str]) -> dict[str, float]:
    """Setting -> share, among the trials that have all of the settings; empty if they are few."""
    whole = [trial for trial in trials if set(names) <= set(trial.params)]
    varied = [name for name in names if len({repr(t.params[name]) for t in whole}) > 1]
    if len(whole) < FEWEST_TRIALS or not varied or len({t.value for t in whole}) < 2:
        return {}
    optuna = study.optuna
    own = optuna.create_study(direction="minimize")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own.add_trials(whole)
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=study.seed)
        shares = optuna.importance.get_param_importances(
            own, evaluator=evaluator, params=varied, normalize=False
        )
    return {name: float(value) for name, value in shares.items()}


def share_between(pairs: Sequence[tuple[str, float]]) -> float:
    """Share of the variance of values that the means of their groups explain, from 0 to 1.

    Args:
        pairs: group and value of each.
    """
    groups: dict[str, list[float]] = {}
    for group, value in pairs:
        groups.setdefault(group, []).append(value)
    mean = fmean(value for _, value in pairs)
    total = sum((value - mean) ** 2 for _, value in pairs)
    between = sum(len(own) * (fmean(own) - mean) ** 2 for own in groups.values())
    return between / total if total > 0 else 0.0
