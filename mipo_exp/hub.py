"""Whether the hub, or another server, can be reached."""

import os
import socket
import threading
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass


def hub_endpoint() -> str:
    """The hub's address (`HF_ENDPOINT` where set)."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def hub_reachable() -> bool:
    """Whether the hub answers; False at once where HF_HUB_OFFLINE is set."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    return reachable(hub_endpoint())


def reachable(url: str, seconds: float = 2.0) -> bool:
    """Whether the server of `url`, or the proxy on the way to it, takes a connection within `seconds`.

    Downloads wait far longer than that for a server that never answers; asking first keeps the message early.
    """
    address = urlsplit(url)
    if address.scheme not in ("http", "https"):
        return True  # no server to ask: whoever opens it says what is wrong
    proxy = getproxies().get(address.scheme)
    if proxy and address.hostname and not proxy_bypass(address.hostname):
        address = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = address.port or (80 if address.scheme == "http" else 443)
    reached = threading.Event()

    def connect() -> None:
        try:
            with socket.create_connection((address.hostname or "", port), timeout=seconds):
                reached.set()
        except OSError:
            return

    # In a thread, since resolving a name knows no time limit.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return reached.is_set()
