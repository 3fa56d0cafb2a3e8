"""Powell's method (M. J. D. Powell, The Computer Journal 7(2), 1964) on logarithms of factors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy

BRACKET = 0.05  # first step of a line search, in the logarithm of a factor
LIMIT = 5.0  # factors stay between exp(-LIMIT) and exp(LIMIT)


def minimise(
    objective: Callable[[np.ndarray], float], size: int, maxiter: int, maxfev: int | None
) -> None:
    """Minimise ``objective`` from the origin; ``objective`` itself must record the best point.

    Args:
        objective: function of a point, (size,) float64.
        maxiter: rounds of line searches through all directions.
        maxfev: largest number of evaluations; None sets no limit.
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
