"""The hub: which repositories this machine has, downloading, and what is wrong where the hub refuses.

All that asks the hub goes through `Repository`, so that one place tells a private repository from a missing network.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from mipo_exp.errors import UserError, causes, not_here_yet

ANSWER_SECONDS = 10.0  # for the hub to say what it has
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # as huggingface_hub reads them
LOG_IN = "log in (put the token into the variable HF_TOKEN, or run hf auth login)"


@dataclass(frozen=True)
class Repository:
    """A repository on the hub as the config names it.

    Args:
        key: the config key that holds the id.
        hub_id: OWNER/NAME.
        error: what is raised where it cannot be had.
        remedy: the way out where the hub cannot be asked.
        revision: branch, tag or commit.
    """

    key: str
    hub_id: str
    error: type[UserError]
    remedy: str
    revision: str = "main"
    kind: Literal["model", "dataset"] = "model"

    def fetch(
        self,
        patterns: Sequence[str],
        absent: str | None,
        complete: Callable[[Path], bool] = lambda folder: True,
        before: Callable[[], None] = lambda: None,
    ) -> Path:
        """The folder in the hub's cache with its files that match one of the patterns, downloaded where it is not there
        whole. What is wrong is found out first and said in one message.

        Args:
            absent: what is raised instead of a download; None where the hub may be asked.
            complete: whether a folder is whole: an interrupted download may have left some of it.
            before: called before a download.

        Raises:
            UserError: the id is not of the form OWNER/NAME, the hub must not or cannot be asked, or does not give the
                repository or its revision.
        """
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        named = f"{self.key}={self.hub_id}"
        how: Any = {"repo_type": self.kind, "revision": self.revision, "allow_patterns": list(patterns)}
        with contextlib.suppress(LocalEntryNotFoundError):
            try:
                found = Path(snapshot_download(self.hub_id, **how, local_files_only=True))
            except HFValidationError as error:
                raise self.error(f"{self.key}={self.hub_id!r} is not of the form OWNER/NAME ({error})") from error
            if complete(found):
                return found
        if absent is not None:
            raise not_here_yet(self.error, absent)
        if (why := unreachable()) is not None:
            raise self.error(f"{named} is neither in the hub's local cache nor reachable ({why}); {self.remedy}")
        # OSError, and whatever the HTTP library below raises, which depends on the version of huggingface_hub.
        failures: Any = HfHubHTTPError.__bases__
        asked: Any = {"repo_type": self.kind, "revision": self.revision, "expand": ["sha"]}
        try:
            # A download would repeat a refused request for half a minute, and look into the local cache instead.
            HfApi().repo_info(self.hub_id, timeout=ANSWER_SECONDS, **asked)
            before()
            return Path(snapshot_download(self.hub_id, **how))
        except failures as error:
            where = ("datasets/" if self.kind == "dataset" else "") + self.hub_id
            revision = self.key.removesuffix("hub_id") + "revision=" if self.key.endswith(".hub_id") else "revision "
            said = refusal(error, named, where, revision + self.revision, self.remedy)
            broke = f"{named}: downloading it failed ({_first_line(error)}); run the same command again, which keeps"
            raise self.error(said or f"{broke} the files that are complete, or {self.remedy}") from error


def refusal(
    error: BaseException, named: str, where: str | None = None, revision: str = "its revision", remedy: str = ""
) -> str | None:
    """What the hub means by refusing something, and the way out; None for an error that is no answer of the hub's.

    Args:
        error: the answer, or an error that came of it.
        named: what was asked for, as the message calls it.
        where: its page on the hub, without the address; None where that is not known.
        revision: the revision, as the message calls it.
        remedy: another way out, for a fault of the hub's.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    found = next((cause for cause in causes(error) if isinstance(cause, HfHubHTTPError)), None)
    if found is None:
        return None
    status, hub, has_token = found.response.status_code, hub_endpoint(), get_token() is not None
    page = f"its page, {hub}/{where}" if where is not None else "its page on the hub"
    tokens = f"{hub}/settings/tokens"
    if isinstance(found, GatedRepoError):
        way = "with the account that your token belongs to" if has_token else f"and {LOG_IN}"
        return f"{named} is gated: accept its terms on {page}, {way}"
    if status == 401 and (isinstance(found, RepositoryNotFoundError) or not has_token):
        return f"{named} is private or does not exist: check the id; if it is private, {LOG_IN}"
    if isinstance(found, RepositoryNotFoundError):
        hidden = ", or your token may not see it" if has_token else ""
        return f"{named} does not exist on {hub}{hidden}: check the id (OWNER/NAME)"
    if isinstance(found, RevisionNotFoundError):
        return f"{named} has no branch, tag or commit of this name ({revision}): choose one from {page}"
    if isinstance(found, DisabledRepoError):
        return f"{named} has been disabled on {hub}: use another"
    if status == 401:
        return f"{named}: {hub} does not accept your token: get a new one from {tokens} and {LOG_IN}"
    if status == 403:
        way = f"give it the right to on {tokens}" if has_token else LOG_IN
        return f"{named}: {hub} forbids access{' with your token' if has_token else ''}: {way}"
    if status == 429:
        wait = found.response.headers.get("Retry-After", "")
        pause = f"{wait} seconds" if wait.isdigit() else "some minutes"
        more = "" if has_token else f", or {LOG_IN} for a higher limit"
        return f"{named}: {hub} limits the rate of requests (429): run the same command again in {pause}{more}"
    if status >= 500:
        return f"{named}: {hub} has a fault of its own (status {status}): run the same command again later; {remedy}"
    return None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def hub_endpoint() -> str:
    """The hub's address (`HF_ENDPOINT` where set)."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def unreachable() -> str | None:
    """Why the hub must not or cannot be asked; None where it answers."""
    name = next((name for name in OFFLINE_VARIABLES if os.environ.get(name)), None)
    if name is not None and os.environ[name].lower() in ("1", "true", "yes", "on"):
        return f"{name} is set; unset it to download"
    return None if reachable(hub_endpoint()) else f"{hub_endpoint()} does not answer"


def reachable(url: str, seconds: float = 2.0) -> bool:
    """Whether the server of `url`, or the proxy on the way to it, takes a connection within `seconds`.

    Downloads wait far longer than that for a server that never answers; asking first keeps the message early."""
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
