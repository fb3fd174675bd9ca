"""A linear model of which of two replies was chosen: logistic regression on the difference of their features.

    p(chosen over rejected) = sigma(w . d),   d = features(chosen) - features(rejected)
    w = argmin  sum_i log(1 + exp(-w . d_i)) + l2 / 2 |w|^2

Swapping the replies turns d to -d, and p to 1 - p: there is no intercept, and each pair once as (d, 1) is the same as
the doubled set of (d, 1) and (-d, 0) (Bradley and Terry 1952, with features as in Thurstone's comparative judgement).
"""

from __future__ import annotations

from typing import Any

import numpy as np

MAX_ITERATIONS = 100


def fit(differences: Any, l2: float, rows: np.ndarray | None = None) -> np.ndarray:
    """The weights w [features] float32.

    Args:
        differences: [pairs, features] float32, a scipy sparse matrix in CSR form; it is not copied.
        l2: of the penalty, on the scale of the features as they are.
        rows: [pairs] bool, those to fit to; all by default.
    """
    from scipy.optimize import minimize

    taken = np.ones(differences.shape[0], np.float32) if rows is None else rows.astype(np.float32)
    transposed = differences.T  # a view: the same numbers as a CSC matrix

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margins = differences @ weights.astype(np.float32)
        losses = np.logaddexp(0, -margins) * taken
        slopes = -taken / (1 + np.exp(np.clip(margins, -80, 80)))
        gradient = (transposed @ slopes).astype(np.float64) + l2 * weights
        return float(losses.sum(dtype=np.float64)) + l2 / 2 * float(weights @ weights), gradient

    start = np.zeros(differences.shape[1])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": MAX_ITERATIONS, "ftol": 1e-6})
    return np.asarray(found.x, np.float32)


def out_of_fold(differences: Any, folds: np.ndarray, l2: float) -> np.ndarray:
    """[pairs] float64: the margin w . d of each pair under the weights that were fitted to the other folds."""
    margins = np.zeros(differences.shape[0])
    for fold in np.unique(folds):
        out = folds == fold
        margins[out] = (differences @ fit(differences, l2, ~out))[out]
    return margins


def hits(margins: np.ndarray) -> np.ndarray:
    """[pairs] 1 where the margin is for the chosen reply, 0 where it is against it, a half at 0."""
    return np.asarray((np.sign(margins) + 1) / 2)
