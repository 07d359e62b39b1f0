"""What a run records of where it ran: the commit, the versions of packages, the hardware."""

import contextlib
import os
import platform
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RECORDED_PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "tokenizers", "numpy")


@cache
def git_commit() -> str | None:
    """The commit of the source tree that is running, None outside a checkout; `-dirty` marks local changes."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        status = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("-dirty" if status.stdout.strip() else "")


def hardware() -> dict[str, Any]:
    """This machine's processor, and how many of its cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"processor": name, "cores": len(os.sched_getaffinity(0))}


@cache
def package_versions(names: Sequence[str] = RECORDED_PACKAGES) -> dict[str, str]:
    """The versions of the packages that are installed, without what names a build (`+cpu`)."""
    found = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name).partition("+")[0]
    return found
