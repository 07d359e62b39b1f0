"""Mutual-information estimators as pure functions of log-probabilities (METHOD: arXiv 2603.19294, sections 3 and 4).

`log_probs[i, k]` is log p(y_i | c_k, x_i) in nats, where condition k = 0 is the one that y_i was sampled under.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Relative to the higher of two log-probabilities: sums of float32 terms that should be equal differ by less.
ROUNDING = 1e-6
# Raised when `identified` gives a response another value: `method.estimator=identification` learns from it.
VERSION = 2


def infonce_pmi(log_probs: Floats) -> Floats:
    """log p(y|c_0,x) − log (1/K) Σ_k p(y|c_k,x), in nats, of each row of (n, K) `log_probs`; at most log K.

    Its mean is a lower bound on I(Y; C | X) for any scoring model (van den Oord et al. 2018, eq. 4 and 5)."""
    return log_probs[:, 0] - (np.logaddexp.reduce(log_probs, axis=1) - np.log(log_probs.shape[1]))


def own_marginal_pmi(log_probs: Floats, marginal_log_probs: Floats) -> Floats:
    """log p(y|c_0,x) − log p(y|x), in nats, of each row."""
    return log_probs[:, 0] - marginal_log_probs


def log_ratio(policy_log_probs: Floats, ref_log_probs: Floats) -> Floats:
    """log π_θ(y|c,x) − log π_ref(y|c,x), in nats, of each response.

    Over y ~ π_θ(·|c,x) its mean is an unbiased estimate of KL(π_θ ‖ π_ref) (k1 of Schulman 2020, "Approximating KL
    divergence"). A single response's term, and so the mean of few, can be negative."""
    return policy_log_probs - ref_log_probs


def identified(log_probs: Floats) -> Floats:
    """The point that each row of (n, K) `log_probs` gets for telling the true condition from the others.

    1 where it gives the response the highest probability, 0 where another one does, and 1/m where it shares the highest
    with m − 1 others: what a guess among them would get on average. So a model that ignores its context gets exactly
    1/K, which is chance. Log-probabilities count as equal within `ROUNDING`; if all of a row are −∞, all are. A row
    with a NaN gets NaN."""
    highest = log_probs.max(axis=1, keepdims=True)
    ties = (log_probs == highest) | (log_probs >= highest - ROUNDING * np.abs(highest))
    points = np.where(ties[:, 0], 1 / np.maximum(ties.sum(axis=1), 1), 0.0)
    return np.where(np.isnan(highest[:, 0]), np.nan, points)
