"""Memory that runs short while sampling and training: one error that names the key to lower."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mipo_exp.errors import JudgeError, ModelError
from mipo_exp.generation import transformers_engine
from mipo_exp.models.memory import memory_for
from mipo_exp.models.runtime import Runtime
from mipo_exp.store.artefacts import Store
from mipo_exp.store.records import ScoredPair
from tests.conftest import Experiment, composed
from tests.test_training import pairs as pairs  # the fixture
from tests.test_training import train


def fail(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand so on")


def test_only_a_lack_of_memory_is_renamed() -> None:
    said = r"no memory to try \(can't allocate memory: 9 bytes\); use less"
    with pytest.raises(JudgeError, match=said), memory_for("to try", "use less", JudgeError):
        raise RuntimeError("can't allocate memory: 9 bytes")
    for words in (
        "CUDA error: out of memory",
        "CUDNN_STATUS_ALLOC_FAILED",
        "std::bad_alloc",
        "Cannot allocate memory (12)",
    ):
        with pytest.raises(ModelError, match=re.escape(words)), memory_for("to try", "use less"):
            raise RuntimeError(words)
    with pytest.raises(RuntimeError, match="shapes"), memory_for("to try", "use less"):
        raise RuntimeError("shapes do not agree")
    with pytest.raises(ModelError, match=r"no memory to try \(MemoryError\)"), memory_for("to try", "use less"):
        raise MemoryError


def test_sampling_names_the_limit_of_a_batch(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers_engine, "sample_batch", fail)
    with pytest.raises(ModelError, match=r"sample 8 responses .*2\.00 GiB\.\); lower engine\.batch_tokens"):
        experiment(cache=tmp_path / "cache")


STEP = "mipo_exp.kernels.micro_batches.MicroBatches.training_step"
PROBE = "mipo_exp.kernels.prompt_sharing._run"  # where it is tried whether prompts can be shared


@pytest.mark.parametrize(
    ("place", "overrides", "said"),
    [
        (STEP, (), r"for a batch .*lower trainer\.batch_tokens\.cpu or set"),
        (STEP, ("trainer.batch_tokens.cpu=null",), r"for a batch .*set trainer\.batch_tokens\.cpu"),
        (STEP, ("lora.lora_dropout=0.1",), r"for a batch .*lower trainer\.per_device_train"),
        (PROBE, (), r"to begin the training .*shorten the prompts"),
    ],
    ids=["a batch", "a batch without a limit", "a batch that stays whole", "the first pair"],
)
def test_training_names_the_limit_of_a_batch(
    place: str,
    overrides: tuple[str, ...],
    said: str,
    tiny: Runtime,
    pairs: list[ScoredPair],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(place, fail)
    with pytest.raises(ModelError, match=r"no memory " + said):
        train(tiny, pairs, composed("+debug=quick", *overrides), Store(tmp_path))
