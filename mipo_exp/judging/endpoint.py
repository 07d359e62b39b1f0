"""A judge behind an OpenAI-compatible chat-completions server: vLLM, `transformers serve`, hosted.

The client is the `openai` package, which tries again after no answer, 408, 409, 429 and 5xx, with exponentially growing
pauses and jitter, or after the pause that `Retry-After` asks for.
"""

import importlib.util
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Annotated, Any, cast
from urllib.parse import parse_qsl, urlsplit

from mipo_exp.config.fields import Between, schema
from mipo_exp.config.redaction import blot, name_variable, redact
from mipo_exp.config.schema import JUDGES
from mipo_exp.errors import ConfigError, JudgeError
from mipo_exp.judging.judge import Backend, Keep
from mipo_exp.judging.kinds import AskedJudgeConfig
from mipo_exp.judging.replies import Messages, Reply

if TYPE_CHECKING:
    from openai import OpenAI

# The request itself is at fault: sent again, it would be refused again, and others may not be.
REFUSED = (400, 413, 422)
# So is every other one like it.
HOPELESS = (401, 402, 403, 404, 405)
LEAST_FAILURES = 3
SHOWN_CHARACTERS = 200


@JUDGES.register("endpoint")
@schema
class EndpointJudgeConfig(AskedJudgeConfig):
    base_url: str
    model: str
    identity: str | None
    api_key_env: str | None
    timeout_s: Annotated[float, Between(0.01, 86_400)]  # a day
    retries: Annotated[int, Between(0, 100)]
    concurrency: Annotated[int, Between(1, 4096)]
    extra: dict[str, Any]
    price_per_million_input_tokens: Annotated[float, Between(1e-9, 1e9, or_zero=True)] | None
    price_per_million_output_tokens: Annotated[float, Between(1e-9, 1e9, or_zero=True)] | None

    def backend(self, *_: Any) -> "Endpoint":
        """See `AskedJudgeConfig.backend`."""
        check_endpoint(self)
        return Endpoint(self)


def check_endpoint(config: EndpointJudgeConfig) -> None:
    """Raise `ConfigError` for what can be seen to fail before the server is there: it may come up later."""
    if importlib.util.find_spec("openai") is None:
        raise ConfigError("judge=endpoint needs the package openai; install the extra: pip install 'mipo-exp[judge]'")
    address = urlsplit(config.base_url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ConfigError(
            f"judge.base_url={config.base_url!r} is not the address of a server; it looks like http://localhost:8000/v1"
        )
    if not config.model.strip():
        raise ConfigError("judge.model is empty; give the name under which the server has the model")
    if config.api_key_env is not None and not os.environ.get(config.api_key_env):
        raise ConfigError(
            f"judge.api_key_env={config.api_key_env}: this environment variable is not set; put the server's key into "
            f"it (export {config.api_key_env}=…), or set judge.api_key_env=null for a server without keys"
        )
    if taken := sorted({"model", "messages", "stream", "n", "max_tokens", "temperature"} & set(config.extra)):
        raise ConfigError(f"judge.extra.{taken[0]}: this field of the request is set by the judge's own keys")


class Endpoint(Backend):
    """Asks `concurrency` requests at a time, and gives up when the server fails again and again. `config` is checked by
    `check_endpoint`."""

    def __init__(self, config: EndpointJudgeConfig) -> None:
        self.config = config
        if config.api_key_env is not None:
            name_variable(config.api_key_env)
        self.identity: Mapping[str, Any] = {
            "endpoint": config.identity or config.base_url.rstrip("/"),
            "model": config.model,
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
            "extra": config.extra,
        }
        self.model = config.model
        self.description = f"{config.model} at {config.base_url}"

    def answer(self, requests: Sequence[Messages], keep: Keep) -> None:
        """See `Backend.answer`."""
        from openai import OpenAI

        config = self.config
        key = os.environ.get(config.api_key_env, "") if config.api_key_env is not None else "none"
        address = urlsplit(config.base_url)  # the client would put the path of a request behind the query
        client = OpenAI(
            base_url=address._replace(query="").geturl(),
            default_query=dict(parse_qsl(address.query)),
            api_key=key,
            timeout=config.timeout_s,
            max_retries=config.retries,
        )
        calls = _Calls(self, client, keep)
        with client, ThreadPoolExecutor(config.concurrency) as pool:
            futures: list[Future[None]] = [pool.submit(calls.one, i, request) for i, request in enumerate(requests)]
            try:
                for future in as_completed(futures):
                    future.result()
            finally:
                calls.stopped.set()  # whatever ended the loop early: what is not sent yet stays unsent
        if calls.missing:
            raise JudgeError(
                f"{calls.missing} of {len(requests)} requests got no reply from {self.description}: {calls.reason}"
            )

    def cost(self, input_tokens: int, output_tokens: int) -> float | None:
        """See `Backend.cost`."""
        prices = (self.config.price_per_million_input_tokens, self.config.price_per_million_output_tokens)
        if prices[0] is None or prices[1] is None:
            return None
        return (input_tokens * prices[0] + output_tokens * prices[1]) / 1e6


class _Calls:
    """The requests of one `answer`: counts those without a reply, and stops when there is no hope."""

    def __init__(self, endpoint: Endpoint, client: "OpenAI", keep: Keep) -> None:
        self.endpoint, self.client, self.keep = endpoint, client, keep
        self.stopped = threading.Event()
        self.missing = 0
        self.reason = ""
        self._in_a_row = 0
        self._lock = threading.Lock()

    def one(self, index: int, request: Messages) -> None:
        """Send one request; its failure is counted, not raised."""
        if self.stopped.is_set():
            self._failed("", stop=False)
            return
        reply = self._send(request)
        if reply is not None:
            self.keep(index, reply)
            with self._lock:
                self._in_a_row = 0

    def _send(self, request: Messages) -> Reply | None:
        import openai

        config = self.endpoint.config
        optional = {"max_tokens": config.max_tokens, "temperature": config.temperature}
        fields: dict[str, Any] = {name: value for name, value in optional.items() if value is not None}
        try:
            completion = self.client.chat.completions.create(
                model=config.model, messages=cast(Any, list(request)), extra_body=config.extra or None, **fields
            )
        except openai.APITimeoutError:
            self._failed(f"no answer within judge.timeout_s={config.timeout_s:g} s, {config.retries + 1} times")
        except openai.APIConnectionError as error:
            self._failed(f"it cannot be reached ({_shown(str(error.__cause__ or error))})")
        except openai.APIStatusError as error:
            said = f"it answers {error.status_code} ({_shown(error.message)})"
            if error.status_code in REFUSED:
                return Reply(None, 0, 0, said)
            self._failed(said, stop=error.status_code in HOPELESS)
        except (openai.OpenAIError, ValueError) as error:  # ValueError: a body that is not JSON
            self._failed(f"it answers with something else than a chat completion ({_shown(str(error))})")
        else:
            reply = _reply(completion)
            if reply is None:
                self._failed(f"it answers with something else than a chat completion ({_shown(str(completion))})")
            return reply
        return None

    def _failed(self, reason: str, stop: bool = False) -> None:
        with self._lock:
            self.missing += 1
            self._in_a_row += 1
            self.reason = self.reason or reason
            if stop or self._in_a_row >= max(self.endpoint.config.concurrency, LEAST_FAILURES):
                self.stopped.set()


def _reply(completion: Any) -> Reply | None:
    """The first choice of a chat completion; None for anything else, which the client passes on unchecked."""
    try:
        content = completion.choices[0].message.content
        usage = completion.usage
    except (AttributeError, IndexError, TypeError):
        return None
    if content is not None and not isinstance(content, str):
        return None
    tokens = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    given, written = (value if isinstance(value, int) else 0 for value in tokens)
    return Reply(blot(content or ""), given, written)


def _shown(text: str) -> str:
    line = redact(" ".join(text.split()))  # before it is cut: half a key would not be found
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS]} …"
