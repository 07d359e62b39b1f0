"""Shards computed by workers on several machines, through Ray.

A worker loads the model once, from the folder that the hub or the cache on its machine has, and computes shards that
are sent to it; rows come back, and the process that runs the experiment writes them: machines share no disk. Ray starts
a worker that died anew and gives it its shards again, which come out the same.
"""

import importlib.util
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from mipo_exp.config.fields import Between, schema
from mipo_exp.config.groups import ModelConfig
from mipo_exp.config.schema import WORKERS, WorkersConfig
from mipo_exp.errors import ConfigError, UserError
from mipo_exp.execution.processes import team
from mipo_exp.execution.run import Run
from mipo_exp.execution.shards import Executor, Processes, Shard, Shards
from mipo_exp.models.loading import locate
from mipo_exp.models.runtime import Prompting, Runtime
from mipo_exp.store.artefacts import Store, Workspace

log = logging.getLogger(__name__)

Row = TypeVar("Row")
Tool = TypeVar("Tool")

AHEAD = 2  # shards that a worker has at once, so that it does not wait for the next one
RESTARTS = 3  # of a worker that died; more often it is the shard that kills it


@WORKERS.register("ray")
@schema
class RayWorkersConfig(WorkersConfig):
    remote: ClassVar[bool] = True
    address: str
    count: Annotated[int, Between(1, 10_000)] | None
    cpus: Annotated[int, Between(1, 1024)]
    gpus: Annotated[int, Between(0, 64)] | None


def make_executor(config: WorkersConfig, cache: Path) -> Executor:
    """Who computes shards, as the config asks for it: Ray's workers, not started yet, or the processes of this run.
    Raises `ConfigError`: Ray is not installed."""
    if not isinstance(config, RayWorkersConfig):
        return Processes(team().rank, team().size)
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("workers=ray needs the package ray: pip install 'mipo-exp[ray]'; or use workers=none")
    return RayWorkers(config, cache)


class RayWorkers(Executor):
    """Workers with the model, task and kind of device of a runtime, started with the first shard to be computed.
    `cache` is the folder for converted models on their machines."""

    def __init__(self, config: RayWorkersConfig, cache: Path) -> None:
        self._config = config
        self._cache = cache
        self._workers: list[Any] = []

    def compute(self, work: Workspace, shards: Shards[Tool, Row]) -> Iterator[tuple[Sequence[Row], bool]]:
        """See `compute_shards`.

        Raises:
            ConfigError: the cluster has no room, or a worker dies again and again.
            UserError: a worker's machine lacks something.
        """
        missing = []
        for number in range(shards.count):
            rows = shards.finished(work, number)
            if rows is None:
                missing.append(number)
            else:
                yield rows, True
        if not missing:
            return
        import ray
        from ray.exceptions import RayActorError, RayTaskError
        from ray.util import ActorPool

        pool = ActorPool([worker for _ in range(AHEAD) for worker in self._started(shards.runtime)])
        files = [] if shards.adapter is None else [path for path in shards.adapter.iterdir() if path.is_file()]
        content = {path.name: path.read_bytes() for path in sorted(files)}
        job = ray.put((shards.opened, None if shards.adapter is None else content))

        def send(worker: Any, number: int) -> Any:
            return worker.compute.remote(str(work.path), [job], number, shards.shard(number))

        try:
            for number, rows in pool.map_unordered(send, missing):
                yield shards.make(work, number, partial(list, rows))
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise type(error.cause)(f"a worker of workers=ray: {error.cause}") from error
            raise
        except RayActorError as error:
            raise ConfigError(
                f"a worker of workers=ray died {RESTARTS + 1} times ({' '.join(str(error).split())}); give each "
                "more memory (fewer workers.count on a machine), or use workers=none"
            ) from error

    def release(self) -> None:
        """End the workers: what they hold is needed for the training."""
        if self._workers:
            import ray

            for worker in self._workers:
                ray.kill(worker)
            self._workers = []

    def _started(self, runtime: Runtime) -> list[Any]:
        if self._workers:
            return self._workers
        import ray

        self._connect()
        config = self._config
        on_gpu = runtime.device.startswith("cuda")
        gpus = int(on_gpu) if config.gpus is None else config.gpus
        has = ray.cluster_resources()
        # A worker lies on one machine.
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = 0
        for one in machines:
            fit = int(one.get("CPU", 0) // config.cpus)
            room += min(fit, int(one.get("GPU", 0) // gpus)) if gpus else fit
        count = room if config.count is None else config.count
        if not 0 < count <= room:
            wanted = "a worker" if config.count is None else f"{count} workers"
            raise ConfigError(
                f"workers=ray: the cluster has {has.get('CPU', 0):g} cores and {has.get('GPU', 0):g} GPUs, and "
                f"{wanted} of workers.cpus={config.cpus} and {gpus} GPUs do not fit; lower them, or add machines"
            )
        kind = ray.remote(num_cpus=config.cpus, num_gpus=gpus, max_restarts=RESTARTS, max_task_retries=RESTARTS)(Worker)
        identity = (runtime.config, runtime.source.fingerprint, self._cache, runtime.task, sorted(runtime.kernels))
        device = "cuda" if on_gpu else "cpu"
        self._workers = [kind.remote(*identity, device, config.cpus) for _ in range(count)]
        log.info("%d workers on %d machines", count, len(machines))
        return self._workers

    def _connect(self) -> None:
        import ray

        if ray.is_initialized():
            return
        quiet = {"log_to_driver": False, "configure_logging": False}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        address = self._config.address
        try:
            if address != "local":
                ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            if address != "auto":
                raise ConfigError(
                    f"workers.address={address}: no Ray cluster answers there ({error}); start one (ray start --head), "
                    "or use workers.address=local"
                ) from error
        if not ray.is_initialized():
            ray.init(address="local", include_dashboard=False, **quiet)


class Worker:
    """What runs on a worker's machine; it opens what computes shards once for all of one name. The model is loaded with
    the first shard: an error there is one of a shard and comes back as it is."""

    def __init__(
        self,
        config: ModelConfig,
        fingerprint: str,
        cache: Path,
        task: Prompting,
        kernels: Sequence[str],
        device: str,
        cpus: int,
    ) -> None:
        os.environ.pop("WORLD_SIZE", None)  # of the processes of the run that started this machine's Ray
        team.cache_clear()
        self._config, self._fingerprint, self._cache, self._task = config, fingerprint, cache, task
        self._kernels, self._device, self._cpus = kernels, device, cpus
        self._runtime: Runtime | None = None
        self._name: str | None = None
        self._open = ExitStack()
        self._tool: Any = None

    def compute(self, name: str, job: list[Any], number: int, shard: Shard[Any, Row]) -> tuple[int, Sequence[Row]]:
        """The number and the rows of a shard; `job` refers to what is the same for all shards of this name, which is
        fetched once."""
        if self._runtime is None:
            self._runtime = self._load()
        if name != self._name:
            import ray

            self._open.close()
            opened, adapter = ray.get(job[0])
            folder = None if adapter is None else self._write(adapter)
            self._tool, self._name = self._open.enter_context(opened(self._runtime, folder)), name
        return number, shard(self._runtime, self._tool)

    def _load(self) -> Runtime:
        import socket

        import torch

        torch.set_num_threads(self._cpus)
        store = Store(self._cache)
        source = locate(self._config, self._cache)
        if source.fingerprint != self._fingerprint:
            raise ConfigError(
                f"the model on {socket.gethostname()} ({source.description}) is not the one of this run; make the "
                "files equal, or pin model.revision"
            )
        runtime = Runtime(self._config, source, self._task, self._device, self._kernels)
        Run(store).fetch_model(runtime)
        return runtime

    def _write(self, adapter: Mapping[str, bytes]) -> Path:
        folder = Path(self._open.enter_context(tempfile.TemporaryDirectory()))
        for name, content in adapter.items():
            (folder / name).write_bytes(content)
        return folder
