"""Memory that runs short: how torch says it, how it is given back, and what the user is told."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mipo_exp.errors import ModelError, UserError, out_of_memory


def free_memory(device: str) -> None:
    """Give back what nothing refers to any more; a model and its trainer refer to each other."""
    gc.collect()
    if sys.platform == "linux":
        # glibc keeps what is freed; after a training that is as much as the model.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()


@contextmanager
def memory_for(purpose: str, way_out: str, kind: type[UserError] = ModelError) -> Iterator[None]:
    """Say what memory was short for and what to do about it. Raises `UserError`: of this `kind`, for what torch raises
    when memory has run out; other errors are passed on."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        said = str(error).partition("\n")[0] or type(error).__name__
        raise kind(f"there is no memory {purpose} ({said}); {way_out}") from error
