"""The rounds of an iterated training: each on another part of the examples."""

import dataclasses
from functools import partial

from mipo_exp.config.groups import TrainerConfig
from mipo_exp.config.schema import Config
from mipo_exp.data.splitting import parts
from mipo_exp.store.artefacts import Stage, Workspace
from mipo_exp.store.records import Example

VERSION = 1  # raised when the stage `part` computes something else from the same config


def stage_name(name: str, number: int, rounds: int) -> str:
    """What a stage of round `number` of `rounds` is called: those of the last one have the plain names."""
    return name if number == rounds else f"{name}_{number}"


def of_round(config: Config, examples: Stage, number: int) -> tuple[Stage, TrainerConfig]:
    """The examples that a round of `method.rounds` trains on, a `part` of all, and its share of `trainer.max_steps`."""
    rounds, trainer = config.method.training_rounds, config.trainer
    if rounds == 1:
        return examples, trainer
    if trainer.max_steps > 0:
        steps = trainer.max_steps * number // rounds - trainer.max_steps * (number - 1) // rounds
        trainer = dataclasses.replace(trainer, max_steps=steps)
    shape = {"number": number, "rounds": rounds, "seed": config.seed}
    build = partial(load_part, number, rounds, config.seed)
    return Stage("part", VERSION, shape, {"examples": examples}, build), trainer


def load_part(number: int, rounds: int, seed: int, work: Workspace) -> None:
    """The training examples of a round."""
    train = work.inputs["examples"].table("train", Example)
    work.write_table("train", parts(train, rounds, seed)[number - 1], Example)
