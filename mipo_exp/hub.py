"""Whether the hub can be reached."""

import os
import socket
from urllib.parse import urlsplit


def hub_endpoint() -> str:
    """The hub's address (`HF_ENDPOINT` where set)."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def hub_reachable(timeout: float = 2.0) -> bool:
    """Whether the hub answers within `timeout` seconds; False at once where HF_HUB_OFFLINE is set."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    if any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")):
        return True  # a proxy resolves names itself; let the client try
    parts = urlsplit(hub_endpoint())
    try:
        socket.create_connection(
            (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)), timeout
        ).close()
    except OSError:
        return False
    return True
