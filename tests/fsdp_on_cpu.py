"""The command line under FSDP on a CPU, where accelerate leaves FSDP out: for a machine without GPUs to test the rest.

torchrun --nproc_per_node 2 -m tests.fsdp_on_cpu KEY=VALUE …     # with ACCELERATE_USE_FSDP=true FSDP_VERSION=2
"""

from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from mipo_exp.cli import main
from mipo_exp.planning import checks

prepared = AcceleratorState.__init__


def with_fsdp(self: AcceleratorState, *args: Any, **kwargs: Any) -> None:
    """As on a GPU."""
    prepared(self, *args, **kwargs)
    plugin: Any = kwargs.get("fsdp_plugin") or FullyShardedDataParallelPlugin()
    self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin


AcceleratorState.__init__ = with_fsdp  # type: ignore[method-assign]
checks.choose_device = lambda *_: "a device on which accelerate has FSDP"  # type: ignore[attr-defined]
main()
