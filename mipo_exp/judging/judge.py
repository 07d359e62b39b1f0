"""Asking a judge: what is cached is read, the rest is asked for, and each reply is kept as soon as it is there."""

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from mipo_exp.execution.progress import Progress
from mipo_exp.judging.replies import Messages, Reply, ReplyCache
from mipo_exp.judging.templates import NOTHING_KNOWN, Templates
from mipo_exp.judging.verdicts import read_score
from mipo_exp.models.runtime import Runtime
from mipo_exp.store.artefacts import digest

Keep = Callable[[int, Reply], None]
RUBRIC_PROMPTS = ("rubric", "rubric_reference")


class Backend(ABC):
    """Who is asked. `identity` is everything that its replies depend on beside the messages and the versions of the
    `libraries` that compute them here."""

    identity: Mapping[str, Any]
    libraries: Mapping[str, str] = {}
    description: str
    shared: bool = True  # whether several runs ask the same one, and take turns
    runtime: Runtime | None = None  # whose model stage has to be done before
    model: Any  # which model it is, wherever it is and however its replies are sampled

    @abstractmethod
    def answer(self, requests: Sequence[Messages], keep: Keep) -> None:
        """Get a reply to each request and hand it to `keep` with the request's index, at once, from any thread. Raises
        `JudgeError`: some requests got no reply; those that did have been handed over."""

    def cost(self, input_tokens: int, output_tokens: int) -> float | None:
        """In the currency of the prices; None where there are none."""
        return None

    def release(self) -> None:  # noqa: B027 - not every judge holds something
        """Give memory back."""


class Judge:
    """A judge with its prompts and the cache of its replies."""

    def __init__(self, backend: Backend, templates: Templates, cache: Path) -> None:
        self.backend = backend
        self.templates = templates
        computed_by = {"libraries": backend.libraries} if backend.libraries else {}
        self.replies = ReplyCache(cache, {**backend.identity, **computed_by})

    def identity(self, prompts: tuple[str, ...]) -> dict[str, Any]:
        """What verdicts from these prompts depend on: part of the key of a stage that asks."""
        return {"judge": dict(self.backend.identity), "prompts": self.templates.fingerprint(prompts)}

    def ask(self, requests: Sequence[Messages], label: str | None) -> list[Reply]:
        """A reply to each request, in their order; equal requests are asked once. `label` names the progress shown,
        None where it is part of another's. Raises `JudgeError`: the judge cannot be reached or stopped replying; what
        it has replied is kept."""
        found: dict[str, Reply] = {}
        with self._turn():
            missing: dict[str, Messages] = {}
            for request in requests:
                key = digest(list(request))
                reply = self.replies.find(request)
                if reply is None:
                    missing[key] = request
                else:
                    found[key] = reply
            if missing:
                self._ask_for(missing, found, label)
        return [found[digest(list(request))] for request in requests]

    def _ask_for(self, missing: Mapping[str, Messages], found: dict[str, Reply], label: str | None) -> None:
        keys, lock = list(missing), threading.Lock()
        with contextlib.ExitStack() as stack:
            progress = None if label is None else stack.enter_context(Progress(label, len(keys), "tokens"))

            def keep(index: int, reply: Reply) -> None:
                self.replies.keep(missing[keys[index]], reply)
                with lock:
                    found[keys[index]] = reply
                    if progress is not None:
                        progress.advance(1, reply.input_tokens + reply.output_tokens)

            self.backend.answer(list(missing.values()), keep)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Runs beside each other that ask one server take turns: none pays for what another is just getting, and
        `judge.concurrency` holds for all of them together."""
        if not self.backend.shared:
            yield
            return
        self.replies.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.replies.folder / f"{digest(dict(self.backend.identity))}.lock"):
            yield


class Rated(NamedTuple):
    """A response to rate, with what it was asked."""

    context: str | None
    prompt: str
    response: str


def rate(judge: Judge, items: Sequence[Rated]) -> list[float | None]:
    """A score from 1 to 5 for each response by the default rubric (`default_rubric.json`); None where none could be
    read. Its stage's key needs `judge.identity(RUBRIC_PROMPTS)`. Raises `JudgeError`: the judge cannot be asked; the
    replies that it gave are kept."""
    scores = [read_score(reply.text or "") for reply in judge.ask(rating_requests(judge.templates, items), None)]
    return [None if score is None else float(score) for score in scores]


def rating_requests(templates: Templates, items: Sequence[Rated]) -> list[Messages]:
    """What `rate` asks, a request for each item."""
    rubric = templates.default_rubric
    return [
        templates.message(
            "rubric",
            {
                "context": NOTHING_KNOWN if item.context is None else item.context,
                "prompt": item.prompt,
                "response": item.response,
                "criteria": rubric.criteria,
                "score_descriptions": rubric.scale,
            },
        )
        for item in items
    ]
