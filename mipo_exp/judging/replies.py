"""What a judge has replied, kept for ever: a reply that was paid for is never asked for again.

`<cache>/judge_replies/<2 characters>/<key>.json`, one file a reply, written as soon as it arrives. The key is the hash
of who was asked (with the settings of its decoding) and of the exact messages.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mipo_exp.models.rendering import Message
from mipo_exp.store.artefacts import digest, write_atomically

log = logging.getLogger(__name__)

Messages = Sequence[Message]


@dataclass(frozen=True)
class Reply:
    """What the judge wrote, with the tokens of its prompt and of its reply.

    `text` is None where it refused this very request (too long, a content filter): `refusal` says why."""

    text: str | None
    input_tokens: int
    output_tokens: int
    refusal: str | None = None


class ReplyCache:
    """The replies of one judge. `identity` is everything that its replies depend on beside the messages."""

    def __init__(self, root: Path, identity: Mapping[str, Any]) -> None:
        self.folder = root / "judge_replies"
        self.identity = identity

    def find(self, messages: Messages) -> Reply | None:
        """The reply to these messages; None where there is none yet, or its file is damaged."""
        path = self._path(messages)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            reply = values["reply"]
            return Reply(str(reply["text"]), int(reply["input_tokens"]), int(reply["output_tokens"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the judge's reply in %s cannot be read (%s); asking again", path, error)
            return None

    def keep(self, messages: Messages, reply: Reply) -> None:
        """Write a reply; a refusal, which costs nothing and may end, is not kept."""
        if reply.text is None:
            return
        path = self._path(messages)
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {"judge": self.identity, "messages": list(messages), "reply": asdict(reply)}
        write_atomically(path, json.dumps(values, ensure_ascii=False, indent=1).encode())

    def forget(self, messages: Messages) -> None:
        """Drop a reply that says nothing, so that it is asked for again."""
        self._path(messages).unlink(missing_ok=True)

    def _path(self, messages: Messages) -> Path:
        key = digest({"judge": self.identity, "messages": list(messages)})
        return self.folder / key[:2] / f"{key}.json"
