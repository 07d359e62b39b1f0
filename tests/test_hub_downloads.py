"""Downloads from the hub whose connection breaks, through huggingface_hub and the real command line."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mipo_exp.models.runtime import Runtime
from tests.command_line import environment
from tests.hub_server import HubServer
from tests.test_hub import ask_for_model


@pytest.fixture
def hub(tiny: Runtime, tmp_path: Path) -> HubServer:
    """The tiny model, whose weights lie on the CDN."""
    hub = HubServer()
    assert tiny.folder is not None
    shutil.copytree(tiny.folder, tmp_path / "served")
    hub.add("lab/tiny", tmp_path / "served")
    hub.large = 50_000
    return hub


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_download_whose_connection_breaks_goes_on(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub:
        hub.connect(monkeypatch, tmp_path / "hub")
        hub.cuts = [10_000, 20_000]
        found = ask_for_model("lab/tiny", "main").path  # type: ignore[attr-defined]
    assert hub.sent[:2] == [10_000, 20_000]
    assert weights(found) == weights(tmp_path / "served")


@pytest.mark.slow
def test_a_download_that_broke_leaves_nothing_half_used_and_the_same_command_goes_on(
    hub: HubServer, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "mipo_exp", "+debug=quick", "model=qwen0.5b", "model.hub_id=lab/tiny"]
    command += ["tracker=none", "paths.cache=cache", "hydra.run.dir=out"]
    variables = {**environment(), **hub.environment(tmp_path / "hub")}

    def run() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)

    with hub:
        hub.cuts = [1000, *[0] * 40]
        broken = run()
        assert broken.returncode == 2, broken.stderr
        said = broken.stderr.strip().splitlines()[-1]
        assert said.startswith("error: model.hub_id=lab/tiny: downloading it failed"), broken.stderr
        assert "run the same command again" in said
        assert not [path for path in (tmp_path / "hub").rglob("*.safetensors") if path.exists()]
        finished = {request for request in hub.requests if "/resolve/" in request and "safetensors" not in request}
        del hub.cuts[:], hub.requests[:]
        done = run()
    assert done.returncode == 0, done.stderr
    assert finished
    assert not [request for request in hub.requests if request.startswith("GET") and request in finished], "kept"
