"""What this machine does in a second, measured in a fraction of one."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Large enough for the full rate, small enough for a fraction of a second: rows and width of a matrix product, bytes of
# a copy, and how many of each are waited for together, since on a GPU waiting takes longer than one of them.
WORK = {"cpu": (512, 2048, 2**26, 1), "cuda": (8192, 8192, 2**30, 10)}
CONTROL_GROUPS, OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
SMALL_OPERATIONS = 1000
REPEATS = 7


@dataclass(frozen=True)
class Machine:
    """Rates of one device in one precision.

    Attributes:
        kind: `cpu` or `cuda`.
        matmul: floating-point operations a second in large matrix products.
        bandwidth: bytes a second, read and written, of large copies.
        launch: seconds that an operation on next to no data takes.
        memory: bytes that are free; of the GPU, where the device is one.
    """

    kind: str
    matmul: float
    bandwidth: float
    launch: float
    memory: int


@cache
def measure(device: str, dtype: str) -> Machine:
    """The rates of a device (`cpu`, `cuda[:N]`) in a precision, as torch sees it; medians of a few repeats."""
    import torch

    from mipo_exp.kernels.onednn import linear

    of = torch.device(device)
    rows, width, copied, times = WORK[of.type]
    free = free_bytes(device)
    copied = min(copied, free // 8)
    left = torch.ones(rows, width, dtype=getattr(torch, dtype), device=of)
    right = torch.ones(width, width, dtype=getattr(torch, dtype), device=of)
    source = torch.zeros(copied, dtype=torch.uint8, device=of)
    target = torch.empty_like(source)
    small = torch.zeros(16, device=of)

    def add() -> None:
        for _ in range(SMALL_OPERATIONS):
            small.add_(1)

    with torch.inference_mode():
        product = _seconds(lambda: linear(left, right), device, times)
        copy = _seconds(lambda: target.copy_(source), device, times)
        launches = _seconds(add, device)
    return Machine(
        kind=of.type,
        matmul=2 * rows * width * width / product,
        bandwidth=2 * copied / copy,
        launch=launches / SMALL_OPERATIONS,
        memory=free,
    )


def free_bytes(device: str) -> int:
    """Bytes that a process may still take: of the GPU, or of the machine within the limit of its control group."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    free = int(psutil.virtual_memory().available)
    return min([free, *(left for folder in _control_groups() if (left := _left_in(folder)) is not None)])


def _control_groups() -> list[Path]:
    """The folder of this process's control group (version 2) and of those around it; a job's limit is in its own."""
    try:
        (line,) = [line for line in OWN_GROUP.read_text().splitlines() if line.startswith("0::")]
    except (OSError, ValueError):
        return [CONTROL_GROUPS]
    own = CONTROL_GROUPS / line.removeprefix("0::").strip("/")
    return [own, *(folder for folder in own.parents if folder.is_relative_to(CONTROL_GROUPS))]


def _left_in(folder: Path) -> int | None:
    """Bytes below the limit of a control group, None where it has none."""
    try:
        most = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    # Pages of files that were read count as used and are given back when they are needed.
    return None if most == "max" else int(most) - used + int(facts.get("inactive_file", 0))


def _seconds(work: Callable[[], object], device: str, times: int = 1) -> float:
    """What `work` takes, done `times` times before it is waited for."""
    import torch

    found = []
    for _ in range(REPEATS + 1):  # the first one warms up
        started = time.perf_counter()
        for _ in range(times):
            work()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        found.append((time.perf_counter() - started) / times)
    return statistics.median(found[1:])
