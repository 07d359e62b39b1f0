"""Metrics of the log-probabilities: mutual information with contexts and prompts, fluency, distance from the base."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mipo_exp.evaluation.metrics import (
    FLUENCY,
    INFORMATION,
    POLICY_INFORMATION,
    RESPONSES,
    Evaluated,
    Measure,
    average,
    measuring,
    metric,
    ratio,
    register_file,
)
from mipo_exp.scoring.mutual_information import identified, infonce_pmi, log_ratio, own_marginal_pmi
from mipo_exp.store.records import Scores

_FILE = Path(__file__).with_name("information.yaml")
register_file(_FILE, scorer="base", words="base model", group=INFORMATION, main="true", headline="gain")
register_file(_FILE, scorer="policy", words="trained model", group=POLICY_INFORMATION, main="false", headline="null")


@measuring
def mutual_information(of: Evaluated) -> dict[str, Measure]:
    """The metrics of `information.yaml` under each scoring model."""
    found: dict[str, Measure] = {}
    for name, scores in of.scores.items():
        log_probs, tokens = _log_probs(scores), _tokens(scores)
        infonce = infonce_pmi(log_probs)
        marginal = own_marginal_pmi(log_probs, np.array([row.marginal_log_prob for row in scores]))
        found |= {
            f"mi/{name}/nats": average(infonce),
            f"mi/{name}/nats_per_token": ratio(infonce, tokens),
            f"mi/{name}/own_marginal_nats": average(marginal),
            f"mi/{name}/own_marginal_nats_per_token": ratio(marginal, tokens),
            f"mi/{name}/{of.contrasted}_accuracy": average(identified(log_probs)),
        }
    return found


@measuring
def prompt_relevance(of: Evaluated) -> Mapping[str, Measure]:
    """The information about the prompt where the context is given, I(Y; X | C), by the estimator that `mi/base/nats`
    has for I(Y; C | X)."""
    rows = [row.prompt_log_probs for row in of.scores.get("base", ()) if row.prompt_log_probs is not None]
    if not rows:
        return {}
    log_probs = np.array(rows, dtype=np.float64)
    return {"mi/prompt/nats": average(infonce_pmi(log_probs)), "mi/prompt/accuracy": average(identified(log_probs))}


@metric(
    *("fluency/nats_per_token", "Negative log-likelihood per token", FLUENCY, "nats per token", -1),
    column=True,
    cost="fluency",
)
def fluency(of: Evaluated) -> Measure | None:
    """−log p(y | context, prompt) of all responses divided by their tokens: one that the base model finds unlikely
    reads less like its own. The logarithm of its perplexity."""
    base = of.scores.get("base")
    return None if base is None else ratio([-row.log_probs[0] for row in base], _tokens(base))


@metric("fluency/marginal_nats_per_token", "Negative log-likelihood per token, own marginal", FLUENCY, "nats per token")
def marginal_fluency(of: Evaluated) -> Measure | None:
    """The same with the context left out (the prompt, where there is no context). It rises with the information that
    the response carries about what is left out."""
    base = of.scores.get("base")
    return None if base is None else ratio([-row.marginal_log_prob for row in base], _tokens(base))


@metric(
    *("response/kl_to_base", "KL divergence from the base model", RESPONSES, "nats"),
    column=True,
    tested=False,
    headline="cost",
)
def kl_to_base(of: Evaluated) -> Measure | None:
    """Mean of log p(y | context, prompt) under the trained model − the same under the base model, over the trained
    model's own responses: how far training has moved it. 0 before; an estimate from few responses can be negative."""
    return average(_ratios(of)) if "policy" in of.scores else None


@metric("response/kl_to_base_per_token", "KL divergence per token", RESPONSES, "nats per token")
def kl_to_base_per_token(of: Evaluated) -> Measure | None:
    """The same nats of all responses divided by their tokens."""
    return ratio(_ratios(of), _tokens(of.scores["policy"])) if "policy" in of.scores else None


def _ratios(of: Evaluated) -> np.ndarray:
    return log_ratio(_log_probs(of.scores["policy"])[:, 0], _log_probs(of.scores["base"])[:, 0])


def _log_probs(scores: Sequence[Scores]) -> np.ndarray:
    return np.array([row.log_probs for row in scores], dtype=np.float64)


def _tokens(scores: Sequence[Scores]) -> np.ndarray:
    return np.array([row.tokens for row in scores], dtype=np.float64)
