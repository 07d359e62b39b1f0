"""The work of `benchmarks.plain` through this framework's own stages.

    python -m benchmarks.ours --model DIR --workload gsm8k|lamp --part sample-and-score|train --cache DIR …

The examples are those that the baseline draws, written to a file that `task=custom` reads. Each part runs in a process
of its own, so that the peak of resident memory is that of the part; the model is loaded before the clock starts, as in
the baseline. One JSON line for each stage, with the baseline's fields.
"""

import argparse
import dataclasses
import json
import logging
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from benchmarks.plain import WORKLOADS, add_sizes, report
from mipo_exp import cli
from mipo_exp.config.parsing import parse
from mipo_exp.experiment import assemble
from mipo_exp.generation.engine import Request
from mipo_exp.generation.responses import opened_engine
from mipo_exp.pipeline import Assembled
from mipo_exp.store.records import Pair, Response

SETTINGS = {
    "gsm8k": ("task.family=open", "negatives=random_prompt"),
    "lamp": ("task.family=personalization", "task.columns.context=context", "negatives=no_context"),
}
# What the baseline does.
SAME_TRAINING = ("trainer.learning_rate=2e-4", "method.beta=0.1", "lora.r=16", "lora.lora_alpha=32")


@dataclass(frozen=True)
class Sizes:
    """How much work a workload is; the arguments of `benchmarks.plain` under their names."""

    pairs: int
    new_tokens: int
    steps: int
    batch: int
    k: int
    seed: int


def write_examples(workload: str, sizes: Sizes, data: Path, folder: Path) -> None:
    """The baseline's examples as the training and the test side of a custom task."""
    rows = WORKLOADS[workload](sizes.pairs, random.Random(sizes.seed), data)
    folder.mkdir(parents=True, exist_ok=True)
    named = ({"prompt": prompt, **({} if context is None else {"context": context})} for context, prompt in rows)
    lines = "".join(json.dumps(row) + "\n" for row in named)
    for side in ("train", "test"):
        (folder / f"{side}.jsonl").write_text(lines, encoding="utf-8")


def overrides(workload: str, sizes: Sizes, model: str | None, folder: Path, cache: Path) -> list[str]:
    """The experiment that does what the baseline does."""
    return [
        *("task=custom", f"task.path={folder}", "task.overlap=allow", "sampling.temperature=1"),
        *SETTINGS[workload],
        *([] if model is None else [f"model.path={model}"]),
        f"task.max_new_tokens={sizes.new_tokens}",
        f"evaluation.k={sizes.k}",
        f"trainer.per_device_train_batch_size={sizes.batch}",
        f"trainer.max_steps={sizes.steps}",
        *SAME_TRAINING,
        *("tracker=none", f"seed={sizes.seed}", f"paths.cache={cache}", f"paths.output={cache / 'output'}"),
    ]


def prepared(arguments: Sequence[str]) -> Assembled:
    """A checked experiment with its model in the cache."""
    cli.register_resolvers()
    with initialize_config_dir(str(cli.CONFIG_DIR), version_base="1.3"):
        config = parse(compose("config", overrides=list(arguments)))
    ready = assemble(config, Path(config.paths.output))
    ready.run.fetch_model(ready.runtime)
    if "engine_model" in ready.stages:
        ready.run.fetch("engine_model", ready.stages["engine_model"])
    return ready


def sample_and_score(ready: Assembled, sizes: Sizes) -> None:
    """Stages `pairs` and `score`."""
    run, stages = ready.run, ready.stages
    ready.runtime.model()
    if "engine_model" in run.finished:
        _open_engine(ready)
    started = time.perf_counter()
    for name in ("chosen", "rejected"):
        run.fetch(name, stages[name])
    seconds = time.perf_counter() - started
    run.fetch("pairs", stages["pairs"])
    pairs = run.finished["pairs"].artefact.table("pairs", Pair)
    tokens = sum(len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs)
    report("pairs", seconds, tokens, pairs=len(pairs))

    responses = run.fetch("before_responses", stages["before_responses"]).table("responses", Response)
    ready.runtime.model()
    started = time.perf_counter()
    run.fetch("before_scores_base", stages["before_scores_base"])
    seconds = time.perf_counter() - started
    # K conditions count, as in the baseline; each response's own marginal is scored on top.
    report("score", seconds, sizes.k * sum(len(row.token_ids) for row in responses), conditions=sizes.k)

    started = time.perf_counter()
    run.fetch("scored_pairs", stages["scored_pairs"])
    report("reference", time.perf_counter() - started, tokens, pairs=len(pairs))


def _open_engine(ready: Assembled) -> None:
    """Let an engine with a form of the model of its own load it."""
    folder = ready.run.path("engine_model") / "model"
    one_token = dataclasses.replace(ready.config.sampling, max_new_tokens=1)
    settled = ready.config.engine.settled(ready.runtime.device)
    with opened_engine(ready.runtime, None, settled, folder, folder) as engine:
        engine.sample(Request([[1]], one_token, 0, [0]))


def train(ready: Assembled, sizes: Sizes, stage: str = "train") -> None:
    """Stage `train`, or what it is to be called: the Trainer's `train`, as in the baseline."""
    from transformers import Trainer

    run, stages = ready.run, ready.stages
    inner, times = Trainer.train, list[float]()

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.args.device.type == "cuda":  # what was scored before in this process is not the training's
            sys.modules["torch"].cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        found = inner(self, *args, **kwargs)
        times.append(time.perf_counter() - started)
        return found

    Trainer.train = timed
    for name in ("chosen", "rejected", "pairs", "scored_pairs", "adapter"):
        if name not in run.finished:
            run.fetch(name, stages[name])
    history = run.finished["adapter"].artefact.json("history")
    report(stage, times[0], int(history[-1]["num_tokens"]), steps=len(history), batch=sizes.batch)


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="folder with safetensors; the default model where it is left out")
    add_sizes(parser)
    parser.add_argument("--part", choices=("sample-and-score", "train"), required=True)
    parser.add_argument("--cache", type=Path, required=True, help="an empty folder, the same one for both parts")
    parser.add_argument("override", nargs="*", help="of the experiment's config: engine=openvino")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    sizes = Sizes(args.pairs, args.new_tokens, args.steps, args.batch, args.k, args.seed)
    folder = args.cache / "data"
    write_examples(args.workload, sizes, args.data, folder)
    ready = prepared([*overrides(args.workload, sizes, args.model, folder, args.cache), *args.override])
    (sample_and_score if args.part == "sample-and-score" else train)(ready, sizes)


if __name__ == "__main__":
    main()
