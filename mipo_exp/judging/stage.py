"""The `judgements` stage: which judge and which kind a config asks for, and the verdicts on the responses."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mipo_exp.config.schema import Config, JudgeConfig
from mipo_exp.data.base import Task
from mipo_exp.errors import ConfigError, JudgeError, UserError
from mipo_exp.judging.judge import RUBRIC_PROMPTS, Judge, Rated, rating_requests
from mipo_exp.judging.kinds import KINDS, AskedJudgeConfig, Kind, Measures, was_asked
from mipo_exp.judging.replies import Messages, Reply
from mipo_exp.judging.templates import load_templates
from mipo_exp.store.artefacts import Artefact, Stage, Workspace
from mipo_exp.store.records import Example, Judgement, Response

log = logging.getLogger(__name__)

VERSION = 1  # raised when the stage computes something else from the same config

SHOWN_CHARACTERS = 160
REPLY_TOKENS = 512  # what `plan` counts for a reply whose length the server decides
CHARACTERS_PER_TOKEN = 4.0
# The longest reply that `plan` counts: it says Yes, so that what depends on a Yes is counted too.
DRY_REPLY = "<preference>{}</preference><answer>Yes</answer>"
DRY_RESTATEMENT_CHARACTERS = 200


@dataclass(frozen=True)
class Judging:
    """A judge, the kind of judging that it is asked for, and the group of the config that has its keys."""

    config: AskedJudgeConfig
    judge: Judge
    kind_name: str
    group: str = "judge"

    @property
    def model(self) -> Any:
        """Which model judges, wherever it is and however its replies are sampled."""
        return self.judge.backend.model

    @property
    def identity(self) -> dict[str, Any]:
        """What its scores of responses depend on."""
        return self.judge.identity(RUBRIC_PROMPTS)

    @property
    def kind(self) -> Kind:
        """What is asked."""
        return KINDS[self.kind_name]


def kind_of(config: JudgeConfig, task: Task) -> str | None:
    """The kind of judging that a config asks for, None without a judge. Raises `ConfigError`: the task has none of its
    own, and none is named."""
    asked: AskedJudgeConfig | None = config.asked
    if asked is None:
        return None
    if asked.kind != "auto":
        return asked.kind
    if task.judging is None:
        raise ConfigError(
            f"judge={config.name}: task={task.config.name} has right answers and no kind of judging of its own; use "
            f"judge=none, or name one: judge.kind={'|'.join(KINDS)}"
        )
    return task.judging


def prepare_judging(config: Config, task: Task, cache: Path, device: str, download: bool = True) -> Judging | None:
    """The judge of a config, checked as far as it can be before it is asked; None without one. Raises `UserError`: a
    key, a variable of the environment, a prompt file, a package or a local model is missing or wrong."""
    asked, kind = config.judge.asked, kind_of(config.judge, task)
    if asked is None or kind is None:
        return None
    return Judging(asked, _judge(asked, config, task, cache, device, download), kind)


def prepare_rewards(
    config: Config, judging: Judging | None, task: Task, cache: Path, device: str, download: bool = True
) -> Judging | None:
    """The judge whose scores a method learns from, None for one that learns from none: the `reward_judge` group's, or
    where that is none, the one that judges the results, `judging`. Raises `UserError`: as `prepare_judging`."""
    if not config.method.asks_judge:
        return None
    asked = config.reward_judge.asked
    if asked is None:
        return judging
    try:
        return Judging(asked, _judge(asked, config, task, cache, device, download), "rubric", "reward_judge")
    except UserError as error:
        raise error.named("reward_judge (its keys are those of judge)") from error


def _judge(asked: AskedJudgeConfig, config: Config, task: Task, cache: Path, device: str, download: bool) -> Judge:
    backend = asked.backend(config.engine, config.kernels, task, cache, device, download)
    return Judge(backend, load_templates(asked.prompts), cache)


def judge_responses(judging: Judging, work: Workspace) -> None:
    """The verdicts on the responses of both models to the held-out examples. Raises `JudgeError`: some replies are
    missing, or too many say nothing. Those that can be read are kept for the next run."""
    examples = work.inputs["examples"].table("eval", Example)
    asked: list[tuple[Messages, Reply]] = []

    def ask(requests: Sequence[Messages]) -> list[Reply]:
        replies = judging.judge.ask(requests, "judging responses")
        asked.extend(zip(requests, replies, strict=True))
        return replies

    rows = judging.kind.judge(examples, response_texts(work.inputs), judging.judge.templates, ask)
    unread = [row for row in rows if was_asked(row) and row.verdict is None]
    count = sum(map(was_asked, rows))
    if len(unread) > judging.config.max_parse_failures * count:
        # Not worth keeping: the next run asks again, perhaps a server that has come to its senses.
        texts = {row.reply for row in unread}
        for request, reply in asked:
            if reply.text in texts:
                judging.judge.replies.forget(request)
        raise JudgeError(_unreadable(unread, count, judging))
    work.write_table("judgements", rows, Judgement)


def _unreadable(unread: Sequence[Judgement], count: int, judging: Judging) -> str:
    first = unread[0]
    said = first.refusal if first.reply is None else f"the reply {_shown(first.reply)!r}"
    limit = judging.config.max_parse_failures
    return (
        f"{len(unread)} of {count} replies of {judging.judge.backend.description} have no verdict that can be read "
        f"(judge.max_parse_failures={limit:g}), the first is {said}; use a judge that keeps to the form, another "
        "prompt (judge.prompts=DIR) or more judge.max_tokens, or raise judge.max_parse_failures"
    )


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS]} …"


def response_texts(of: Mapping[str, Artefact]) -> dict[str, list[str]]:
    """The texts of the responses before and after training."""
    return {phase: [row.text for row in of[phase].table("responses", Response)] for phase in ("before", "after")}


def judge_measures(
    judging: Judging, artefact: Artefact, examples: Sequence[Example], texts: Mapping[str, Sequence[str]]
) -> Measures:
    """The judge's metrics of a finished stage."""
    return judging.kind.measures(examples, texts, artefact.table("judgements", Judgement))


def judge_facts(judging: Judging, artefact: Artefact | None) -> dict[str, Any]:
    """What `summary.json` says of the judge: who it is, how often it was asked, and what its replies cost, whether this
    run or an earlier one paid for them."""
    facts: dict[str, Any] = {
        "name": judging.config.name,
        "kind": judging.kind_name,
        "model": judging.judge.backend.description,
    }
    if artefact is None:
        return facts
    rows = artefact.table("judgements", Judgement)
    tokens = sum(row.input_tokens for row in rows), sum(row.output_tokens for row in rows)
    return {
        **facts,
        "judgements": sum(map(was_asked, rows)),
        "unreadable": sum(was_asked(row) and row.verdict is None for row in rows),
        "refused": sum(row.refusal is not None for row in rows),
        "input_tokens": tokens[0],
        "output_tokens": tokens[1],
        "cost": judging.judge.backend.cost(*tokens),
    }


def metric_phases(kind_name: str) -> dict[str, tuple[str, ...]]:
    """The metrics that a kind gives, with the phases of `summary.json` that have them."""
    about = {"preference": "", "preferences": [""], "reference_answer": ""}
    example = Example("", None, "", None, "", json.dumps(about))
    texts = {"before": [""], "after": [""]}
    kind = KINDS[kind_name]
    templates = load_templates(None)
    rows = kind.judge([example], texts, templates, lambda requests: [Reply("", 0, 0) for _ in requests])
    found = kind.measures([example], texts, rows)
    phases: dict[str, tuple[str, ...]] = {}
    for name in {*found["before"], *found["after"]}:
        both = name in found["before"] and name in found["after"]
        phases[name] = ("before", "after", "delta") if both else ("after",)
    return phases


@dataclass(frozen=True)
class Estimate:
    """What judging would take: requests in all and those not cached, with the tokens and the cost of the latter."""

    requests: int
    missing: int
    input_tokens: int
    output_tokens: int
    cost: float | None


def estimate_judging(
    judging: Judging, examples: Sequence[Example], texts: Mapping[str, Sequence[str]] | None, response_tokens: int
) -> Estimate:
    """What judging these examples would take. Prompts are counted by their characters, replies at their limit. `texts`
    are the responses by phase where they are there already; None counts each at `response_tokens`, and as different
    before and after."""
    width = int(response_tokens * CHARACTERS_PER_TOKEN)
    drawn = texts or {phase: [mark * width for _ in examples] for phase, mark in (("before", "b"), ("after", "a"))}
    seen: dict[str, bool] = {}
    characters = 0

    def ask(requests: Sequence[Messages]) -> list[Reply]:
        nonlocal characters
        replies = []
        for request in requests:
            key = json.dumps(list(request))
            known = judging.judge.replies.find(request)
            if known is None and key not in seen:
                characters += sum(len(message["content"]) for message in request)
            seen[key] = known is not None
            replies.append(known or Reply(DRY_REPLY.format("x" * DRY_RESTATEMENT_CHARACTERS), 0, 0))
        return replies

    judging.kind.judge(examples, drawn, judging.judge.templates, ask)
    missing = sum(not cached for cached in seen.values())
    tokens = round(characters / CHARACTERS_PER_TOKEN), missing * (judging.config.max_tokens or REPLY_TOKENS)
    return Estimate(len(seen), missing, *tokens, judging.judge.backend.cost(*tokens))


def estimate_rewards(judging: Judging, examples: Sequence[Example], responses: int, response_tokens: int) -> Estimate:
    """What scoring `responses` sampled responses to these examples would take, none of them cached."""
    text = "x" * int(response_tokens * CHARACTERS_PER_TOKEN)
    items = [Rated(example.context, example.prompt, text) for example in examples]
    requests = rating_requests(judging.judge.templates, items)
    characters = sum(len(message["content"]) for request in requests for message in request)
    given = round(characters / CHARACTERS_PER_TOKEN * responses / max(len(examples), 1))
    tokens = given, responses * (judging.config.max_tokens or REPLY_TOKENS)
    return Estimate(responses, responses, *tokens, judging.judge.backend.cost(*tokens))


def declare_judgements(
    judging: Judging,
    examples: Stage,
    stages: Mapping[str, Stage],
    settle: Callable[[Stage], Stage] = lambda stage: stage,
) -> Stage:
    """The `judgements` stage, after the others. Where a server is, its prices and the pauses between attempts are not
    in its key, unless `judge.identity` is left to be the address. `settle` is as in `pipeline.declare`."""
    shape = {
        "kind": judging.kind_name,
        "max_parse_failures": judging.config.max_parse_failures,
        **judging.judge.identity(judging.kind.prompts),
    }
    inputs = {"examples": examples, "before": stages["before_responses"], "after": stages["after_responses"]}
    build = partial(judge_responses, judging)
    libraries = judging.judge.backend.libraries
    return settle(Stage("judgements", VERSION, shape, inputs, build, libraries=libraries))
