"""Secrets: refused in the config before anything is written, taken out of what a server sends."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from mipo_exp import cli
from mipo_exp.config.redaction import is_secret_name, redact, refuse_secrets
from mipo_exp.errors import ConfigError
from mipo_exp.judging.endpoint import Endpoint
from mipo_exp.judging.replies import Reply
from tests.command_line import run
from tests.conftest import compose_raw, composed
from tests.judge_server import Answer, JudgeServer, completion
from tests.test_judge_runs import CHANGED

# Where a secret has been put, and what the message says; the secret itself is always "Pa55phrase".
PLANTED = [
    ("judge.base_url=http://user:Pa55phrase@host/v1", r"judge\.base_url contains a user .*api_key_env=NAME"),
    ("judge.base_url=http://user:Pa/55phrase@host/v1", r"judge\.base_url contains a user or password"),
    ("judge.base_url='user:Pa55phrase@host:8000/v1'", r"judge\.base_url contains a user or password"),
    ("judge.base_url='http://host/v1?api_key=Pa55phrase'", r"judge\.base_url contains a key behind"),
    ("judge.base_url='http://host/v1?api-version=1&sig=Pa55phrase'", r"judge\.base_url contains a key behind"),
    ("judge.base_url='http://host/v1#access_token=Pa55phrase'", r"judge\.base_url contains a key behind"),
    ("+judge.extra.extra_headers.X-Auth-Header=Pa55phrase", r"X-Auth-Header is a secret"),
    ("+judge.extra.extra_headers.X-Mine=a-phrase", r"extra_headers\.X-Mine is a header"),
    ("+judge.extra={auth_header:Pa55phrase}", r"judge\.extra\.auth_header is a secret"),
    ("+judge.extra.headers=[Accept,Pa55phrase]", r"judge\.extra\.headers\[0\] is a header"),
    ("+judge.extra.user=alice:Pa55phrase", r"judge\.extra\.user contains a user or password"),
    ("+judge.extra.note=gsk_Pa55phrasePa55phrase00", r"judge\.extra\.note contains what looks like the key"),
    ("+judge.extra.note=r8_Pa55phrasePa55phrase00", r"judge\.extra\.note contains what looks like the key"),
    ("+judge.extra.note=xai-Pa55phrasePa55phrase00", r"judge\.extra\.note contains what looks like the key"),
    ("judge@reward_judge=endpoint reward_judge.base_url=http://Pa55phrase@h/v1", r"reward_judge\.api_key_env=NAME"),
    ("+judge.extra.api_key=Pa55phrase", r"judge\.extra\.api_key is a secret by its name"),
    ("+judge.extra={a:{b:[{Authorization:Pa55phrase}]}}", r"judge\.extra\.a\.b\[0\]\.Authorization is a secret"),
    ("+judge.extra.headers={X-Api-Key:Pa55phrase}", r"X-Api-Key is a secret"),
    ("+judge.extra.userPassword=Pa55phrase", r"userPassword is a secret"),
    ("+judge.extra.callback='https://h/?sig=Pa55phrase'", r"judge\.extra\.callback contains a key behind"),
    ("+judge.extra.pin=${oc.env:PLANTED_SECRET}", r"judge\.extra\.pin takes a secret from the variable PLANTED_SECRET"),
    ("+judge.extra.pin=Pa55phrase", r"judge\.extra\.pin contains a key that stands in a variable"),
    ("judge.api_key_env=Pa55phrase", r"judge\.api_key_env takes the name of a variable"),
    ("+trainer.extra.hub_token=Pa55phrase", r"trainer\.extra\.hub_token is a secret .* HF_TOKEN"),
    ("+trainer.extra.note=hf_Pa55phrasePa55phrase00", r"trainer\.extra\.note contains what looks like the key"),
    ("+hydra.job.env_set.MY_TOKEN=Pa55phrase", r"hydra\.job\.env_set\.MY_TOKEN is a secret"),
    ("task=lamp task.base_url=https://user:Pa55phrase@host/LaMP", r"task\.base_url contains a user or password"),
]  # fmt: skip


def searched(*overrides: str) -> None:
    """What `cli` does with a composed config and its command line."""
    config: Any = OmegaConf.to_container(compose_raw(*overrides), resolve=False)
    refuse_secrets(config, list(overrides))


@pytest.mark.parametrize(("planted", "message"), PLANTED)
def test_a_secret_in_the_config_is_refused_and_not_repeated(
    planted: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_SECRET", "Pa55phrase")
    overrides = ["judge=endpoint", "judge.model=m", *planted.split(" ")]
    with pytest.raises(ConfigError, match=message) as refused:
        searched(*overrides)
    assert "phrase" not in str(refused.value)


@pytest.mark.parametrize(
    "override",
    ["+judge.extra={api_key:Pa55phrase},{api_key:Another1}", "judge.base_url=http://u:Pa55phrase@a/v1,http://b/v1"],
)
def test_a_secret_among_the_choices_of_a_multirun_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="secret|password"):
        refuse_secrets({}, ["seed=1,2", override])


def test_no_shipped_config_looks_like_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does what people set: special tokens, token counts, cache keys, names of variables."""
    for path in sorted([*cli.CONFIG_DIR.rglob("*.yaml"), *(cli.PROJECT_ROOT / "sweeps").rglob("*.yaml")]):
        plain: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        refuse_secrets({} if plain is None else plain, [])
    searched(
        *("judge=endpoint", "judge.model=m", "judge.api_key_env=OPENAI_API_KEY", "+judge.extra.max_tokens_per_reply=5"),
        *("+judge.extra.prompt_cache_key=mine", "+trainer.extra.pad_token='<pad>'", "sampling.max_new_tokens=5"),
        *("judge.base_url='https://[::1]:8000/v1?api-version=2024'", "+judge.extra.seed=3"),
        *("+judge.extra.headers={Accept:json}", "+judge.extra.user=alice", "+judge.extra.note='basic arithmetic'"),
    )


def test_names_of_secrets_are_distinguished_from_others() -> None:
    secret = ("token", "apiKey", "X-API-Key", "hub_token", "HF_TOKEN", "client_secret", "DB_PASSWORD", "authorization")
    secret += ("X-Auth-Header", "auth_header", "proxy_authorisation", "MY_KEY", "accesskey", "private_key", "api_keys")
    other = (
        "max_tokens",
        "pad_token",
        "api_key_env",
        "TOKENIZERS_PARALLELISM",
        "num_key_value_heads",
        "monkey",
        "author",
        *("num_token", "value_key", "json_key", "key", "max_token", "authored_by", "PAD_TOKEN"),
    )
    assert [name for name in secret if not is_secret_name(name)] == []
    assert [name for name in other if is_secret_name(name)] == []


@pytest.mark.parametrize("value", ['"Pa55phrase', "[Pa55phrase", "{a: 'Pa55phrase"])
def test_an_override_that_cannot_be_read_is_not_repeated_where_it_holds_a_secret(value: str, tmp_path: Path) -> None:
    """Hydra's own words repeat it without the name in front."""
    for override in (f"+judge.extra.api_key={value}", f"+judge.extra={{api_key: {value}"):
        done = run(override, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "cannot read the override of +judge.extra" in done.stderr
        assert "phrase" not in done.stderr + done.stdout


def test_a_refused_config_leaves_no_file_with_the_secret(tmp_path: Path) -> None:
    """Hydra would have written .hydra/overrides.yaml, and a multirun multirun.yaml, before anything else is asked."""
    for mode in ((), ("-m", "seed=1,2")):
        done = run(*mode, "judge=endpoint", "judge.model=m", "judge.base_url=http://u:Pa55phrase@h/v1", cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: judge.base_url contains a user or password; ")
        assert "phrase" not in done.stderr + done.stdout
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"phrase" in path.read_bytes()]


def test_a_secret_in_a_swept_config_file_is_refused_before_any_job_starts(tmp_path: Path) -> None:
    """The config of the multirun, which is searched first, has nothing of what a swept group chooses."""
    (tmp_path / "experiment").mkdir()
    head = "# @package _global_\ndefaults:\n  - override /judge: endpoint\n"
    judge = (
        "judge:\n  model: m\n  base_url: https://u:Pa55phrase@h/v1\n  extra: {headers: {Authorization: Pa55phrase}}\n"
    )
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 3\n")
    (tmp_path / "experiment" / "mine2.yaml").write_text(head + judge)
    done = run("-m", f"--config-dir={tmp_path}", "+experiment=mine,mine2", "hydra.sweep.dir=many", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: judge.base_url contains a user or password; ")
    assert "phrase" not in done.stderr + done.stdout
    written = [path for path in (tmp_path / "many").rglob("*") if path.is_file()]
    assert not [path for path in written if b"phrase" in path.read_bytes()]
    assert not (tmp_path / "many" / "0").exists()


@pytest.mark.parametrize(
    "text",
    [
        *("Authorization: Basic dTpzZWNyZXQxMjM=", "api-key: Pa55phrase", "{'api_key': 'Pa55 phrase'}"),
        *("token=Pa55phrase", '{\\"api_key\\": \\"Pa55phrase\\"}', '"password": "Pa55phrase', "X-Auth: Pa55phrase"),
        *("sent Basic dTpQYTU1cGhyYXNl", "gsk_Pa55phrasePa55phrase00"),
    ],
)
def test_secrets_that_a_server_sends_are_taken_out(text: str) -> None:
    said = redact(f"401: {text} (end)")
    assert "[redacted]" in said
    assert not [part for part in ("phrase", "dTp") if part in said]
    assert redact(said) == said


def test_ordinary_messages_stay_as_they_are() -> None:
    for text in (
        *("max_tokens: 512 is too large", "basic arithmetic, Basic knowledge", "KeyError: 'x'", "num_token=5 key=3"),
        *(
            "an override is KEY=VALUE",
            "judge.api_key_env=NAME: not set",
            "pad_token='<pad>'",
            "author: me",
            "https://h/v1?api-version=2024",
        ),
    ):
        assert redact(text) == text


KEY = "judge-KEY/with+odd=characters"


@pytest.mark.parametrize("status", [200, 400, 401])
def test_a_server_that_echoes_the_key_does_not_get_it_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, experiment: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """In a reply, in the refusal of one request, and in the message that ends the judging."""
    monkeypatch.setenv("THE_JUDGE", KEY)
    body = {"error": {"message": f"{'x' * 170} bad key {KEY}"}}
    echo = completion(f"[[A]] you sent {KEY}") if status == 200 else Answer(status, json.dumps(body).encode())
    with JudgeServer(SimpleNamespace(), lambda number: echo) as server:  # type: ignore[arg-type]
        judge = ("judge=endpoint", f"judge.base_url={server.url}", "judge.model=m", "judge.api_key_env=THE_JUDGE")
        if status == 400:
            judge = (*judge, "judge.max_parse_failures=1")
        _, output = experiment(*judge, *CHANGED, "tracker=wandb", cache=tmp_path / "cache")
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    files = [path for folder in (output, tmp_path / "cache") for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in caplog.text


def test_a_key_that_makes_no_header_is_not_in_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_JUDGE", f"{KEY}\n")
    judge = ("judge=endpoint", "judge.base_url=http://127.0.0.1:9/v1", "judge.model=m", "judge.api_key_env=THE_JUDGE")
    config: Any = composed(*judge, "judge.retries=0").judge
    replies: list[Reply] = []
    with pytest.raises(Exception, match="got no reply") as failed:
        Endpoint(config).answer([[{"role": "user", "content": "?"}]], lambda index, reply: replies.append(reply))
    assert KEY not in str(failed.value)


def test_messages_lose_passwords_in_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "abcdefgh12")
    said = redact(
        "proxy http://me:pw@proxy:80/x failed; see https://h/?api_key=k1&page=2 (abcdefgh12) at http://h:80/a"
    )
    assert said == (
        "proxy http://[redacted]@proxy:80/x failed; see https://h/?api_key=[redacted]&page=2 ([redacted]) at http://h:80/a"
    )
