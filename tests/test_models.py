"""Finding, converting and loading models: hub layout, GGUF, random weights."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mipo_exp.data.tasks import make_task
from mipo_exp.errors import ModelError, StorageError
from mipo_exp.models import conversion
from mipo_exp.models import loading as models
from mipo_exp.models.loading import load_model, load_tokenizer, locate
from mipo_exp.models.runtime import Runtime
from mipo_exp.planning.shape import billions_in
from tests.conftest import Experiment, composed, make_runtime
from tests.hub_server import HubServer


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt_neox"])
def test_a_local_folder_of_any_architecture_runs(kind: str, tmp_path: Path, experiment: Experiment) -> None:
    sizes = [f"model.random.model_type={kind}"]
    runtime = make_runtime(composed("+debug=quick", *sizes), tmp_path / "made")
    assert runtime.folder is not None
    folder = Path(shutil.copytree(runtime.folder, tmp_path / "My Model"))
    summary, _ = experiment(f"model.path={folder}", "model.random=null", "trainer.max_steps=1")
    assert summary["status"] == "ok"
    assert "model" not in summary["stages"], "a safetensors folder is used where it is"


def test_a_changed_weight_changes_the_fingerprint(tiny: Runtime, tmp_path: Path) -> None:
    assert tiny.folder is not None
    folder = Path(shutil.copytree(tiny.folder, tmp_path / "model"))
    config = composed("+debug=quick", f"model.path={folder}").model
    first = locate(config, tmp_path)
    assert locate(config, tmp_path).fingerprint == first.fingerprint
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert locate(config, tmp_path).fingerprint != first.fingerprint


def test_the_chat_template_is_part_of_the_fingerprint_and_can_be_replaced(tiny: Runtime, tmp_path: Path) -> None:
    template = tmp_path / "plain.jinja"
    template.write_text("{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}")
    plain = composed("+debug=quick").model
    replaced = composed("+debug=quick", f"model.chat_template={template}").model
    assert locate(plain, tmp_path).fingerprint != locate(replaced, tmp_path).fingerprint
    assert tiny.folder is not None
    assert load_tokenizer(tiny.folder, replaced).chat_template == template.read_text()


def test_random_weights_depend_on_their_seed_alone(tmp_path: Path) -> None:
    made = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(made))
        runtime = make_runtime(composed("+debug=quick", f"model.random.seed={seed}"), tmp_path / name)
        made.append(runtime.fresh_model().state_dict())
    assert all(torch.equal(tensor, made[1][name]) for name, tensor in made[0].items())
    assert not all(torch.equal(tensor, made[2][name]) for name, tensor in made[0].items())


def test_a_converted_model_that_computes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = conversion.load_folder

    def disturbed(*arguments: Any) -> Any:
        model = load(*arguments)
        with torch.no_grad():
            next(model.parameters()).mul_(3)
        return model

    monkeypatch.setattr(conversion, "load_folder", disturbed)
    with pytest.raises(ModelError, match="logits differ"):
        make_runtime(composed("+debug=quick"), tmp_path)


def test_no_code_from_a_model_repository_runs(tiny: Runtime, tmp_path: Path) -> None:
    """A folder whose config.json asks for code of its own is refused unless the user turns it on."""
    assert tiny.folder is not None
    folder = Path(shutil.copytree(tiny.folder, tmp_path / "model"))
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "stranger", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelError):
        load_model(folder, composed("+debug=quick").model, "float32", "cpu")
    assert not (tmp_path / "ran").exists()


def test_the_hubs_local_cache_is_the_loading_path_for_hub_ids(
    tiny: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    """A repository in the layout of the hub's cache is found offline under its id."""
    import huggingface_hub.constants

    assert tiny.folder is not None
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--tiny-instruct"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(tiny.folder, repository / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    config = composed("model=qwen1.5b", "model.hub_id=someone/tiny-instruct").model
    source = locate(config, tmp_path / "cache")
    assert source.path == repository / "snapshots" / commit
    assert source.description == "someone/tiny-instruct@0123456789ab"
    runtime = Runtime(config, source, make_task(composed().task, tmp_path), "cpu")
    assert runtime.fresh_model().config.model_type == "llama"


def test_a_hub_id_of_the_users_own_is_not_answered_with_the_packaged_model(tmp_path: Path, no_network: None) -> None:
    config = composed("model.hub_id=Qwen/Qwen2.5-0.5B-Instruct").model
    with pytest.raises(ModelError, match=r"Qwen/Qwen2\.5-0\.5B-Instruct is neither"):
        locate(config, tmp_path)


def test_half_a_download_in_the_hubs_cache_is_not_a_model(
    tiny: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    import huggingface_hub.constants

    assert tiny.folder is not None
    repository = tmp_path / "hub" / "models--someone--half"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    snapshot = Path(shutil.copytree(tiny.folder, repository / "snapshots" / ("a" * 40)))
    (snapshot / "model.safetensors").rename(snapshot / "model-00001-of-00002.safetensors")
    names = {"x": "model-00001-of-00002.safetensors", "y": "model-00002-of-00002.safetensors"}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ModelError, match="neither in the hub's local cache nor reachable"):
        locate(composed("model=qwen1.5b", "model.hub_id=someone/half").model, tmp_path / "cache")


@pytest.fixture
def online(tiny: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The id of the tiny model on a hub that is served here."""
    assert tiny.folder is not None
    with HubServer() as hub:
        hub.add("someone/online", tiny.folder)
        hub.connect(monkeypatch, tmp_path / "hub")
        yield "someone/online"


def test_a_model_comes_from_the_hub_once(online: str, tmp_path: Path) -> None:
    config = composed("model=qwen1.5b", f"model.hub_id={online}").model
    with pytest.raises(ModelError, match="is not on this machine yet"):
        locate(config, tmp_path / "cache", download=False)
    source = locate(config, tmp_path / "cache")
    assert source.description == f"{online}@cccccccccccc"
    runtime = Runtime(config, source, make_task(composed().task, tmp_path), "cpu")
    assert runtime.fresh_model().config.model_type == "llama"
    assert locate(config, tmp_path / "cache", download=False) == source


def test_a_model_that_the_disk_has_no_room_for_is_not_downloaded(
    online: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(models.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    config = composed("model=qwen1.5b", f"model.hub_id={online}").model
    with pytest.raises(StorageError, match=r"hub has 0\.0 GiB free and someone/online takes 0\.0 GiB; .*HF_HOME"):
        locate(config, tmp_path / "cache")
    assert not list((tmp_path / "hub").rglob("*.safetensors"))


def test_files_of_a_model_that_cannot_be_read_are_named(tiny: Runtime, tmp_path: Path) -> None:
    (tmp_path / "latin.jinja").write_bytes(b"\xe9{{ messages }}")
    config = composed("+debug=quick", f"model.chat_template={tmp_path / 'latin.jinja'}").model
    with pytest.raises(ModelError, match=r"model\.chat_template=.*latin\.jinja cannot be read as UTF-8 text"):
        locate(config, tmp_path)
    folder = Path(shutil.copytree(str(tiny.folder), tmp_path / "mine"))
    (folder / "generation_config.json").write_text("{")
    config = composed("+debug=quick", f"model.path={folder}").model
    runtime = Runtime(config, locate(config, tmp_path), make_task(composed().task, tmp_path), "cpu")
    with pytest.raises(ModelError, match=r"generation_config\.json cannot be read"):
        _ = runtime.renderer


def test_a_random_models_vocabulary_is_all_text(tmp_path: Path) -> None:
    runtime = make_runtime(composed("+debug=quick", "+model.random.vocab_size=1000"), tmp_path)
    tokenizer = runtime.renderer.tokenizer
    assert len(tokenizer) == runtime.vocabulary == 1000
    assert all(tokenizer.decode([token]).strip() for token in range(300, 1000))
    assert tokenizer("w300 plain")["input_ids"] == [t for t in tokenizer("w300 plain")["input_ids"] if t < 300]


def test_another_conversion_is_another_model_for_everything_below(tiny: Runtime, monkeypatch: Any) -> None:
    before = tiny.identity
    monkeypatch.setattr(conversion, "VERSION", conversion.VERSION + 1)
    assert tiny.identity != before


def test_the_adapter_and_the_summary_name_the_folder_that_was_trained(
    tiny: Runtime, tmp_path: Path, experiment: Experiment
) -> None:
    folder = Path(shutil.copytree(str(tiny.folder), tmp_path / "mine"))
    summary, output = experiment(f"model.path={folder}", cache=tmp_path / "cache")
    assert summary["model_source"]["source"] == str(folder)
    assert summary["model"] == "mine"
    adapter = json.loads((output / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(folder)


@pytest.mark.parametrize(
    ("name", "count"), [("Qwen/Qwen2.5-1.5B-Instruct", 1.5e9), ("SmolLM2-135M-Instruct", 135e6), ("x", None)]
)
def test_parameters_named_by_a_model(name: str, count: float | None) -> None:
    assert billions_in(name) == count
