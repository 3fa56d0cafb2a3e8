"""Powell's method (M. J. D. Powell, The Computer Journal 7(2), 1964) on log-multipliers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy

BRACKET = 0.05  # first step of a line search, in the logarithm of a multiplier
LIMIT = 5.0  # multipliers stay between exp(-LIMIT) and exp(LIMIT)


def minimise(
    objective: Callable[[np.ndarray], float], size: int, maxiter: int, maxfev: int | None
) -> None:
    """Search a minimum of ``objective`` from the origin of ``size`` dimensions; what is found is the
    caller's to remember.

    Args:
        maxiter: rounds of line searches through all directions.
        maxfev: evaluations at most; None: any number.
    """
    if size == 0 or maxiter == 0:
        return
    options = {
        "maxiter": maxiter,
        "maxfev": maxfev,
        "direc": BRACKET * np.eye(size),
    }
    scipy.optimize.minimize(
        lambda point: objective(np.clip(point, -LIMIT, LIMIT)),
        np.zeros(size),
        method="Powell",
        options=options,
    )
