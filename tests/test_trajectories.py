"""Loss and gradient norm of 50 steps on the tiny model against committed references, and in classes of settings that
must train alike. A change of either, wanted or not, shows here.

    python -m tests.test_trajectories     # writes the references anew
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from mipo_exp.models.runtime import Runtime
from mipo_exp.scoring.log_probs import Scorable, token_log_probs
from mipo_exp.store.artefacts import Store
from mipo_exp.store.records import ScoredPair
from tests.conftest import composed, make_runtime, with_kernels
from tests.test_several_processes import summary_of, together
from tests.test_training import train

REFERENCES = Path(__file__).parent / "data" / "trajectories.json"
STEPS, BATCH, PAIRS = 50, 8, 24
COMPARED = ("loss", "grad_norm")
# What must not change a trajectory: batches, kernels, where the reference's log-probabilities come from.
ALIKE: dict[str, tuple[tuple[str, ...], dict[str, int]]] = {
    "auto": (("auto",), {}),
    "plain": (("plain",), {}),
    "prompts apart": (("micro_batches", "onednn"), {}),
    "2 × 4": (("auto",), {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}),
}


def made_up_pairs(runtime: Runtime) -> list[ScoredPair]:
    """Pairs of different lengths, some with equal prompts, and their true references."""
    model, rows = runtime.fresh_model(), []
    for i in range(PAIRS):
        prompt = [10 + i % 20] * (3 + i % 7)
        sides = [20 + i, 21, 2][i % 3 :], [50 + i] * (1 + i % 4)
        items = [Scorable(tuple(prompt), tuple(side)) for side in sides]
        scores = [float(row.sum()) for row in token_log_probs(model, items, share=False)]
        rows.append(ScoredPair(f"e{i}", 0, "no_context", False, prompt, prompt[:1], *sides, "c", "r", *scores, None))
    return rows


def trajectory(runtime: Runtime, kernels: tuple[str, ...], sizes: dict[str, int], folder: Path) -> Any:
    """What is compared, by name, of each step."""
    sizes = {"per_device_train_batch_size": BATCH, **sizes}
    config = composed(
        *("+debug=quick", f"trainer.max_steps={STEPS}", f"trainer.save_steps={STEPS}", "trainer.learning_rate=3e-3"),
        *(f"trainer.{name}={value}" for name, value in sizes.items()),
    )
    rows = train(with_kernels(runtime, *kernels), made_up_pairs(runtime), config, Store(folder)).json("history")
    return {name: [row[name] for row in rows] for name in COMPARED}


@pytest.mark.parametrize("name", ALIKE)
def test_a_training_follows_the_references(name: str, tiny: Runtime, tmp_path: Path) -> None:
    found = trajectory(tiny, *ALIKE[name], tmp_path)
    expected = json.loads(REFERENCES.read_text(encoding="utf-8"))
    assert expected["loss"][-1] < 0.9 * expected["loss"][0], "the training changes nothing"
    for compared in COMPARED:
        assert found[compared] == pytest.approx(expected[compared], rel=1e-2, abs=1e-4), compared


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """A step of two processes with four pairs each is one of eight pairs."""
    folders = [tmp_path / name for name in ("one", "first", "second")]
    for folder in folders:
        folder.mkdir()
    common = ("task.train_examples=16", "task.eval_examples=3", "evaluation.k=2", "trainer.max_steps=4")
    rows = []
    for where, batch in ((folders[:1], 8), (folders[1:], 4)):
        cache = f"paths.cache={tmp_path / 'cache'}"
        sizes = (f"trainer.per_device_train_batch_size={batch}", "hydra.run.dir=run", cache)
        done = together(*common, *sizes, folders=where)
        assert [one.returncode for one in done] == [0] * len(where), done[0].stderr
        adapter = summary_of(where[0] / "run")["stages"]["adapter"]["key"]
        rows.append(json.loads((tmp_path / "cache" / "adapter" / adapter / "history.json").read_text()))
    for compared in COMPARED:
        one, two = ([row[compared] for row in history] for history in rows)
        assert two == pytest.approx(one, rel=1e-3, abs=1e-5), compared


if __name__ == "__main__":
    from mipo_exp import cli

    cli.register_resolvers()
    with tempfile.TemporaryDirectory() as scratch:
        runtime = make_runtime(composed("+debug=quick"), Path(scratch) / "model")
        found = trajectory(runtime, *ALIKE["plain"], Path(scratch) / "plain")
    REFERENCES.parent.mkdir(exist_ok=True)
    REFERENCES.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
