"""Several processes of one run, really started: what they make together is what one process makes."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from mipo_exp.errors import ConfigError
from mipo_exp.execution.processes import Team, threads
from mipo_exp.execution.shards import Processes, Shard, Shards, compute_shards
from mipo_exp.models.runtime import Runtime, choose_device
from mipo_exp.planning import checks
from mipo_exp.store.artefacts import Workspace
from mipo_exp.store.records import Response
from tests.command_line import Done, environment, run, with_cache
from tests.conftest import Experiment, composed

# Several shards a stage, and a batch that two processes share.
SHARED = ("+debug=quick", "device=cpu", "engine.batch_rows=2", "scoring.batch_tokens=400")
UNEQUAL = ("manifest.json", "adapter_config.json")
SUFFIXES = (".arrow", ".json", ".safetensors")
BEFORE_TRAINING = ("chosen", "rejected", "pairs", "scored_pairs", "before_responses", "before_scores_base")


def together(*overrides: str, folders: Sequence[Path]) -> list[Done]:
    """One process for each folder; where one fails the others are ended, as launchers do."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    size, failed = len(folders), threading.Event()

    def start(rank: int) -> Done:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        variables = {name: str(number) for name, number in numbers.items()}
        variables |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        arguments = with_cache([*overrides, *SHARED], folders[0])
        done = run(*arguments, cwd=folders[rank], until=failed, **variables)
        if done.returncode:
            failed.set()
        return done

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(start, range(size)))


def launch(*overrides: str, cwd: Path) -> "subprocess.Popen[str]":
    """`accelerate launch`, two processes on the CPU."""
    arguments = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    arguments += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *arguments, "-m", "mipo_exp"]
    return subprocess.Popen(
        [*launcher, *with_cache([*SHARED, "hydra.run.dir=run", *overrides], cwd)],
        cwd=cwd,
        env={**environment(), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def key_of(summary: dict[str, Any], stage: str) -> str:
    return summary["stages"][stage]["key"]


def files(cache: Path, stage: str) -> dict[str, Any]:
    """The artefacts of a stage: bytes, and JSON read; without what names the time or a folder."""
    found = (path for path in sorted((cache / stage).rglob("*")) if path.suffix in SUFFIXES)
    return {
        str(path.relative_to(cache)): json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()
        for path in found
        if path.name not in UNEQUAL
    }


def check_equal(two: dict[str, Any], two_cache: Path, one: dict[str, Any], one_cache: Path) -> None:
    """What is sampled and scored before training is equal in every byte, the adapter up to rounding."""
    for stage in BEFORE_TRAINING:
        assert key_of(two, stage) == key_of(one, stage)
    for folder in ("chosen", "rejected", "pairs", "scored_pairs"):
        assert files(two_cache, folder) == files(one_cache, folder)
    assert key_of(two, "adapter") != key_of(one, "adapter")
    ours, theirs = (
        load_file(cache / "adapter" / key_of(summary, "adapter") / "adapter" / "adapter_model.safetensors")
        for summary, cache in ((two, two_cache), (one, one_cache))
    )
    assert ours.keys() == theirs.keys()
    assert max(float(weight.abs().max()) for weight in ours.values()) > 0.01
    for name, weight in ours.items():
        assert float((weight - theirs[name]).abs().max()) < 1e-5, name
    for phase in ("before", "after"):
        for name, found in two["metrics"][phase].items():
            assert found["mean"] == pytest.approx(one["metrics"][phase][name]["mean"], abs=1e-3, nan_ok=True), name


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """A folder for each of two processes."""
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    return folders


def test_two_processes_make_what_one_makes_with_twice_the_batch(
    tmp_path: Path, two: list[Path], experiment: Experiment
) -> None:
    cache = tmp_path / "shared"
    # Prompts of 200 to 400 bytes: by itself each process would cut its four pairs into parts of other sizes.
    sizes = ("task.train_examples=16", "trainer.batch_tokens.cpu=900")
    each = (*sizes, "trainer.per_device_train_batch_size=4", f"paths.cache={cache}")
    done = together(*each, "hydra.run.dir=run", folders=two)
    assert [item.returncode for item in done] == [0, 0], done[0].stderr
    assert done[1].stderr == done[1].stdout == ""
    assert list(two[1].iterdir()) == []  # one run folder, that of process 0
    assert "4 in each of 2 processes" in done[0].stderr
    summary = summary_of(two[0] / "run")
    assert summary["processes"] == 2
    alone = tmp_path / "alone"
    one, _ = experiment(*SHARED[1:], *sizes, "trainer.per_device_train_batch_size=8", cache=alone)
    check_equal(summary, cache, one, alone)
    again = together(*each, "hydra.run.dir=again", folders=two)
    assert [item.returncode for item in again] == [0, 0]
    assert all(stage["cached"] for stage in summary_of(two[0] / "again")["stages"].values())


@pytest.mark.parametrize("method", ["sft", pytest.param("softmax_dpo", marks=pytest.mark.slow)])
def test_methods_with_losses_of_our_own_spread_as_well(
    method: str, tmp_path: Path, two: list[Path], experiment: Experiment
) -> None:
    cache, alone = tmp_path / "shared", tmp_path / "alone"
    overrides = (f"method={method}", "negatives.k=2")
    done = together(
        *overrides, "trainer.per_device_train_batch_size=2", f"paths.cache={cache}", "hydra.run.dir=run", folders=two
    )
    assert [item.returncode for item in done] == [0, 0], done[0].stderr
    experiment(*SHARED[1:], *overrides, "trainer.per_device_train_batch_size=4", cache=alone)
    ours, theirs = (json.loads(next(of.glob("adapter/*/history.json")).read_text()) for of in (cache, alone))
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], abs=1e-5)
    assert [row["grad_norm"] for row in ours] == pytest.approx([row["grad_norm"] for row in theirs], rel=1e-4)
    assert ours[-1].keys() == theirs[-1].keys()


def test_bad_input_has_one_message_and_ends_all_processes(two: list[Path]) -> None:
    done = together("method.beta=-1", folders=two)
    assert done[0].returncode == 2
    assert done[1].returncode != 0
    assert done[0].stderr == "error: method.beta=-1.0 is out of range; it must be greater than 0\n"
    assert done[1].stderr == ""


def test_what_one_machine_lacks_is_said_by_process_0(two: list[Path]) -> None:
    done = together("paths.cache=cache", folders=two)  # another folder in each
    assert done[0].returncode == 2
    assert "process 1 of 2 on" in done[0].stderr
    assert "must be a folder that all machines of this run share" in done[0].stderr
    assert done[0].stderr.count("error: ") == 1
    assert done[1].stderr == ""


@pytest.mark.parametrize("method", ["infonce", "mi_rl"])
def test_a_training_that_cannot_be_spread_is_refused(method: str, two: list[Path]) -> None:
    done = together(f"method={method}", folders=two)
    assert done[0].returncode == 2
    assert f"method={method}" in done[0].stderr
    assert "start it in one process" in done[0].stderr


def test_a_multirun_goes_on_after_a_job_with_bad_input(two: list[Path]) -> None:
    done = together("-m", "method=base", "evaluation.k=2,-1,500,3", "hydra.sweep.dir=jobs", folders=two)
    assert done[0].returncode == 2, done[0].stderr
    assert "2 of the jobs failed" in done[0].stderr
    assert [summary_of(two[0] / "jobs" / job)["status"] for job in ("0", "3")] == ["ok", "ok"]


def test_accelerate_launch_starts_it(tmp_path: Path) -> None:
    process = launch("method=base", cwd=tmp_path)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    summary = summary_of(tmp_path / "run")
    assert (summary["status"], summary["processes"]) == ("ok", 2)
    assert summary["command"].startswith("accelerate launch --multi_gpu --num_processes 2 -m mipo_exp")


def rank_1_of(launcher: "subprocess.Popen[str]") -> psutil.Process:
    for _ in range(600):
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(launcher.pid).children():
                if child.environ().get("RANK") == "1":
                    return child
        time.sleep(0.1)
    raise AssertionError("process 1 was not started")


@pytest.mark.slow
@pytest.mark.parametrize("when", ["chosen/*.partial/shards/*/*.arrow", "adapter/*.partial/checkpoints/*/complete.json"])
def test_a_killed_process_ends_all_and_the_same_command_goes_on(when: str, tmp_path: Path, two: list[Path]) -> None:
    work = ("task.train_examples=80", "task.max_new_tokens=40", "trainer.max_steps=20", "trainer.save_steps=5")
    cache = tmp_path / "cache"
    launched = launch(*work, "trainer.per_device_train_batch_size=2", cwd=tmp_path)
    process = rank_1_of(launched)
    all_of_them = psutil.Process(launched.pid).children()
    while not list(cache.glob(when)):
        assert launched.poll() is None, launched.communicate()[0]
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    killed = time.monotonic()
    said, _ = launched.communicate(timeout=60)
    assert launched.returncode != 0
    assert time.monotonic() - killed < 40
    assert "SIGKILL" in said  # what the launcher says
    assert len(all_of_them) >= 2
    assert not any(item.is_running() for item in all_of_them)
    assert list(cache.glob(when)), "nothing is left to go on from"
    again = launch(*work, "trainer.per_device_train_batch_size=2", cwd=tmp_path)
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert ("resuming the training" in said) == when.startswith("adapter")
    undisturbed = together(
        *(*work, "trainer.per_device_train_batch_size=2", "hydra.run.dir=run", f"paths.cache={tmp_path / 'other'}"),
        folders=two,
    )
    assert [item.returncode for item in undisturbed] == [0, 0]
    first, second = summary_of(tmp_path / "run"), summary_of(two[0] / "run")
    for stage in first["stages"]:
        assert key_of(first, stage) == key_of(second, stage)
    for stage in ("chosen", "rejected", "scored_pairs", "adapter", "responses", "scores"):
        assert files(cache, stage) == files(tmp_path / "other", stage)


def test_of_processes_that_run_a_stage_together_one_writes(tmp_path: Path) -> None:
    work = Workspace(tmp_path, {}, writes=False)
    assert work.shard(0, Response, lambda: [Response("a", [1], "x", True)])[1] is False
    assert work.write_table("responses", [Response("a", [1], "x", True)], Response) == 1
    work.write_json("notes", {})
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".arrow"]
    assert not (tmp_path / "responses.arrow").exists()


def test_each_process_computes_its_shards_and_reads_the_others(tiny: Runtime, tmp_path: Path) -> None:
    computed: list[tuple[int, int]] = []

    def one(rank: int) -> list[str]:
        work = Workspace(tmp_path, {})
        work.executor = Processes(rank, 2)

        def shard(number: int) -> Shard[None, Response]:
            computed.append((rank, number))
            return lambda runtime, tool: [Response(str(number), [number], "x", True)]

        found = compute_shards(work, Shards(tiny, None, lambda *_: contextlib.nullcontext(), Response, 5, shard))
        return sorted(rows[0].id for rows, _ in found)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(one, range(2))) == [list("01234")] * 2
    assert sorted(computed) == [(0, 0), (0, 2), (0, 4), (1, 1), (1, 3)]


def test_cores_are_divided_where_the_launcher_says_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads(4) == 4
    assert threads(32) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads(4) == 3


@pytest.mark.parametrize(
    ("stage", "file", "refused"), [("3", None, True), ("2", None, False), ("2", 3, True), (None, 1, False)]
)
def test_weights_split_between_processes_are_refused(
    stage: str | None, file: int | None, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `accelerate launch --use_deepspeed` says it: in a variable, or in DeepSpeed's own file, which decides."""
    monkeypatch.setattr(checks, "team", lambda: Team(0, 2))
    config = composed("+debug=quick")
    checks.check_processes(config)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    if stage is not None:
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", stage)
    if file is not None:
        path = tmp_path / "zero.json"
        path.write_text(json.dumps({"zero_optimization": {"stage": file}}))
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    with pytest.raises(ConfigError, match="stage 3 .* use --zero_stage 2") if refused else contextlib.nullcontext():
        checks.check_processes(config)


def test_fsdp_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "team", lambda: Team(0, 2))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="FSDP needs GPUs: on a CPU accelerate would train with plain data parallel"):
        checks.check_processes(composed("+debug=quick", "device=cpu"))


FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu"}
WAYS = {
    "fsdp": ("tests.fsdp_on_cpu", FSDP, r"FSDP 2: \d\d of \d\d weights are split"),
    "zero1": ("mipo_exp", {**ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, r"DeepSpeed ZeRO 1"),
    "zero2": ("mipo_exp", {**ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, r"DeepSpeed ZeRO 2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_split_weights_and_optimizers_train_what_data_parallel_does(way: str, tmp_path: Path) -> None:
    if way != "fsdp":
        pytest.importorskip("deepspeed")

    def train(name: str, module: str, variables: dict[str, str]) -> tuple[str, dict[str, torch.Tensor]]:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        options = [*SHARED, "tracker=none", f"hydra.run.dir={name}", f"paths.cache=cache-{name}"]
        done = subprocess.run(
            [*torchrun, "-m", module, *options],
            cwd=tmp_path,
            env={**environment(), "OMP_NUM_THREADS": "1", **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr, load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")

    module, variables, said = WAYS[way]
    log, plain = train("plain", "mipo_exp", {})
    assert "the processes train with data parallel" in log
    log, split = train(way, module, variables)
    assert re.search(said, log), log
    assert plain.keys() == split.keys()
    changed = max(float(weight.abs().max()) for name, weight in plain.items() if "lora_B" in name)
    assert changed > 1e-4
    assert max(float((plain[name] - split[name]).abs().max()) for name in plain) < 0.01 * changed


@pytest.mark.parametrize(("visible", "number"), [(None, "1"), ("4,6", "6")])
def test_one_process_is_told_how_to_choose_its_gpu(
    visible: str | None, number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ConfigError, match=f"device=cuda with CUDA_VISIBLE_DEVICES={number} in"):
        choose_device("cuda:1")
    assert choose_device("cuda:0") == "cuda:0"
