"""An OpenAI-compatible server on this machine around a model in memory, which can also misbehave."""

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple

import torch

from mipo_exp.models.runtime import Runtime
from tests.local_server import LocalServer


class Answer(NamedTuple):
    """What the server sends in place of a completion."""

    status: int
    body: bytes = b'{"error": {"message": "made to fail"}}'
    headers: Mapping[str, str] = {}
    content_type: str = "application/json"


# By the number of the request, from 1: None lets the model answer; whoever blocks in it makes the server slow.
Script = Callable[[int], Answer | None]

# What the prompt asks for, the characters that the model chooses from, and the reply around its choice.
FORMS = (
    ("[[A]]", "ABC", "I have looked at both. [[{}]]"),
    ("[RESULT]", "12345", "Feedback: as it is. [RESULT] {}"),
    ("Reply with the number", "12345", "{}"),
    ("<preference>", "YN", "<preference>some words</preference>\n<answer>{}</answer>"),
    ("<answer>", "YN", "<explanation>short</explanation>\n<answer>{}</answer>"),
)
WORDS = {"Y": "Yes", "N": "No"}


class JudgeServer(LocalServer):
    """Its verdicts are the model's: of the characters allowed, the one with the highest logit after the prompt."""

    def __init__(self, runtime: Runtime, script: Script = lambda number: None) -> None:
        self.runtime = runtime
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self._lock = threading.Lock()
        super().__init__(self._handler())
        self.url += "/v1"

    @property
    def prompts(self) -> list[str]:
        """The text of every request so far."""
        return [request["messages"][0]["content"] for request in self.requests]

    def reply(self, messages: list[dict[str, str]]) -> tuple[str, int]:
        """The model's reply and the tokens of its prompt."""
        asked = messages[-1]["content"]
        _, choices, form = next(item for item in FORMS if item[0] in asked)
        renderer = self.runtime.renderer
        with self._lock, torch.inference_mode():
            ids = renderer.prompt_ids(messages)
            logits = self.runtime.model()(torch.tensor([ids])).logits[0, -1]
            best = max(choices, key=lambda letter: float(logits[renderer.tokenizer.convert_tokens_to_ids(letter)]))
        return form.format(WORDS.get(best, best)), len(ids)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with server._lock:
                    server.requests.append(request)
                    server.headers.append({name.lower(): value for name, value in self.headers.items()})
                    number = len(server.requests)
                answer = server.script(number) or self._completion(request)
                try:
                    self.send_response(answer.status)
                    self.send_header("content-type", answer.content_type)
                    self.send_header("content-length", str(len(answer.body)))
                    for name, value in answer.headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(answer.body)
                except (BrokenPipeError, ConnectionResetError):
                    return  # the client has given up, or was killed

            def _completion(self, request: dict[str, Any]) -> Answer:
                text, tokens = server.reply(request["messages"])
                return completion(text, tokens)

            def log_message(self, format: str, *args: Any) -> None:
                return

        return Handler


def completion(text: str | None, input_tokens: int = 10, output_tokens: int = 5) -> Answer:
    """A chat completion with this text."""
    body = {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "tiny",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {
            "prompt_tokens": input_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": input_tokens + output_tokens,
        },
    }
    return Answer(200, json.dumps(body).encode())
