"""Batches by computed tokens, prefix trees, and going on after memory has run out."""

import dataclasses
import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mipo_exp.config.groups import ScoringConfig
from mipo_exp.errors import ModelError
from mipo_exp.kernels.prefix_tree import MIN_SHARED_TOKENS, build_tree, common_prefix
from mipo_exp.models.runtime import Runtime
from mipo_exp.scoring import batches, score
from mipo_exp.scoring.batches import Scorer, plan_batches, summed_log_probs
from mipo_exp.scoring.log_probs import Scorable, token_log_probs
from mipo_exp.store.artefacts import Workspace
from mipo_exp.store.tables import Mapped, read_table
from tests.test_log_probs import branching_items, some_items

SCORING = ScoringConfig(batch_tokens=150)


def random_sequences(rng: random.Random) -> list[tuple[int, ...]]:
    """Some that begin alike, some within others, some equal."""
    beginnings = [tuple(rng.randrange(2) for _ in range(rng.randrange(1, 60))) for _ in range(3)]
    found = [
        rng.choice(beginnings)[: rng.randrange(60)] + tuple(rng.randrange(3) for _ in range(rng.randrange(1, 30)))
        for _ in range(rng.randrange(1, 12))
    ]
    return found + [sequence[: max(1, len(sequence) - 3)] for sequence in found[:3]] + found[:1]


def test_a_tree_holds_every_sequence_and_what_stands_before_its_nodes() -> None:
    rng = random.Random(0)
    saved = 0
    for _ in range(300):
        sequences = random_sequences(rng)
        tree = build_tree(sequences)
        for number, sequence in enumerate(sequences):
            columns = tree.columns(number, 0, len(sequence))
            assert tuple(tree.token_ids[column] for column in columns) == sequence
            assert [tree.position_ids[column] for column in columns] == list(range(len(sequence)))
            assert tree.columns(number, len(sequence) - 1, len(sequence)) == columns[-1:]
        for number, node in enumerate(tree.nodes):
            assert node.begin < node.end <= node.subtree_end
            ancestors = set()
            above = node.parent
            while above >= 0:
                ancestors.add(above)
                above = tree.nodes[above].parent
            for other, before in enumerate(tree.nodes):
                assert (before.end <= node.begin < before.subtree_end) == (other in ancestors), number
        saved += sum(map(len, sequences)) - len(tree.token_ids)
    assert saved > 300


def test_a_short_run_in_common_is_not_shared_and_a_longer_one_is() -> None:
    for count in (MIN_SHARED_TOKENS - 1, MIN_SHARED_TOKENS):
        tree = build_tree([(1,) * count + (2, 3), (1,) * count + (4,)])
        assert len(tree.token_ids) == 3 + (count if count == MIN_SHARED_TOKENS else 2 * count)


def test_common_prefix() -> None:
    for one, other, expected in (
        ((), (1,), 0),
        ((1, 2, 3), (1, 2, 3), 3),
        ((1, 2, 3), (1, 2, 4, 5), 2),
        ((1,), (2,), 0),
    ):
        assert common_prefix(one, other) == common_prefix(other, one) == expected


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("budget", [1, 64, 300, 10**6])
def test_batches_hold_every_item_once_and_stay_within_the_budget(share: bool, budget: int) -> None:
    items = [item for seed in range(8) for item in (*branching_items(seed), *some_items(10, 250, seed))]
    planned, counts = plan_batches(items, budget, share)
    assert sorted(index for batch in planned for index in batch) == list(range(len(items)))
    for batch, most in zip(planned, counts, strict=True):
        sequences = [items[i].input_ids for i in batch]
        computed = len(build_tree(sequences).token_ids) if share else len(batch) * max(map(len, sequences))
        # A run that is too short to be shared is computed again for each sequence.
        assert computed <= most <= computed + (len(batch) - 1) * MIN_SHARED_TOKENS * share
        assert len(batch) == 1 or computed <= budget
    assert (len(planned) == 1) == (budget == 10**6)
    assert (len(planned) == len(items)) == (budget == 1)


def test_a_context_is_computed_for_all_prompts_behind_it_in_few_batches() -> None:
    """Four contexts of 200 tokens before ten prompts of 30: nothing is gained by cutting within one of them."""
    rng = random.Random(0)
    contexts = [tuple(rng.randrange(250) for _ in range(200)) for _ in range(4)]
    prompts = [tuple(rng.randrange(250) for _ in range(30)) for _ in range(10)]
    items = [Scorable(context + prompt, (1, 2, 3)) for prompt in prompts for context in contexts]
    planned, _ = plan_batches(items, 700, True)
    computed = sum(len(build_tree([items[i].input_ids for i in batch]).token_ids) for batch in planned)
    assert computed == 4 * 200 + 40 * 32
    assert all(len({items[i].prompt_ids[:200] for i in batch}) == 1 for batch in planned)


def failing(limit: int, error: Callable[[], Exception]) -> Callable[..., list[torch.Tensor]]:
    """`token_log_probs` on a machine with memory for `limit` tokens."""

    def score(model: torch.nn.Module, items: list[Scorable], share: bool) -> list[torch.Tensor]:
        if len(build_tree([item.input_ids for item in items]).token_ids) > limit:
            raise error()
        return token_log_probs(model, items, share)

    return score


ERRORS = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    MemoryError,
]


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu", "windows", "python"])
def test_memory_that_runs_out_halves_the_budget_and_changes_no_score(
    error: Callable[[], Exception], tiny: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, items = tiny.fresh_model(), branching_items()
    expected = [float(row.sum()) for row in token_log_probs(model, items, True)]
    monkeypatch.setattr(batches, "token_log_probs", failing(150, error))
    scorer = Scorer(model, dataclasses.replace(SCORING, batch_tokens=2000), True)
    with caplog.at_level(logging.WARNING):
        assert scorer(items) == pytest.approx(expected, abs=1e-4)
        assert 50 <= scorer.budget < 500
        lines = len(caplog.records)
        assert scorer(items) == pytest.approx(expected, abs=1e-4)
    assert lines == len(caplog.records) <= 4  # what fits is known from then on
    assert "out of memory while scoring 2000 tokens at once; continuing with at most 500" in caplog.text


def test_one_item_without_memory_is_one_clear_error(tiny: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "token_log_probs", failing(30, MemoryError))
    with pytest.raises(ModelError, match=r"a single response of \d+ tokens behind its prompt of \d+"):
        Scorer(tiny.fresh_model(), SCORING, True)(branching_items())


def test_other_errors_are_not_taken_for_a_lack_of_memory(tiny: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "token_log_probs", failing(30, lambda: RuntimeError("shapes do not agree")))
    with pytest.raises(RuntimeError, match="shapes do not agree"):
        Scorer(tiny.fresh_model(), SCORING, True)(branching_items())


def test_a_stage_keeps_its_shards_when_memory_runs_out_and_uses_none_of_another_plan(
    tiny: Runtime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    items = list(dict.fromkeys(branching_items()))
    expected = [float(row.sum()) for row in token_log_probs(tiny.fresh_model(), items, True)]
    monkeypatch.setattr(batches, "token_log_probs", failing(90, MemoryError))
    work = Workspace(tmp_path, {})
    # An earlier version put other items into its second batch.
    work.shard(1, score._BatchScores, lambda: [score._BatchScores(0, 7.0)])
    assert list(score.score_items(work, tiny, SCORING, items, "scoring")) == pytest.approx(expected, abs=1e-4)
    kept = {
        file.name[:6]: [row.item for row in read_table(file, score._BatchScores)]
        for file in sorted(tmp_path.glob("shards/*/*.arrow"))
    }
    planned, _ = plan_batches(items, SCORING.batch_tokens, True)
    assert len(planned) > 3
    assert kept == {f"{number:06d}": batch for number, batch in enumerate(planned)}


def test_items_are_scored_by_the_window_and_made_when_they_are_needed(
    tiny: Runtime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    items = branching_items()
    items = [*items, *items[::-1], items[0]]
    expected = [float(token_log_probs(tiny.fresh_model(), [item], True)[0].sum()) for item in items]
    made: list[int] = []

    def make(number: int) -> Scorable:
        made.append(number)
        return items[number]

    for tokens, times in ((2**22, 1), (60, 2)):
        monkeypatch.setattr(score, "WINDOW_TOKENS", tokens)
        made.clear()
        work = Workspace(tmp_path / str(tokens), {})
        found = score.score_items(work, tiny, SCORING, Mapped(make, range(len(items))), "scoring")
        assert list(found) == pytest.approx(expected, abs=1e-4)
        assert max(made.count(number) for number in range(len(items))) == times
        shards = (tmp_path / str(tokens)).glob("shards/*/*.arrow")
        scored = [row.item for file in shards for row in read_table(file, score._BatchScores)]
        assert len(scored) == len(set(scored))
        assert (len(scored) == len(set(items))) == (times == 1), "equal items of one window are scored once"


def test_summed_log_probs_score_equal_items_once_and_keep_their_order(
    tiny: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, items = tiny.fresh_model(), branching_items()
    expected = [float(token_log_probs(model, [item], False)[0].sum()) for item in items]
    scored: list[Scorable] = []

    def counting(model: torch.nn.Module, items: list[Scorable], share: bool) -> list[torch.Tensor]:
        scored.extend(items)
        return token_log_probs(model, items, share)

    monkeypatch.setattr(batches, "token_log_probs", counting)
    found = summed_log_probs(model, items[::-1] + items, SCORING, True)
    assert found == pytest.approx(expected[::-1] + expected, abs=1e-4)
    assert len(scored) == len(set(items))
