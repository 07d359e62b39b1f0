"""Controls: what each takes out of the pairs, and that it leaves the rest."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from mipo_exp.cli import CONFIG_DIR
from mipo_exp.config.schema import CONTROLS
from mipo_exp.data.tasks import declare_examples
from mipo_exp.errors import ConfigError
from mipo_exp.generation import responses
from mipo_exp.models.runtime import Runtime
from mipo_exp.pairing.pairs import build_pairs
from mipo_exp.pipeline import declare
from mipo_exp.planning.work import estimate_work
from mipo_exp.store.artefacts import Artefact, Stage, Store, Workspace
from mipo_exp.store.records import Condition, Example, Negative, Pair, Response
from tests.conftest import Experiment, composed
from tests.test_pipeline import artefact

USERS, REQUESTS = 4, 25


def test_every_control_has_a_yaml() -> None:
    assert {path.stem for path in (CONFIG_DIR / "control").glob("*.yaml")} == set(CONTROLS)
    for name, schema in CONTROLS.items():
        assert type(composed(f"control={name}").control) is schema


def built(runtime: Runtime, folder: Path, swaps: float, seed: int) -> list[Pair]:
    """Pairs of examples whose responses say which is which."""
    examples = [
        Example(f"{u}/{q}", f"u{u}", f"q{q}", f"I am {u}.", f"Question {q}", "{}")
        for u in range(USERS)
        for q in range(REQUESTS)
    ]
    negatives = [Negative(item.id, 0, "no_context", None, item.prompt, None) for item in examples]
    chosen = [Response(item.id, [7, number, 2], f"good {number}", True) for number, item in enumerate(examples)]
    rejected = [Response(item.id, [8, number, 2], f"bad {number}", True) for number, item in enumerate(negatives)]
    stages = {
        "examples": Stage("examples", 1, {}, {}, lambda work: work.write_table("train", examples, Example)),
        "chosen": Stage("chosen", 1, {}, {}, lambda work: work.write_table("responses", chosen, Response)),
    }

    def write_rejected(work: Workspace) -> None:
        work.write_table("negatives", negatives, Negative)
        work.write_table("responses", rejected, Response)

    stages["rejected"] = Stage("rejected", 1, {}, {}, write_rejected)
    pairs = composed().pairs
    stage = Stage("pairs", 1, {}, stages, lambda work: build_pairs(work, runtime, pairs, swaps, seed))
    store = Store(folder)
    found = store.fetch(stage, {name: store.fetch(of, {})[0] for name, of in stages.items()})[0]
    assert found.json("counts").get("swapped", 0) == sum(pair.chosen.startswith("bad") for pair in list_of(found))
    return list_of(found)


def list_of(found: Artefact) -> list[Pair]:
    return list(found.table("pairs", Pair))


def test_random_labels_turn_half_of_the_pairs_and_nothing_else(tiny: Runtime, tmp_path: Path) -> None:
    plain = built(tiny, tmp_path / "plain", 0.0, 1)
    drawn = [built(tiny, tmp_path / f"{i}", 0.5, seed) for i, seed in enumerate((1, 1, 2))]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(pair.chosen.startswith("good") for pair in plain)
    for before, after in zip(plain, drawn[0], strict=True):
        assert before.prompt_ids == after.prompt_ids
        sides = {(before.chosen, *before.chosen_ids), (before.rejected, *before.rejected_ids)}
        assert sides == {(after.chosen, *after.chosen_ids), (after.rejected, *after.rejected_ids)}
    turned = sum(pair.chosen.startswith("bad") for pair in drawn[0])
    assert 35 <= turned <= 65, "99.8% of draws of 100 with probability 1/2"


def test_another_users_response_is_chosen_and_all_else_is_as_it_was(experiment: Experiment) -> None:
    run = ("negatives=no_context", "task.train_examples=40")
    plain, _ = experiment(*run)
    control, output = experiment(*run, "control=other_user")
    assert (plain["control"], control["control"]) == ("none", "other_user")
    for name in ("chosen", "rejected", "before_responses"):
        assert control["stages"][name]["key"] == plain["stages"][name]["key"], name
    own = {item.id: item.token_ids for item in artefact(control, "chosen").table("responses", Response)}
    others = {item.id: item.token_ids for item in artefact(control, "other_chosen").table("responses", Response)}
    assert set(others) == set(own)
    assert others != own
    usual = {pair.example: pair for pair in artefact(plain, "pairs").table("pairs", Pair)}
    for pair in artefact(control, "pairs").table("pairs", Pair):
        assert pair.chosen_ids == others[pair.example]
        if pair.example in usual:
            assert (pair.prompt_ids, pair.rejected_ids) == tuple(
                getattr(usual[pair.example], name) for name in ("prompt_ids", "rejected_ids")
            )
    assert "other_user" in (output / "report.html").read_text()


def test_the_other_user_is_asked_the_same(tiny: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every response says which context and request it is sampled under. Where the other user was asked this, their
    chosen response is taken; requests that nobody else was asked are sampled."""
    rows = [Example(f"e{i}", f"u{i % 4}", f"q{i // 3}", f"I am u{i % 4}.", f"Q{i // 3}", "{}") for i in range(12)]
    chosen = [Response(item.id, [1, 2], f"{item.context} {item.prompt}", True) for item in rows]
    sampled: list[str] = []

    def sample(
        work: object, runtime: object, conditions: Sequence[tuple[str, Condition]], *_: object
    ) -> list[Response]:
        sampled.extend(name for name, _ in conditions)
        return [Response(name, [3, 2], f"{of.context} {of.prompt}", True) for name, of in conditions]

    monkeypatch.setattr(responses, "sample_responses", sample)
    config = composed()

    def build(work: Workspace) -> None:
        responses.sample_chosen_from(work, tiny, "random_context", config.sampling, config.engine, 1)

    inputs = {
        "examples": Stage("examples", 1, {}, {}, lambda work: work.write_table("train", rows, Example)),
        "chosen": Stage("chosen", 1, {}, {}, lambda work: work.write_table("responses", chosen, Response)),
    }
    store = Store(tmp_path)
    stage = Stage("other_chosen", 1, {}, inputs, build)
    found = store.fetch(stage, {name: store.fetch(of, {})[0] for name, of in inputs.items()})[0]
    taken = list(found.table("responses", Response))
    assert [row.id for row in taken] == [item.id for item in rows]
    for item, row in zip(rows, taken, strict=True):
        context, _, prompt = row.text.rpartition(" ")
        assert prompt == item.prompt
        assert context != item.context
    assert 0 < len(sampled) < len(rows)


def keys(runtime: Runtime, *overrides: str) -> dict[str, str]:
    config = composed("+debug=quick", *overrides)
    stages = declare(config, runtime, declare_examples(config, runtime.task, "data", None))
    return {name: stage.key for name, stage in stages.items()}


def test_a_control_makes_pairs_and_what_follows_anew(tiny: Runtime) -> None:
    plain = keys(tiny)
    for name in set(CONTROLS) - {"none"}:
        found = keys(tiny, f"control={name}")
        changed = {stage for stage in plain if plain[stage] != found[stage]}
        assert changed == {stage for stage in plain if stage.startswith("after")} | {"pairs", "scored_pairs", "adapter"}
    assert keys(tiny, "control=random_labels", "seed=2")["pairs"] != keys(tiny, "control=random_labels")["pairs"]


def test_the_plan_counts_what_another_users_responses_take() -> None:
    rows = [Example(f"e{i}", f"u{i}", f"q{i}", f"I am u{i}.", f"Question {i}", "{}") for i in range(6)]
    works = estimate_work(composed("control=other_user", "task.max_new_tokens=10", "evaluation.k=4"), rows, rows)
    assert works["other_chosen"].sampled == works["chosen"].sampled == 60
    assert "other_chosen" not in estimate_work(composed("evaluation.k=4"), rows, rows)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["control=random_labels", "method=sft"],
            r"control=random_labels changes the pairs, and method=sft makes none",
        ),
        (["control=other_user", "method=mi_rl"], r"and method=mi_rl makes none; use control=none, or a method that"),
        (["control=other_user", "task=quiz"], r"task=quiz has no user contexts; use control=random_labels"),
        (["control=random_labels", "pairs.min_pmi_margin=0"], r"min_pmi_margin keeps .* set it to null"),
        (
            ["control=random_labels", "method=softmax_dpo", "negatives.k=2"],
            r"method=softmax_dpo with negatives\.k=2 learns from all pairs of an example at once; set negatives\.k=1",
        ),
        (["control.name=other_usr"], r"control\.name='other_usr' is not a control; choose one of other_user"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_control_that_cannot_be_had_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composed(*overrides)
