"""From verdicts to numbers: pure functions."""

import math

import numpy as np
from numpy.typing import NDArray

# Of the length coefficient's square, so that lengths which separate wins from losses do not make it infinite.
RIDGE = 0.1
TOLERANCE = 1e-9

Values = NDArray[np.float64]


def pair_outcome(before_first: str | None, after_first: str | None) -> float:
    """1 where both orders prefer `after`, 0 where both prefer `before`, ½ (a tie) where they differ or say so.

    Args:
        before_first: the verdict (`before`, `after` or `tie`) with the response of `before` shown first.
        after_first: the same with the other one first.

    Returns:
        NaN where either verdict could not be read.
    """
    if before_first is None or after_first is None:
        return math.nan
    if before_first != after_first:
        return 0.5
    return {"after": 1.0, "before": 0.0, "tie": 0.5}[before_first]


def length_controlled(values: Values) -> float:
    """The win rate that a logistic regression predicts for responses of equal length.

    As in AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475, eq. 2), without its term for the difficulty of an
    instruction, which needs the judgements of many other models:

        P(after preferred) = σ(θ + φ · tanh(Δ / s)),   Δ = length after − length before,   s = standard deviation of Δ,

    fitted to outcomes of 0, ½ and 1 by maximum likelihood with a penalty of ½ · RIDGE · φ² (theirs is an L1 penalty
    chosen by cross-validation), and evaluated at Δ = 0: σ(θ).

    Args:
        values: outcome and Δ in characters, shape (n, 2); rows with a NaN are left out.

    Returns:
        NaN without rows; the plain win rate where Δ does not vary (there is nothing to control) or where every outcome
        is a win, or every one a loss.
    """
    rows = values[~np.isnan(values).any(axis=1)]
    if not len(rows):
        return math.nan
    outcome, delta = rows[:, 0], rows[:, 1]
    rate = float(outcome.mean())
    spread = float(delta.std(ddof=1)) if len(rows) > 1 else 0.0
    if spread == 0 or rate in (0.0, 1.0):
        return rate
    theta, _ = fit_logistic(outcome, np.tanh(delta / spread), RIDGE)
    return float(1 / (1 + np.exp(-theta)))


def fit_logistic(outcome: Values, feature: Values, ridge: float) -> tuple[float, float]:
    """θ and φ that minimize −Σ [y log p + (1 − y) log(1 − p)] + ½ · ridge · φ², p = σ(θ + φ x).

    Args:
        outcome: y from 0 to 1, shape (n,), neither all 0 nor all 1 (θ would be infinite).
        feature: x, shape (n,).
        ridge: above 0.
    """
    from scipy.optimize import minimize  # not where only a config is read
    from scipy.special import expit

    design = np.stack([np.ones_like(feature), feature], axis=1)
    penalty = np.array([0.0, ridge])

    def objective(point: Values) -> tuple[float, Values]:
        logits = design @ point
        value = (np.logaddexp(0, logits) - outcome * logits).sum() + 0.5 * penalty @ point**2
        return float(value), design.T @ (expit(logits) - outcome) + penalty * point

    def hessian(point: Values) -> Values:
        p = expit(design @ point)
        return np.asarray((design * (p * (1 - p))[:, None]).T @ design + np.diag(penalty))

    found = minimize(objective, np.zeros(2), jac=True, hess=hessian, method="trust-exact", options={"gtol": TOLERANCE})
    return float(found.x[0]), float(found.x[1])


CHECK_ERRORS = ("unhelpful", "inconsistent", "hallucinated_violation", "unaware_violation")


def preference_error(
    acknowledge: bool | None, violate: bool | None, hallucinate: bool | None, helpful: bool | None
) -> tuple[float, str | None]:
    """PrefEval's accuracy and kind of error of one response (Zhao et al. 2025, arXiv 2502.09597).

    A response that does not help is `unhelpful`; one that does and violates the preference is an `unaware_violation`
    where it does not state the preference, a `hallucinated_violation` where it states another one, and `inconsistent`
    where it states the right one. Accurate is what has no error.

    Args:
        hallucinate: None also where the preference is not acknowledged; read only where it is.

    Returns:
        1, 0 or, where the verdicts that could be read do not decide it, NaN; and the kind of error where it is known.
        (PrefEval's own script takes an answer that it cannot read for "no violation" and "helpful".)
    """
    if helpful is False:
        return 0.0, "unhelpful"
    if violate is False:
        return (math.nan if helpful is None else 1.0), None
    if violate is None:
        return math.nan, None
    if helpful is None or acknowledge is None:
        return 0.0, None
    if not acknowledge:
        return 0.0, "unaware_violation"
    if hallucinate is None:
        return 0.0, None
    return 0.0, "hallucinated_violation" if hallucinate else "inconsistent"
