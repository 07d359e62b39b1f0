"""What is wrong where the hub refuses: each reason has its own message, for models, data sets and encoders."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from mipo_exp.config.schema import Config
from mipo_exp.data.tasks import make_task
from mipo_exp.errors import ConfigError, DataError, ModelError, UserError
from mipo_exp.evaluation.harness import _load, locate_harness
from mipo_exp.models.hub import refusal
from mipo_exp.models.loading import locate
from mipo_exp.pairing.similarity import locate_encoder
from tests.conftest import composed
from tests.hub_server import Answer, HubServer, refuse

Ask = Callable[[str, str], object]


@cache
def base() -> Config:
    """Composed once for all."""
    return composed("model=qwen0.5b", "task=custom")


def ask_for_model(hub_id: str, revision: str) -> object:
    config = dataclasses.replace(base().model, hub_id=hub_id, revision=revision)
    return locate(config, Path(os.environ["HF_HUB_CACHE"]))


def ask_for_data(hub_id: str, revision: str) -> object:
    config = dataclasses.replace(base().task, hub_id=hub_id, revision=revision)
    return make_task(config, Path(os.environ["HF_HUB_CACHE"])).prepare(download=True)


def ask_for_encoder(hub_id: str, revision: str) -> object:
    return locate_encoder(hub_id, Path(os.environ["HF_HUB_CACHE"]))


ASKED: dict[str, tuple[Ask, type[UserError], str]] = {
    "model": (ask_for_model, ModelError, r"model\.hub_id"),
    "dataset": (ask_for_data, DataError, r"task\.hub_id"),
    "encoder": (ask_for_encoder, ConfigError, r"negatives\.embedding_model"),
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Repositories of each kind and access, and three tokens: of somebody, of nobody, and one that may read all."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        (folder / name).write_text(json.dumps({"prompt": f"Why {name}?"}) + "\n")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    with HubServer() as hub:
        for kind in ("model", "dataset"):
            for access in ("public", "private", "gated", "disabled"):
                hub.add(f"lab/{access}", folder, access, kind)  # type: ignore[arg-type]
        hub.tokens = {"hf_stranger": set(), "hf_member": {"lab/private", "lab/gated"}}
        hub.connect(monkeypatch, tmp_path / "hub")
        yield hub


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize(
    ("hub_id", "token", "said"),
    [
        ("lab/private", None, r"=lab/private is private or does not exist: check the id; if it is private, log in"),
        ("lab/private", "hf_stranger", r"=lab/private does not exist on .*, or your token may not see it: check the"),
        ("lab/absent", None, r"=lab/absent is private or does not exist: check the id"),
        ("lab/absent", "hf_stranger", r"=lab/absent does not exist on .*: check the id \(OWNER/NAME\)"),
        (
            "lab/gated",
            None,
            r"=lab/gated is gated: accept its terms on its page, .*lab/gated, and log in \(put .* HF_TOKEN",
        ),
        ("lab/gated", "hf_stranger", r"=lab/gated is gated: accept its terms on .*the account that your token belongs"),
        ("lab/disabled", None, r"=lab/disabled has been disabled on http"),
        (
            "lab/public",
            "hf_expired",
            r"=lab/public: .* does not accept your token: get a new one from .*settings/token",
        ),
    ],
)
def test_a_repository_that_the_hub_refuses_is_not_called_a_missing_network(
    asked: str, hub_id: str, token: str | None, said: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    ask, kind, key = ASKED[asked]
    with pytest.raises(kind, match=key + said) as raised:
        ask(hub_id, "main")
    assert "\n" not in str(raised.value)
    assert (f"{hub.url}/datasets/{hub_id}" in str(raised.value)) == (asked == "dataset" and hub_id == "lab/gated")


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (refuse(429, "Too many", **{"Retry-After": "40"}), r"limits the rate .* again in 40 seconds, or log in"),
        (refuse(429, "Too many"), r"limits the rate of requests \(429\): run the same command again in some minutes"),
        (refuse(403, "No"), r"forbids access: log in"),
        (Answer(503, b"<html>down</html>"), r"has a fault of its own \(status 503\)"),
        (Answer(418, b"tea"), r"downloading it failed \(.*418"),
    ],
)
def test_what_ails_the_hub_itself_is_said_at_once(asked: str, answer: Answer, said: str, hub: HubServer) -> None:
    hub.script = lambda method, path: answer
    ask, kind, key = ASKED[asked]
    with pytest.raises(kind, match=f"{key}=lab/public.*{said}"):
        ask("lab/public", "main")
    assert len([request for request in hub.requests if "lab/public" in request]) == 1, (
        "a download would ask again and again"
    )


@pytest.mark.parametrize(("asked", "key"), [("model", r"model\.revision"), ("dataset", r"task\.revision")])
@pytest.mark.parametrize("revision", ["v9", "d" * 40])
def test_a_revision_that_is_not_there_is_named(asked: str, key: str, revision: str, hub: HubServer) -> None:
    ask, kind, _ = ASKED[asked]
    said = rf"hub_id=lab/public has no branch, tag or commit of this name \({key}={revision}\): choose one from"
    with pytest.raises(kind, match=said):
        ask("lab/public", revision)


@pytest.mark.parametrize("asked", ASKED)
def test_offline_mode_and_a_hub_that_does_not_answer_are_distinguished(
    asked: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, kind, key = ASKED[asked]
    with monkeypatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(kind, match=key + "=lab/public is neither in .*HF_HUB_OFFLINE is set; unset it"):
            ask("lab/public", "main")
        patch.delenv("HF_HUB_OFFLINE")
        patch.setenv("TRANSFORMERS_OFFLINE", "yes")
        with pytest.raises(kind, match="TRANSFORMERS_OFFLINE is set; unset it"):
            ask("lab/public", "main")
    assert not hub.requests
    hub._server.shutdown()
    hub._server.server_close()
    # On a busy machine the closing socket may still take the connection, and then resets it.
    with pytest.raises(kind, match=key + "=lab/public( is neither in .* does not answer|: downloading it failed)"):
        ask("lab/public", "main")


@pytest.mark.parametrize("hub_id", ["lab/private", "lab/gated"])
def test_a_token_opens_what_it_may(hub_id: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_member")
    ask_for_data(hub_id, "main")
    assert any("/resolve/" in request for request in hub.requests)
    monkeypatch.delenv("HF_TOKEN")
    del hub.requests[:]
    ask_for_data(hub_id, "main")
    assert not hub.requests, "what is here is not asked for again"


def test_a_refusal_is_found_below_the_error_of_another_library(hub: HubServer) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError

    with pytest.raises(GatedRepoError) as gated:
        hf_hub_download("lab/gated", "train.jsonl", repo_type="dataset")
    outer = RuntimeError("the data cannot be found")
    outer.__cause__ = gated.value
    said = refusal(outer, "harness.tasks=['x']")
    assert str(said).startswith("harness.tasks=['x'] is gated: accept its terms")
    assert refusal(ValueError("no answer of the hub's"), "x") is None


def test_data_of_a_harness_task_that_the_hub_refuses_is_not_called_a_missing_network(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    (tmp_path / "own.yaml").write_text(
        "task: own\ndataset_path: lab/private\noutput_type: generate_until\ntest_split: test\ndoc_to_text: x\n"
        "doc_to_target: y\n"
    )
    options = ("harness.tasks=[own]", f"harness.include_path={tmp_path}")
    harness = locate_harness(composed("+debug=quick", *options).harness, tmp_path / "cache")
    assert harness is not None
    with pytest.raises(DataError, match=r"harness\.tasks=.*the data of a task is private or does not exist"):
        _load(harness)


def test_the_command_ends_early_with_the_key_and_exit_code_2(hub: HubServer, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mipo_exp", "+debug=quick", "tracker=none", f"paths.cache={tmp_path / 'cache'}"]
    command += ["task=custom", "task.hub_id=lab/gated", f"hydra.run.dir={tmp_path / 'out'}"]
    variables = {**os.environ, **hub.environment(tmp_path / "hub"), "HF_TOKEN": "hf_stranger"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: task.hub_id=lab/gated is gated: accept its terms on")
    assert "Traceback" not in done.stderr
