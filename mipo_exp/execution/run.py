"""Fetching the stages of an experiment: from the cache, or built by this process or by several together."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mipo_exp.execution.processes import team
from mipo_exp.execution.shards import Executor
from mipo_exp.models.runtime import Runtime, declare_model
from mipo_exp.store.artefacts import Artefact, Stage, Store, Workspace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """A stage that has been fetched."""

    stage: Stage
    artefact: Artefact
    cached: bool
    seconds: float


class Run:
    """Fetches stages one after the other and remembers what was cached and how long it took. `executor` computes their
    shards; this process does where it is None."""

    def __init__(self, store: Store, executor: Executor | None = None) -> None:
        self.store = store
        self.executor = executor
        self.finished: dict[str, Finished] = {}

    def fetch(self, name: str, stage: Stage) -> Artefact:
        """The stage's artefact. In the main process its inputs must have been fetched before; the others take them, and
        every artefact that is not shared, from the cache."""
        started = time.perf_counter()
        artefact, cached = self._build(stage) if team().main else (self._take_part(stage), False)
        seconds = time.perf_counter() - started
        self.finished[name] = Finished(stage, artefact, cached, seconds)
        log.info("%s: %s (%s)", name, "cached" if cached else f"done in {seconds:.1f} s", stage.key)
        return artefact

    def _build(self, stage: Stage) -> tuple[Artefact, bool]:
        done = {item.stage.key: item.artefact for item in self.finished.values()}

        def build(work: Workspace) -> None:
            if stage.shared:
                team().share(True)
            self._compute(stage, work)

        found, cached = self.store.fetch(stage, {role: done[of.key] for role, of in stage.inputs.items()}, build)
        if stage.shared and cached:
            team().share(False)
        return found, cached

    def _take_part(self, stage: Stage) -> Artefact:
        """What the main process makes. All processes run a shared stage, and only the main one writes its artefact."""
        if stage.shared and team().share():
            inputs: Mapping[str, Artefact] = {role: self.store.wait_for(of) for role, of in stage.inputs.items()}
            self.store.take_part(stage, inputs, lambda work: self._compute(stage, work))
        return self.store.wait_for(stage)

    def _compute(self, stage: Stage, work: Workspace) -> None:
        work.executor = self.executor
        stage.build(work)
        if stage.shared:
            team().share()  # nobody reads shards any more: they may be removed

    def fetch_model(self, runtime: Runtime, name: str = "model") -> None:
        """Make the folder of a runtime's model, where it has none yet; `name` is what the stage is called."""
        stage = declare_model(runtime)
        if stage is not None and name not in self.finished:
            runtime.folder = self.fetch(name, stage).path / "model"

    def path(self, name: str) -> Path:
        """The folder of a fetched stage."""
        return self.finished[name].artefact.path

    def release(self) -> None:
        """End the workers that compute shards, where there are any."""
        if self.executor is not None:
            self.executor.release()
