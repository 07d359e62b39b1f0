"""Which words of a response carry the information: the pointwise mutual information of its tokens, for a few responses
that the report shows.

    pmi(y_t) = log p(y_t | condition, y_<t) − log p(y_t | other condition, y_<t), in nats

summed over the tokens it is the response's log-ratio (arXiv 2603.19294, section 3). The other condition of a held-out
response is its own marginal (the prompt without the context), that of a pair's sides the pair's negative condition.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mipo_exp.execution.progress import Progress
from mipo_exp.models.memory import memory_for
from mipo_exp.models.runtime import Runtime
from mipo_exp.scoring.log_probs import Scorable, token_log_probs
from mipo_exp.scoring.score import own_marginal
from mipo_exp.store.artefacts import Workspace
from mipo_exp.store.records import Example, Response, ScoredPair, TokenPmi

CHOSEN, REJECTED = "chosen", "rejected"


def token_pmi_of_responses(work: Workspace, runtime: Runtime, count: int) -> None:
    """Of the first `count` held-out responses."""
    examples, responses = work.inputs["examples"].table("eval", Example), work.inputs["responses"]
    some = zip(examples[:count], responses.table("responses", Response)[:count], strict=True)
    items = [
        (example.id, runtime.prompt_ids(example.condition), runtime.prompt_ids(own_marginal(example)), of.token_ids)
        for example, of in some
    ]
    work.write_table("tokens", _scored(work, runtime, items), TokenPmi)


def token_pmi_of_pairs(work: Workspace, runtime: Runtime, count: int) -> None:
    """Of both sides of the first `count` pairs, under the model that they were sampled from; their ids are
    EXAMPLE#NEGATIVE/chosen and …/rejected."""
    items = [
        (f"{pair.example}#{pair.negative}/{side}", pair.prompt_ids, pair.negative_ids, ids)
        for pair in work.inputs["pairs"].table("pairs", ScoredPair)[:count]
        for side, ids in ((CHOSEN, pair.chosen_ids), (REJECTED, pair.rejected_ids))
    ]
    work.write_table("tokens", _scored(work, runtime, items), TokenPmi)


def _scored(
    work: Workspace, runtime: Runtime, items: Sequence[tuple[str, list[int], list[int], list[int]]]
) -> Iterator[TokenPmi]:
    adapter = work.inputs["scorer"].path / "adapter" if "scorer" in work.inputs else None
    model = runtime.model(adapter)
    with Progress("scoring tokens", len(items), "responses") as progress:
        for name, condition, other, ids in items:
            both = [Scorable(tuple(prompt), tuple(ids)) for prompt in (condition, other)]
            with memory_for("to score two prompts at once", "shorten them, or set evaluation.token_pmi=0"):
                here, there = token_log_probs(model, both, share=False)
            found = (here - there).tolist()
            cut = list(pieces(runtime.renderer.tokenizer, ids))
            yield TokenPmi(name, [text for text, _ in cut], [sum(found[part]) for _, part in cut])
            progress.advance(1, len(ids))


def pieces(tokenizer: Any, ids: Sequence[int]) -> Iterable[tuple[str, slice]]:
    """The text of a response token by token: together where a character takes several. A token is decoded behind the
    one before it, since some tokenizers drop the space at the head of a text; special ones have no text."""
    start, before = 0, ""
    for end in range(1, len(ids) + 1):
        whole = tokenizer.decode(list(ids[max(0, start - 1) : end]), skip_special_tokens=True)
        if whole.endswith("\ufffd") and end < len(ids):
            continue
        yield whole.removeprefix(before), slice(start, end)
        start, before = end, tokenizer.decode([ids[end - 1]], skip_special_tokens=True)
