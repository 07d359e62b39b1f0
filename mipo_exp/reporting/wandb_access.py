"""Whether W&B can be asked: a key, a server that answers, and what the environment says of it."""

import contextlib
import logging
import netrc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mipo_exp.models.hub import reachable

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
REACH_SECONDS = 2.0


def guarded(what: str, action: Callable[[], Any]) -> Any:
    """The result of `action`; None, and a warning, where W&B fails at it."""
    try:
        return action()
    except Exception as error:  # noqa: BLE001 - W&B is a view: whatever goes wrong there, the experiment continues
        log.warning("W&B failed at %s (%s: %s); the numbers are in %s", what, type(error).__name__, error, METRICS_FILE)
        return None


def mode(wanted: str | None) -> tuple[str, str]:
    """`online`, `offline` or `disabled`, and why. Online only with a key, so that W&B has nothing to ask for."""
    reason = "tracker.mode"
    if wanted in (None, "auto"):
        wanted = os.environ.get("WANDB_MODE", "").strip().lower()
        reason = "WANDB_MODE"
    if wanted in ("offline", "dryrun"):
        return "offline", reason
    if wanted == "disabled":
        return "disabled", reason
    url = base_url()
    if not has_key(url):
        if wanted == "online":
            log.warning("%s=online, but there is no API key: set WANDB_API_KEY or run wandb login", reason)
        return "offline", "no API key"
    if not reachable(url, REACH_SECONDS):
        host = urlsplit(url).hostname
        if wanted == "online":
            log.warning("%s=online, but %s cannot be reached within %g s", reason, host, REACH_SECONDS)
        return "offline", f"{host} cannot be reached"
    return "online", reason if wanted == "online" else "API key found"


def base_url() -> str:
    """The address of the W&B server."""
    import wandb

    return guarded("reading its settings", lambda: wandb.setup().settings.base_url) or "https://api.wandb.ai"


def has_key(url: str) -> bool:
    """Whether there is an API key for a server, in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    named = os.environ.get("NETRC")
    paths = [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    host = urlsplit(url).netloc
    for path in paths:
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(path).authenticators(host):
                return True
    return False
