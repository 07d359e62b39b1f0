"""Runs with a judge: through a real server on this machine, which also fails in every way, and in process."""

import dataclasses
import importlib.util
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mipo_exp.config.parsing import parse, resolve
from mipo_exp.errors import ConfigError, JudgeError, ModelError
from mipo_exp.experiment import assemble, run_experiment
from mipo_exp.judging.endpoint import Endpoint
from mipo_exp.judging.judge import Judge
from mipo_exp.judging.replies import Reply
from mipo_exp.judging.stage import Judging, judge_measures, judge_responses
from mipo_exp.judging.templates import load_templates
from mipo_exp.models.runtime import Runtime
from mipo_exp.planning.describe import make_plan
from mipo_exp.store.artefacts import Stage, Store
from mipo_exp.store.records import Example, Judgement, Response
from tests.command_line import run
from tests.conftest import Experiment, compose_raw, composed
from tests.judge_server import Answer, JudgeServer, Script, completion
from tests.test_pipeline import artefact

ROOT = Path(__file__).parents[1]
# A large step and the likeliest tokens, so that responses differ before and after.
CHANGED = ("trainer.learning_rate=0.5", "trainer.max_steps=4", "evaluation.sampling.temperature=0")
FAIL = Answer(503, headers={"x-should-retry": "false"})


def asking(url: str, *more: str) -> list[str]:
    """The overrides that make a server the judge."""
    keys = ["judge=endpoint", f"judge.base_url={url}", "judge.model=tiny", "judge.timeout_s=60"]
    return [*CHANGED, *keys, *more]


@pytest.fixture
def server(tiny: Runtime) -> Iterator[JudgeServer]:
    with JudgeServer(tiny) as running:
        yield running


def endpoint(server: JudgeServer, *more: str) -> Judge:
    """A judge without an experiment around it; its replies are kept nowhere else."""
    config: Any = composed("judge=endpoint", f"judge.base_url={server.url}", "judge.model=tiny", *more).judge
    return Judge(Endpoint(config), load_templates(None), Path(server.runtime.folder or "").parent / server.url[-8:-3])


def messages(count: int) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": f"Number {n}: [[A]] or [[B]] or [[C]]?"}] for n in range(count)]


def test_a_pairwise_judge_behind_a_server(experiment: Experiment, server: JudgeServer) -> None:
    prices = ("judge.price_per_million_input_tokens=2", "judge.price_per_million_output_tokens=1000")
    summary, output = experiment(*asking(server.url, *prices, "+judge.extra.seed=7", "objective=after/judge/win_rate"))
    assert (summary["status"], summary["missing"]) == ("ok", {})
    after = summary["metrics"]["after"]
    assert 0 <= after["judge/win_rate"]["ci95"][0] <= after["judge/win_rate"]["ci95"][1] <= 1
    assert after["judge/win_rate"]["n"] == 6
    assert after["judge/parse_failure_rate"]["mean"] == 0
    assert "judge/win_rate" not in summary["metrics"]["before"] | summary["metrics"]["delta"]
    facts = summary["judge"]
    assert (facts["kind"], facts["judgements"], facts["unreadable"]) == ("pairwise", len(server.requests), 0)
    assert facts["judgements"] >= 6, "hardly any response has changed"
    assert facts["cost"] == pytest.approx((2 * facts["input_tokens"] + 1000 * facts["output_tokens"]) / 1e6)
    request = server.requests[0]
    assert (request["model"], request["temperature"], request["max_tokens"], request["seed"]) == ("tiny", 0.0, 512, 7)
    page = (output / "report.html").read_text()
    assert "Win rate against before" in page
    assert "is no difference to before" in page
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    (final,) = [row for row in rows if row.get("phase") == "after"]
    assert final["judge/win_rate"] == after["judge/win_rate"]["mean"]
    asked = len(server.requests)
    again, _ = experiment(*asking(server.url, *prices, "+judge.extra.seed=7", "judge.concurrency=1"))
    assert again["stages"]["judgements"]["cached"]
    assert (again["metrics"]["after"]["judge/win_rate"], len(server.requests)) == (after["judge/win_rate"], asked)


def test_a_reply_is_used_again_by_another_run(experiment: Experiment, server: JudgeServer) -> None:
    """Rubric scores of the responses before training are the same for every method; another one asks for its own."""
    first, _ = experiment(*asking(server.url, "judge.kind=rubric"))
    assert {"judge/score", "judge/parse_failure_rate"} <= set(first["metrics"]["delta"])
    asked = len(server.prompts)
    second, _ = experiment(*asking(server.url, "judge.kind=rubric", "method=base"))
    assert first["metrics"]["before"]["judge/score"] == second["metrics"]["before"]["judge/score"]
    assert len(server.prompts) == len(set(server.prompts)), "asked twice for the same reply"
    assert asked < len(server.prompts) <= asked + 6


def test_a_local_judge_needs_no_server(experiment: Experiment, no_network: None) -> None:
    """The tiny model writes nonsense: allowed to, it leaves the ties of equal responses; otherwise the run says what is
    missing."""
    sampled = "evaluation.sampling.temperature=1"  # some responses stay equal
    local = (*CHANGED, sampled, "judge=local", "model@judge.model=tiny", "judge.max_tokens=6")
    summary, _ = experiment(*local, "judge.max_parse_failures=1")
    assert summary["status"] == "ok"
    assert summary["metrics"]["after"]["judge/parse_failure_rate"]["mean"] == 1.0
    equal = 6 - summary["judge"]["judgements"] // 2
    assert 0 < equal < 6
    rate = summary["metrics"]["after"]["judge/win_rate"]
    assert (rate["mean"], rate["n"]) == (0.5, equal)
    assert rate["ci95"][0] < 0.5 < rate["ci95"][1], "a few ties do not show that all will be"
    assert summary["metrics"]["after"]["judge/position_consistency"]["mean"] is None
    assert summary["judge"]["cost"] is None
    summary, output = experiment(*local)
    assert summary["status"] == "incomplete"
    assert "have no verdict that can be read" in summary["missing"]["judge"]["why"]
    assert "no verdict that can be read" in (output / "report.html").read_text()


def test_a_prompt_too_long_for_a_local_judge_is_a_refusal(experiment: Experiment) -> None:
    small = "judge.model.random.max_position_embeddings=700"
    summary, _ = experiment(
        *(*CHANGED, "judge=local", "model@judge.model=tiny", small, "judge.max_tokens=6", "judge.max_parse_failures=1")
    )
    assert summary["judge"]["refused"] == summary["judge"]["judgements"] > 0


def test_prefevals_checks_through_a_server(server: JudgeServer, tmp_path: Path) -> None:
    rows = [
        Example(f"e{i}", None, f"q{i}", "I avoid fish.", f"Dinner {i}?", json.dumps({"preference": "no fish"}))
        for i in range(3)
    ]
    config: Any = composed("judge=endpoint", f"judge.base_url={server.url}", "judge.model=tiny").judge
    judging = Judging(config, Judge(Endpoint(config), load_templates(None), tmp_path), "checks")
    texts = {phase: [f"{phase} answer {i}" for i in range(3)] for phase in ("before", "after")}
    inputs = {
        "examples": Stage("examples", 1, {}, {}, lambda work: work.write_table("eval", rows, Example)),
        **{
            phase: Stage(
                "responses",
                1,
                {"phase": phase},
                {},
                lambda work, phase=phase: work.write_table(  # type: ignore[misc]
                    "responses", [Response(f"e{i}", [1], text, True) for i, text in enumerate(texts[phase])], Response
                ),
            )
            for phase in texts
        },
    }
    store = Store(tmp_path / "cache")
    stage = Stage("judgements", 1, {}, inputs, partial(judge_responses, judging))
    artefact, _ = store.fetch(stage, {name: store.fetch(of, {})[0] for name, of in inputs.items()})
    found = judge_measures(judging, artefact, rows, texts)
    assert 18 <= len(server.requests) <= 24
    for phase in texts:
        assert found[phase]["judge/accuracy"].result() in {0, 1 / 3, 2 / 3, 1}
        assert found[phase]["judge/parse_failure_rate"].result() == 0


def test_a_rate_limited_request_waits_as_long_as_the_server_says(tiny: Runtime) -> None:
    times: list[float] = []

    def script(number: int) -> Answer | None:
        times.append(time.monotonic())
        return Answer(429, headers={"Retry-After": "1"}) if number == 1 else None

    with JudgeServer(tiny, script) as server:
        (reply,) = endpoint(server).ask(messages(1), "judging")
    assert reply.text is not None
    assert times[1] - times[0] >= 1.0


def test_three_server_errors_in_a_row_are_survived(tiny: Runtime) -> None:
    def script(number: int) -> Answer | None:
        return Answer(500, headers={"retry-after-ms": "10"}) if number <= 3 else None

    with JudgeServer(tiny, script) as server:
        (reply,) = endpoint(server, "judge.retries=3").ask(messages(1), "judging")
        assert reply.text is not None
        assert len(server.requests) == 4


def slow(number: int) -> Answer | None:
    time.sleep(0.6)
    return None


NONSENSE = {
    "html": Answer(200, b"<html>Sign in</html>", content_type="text/html"),
    "half of a JSON": Answer(200, b'{"choices": ['),
    "another JSON": Answer(200, b'{"hello": 1}'),
    "no choices": Answer(200, b'{"choices": [], "object": "chat.completion"}'),
}


@pytest.mark.parametrize(
    ("script", "more", "reason"),
    [
        (slow, ["judge.timeout_s=0.2", "judge.retries=0"], r"no answer within judge\.timeout_s=0\.2 s"),
        (lambda n: Answer(429, headers={"x-should-retry": "false"}), [], "it answers 429"),
        (lambda n: FAIL, [], "it answers 503"),
        (lambda n: Answer(401, b'{"error": {"message": "wrong key"}}'), [], r"it answers 401 .*wrong key"),
        *((lambda n, a=a: a, [], "something else than a chat completion") for a in NONSENSE.values()),
    ],
    ids=["slow", "rate limit", "server error", "wrong key", *NONSENSE],
)
def test_a_server_that_fails_is_given_up_with_the_reason(
    script: Script, more: list[str], reason: str, tiny: Runtime
) -> None:
    with JudgeServer(tiny, script) as server:
        judge = endpoint(server, *more, "judge.concurrency=2")
        with pytest.raises(JudgeError, match=rf"30 of 30 requests got no reply from tiny at {server.url}: .*{reason}"):
            judge.ask(messages(30), "judging")
        assert len(server.requests) <= 6, "asked on and on"


def test_a_server_that_is_down(tiny: Runtime) -> None:
    with JudgeServer(tiny) as server:
        judge = endpoint(server, "judge.retries=0")
    with pytest.raises(JudgeError, match="it cannot be reached"):
        judge.ask(messages(2), "judging")


def test_what_is_kept_when_a_server_fails_midway_is_not_asked_again(tiny: Runtime) -> None:
    with JudgeServer(tiny, lambda number: FAIL if 4 <= number <= 6 else None) as server:
        judge = endpoint(server, "judge.concurrency=1")
        with pytest.raises(JudgeError, match="5 of 8 requests got no reply"):
            judge.ask(messages(8), "judging")
        assert len(judge.ask(messages(8), "judging")) == 8
        answered = [*server.prompts[:3], *server.prompts[6:]]
    assert sorted(answered) == sorted(item[0]["content"] for item in messages(8))


def test_a_request_that_is_refused_does_not_stop_the_others(tiny: Runtime) -> None:
    refusal = Answer(400, b'{"error": {"message": "longer than the context"}}')
    with JudgeServer(tiny, lambda number: refusal if number == 2 else None) as server:
        replies = endpoint(server, "judge.concurrency=1").ask(messages(3), "judging")
    assert [reply.text is None for reply in replies] == [False, True, False]
    assert "longer than the context" in (replies[1].refusal or "")


def test_a_reply_without_text_or_counts_is_a_reply(tiny: Runtime) -> None:
    bare = json.loads(completion(None).body)
    del bare["usage"]
    with JudgeServer(tiny, lambda number: Answer(200, json.dumps(bare).encode())) as server:
        assert endpoint(server).ask(messages(1), "judging") == [Reply("", 0, 0)]


def test_replies_without_a_verdict_are_asked_for_again_when_they_are_too_many(
    experiment: Experiment, tiny: Runtime
) -> None:
    """A server with the wrong model: the run is incomplete; the same command is complete once the server is right."""
    with JudgeServer(tiny, lambda number: completion("I am a poem.")) as server:
        summary, output = experiment(*asking(server.url))
        assert summary["status"] == "incomplete"
        assert "I am a poem." in summary["missing"]["judge"]["why"]
        assert "judge/win_rate" in summary["missing"]["judge"]["metrics"]
        assert summary["metrics"]["after"]["mi/base/nats"]["mean"] is not None
        assert (output / "adapter" / "adapter_model.safetensors").is_file()
        assert "Incomplete" in (output / "report.html").read_text()
        rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        assert [row["part"] for row in rows if row.get("phase") == "missing"] == ["judge"]
        server.script = lambda number: None
        summary, _ = experiment(*asking(server.url))
        assert summary["status"] == "ok"
        assert summary["metrics"]["after"]["judge/parse_failure_rate"]["mean"] == 0


def test_an_objective_that_is_missing_is_none(tmp_path: Path, shared_cache: Path) -> None:
    paths = (f"paths.output={tmp_path}", f"paths.cache={shared_cache}")
    down = asking("http://127.0.0.1:9/v1", "judge.retries=0", "objective=after/judge/win_rate")
    raw = compose_raw("+debug=quick", *down, *paths)
    outcome = run_experiment(parse(raw), resolve(raw), tmp_path, "test")
    assert outcome.objective is None
    assert "cannot be reached" in outcome.missing["judge"]


def test_the_key_comes_from_the_environment_and_stays_out_of_what_is_written(
    server: JudgeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_TEST_KEY", "very-secret-value")
    judge = endpoint(server, "judge.api_key_env=JUDGE_TEST_KEY")
    with caplog.at_level(logging.DEBUG):
        judge.ask(messages(1), "judging")
    assert server.headers[0]["authorization"] == "Bearer very-secret-value"
    assert "very-secret-value" not in caplog.text
    assert all("very-secret-value" not in path.read_text() for path in judge.replies.folder.rglob("*.json"))
    assert "very-secret-value" not in str(judge.identity(("pairwise",)))


def test_the_plan_counts_what_the_judge_would_be_asked(
    experiment: Experiment, server: JudgeServer, shared_cache: Path, tmp_path: Path
) -> None:
    def plan(*more: str) -> str:
        raw = compose_raw("+debug=quick", *asking(server.url, *more), f"paths.cache={shared_cache}", "paths.output=x")
        (line,) = (
            line for line in make_plan(assemble(parse(raw), tmp_path, fetch=False)).notes if line.startswith("judge: ")
        )
        return line.removeprefix("judge: ")

    prices = ["judge.price_per_million_input_tokens=1000000", "judge.price_per_million_output_tokens=0"]
    line = plan("seed=77")
    assert "pairwise, 12 requests at most" in line
    assert "its prices are not set" in line
    line = plan("seed=77", "judge.kind=rubric", *prices)
    assert "rubric, 12 requests at most" in line
    assert f"cost about {line.split('about ')[1].split()[0]}.00 at most" in line
    assert not server.requests
    server.script = lambda number: FAIL if number > 4 else None
    summary, _ = experiment(*asking(server.url, "judge.concurrency=1"))
    assert summary["status"] == "incomplete"
    assert ", 4 of them cached" in plan()
    server.script = lambda number: None
    experiment(*asking(server.url))
    assert plan() == "every reply is cached"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["judge=endpoint", "judge.model=m", "judge.base_url=localhost:8000"],
            r"judge\.base_url='localhost:8000' is not",
        ),
        (
            ["judge=endpoint", "judge.model=m", "judge.api_key_env=NO_SUCH_KEY"],
            r"NO_SUCH_KEY: this environment variable",
        ),
        (["judge=endpoint", "judge.model=''"], r"judge\.model is empty"),
        (["judge=endpoint", "judge.model=m", "+judge.extra.max_tokens=3"], r"judge\.extra\.max_tokens"),
        (["judge=endpoint", "judge.model=m", "judge.prompts=/nowhere"], r"judge\.prompts=/nowhere is not a folder"),
        (["judge=endpoint", "judge.model=m", "judge.kind=checks"], r"task=personas has none"),
        (["judge=endpoint", "judge.model=m", "task=quiz"], r"task=quiz has right answers"),
        (["judge=endpoint", "judge.model=m", "objective=delta/judge/win_rate"], r"use objective=after/judge/win_rate"),
        (["objective=after/judge/win_rate"], r"has no metric 'judge/win_rate'"),
        (["judge=endpoint"], r"judge\.model has no value; set it on the command line: judge\.model=…"),
        (["judge=endpoint", "judge.model=m", "judge.timeout_s=0"], r"judge\.timeout_s=0\.0 is out of range"),
        (["judge=endpoint", "judge.model=m", "judge.kind=pairwize"], r"did you mean 'pairwise'"),
    ],
)
def test_a_judge_that_cannot_work_is_refused_before_anything_runs(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        assemble(composed("+debug=quick", *overrides, f"paths.output={tmp_path}", f"paths.cache={tmp_path}"), tmp_path)
    assert not (tmp_path / "chosen").exists()


def test_a_local_judge_without_a_model_is_refused(tmp_path: Path) -> None:
    config = composed("+debug=quick", "judge=local", "judge.model.path=/nowhere", f"paths.cache={tmp_path}")
    with pytest.raises(ModelError, match=r"judge=local .*: model\.path=/nowhere does not exist"):
        assemble(config, tmp_path)


def test_without_the_extra_only_an_endpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "openai" else find(name, *a))
    config = composed("+debug=quick", "judge=endpoint", "judge.model=m", f"paths.cache={tmp_path}")
    with pytest.raises(ConfigError, match=r"pip install 'mipo-exp\[judge\]'"):
        assemble(config, tmp_path)
    assemble(composed("+debug=quick", f"paths.cache={tmp_path}"), tmp_path)


def test_where_the_server_is_counts_unless_the_judge_has_an_identity(server: JudgeServer) -> None:
    config: Any = composed("judge=endpoint", f"judge.base_url={server.url}", "judge.model=tiny").judge
    moved = dataclasses.replace(config, base_url="http://elsewhere/v1")
    patient = dataclasses.replace(config, timeout_s=5.0, retries=0, concurrency=2, price_per_million_input_tokens=3.0)
    named = [dataclasses.replace(item, identity="ours") for item in (config, moved)]
    assert Endpoint(config).identity != Endpoint(moved).identity
    assert Endpoint(config).identity == Endpoint(patient).identity
    assert Endpoint(named[0]).identity == Endpoint(named[1]).identity != Endpoint(config).identity


def test_killed_while_judging_it_goes_on_and_asks_for_nothing_twice(
    tiny: Runtime, experiment: Experiment, shared_cache: Path, tmp_path: Path
) -> None:
    """kill -9 at request 4; then a server that fails from request 7 on (exit code 3); then all is well."""
    experiment(*CHANGED)  # everything but the judge
    process: list[subprocess.Popen[bytes]] = []

    def kill(number: int) -> Answer | None:
        if number == 4:
            process[0].send_signal(signal.SIGKILL)
            process[0].wait()
        return None

    with JudgeServer(tiny, kill) as server:
        overrides = ["+debug=quick", *asking(server.url, "judge.concurrency=1"), f"paths.cache={shared_cache}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "mipo_exp", *overrides, "hydra.run.dir=killed"]
        process.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL))
        assert process[0].wait(timeout=300) == -signal.SIGKILL
        assert len(server.requests) == 4
        server.script = lambda number: FAIL if number >= 7 else None
        done = run(*overrides, "hydra.run.dir=failed", cwd=tmp_path)
        assert done.returncode == 3, done.stderr
        assert done.stderr.strip().splitlines()[-1].startswith("incomplete: judge: ")
        assert json.loads((tmp_path / "failed" / "summary.json").read_text())["status"] == "incomplete"
        server.script = lambda number: None
        failed = len(server.requests) - 6
        summary, _ = experiment(*asking(server.url))
        assert summary["status"] == "ok"
        # Request 4 was under way when the process was killed; those from 7 on were turned down at first.
        assert len(server.requests) == summary["judge"]["judgements"] + 1 + failed
        assert server.prompts[3] == server.prompts[4]


@pytest.mark.slow
def test_transformers_serve_with_smollm2_says_what_the_same_model_says_in_process(
    smollm2: Runtime, experiment: Experiment, tmp_path: Path
) -> None:
    """Real responses to personas, judged by a real model behind a real server. SmolLM2-135M keeps to no form of a
    verdict; asked for the letter alone, and cut off after it, it gives one."""
    pytest.importorskip("fastapi")
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "pairwise.txt").write_text(
        "Request: Suggest a gift.\nA: A book about sailing.\nB: I do not know.\nBetter: A\n\n"
        "Request: What shall I cook?\nA: Nothing.\nB: Try a tomato soup.\nBetter: B\n\n"
        "Request: {prompt}\nA: {response_a}\nB: {response_b}\nBetter:"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    program = str(Path(sys.executable).parent / "transformers")
    command = [program, "serve", str(smollm2.folder), "--port", str(port)]
    with (tmp_path / "serve.log").open("wb") as log:
        serving = subprocess.Popen([*command, "--device", "cpu"], env=environment, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", serving)
        real = ["model=smollm2", f"model.path={smollm2.folder}", "task.max_new_tokens=24"]
        real += ["trainer.max_steps=4", "trainer.learning_rate=6e-4"]  # changes most responses
        shape = [*real, f"judge.prompts={prompts}", "judge.max_tokens=1"]
        server = ["judge=endpoint", f"judge.base_url=http://127.0.0.1:{port}/v1", f"judge.model={smollm2.folder}"]
        served, _ = experiment(*shape, *server, "judge.concurrency=2")
        local, _ = experiment(*shape, "judge=local", f"judge.model.path={smollm2.folder}")
    finally:
        serving.terminate()
        serving.wait(timeout=60)
    assert served["status"] == local["status"] == "ok"
    assert served["judge"]["judgements"] >= 8
    assert served["judge"]["input_tokens"] == local["judge"]["input_tokens"]
    rows = [artefact(summary, "judgements").table("judgements", Judgement) for summary in (served, local)]
    assert [row.reply for row in rows[0]] == [row.reply for row in rows[1]]
    for name in ("win_rate", "length_controlled_win_rate", "position_consistency", "parse_failure_rate"):
        assert served["metrics"]["after"][f"judge/{name}"] == local["metrics"]["after"][f"judge/{name}"], name


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Until the server answers, at most three minutes."""
    for _ in range(360):
        assert process.poll() is None, "the server has ended"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    raise AssertionError(f"{url} does not answer")
