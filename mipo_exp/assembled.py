"""An experiment, put together: what is fetched, reported and planned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mipo_exp.config.schema import Config
from mipo_exp.data.base import Task
from mipo_exp.execution.run import Run
from mipo_exp.judging.stage import Judging
from mipo_exp.models.runtime import Runtime
from mipo_exp.store.artefacts import Stage, Store
from mipo_exp.store.records import Example


@dataclass(frozen=True)
class HeldOut:
    """What is evaluated on, by the protocol of the evaluation.

    Attributes:
        examples: the stage of its examples.
        data: the fingerprint of its data; None in a plan where it is not here.
        task: how they are asked.
        runtime: the base model, asked in this way.
    """

    examples: Stage
    data: str | None
    task: Task
    runtime: Runtime


@dataclass(frozen=True)
class Assembled:
    """An experiment, put together and checked as far as that needs no model (`experiment.assemble`).

    Attributes:
        task: where the examples come from, and how they are asked.
        examples: the stage of the examples.
        held_out: what is evaluated on: the same, unless the evaluation has a protocol of its own.
        stages: those after it, in an order in which they can be built.
        judging: the judge of the results, where there is one.
        rewarding: the judge whose scores a method learns from.
        judgements: the stage of the verdicts, after the others.
        data: the fingerprint of the task's data; None in a plan where it is not here.
        model_stage: makes the folder of the base model, where it is not one already.
        notes: in a plan, what a run would fetch first.
    """

    config: Config
    output: Path
    store: Store
    run: Run
    task: Task
    runtime: Runtime
    examples: Stage
    held_out: HeldOut
    stages: Mapping[str, Stage]
    judging: Judging | None
    rewarding: Judging | None
    judgements: Stage | None
    data: str | None
    model_stage: Stage | None
    notes: Sequence[str] = ()

    @property
    def evaluated(self) -> Sequence[Example]:
        """The examples that are evaluated on, once their stage is finished."""
        finished = self.run.finished
        return finished.get("held_out", finished["examples"]).artefact.table("eval", Example)

    @property
    def keys(self) -> dict[str, str]:
        """The keys of all stages by name; equal ones are equal experiments."""
        judgements = {} if self.judgements is None else {"judgements": self.judgements}
        return {name: stage.key for name, stage in {**self.stages, **judgements}.items()}
