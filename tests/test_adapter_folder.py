"""`adapter/` stands alone, and what `export` makes of it: logits, a hub that takes it or refuses, a full disk."""

import dataclasses
import errno
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraModel, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mipo_exp import commands
from mipo_exp.config.parsing import parse, resolve
from mipo_exp.errors import ConfigError, DataError, ModelError, StorageError, UserError
from mipo_exp.experiment import run_experiment
from mipo_exp.reporting import adapter_folder, export
from mipo_exp.reporting.adapter_folder import hub_name
from mipo_exp.reporting.export import compare_logits
from mipo_exp.reporting.opened import Opened, open_run, saved_config
from mipo_exp.reporting.saved import load
from tests.conftest import compose_raw, composed
from tests.hub_server import Answer, HubServer, refuse

PROMPT = "Suggest a gift."


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, preloaded: None) -> Path:
    """A run whose adapter changes what the tiny model says."""
    from omegaconf import OmegaConf

    folder = tmp_path_factory.mktemp("adapter_runs") / "run"
    raw = compose_raw(
        *("+debug=quick", "trainer.learning_rate=0.05", "tracker=none"),
        *(f"paths.output={folder}", f"paths.cache={folder.parent / 'cache'}"),
    )
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(raw, folder / ".hydra" / "config.yaml")
    run_experiment(parse(raw), resolve(raw), folder, f"python -m mipo_exp paths.cache={folder.parent} seed=1")
    return folder


def logits(model: Any, folder: Path) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": PROMPT}], return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        return model(**ids).logits


def test_others_load_the_adapter_with_its_tokenizer_and_the_base_that_it_names(run_folder: Path) -> None:
    adapter = run_folder / "adapter"
    assert all(tensor.isfinite().all() for tensor in load_file(adapter / "adapter_model.safetensors").values())
    named = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    base = AutoModelForCausalLM.from_pretrained(named)
    before = logits(base, adapter)
    after = logits(PeftModel.from_pretrained(base, adapter), adapter)
    assert (after - before).abs().max() > 1e-3


def test_the_model_card_says_what_a_reader_must_know(run_folder: Path) -> None:
    _, front, text = (run_folder / "adapter" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "peft"
    summary = json.loads((run_folder / "summary.json").read_text())
    for words in (
        summary["run_id"],
        "## Results",
        "Mutual information with the context",
        "Response length",
        "its licence",
        "bibtex",
    ):
        assert words in text
    assert "python -m mipo_exp seed=1" in text
    assert str(run_folder.parent) not in text, "paths of this machine are nobody's business"


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["model=qwen1.5b"], "Qwen/Qwen2.5-1.5B-Instruct"),
        (["model=qwen1.5b", "model.path=/data/qwen2.5-1.5b-instruct"], "Qwen/Qwen2.5-1.5B-Instruct"),
        (["model=qwen1.5b", "model.path=/data/models--lab--mine--2/snapshots/abc"], "lab/mine--2"),
        (["model=qwen1.5b", "model.path=/data/other.gguf"], None),
        (["model=tiny"], None),
    ],
)
def test_the_base_is_named_by_its_hub_id_where_it_has_one(overrides: list[str], name: str | None) -> None:
    assert hub_name(composed(*overrides).model) == name


def test_the_hub_reads_base_licence_and_data_from_the_card() -> None:
    config = composed("model=qwen3b", "task=gsm8k")
    summary = {"model": "qwen3b", "negatives": "random_prompt", "command": None}
    front = yaml.safe_load(adapter_folder.model_card(summary, config).split("---\n")[1])
    assert front["base_model"] == "Qwen/Qwen2.5-3B-Instruct"
    assert (front["license"], front["license_name"]) == ("other", "qwen-research")
    assert front["datasets"] == [config.task.hub_id]


def test_weights_are_copied_on_request_and_a_link_that_dangles_is_said(
    run_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, weights = open_run(run_folder), run_folder / "adapter" / "adapter_model.safetensors"
    assert weights.is_symlink()
    trained, summary = weights.resolve().parent, opened.results.summary
    for copy in (True, False):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
        folder = tmp_path / "run" / "adapter"
        adapter_folder.write_adapter(folder, trained, opened.runtime, summary, opened.config, copy)
        assert (folder / weights.name).is_symlink() != copy
        assert load(tmp_path / "run").adapter == folder
    (folder / weights.name).unlink()
    (folder / weights.name).symlink_to(tmp_path / "gone")
    assert load(tmp_path / "run").adapter is None
    assert "a link to weights that are not there any more" in caplog.text
    with pytest.raises(DataError, match="has no adapter: the weights that its adapter/ links to are gone"):
        open_run(tmp_path / "run")
    caplog.clear()
    monkeypatch.setattr(adapter_folder.tempfile, "gettempdir", lambda: str(trained.parent))
    with caplog.at_level(logging.WARNING):
        adapter_folder.write_adapter(folder, trained, opened.runtime, summary, opened.config, False)
    assert "paths.copy_adapter=true" in caplog.text


def run_export(*arguments: str | Path) -> None:
    commands.run("export", [str(argument) for argument in arguments])


def test_an_adapter_of_another_folder_is_exported_whole(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = Path(shutil.copytree(run_folder, tmp_path / "elsewhere", symlinks=True))
    run_export(copied)
    said = json.loads((copied / "exported" / export.MARK).read_text())
    assert said["logits"]["difference"] <= said["logits"]["allowed"] < said["logits"]["effect"]
    assert "its logits are those of the run's adapter" in capsys.readouterr().out
    assert not any(file.is_symlink() for file in (copied / "exported").iterdir())
    weights = "adapter_model.safetensors"
    assert (copied / "exported" / weights).read_bytes() == (run_folder / "adapter" / weights).read_bytes()


def test_the_merged_model_alone_says_what_the_adapter_says(run_folder: Path, tmp_path: Path) -> None:
    run_export(run_folder, "--merged", "--to", tmp_path / "model")
    alone = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), tmp_path / "model")
    opened = open_run(run_folder)
    with_adapter = logits(opened.runtime.model(opened.adapter), run_folder / "adapter")
    assert torch.allclose(alone, with_adapter, atol=1e-4)
    assert "library_name: transformers" in (tmp_path / "model" / "README.md").read_text()


def test_logits_may_differ_by_rounding_and_by_a_part_of_what_was_learnt() -> None:
    wanted, plain = [torch.tensor([[10.0, -4.0]])], [torch.tensor([[10.0, -3.0]])]
    near, far = [torch.tensor([[10.0005, -4.0]])], [torch.tensor([[10.0, -4.3]])]
    found = compare_logits(wanted, plain, near, "float32")  # 1e-4 of 10, less than a quarter of 1
    assert (round(found.difference, 4), found.allowed, found.effect, found.tokens) == (0.0005, 0.001, 1.0, 1)
    with pytest.raises(ModelError, match=r"differ from the adapter's by up to 0\.3, and 0\.001 is allowed \(float32"):
        compare_logits(wanted, plain, far, "float32")
    compare_logits(wanted, plain, [torch.tensor([[10.0, -4.2]])], "bfloat16")
    with pytest.raises(ModelError, match=r"0\.25 is allowed \(bfloat16.*; keep the weights with --dtype=float32"):
        compare_logits(wanted, plain, far, "bfloat16")  # 5% of 10 would hide that the training was lost
    with pytest.raises(ModelError, match="differ"):
        compare_logits(wanted, plain, [torch.tensor([[float("nan"), -4.0]])], "float32")


def test_what_fails_leaves_no_export_and_the_one_before(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_export(run_folder, "--to", tmp_path / "out")
    kept = sorted((file.name, file.read_bytes()) for file in (tmp_path / "out").iterdir())

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(export, "write_adapter", full)
        with pytest.raises(StorageError, match=r"the disk of --to=\S+ is full; free some space"):
            run_export(run_folder, "--to", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(export, "_size", lambda *_: 2.0**60)
        with pytest.raises(StorageError, match=r"GiB free and the export takes 1073741824\.0 GiB"):
            run_export(run_folder, "--to", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(LoraModel, "merge_and_unload", LoraModel.unload)  # the base model's weights
        with pytest.raises(ModelError, match="the exported model's logits differ from the adapter's"):
            run_export(run_folder, "--merged", "--to", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted((file.name, file.read_bytes()) for file in (tmp_path / "out").iterdir()) == kept


def test_a_run_that_cannot_be_exported_is_named(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    copied = Path(shutil.copytree(run_folder, tmp_path / "copy", symlinks=True))
    summary = json.loads((copied / "summary.json").read_text())
    for arguments, message in (
        ([tmp_path], r"summary\.json cannot be read"),
        ([copied, "--to", tmp_path / "mine"], "has something else in it; give a new folder"),
        ([copied, "--to", tmp_path / "file"], "has something else in it"),
        ([copied, "--base", tmp_path / "none"], r"model\.path=\S+ does not exist.*name it with --base=DIR"),
        ([copied, "--push", "not a name"], "--push=not a name is not of the form OWNER/NAME"),
    ):
        with pytest.raises(UserError, match=message):
            run_export(*arguments)
    summary["model_source"]["fingerprint"] = "another"
    (copied / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ModelError, match="is not the model that .* was trained on"):
        run_export(copied)
    (copied / ".hydra" / "config.yaml").write_text("seed: [")
    with pytest.raises(ConfigError, match=r"config\.yaml cannot be read"):
        run_export(copied)
    shutil.rmtree(copied / "adapter")
    with pytest.raises(DataError, match="has no adapter: it trained none"):
        run_export(copied)


def test_keys_that_have_come_since_a_run_have_their_defaults(run_folder: Path, tmp_path: Path) -> None:
    raw = yaml.safe_load((run_folder / ".hydra" / "config.yaml").read_text())
    del raw["paths"]["copy_adapter"], raw["versions"]
    raw["paths"]["gone"] = 1
    raw["evaluation"]["k"] = 5
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(yaml.safe_dump(raw))
    config = saved_config(tmp_path)
    assert (config.paths.copy_adapter, config.versions, config.evaluation.k) == (False, "key", 5)
    raw["method"]["bta"] = 1
    (tmp_path / ".hydra" / "config.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match=r"not of this version of mipo_exp \(unknown config key 'method\.bta'"):
        saved_config(tmp_path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as hub:
        hub.tokens = {"hf_writer": {"lab/new"}}
        hub.connect(monkeypatch, tmp_path / "hub")
        monkeypatch.setenv("HF_TOKEN", "hf_writer")
        yield hub


def test_an_export_is_pushed_on_request_to_a_private_repository(
    hub: HubServer, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_export(run_folder, "--to", tmp_path / "out", "--push", "lab/new")
    assert hub.created == {"lab/new": "private"}
    assert hub.pushed["lab/new"] == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert f"pushed to {hub.url}/lab/new" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "answer", "said"),
    [
        ("/api/repos/create", refuse(403, "Forbidden"), "forbids access with your token: give it the right to on"),
        ("/preupload/", refuse(401, "Invalid credentials"), "does not accept your token"),
        ("/commit/", refuse(400, "Bad request"), "the upload broke off"),
        ("/commit/", None, "the upload broke off"),  # the connection is closed without an answer
        ("/commit/", 0.5, "the upload broke off .*[Tt]ime"),  # seconds before it answers
    ],
)
def test_a_hub_that_refuses_is_slow_or_breaks_off_is_said_and_the_export_kept(
    asked: str,
    answer: Answer | float | None,
    said: str,
    hub: HubServer,
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between its repetitions
    folder = Path(shutil.copytree(run_folder / "adapter", tmp_path / "out"))
    hub.broken[asked] = answer
    config = composed("model=tiny")
    with pytest.raises(DataError, match=f"{said}.*The export is in .*; upload it .*hf upload lab/new"):
        export.push(folder, "lab/new", False, config)
    assert (folder / "adapter_model.safetensors").exists()


def test_a_push_without_a_token_or_a_hub_is_refused_at_once(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="the hub cannot be asked .*HF_HUB_OFFLINE is set"):
        export.check_repository("lab/new")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(DataError, match="needs a token of the hub that may write"):
        export.check_repository("lab/new")


def test_both_models_answer_a_prompt_with_its_context_side_by_side(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def respond(self: Opened, context: str | None, prompt: str, sampling: Any, seed: int) -> tuple[str, str]:
        asked.append((context, prompt, sampling.max_new_tokens, seed))
        return f"old {prompt}", "new"

    typed = iter(["Why?", "/context I sail.", "", "Where?", "/context none", "When?", "/quit", "never"])
    with monkeypatch.context() as patch:
        patch.setattr(Opened, "respond", respond)
        patch.setattr("builtins.input", lambda *_: next(typed))
        commands.run("chat", [str(run_folder), "--prompt", "Who?", "--context", "I ski.", "--max-new-tokens", "3"])
        commands.run("chat", [str(run_folder), "--seed", "5"])
    assert asked == [("I ski.", "Who?", 3, 0), (None, "Why?", 8, 5), ("I sail.", "Where?", 8, 5), (None, "When?", 8, 5)]
    assert re.search(r"base model .* trained(.|\n)* old Who\? .* new ", capsys.readouterr().out)
    opened = open_run(run_folder)
    greedy = dataclasses.replace(opened.config.evaluation.sampling, temperature=0.0)
    before, after = opened.respond("I sail.", "Where?", greedy, 0)
    assert before != after
    assert opened.respond("I sail.", "Where?", greedy, 1) == (before, after)
    assert opened.respond("I ski.", "Where?", greedy, 0) != (before, after)
    with pytest.raises(ConfigError, match=r"--temperature=-1\.0: .* greater than or equal to 0"):
        commands.run("chat", [str(run_folder), "--prompt", "Who?", "--temperature=-1"])


def test_a_folder_that_cannot_be_replaced_is_named_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a file in it has the file's name alone."""
    folder = tmp_path / "adapter"
    folder.mkdir()

    def refuse_ours(path: Path, *args: Any, **kwargs: Any) -> None:
        if path == folder:
            raise PermissionError(errno.EACCES, "Permission denied", "adapter_model.safetensors")

    monkeypatch.setattr(shutil, "rmtree", refuse_ours)
    with pytest.raises(PermissionError, match=str(folder)), adapter_folder.replacing(folder):
        pass
