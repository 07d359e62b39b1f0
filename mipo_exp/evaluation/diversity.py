"""How different the responses of one model are from each other: Self-BLEU and distinct n-grams of a fixed set.

Both depend on how many texts are compared, so the set is fixed: the same examples before and after training. They are
functions of a whole set and no means over responses. So their intervals come from leaving out whole users: the
delete-one-user jackknife gives every user a pseudo-value (Miller 1974, eq. 1.2), which its responses share.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from mipo_exp.evaluation.metrics import Evaluated, Measure, clusters, measuring
from mipo_exp.evaluation.responses import words
from mipo_exp.evaluation.statistics import Values

Rows = Sequence[int]


def fixed_set(clusters: Sequence[str], size: int, seed: int) -> list[int]:
    """Rows of a seeded choice of at most `size` responses, the same number of every cluster.

    With more clusters than `size`, `size` of them give one response each; else every cluster gives the same number,
    ⌊size / clusters⌋, or what it has if that is less. Equal shares keep the sets of the jackknife equal in size.

    Args:
        clusters: whose each response is, shape (n,).
        size: the most responses to choose.
    """
    members: dict[str, list[int]] = {}
    for row, cluster in enumerate(clusters):
        members.setdefault(cluster, []).append(row)
    rng = random.Random(f"diversity/{seed}")
    order = list(members)
    rng.shuffle(order)
    each = max(1, size // max(1, len(order)))
    return sorted(
        row for cluster in order[:size] for row in rng.sample(members[cluster], min(each, len(members[cluster])))
    )


@measuring
def set_diversity(of: Evaluated) -> dict[str, Measure]:
    """`diversity` of the set that the config asks for."""
    return diversity(of.texts, clusters(of.examples), of.config.self_bleu_size, of.config.seed)


def set_facts(clusters: Sequence[str], size: int, seed: int) -> dict[str, int]:
    """For the summary: how many responses the set has, of how many users or questions, and how many were asked for."""
    rows = fixed_set(clusters, size, seed)
    return {"set_size": len(rows), "set_clusters": len({clusters[row] for row in rows}), "set_size_asked": size}


def diversity(texts: Sequence[str], clusters: Sequence[str], size: int, seed: int) -> dict[str, Measure]:
    """`diversity/self_bleu`, `diversity/distinct_1` and `diversity/distinct_2` of a fixed set of the responses."""
    rows = fixed_set(clusters, size, seed)
    grams = {row: bleu_ngrams(texts[row]) for row in rows}
    spoken = {row: words(texts[row]) for row in rows}

    def bleu_of(chosen: Rows) -> float:
        return self_bleu([grams[row] for row in chosen])

    def distinct_of(length: int, chosen: Rows) -> float:
        return distinct([spoken[row] for row in chosen], length)

    return {
        "diversity/self_bleu": set_measure(bleu_of, rows, clusters),
        "diversity/distinct_1": set_measure(partial(distinct_of, 1), rows, clusters),
        "diversity/distinct_2": set_measure(partial(distinct_of, 2), rows, clusters),
    }


def set_measure(statistic: Callable[[Rows], float], rows: Rows, clusters: Sequence[str]) -> Measure:
    """A statistic of a set as a measure with values by response, from the jackknife's pseudo-values.

    Of g clusters, cluster c has the pseudo-value θ + (g − 1)(mean of θ₋ − θ₋c), where θ is the statistic of the whole
    set and θ₋c that of the set without c. Their mean is θ; for a statistic that is itself a mean over clusters they are
    the clusters' own values, and so is the interval. For any other the jackknife overstates the
    variance on average (Efron and Stein 1981) and does not understate it.

    Args:
        statistic: a function of rows, in any order.
        clusters: whose each response is, shape (n,), with the responses outside the set.

    Returns:
        values of shape (n, 2), (pseudo-value / m, 1 / m) for the m rows of a cluster, NaN outside the set; NaN
        everywhere, and so the metric, where the statistic is undefined for the set or for one cluster less.
    """
    values = np.full((len(clusters), 2), np.nan)
    groups: dict[str, list[int]] = {}
    for row in rows:
        groups.setdefault(clusters[row], []).append(row)
    whole = statistic(rows)
    influence = np.zeros(len(groups))
    if len(groups) > 1:
        left = np.array([statistic([row for row in rows if clusters[row] != cluster]) for cluster in groups])
        influence = (len(groups) - 1) * (left.mean() - left)
    if np.isfinite(whole) and np.isfinite(influence).all():
        for members, change in zip(groups.values(), influence, strict=True):
            values[members] = [(whole + change) / len(members), 1 / len(members)]
    return Measure(values, _mean_of_clusters)


def _mean_of_clusters(values: Values) -> float:
    """Σ pseudo-values / Σ clusters; NaN where no row is of the set."""
    total, clusters = np.nansum(values, axis=0) if len(values) else (0.0, 0.0)
    # The last bits depend on the order of sums: without them, an interval that ends at zero does not exclude it.
    return round(float(total / clusters), 12) if clusters else math.nan


def distinct(spoken: Sequence[Sequence[str]], length: int) -> float:
    """Different runs of `length` words / all runs in a set of texts (Li et al. 2016, distinct-n); NaN without a run."""
    runs = [tuple(text[i : i + length]) for text in spoken for i in range(len(text) - length + 1)]
    return len(set(runs)) / len(runs) if runs else math.nan


NGrams = Mapping[tuple[str, ...], int]


def bleu_ngrams(text: str) -> NGrams:
    """How often every run of one to four tokens occurs, in sacrebleu's default tokenization (13a, case kept)."""
    from sacrebleu.metrics.bleu import MAX_NGRAM_ORDER
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokens = Tokenizer13a()(text.rstrip()).split()  # type: ignore[no-untyped-call]
    orders = range(1, MAX_NGRAM_ORDER + 1)
    return Counter(tuple(tokens[i : i + n]) for n in orders for i in range(len(tokens) - n + 1))


def self_bleu(texts: Sequence[NGrams]) -> float:
    """The mean of each text's sentence BLEU against all others, from 0 to 1 (Zhu et al. 2018, Texygen).

    Each is sacrebleu's `sentence_bleu(…, use_effective_order=True)` / 100, with its exponential smoothing. It is
    computed from counts that all texts share, in time linear in their length: matches are clipped at the most
    occurrences in any one other text, which is the set's largest count, or the second largest for the text that has it.

    Returns:
        NaN for fewer than two texts.
    """
    from sacrebleu.metrics.bleu import BLEU, MAX_NGRAM_ORDER

    if len(texts) < 2:
        return math.nan
    best: dict[tuple[str, ...], tuple[int, int]] = {}  # the largest count and whose it is
    second: dict[tuple[str, ...], int] = {}
    for index, grams in enumerate(texts):
        for gram, count in grams.items():
            most, owner = best.get(gram, (0, -1))
            if count > most:
                best[gram], second[gram] = (count, index), most
            elif owner != index:
                second[gram] = max(second[gram], count)
    lengths = [sum(count for gram, count in grams.items() if len(gram) == 1) for grams in texts]
    total_score = 0.0
    for index, grams in enumerate(texts):
        correct, total = [0] * MAX_NGRAM_ORDER, [0] * MAX_NGRAM_ORDER
        for gram, count in grams.items():
            most, owner = best[gram]
            correct[len(gram) - 1] += min(count, second[gram] if owner == index else most)
            total[len(gram) - 1] += count
        # The closest length of another text, the shorter one of two that are equally close.
        near = min((abs(length - lengths[index]), length) for i, length in enumerate(lengths) if i != index)[1]
        score = BLEU.compute_bleu(correct, total, lengths[index], near, smooth_method="exp", effective_order=True)
        total_score += score.score / 100
    return total_score / len(texts)
