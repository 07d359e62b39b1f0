"""examples/plain_mipo.py against the framework without kernels: the same pairs, log-probabilities and losses."""

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, set_seed

from examples import plain_mipo
from mipo_exp.models.runtime import Runtime
from mipo_exp.scoring.mutual_information import infonce_pmi
from mipo_exp.store.records import Example, ScoredPair
from tests.conftest import Experiment
from tests.test_pipeline import artefact


@pytest.fixture(scope="module")
def folder(tiny: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with larger weights, whose likeliest responses depend on their prompts."""
    path = tmp_path_factory.mktemp("sharp") / "model"
    shutil.copytree(tiny.model_folder, path)
    model: Any = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(1.0 if "norm" in name else 12.0)
    model.save_pretrained(path)
    return path


def test_the_framework_without_kernels_does_what_the_example_does(
    folder: Path, experiment: Experiment, tmp_path: Path
) -> None:
    """Greedy responses, so that no random numbers count, and three steps of training."""
    steps = {"learning_rate": 1e-2, "beta": 0.3, "per_device_train_batch_size": 2, "max_steps": 3}
    summary, _ = experiment(
        *(f"model.path={folder}", "kernels=plain", "sampling.temperature=0", "negatives=no_context", "lora.r=4"),
        *(f"method.{name}={value}" if name == "beta" else f"trainer.{name}={value}" for name, value in steps.items()),
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    model.generation_config = GenerationConfig()
    examples = artefact(summary, "examples").table("train", Example)
    right = [plain_mipo.ask(tokenizer, one.context, one.prompt) for one in examples]
    wrong = [plain_mipo.ask(tokenizer, None, one.prompt) for one in examples]
    sides = [plain_mipo.sample(model, tokenizer, prompts, 8, temperature=0.0) for prompts in (right, wrong)]
    pairs = plain_mipo.make_pairs(tokenizer, right, *sides)
    scored = list(artefact(summary, "scored_pairs").table("pairs", ScoredPair))
    assert len(pairs) > 4
    assert pairs == [
        {"prompt_ids": pair.prompt_ids, "chosen_ids": pair.chosen_ids, "rejected_ids": pair.rejected_ids}
        for pair in scored
    ]
    for side in ("chosen", "rejected"):
        found = plain_mipo.log_probs(
            model, [pair["prompt_ids"] for pair in pairs], [pair[f"{side}_ids"] for pair in pairs], rows=3
        )
        assert found == pytest.approx([getattr(pair, f"ref_{side}_log_prob") for pair in scored], abs=1e-3)

    set_seed(1)
    lora = LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = plain_mipo.make_trainer(model, tokenizer, pairs, str(tmp_path), lora, seed=1, **steps)
    trainer.train()
    history = artefact(summary, "adapter").json("history")
    for name in ("loss", "grad_norm"):
        theirs = [row[name] for row in trainer.state.log_history if "loss" in row]
        assert [row[name] for row in history] == pytest.approx(theirs, rel=1e-3), name
    assert history[0]["loss"] != pytest.approx(history[-1]["loss"], rel=0.01), "the training changes nothing"


def test_the_examples_mutual_information_is_the_frameworks() -> None:
    rows = np.random.default_rng(0).normal(-30, 5, (6, 4))
    assert [plain_mipo.pmi(row) for row in rows.tolist()] == pytest.approx(infonce_pmi(rows).tolist())


def test_the_examples_sides_share_neither_users_nor_requests_and_it_says_what_it_finds(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train, held_out = plain_mipo.load(30, 20, random.Random(0))
    assert (len(train), len(held_out)) == (30, 20)
    for name in ("context", "prompt"):
        assert not {getattr(one, name) for one in train} & {getattr(one, name) for one in held_out}
    sizes = ("--train", "6", "--held-out", "4", "--new-tokens", "4", "--steps", "1", "--k", "3")
    monkeypatch.setattr("sys.argv", ["plain_mipo.py", "--model", str(folder), *sizes])
    plain_mipo.main()
    said = capsys.readouterr().out
    assert "6 pairs; before: MI " in said
    assert "after 1 steps: MI " in said
