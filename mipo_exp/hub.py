"""Whether the hub, or another server, can be reached."""

import os
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies


def hub_endpoint() -> str:
    """The hub's address (`HF_ENDPOINT` where set)."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def hub_reachable() -> bool:
    """Whether the hub answers; False at once where HF_HUB_OFFLINE is set."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    return reachable(hub_endpoint())


def reachable(url: str, timeout: float = 2.0) -> bool:
    """Whether the server of `url` takes a connection within `timeout` seconds.

    Downloads wait far longer than that for a server that never answers; asking first keeps the message early.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        return True  # no server to ask: whoever opens it says what is wrong
    if {parts.scheme, "all"} & getproxies().keys():
        return True  # a proxy resolves names itself; let the client try
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout).close()
    except OSError:
        return False
    return True
