"""The losses of the methods that contrast more than two responses, as pure functions of log-probabilities.

All are in nats. A row of a matrix belongs to a condition (c_i, x_i), a column to a response y_j.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def softmax_dpo_loss(log_ratios: "torch.Tensor", present: "torch.Tensor", beta: float) -> "torch.Tensor":
    """−log softmax(β r)_0, the mean over groups: DPO with several rejected responses (S-DPO, arXiv 2406.09215, eq. 10).

    With one rejected response it is DPO's −log σ(β (r_0 − r_1)).

    Args:
        log_ratios: r_j = log π_θ(y_j|c,x) − log π_ref(y_j|c,x), shape (n, 1 + k), the chosen response first.
        present: (n, 1 + k), false where a group has fewer responses.
        beta: greater than 0.
    """
    scores = (beta * log_ratios).masked_fill(~present, float("-inf"))
    return (scores.logsumexp(dim=1) - scores[:, 0]).mean()


def infonce_loss(
    log_ratios: "torch.Tensor", contrasts: "torch.Tensor", beta: float, temperature: float
) -> "torch.Tensor":
    """−log softmax_j(β r_ij / T)_i, the mean over conditions: InfoNCE (arXiv 1807.03748, eq. 4) whose critic is the
    implicit reward β r_ij.

    Args:
        log_ratios: r_ij = log π_θ(y_j|c_i,x_i) − log π_ref(y_j|c_i,x_i), shape (n, n).
        contrasts: (n, n), whether y_j is a contrast for condition i; the diagonal is true.
        beta: greater than 0.
        temperature: T, greater than 0.
    """
    scores = (beta * log_ratios / temperature).masked_fill(~contrasts, float("-inf"))
    return (scores.logsumexp(dim=1) - scores.diagonal()).mean()


def sami_loss(mean_log_probs: "torch.Tensor", contrasts: "torch.Tensor") -> "torch.Tensor":
    """Half the cross-entropy over responses plus half that over conditions, the mean over the diagonal: SAMI
    (arXiv 2404.14313, eq. 4), on means over tokens, since sums of many tokens saturate the softmax.

    Args:
        mean_log_probs: (1/T_j) log π_θ(y_j|c_i,x_i), shape (n, n).
        contrasts: (n, n), symmetric, whether i and j are contrasts for each other; the diagonal is true.
    """
    scores = mean_log_probs.masked_fill(~contrasts, float("-inf"))
    rows = scores.logsumexp(dim=1) - scores.diagonal()
    columns = scores.logsumexp(dim=0) - scores.diagonal()
    return (rows + columns).mean() / 2


def sft_loss(log_probs: "torch.Tensor", tokens: "torch.Tensor") -> "torch.Tensor":
    """Minus the mean log-probability of a response token, over all tokens of the batch.

    Args:
        log_probs: log π_θ(y|c,x), summed over tokens, shape (n,).
        tokens: the number of tokens of each response, shape (n,).
    """
    return -log_probs.sum() / tokens.sum()
