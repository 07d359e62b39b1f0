"""What the check of the first loss finds: right references pass, planted faults are refused.

python -m benchmarks references model.dtype.cpu=bfloat16

The pairs of an experiment are sampled and scored once (or read from its cache); each try takes some of them at random.
"""

import argparse
import dataclasses
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from benchmarks.ours import prepared
from mipo_exp.kernels.rounding import exceeds, per_token, rounded_otherwise
from mipo_exp.pipeline import Assembled
from mipo_exp.scoring.batches import plan_batches
from mipo_exp.scoring.log_probs import Scorable, token_log_probs
from mipo_exp.store.artefacts import Workspace
from mipo_exp.store.records import ScoredPair
from mipo_exp.store.tables import Table
from mipo_exp.training.job import Job, finish
from mipo_exp.training.methods.mipo import Mipo, evaluated, longest_pair, make_trainer
from mipo_exp.training.references import CHECKED_PAIRS_16_BITS

BATCH_TOKENS = 4096
LEARNING_RATES = 100  # that another adapter's weights are away; random ones do less than trained ones
RIGHT = ("right", "right, no prefix shared")


@dataclass(frozen=True)
class Pool:
    """The responses of all pairs, both sides of each in turn: their lengths, what rounding alone does to each (nats),
    and how far the policy is from its reference, by what was done to the reference."""

    tokens: list[int]
    own: list[float]
    gaps: Mapping[str, list[float]]

    def refuses(self, pairs: Sequence[int], kind: str) -> bool:
        """What the check of these pairs says."""
        rows = [2 * pair + side for pair in pairs for side in (0, 1)]
        gaps, own = ([of[row] for row in rows] for of in (self.gaps[kind], self.own))
        tokens = [self.tokens[row] for row in rows]
        return exceeds(gaps, tokens, per_token(own, tokens)) is not None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `references`."""
    parser.add_argument("--tries", type=int, default=100, help="of each kind")
    parser.add_argument("--pool", type=int, default=160, help="pairs that are computed")
    parser.add_argument("--pairs", type=int, default=CHECKED_PAIRS_16_BITS, help="pairs of one try")
    parser.add_argument("override", nargs="*", help="of the experiment's config")


def main(args: argparse.Namespace) -> None:
    """Print a row for each kind of reference."""
    with tempfile.TemporaryDirectory() as folder:
        ready = prepared(["tracker=none", f"paths.output={folder}", *args.override])
        pool = measure(ready, scored_pairs(ready), args.pool, Path(folder))
    lines = ["| references | mean gap, nats | s.d. | refused |", "| --- | --- | --- | --- |"]
    for kind, gaps in pool.gaps.items():
        refused = sum(tries(pool, kind, args.tries, args.pairs))
        lines.append(
            f"| {kind} | {statistics.fmean(gaps):+.3f} | {statistics.stdev(gaps):.3f} | {refused} of {args.tries} |"
        )
    length, spread = statistics.fmean(pool.tokens), statistics.stdev(pool.own)
    lines.append(
        f"\n{len(pool.tokens)} responses of {length:.1f} tokens; rounding alone has a s.d. of {spread:.3f} nats"
    )
    sys.stdout.write("\n".join([*lines, ""]))


def tries(pool: Pool, kind: str, count: int, pairs: int) -> list[bool]:
    """Whether each of some seeded draws is refused."""
    among = range(len(pool.tokens) // 2)
    draws = (random.Random(seed).sample(among, min(pairs, len(among))) for seed in range(count))
    return [pool.refuses(draw, kind) for draw in draws]


def scored_pairs(ready: Assembled) -> Table[ScoredPair]:
    """The pairs of an experiment."""
    for name, stage in ready.stages.items():
        artefact = ready.run.fetch(name, stage)
        if name == "scored_pairs":
            return artefact.table("pairs", ScoredPair)
    raise SystemExit("error: this experiment scores no pairs")


def measure(ready: Assembled, pairs: Table[ScoredPair], count: int, folder: Path) -> Pool:
    """Compute a pool from the first of some pairs."""
    import torch

    count = min(count, len(pairs))
    policy, own = _policy(ready, pairs, count, folder)
    sides = [(pairs[i].prompt_ids, ids) for i in range(count) for ids in (pairs[i].chosen_ids, pairs[i].rejected_ids)]
    tokenizer = ready.runtime.renderer.tokenizer
    texts = {tuple(prompt): tokenizer.decode(prompt, skip_special_tokens=True) for prompt, _ in sides}
    other = {prompt: tokenizer(text, add_special_tokens=False)["input_ids"] for prompt, text in texts.items()}
    model = ready.runtime.model()
    rows = _scored(model, sides, share=True)
    references = {
        "right": [float(row.sum()) for row in rows],
        "right, no prefix shared": [float(row.sum()) for row in _scored(model, sides, share=False)],
        "last token dropped": [float(row[:-1].sum()) for row in rows],
        "first token dropped": [float(row[1:].sum()) for row in rows],
        "prompt's first token dropped": _sums(_scored(model, [(prompt[1:], ids) for prompt, ids in sides])),
        "another template": _sums(_scored(model, [(other[tuple(prompt)], ids) for prompt, ids in sides])),
    }
    torch.manual_seed(0)
    size = LEARNING_RATES * ready.config.trainer.learning_rate
    adapted = ready.runtime.model(_an_adapter(ready, size, folder / "adapter"))
    references["another adapter"] = _sums(_scored(adapted, sides))
    gaps = {kind: [one - other for one, other in zip(policy, sums, strict=True)] for kind, sums in references.items()}
    return Pool([len(ids) for _, ids in sides], own, gaps)


def _policy(ready: Assembled, pairs: Table[ScoredPair], count: int, folder: Path) -> tuple[list[float], list[float]]:
    """Of each response what the check computes, log π_θ before the first step, and what rounding alone does to it."""
    import torch
    from transformers import TrainerCallback

    config = ready.config
    job = Job(
        Workspace(folder, {}), ready.runtime, config.method, config.lora, config.trainer, config.seed, folder,
        TrainerCallback(), config.pairs,
    )  # fmt: skip
    method = cast(Mipo, config.method)
    dpo = make_trainer(job, method, pairs)
    finish(job, dpo, lambda: longest_pair(pairs))
    rows = [dpo.train_dataset[i] for i in range(count)]
    gaps = evaluated(dpo, method, rows)[2]
    with rounded_otherwise(dpo.model, torch.finfo(next(dpo.model.parameters()).dtype).eps / 2):
        own = [noisy - gap for noisy, gap in zip(evaluated(dpo, method, rows)[2], gaps, strict=True)]
    stored = [log_prob for row in rows for log_prob in (row["ref_chosen_logps"], row["ref_rejected_logps"])]
    return [gap + reference for gap, reference in zip(gaps, stored, strict=True)], own


def _scored(model: Any, sides: Sequence[tuple[Sequence[int], Sequence[int]]], share: bool = True) -> list[Any]:
    items = [Scorable(tuple(prompt), tuple(ids)) for prompt, ids in sides]
    found: dict[int, Any] = {}
    for batch in plan_batches(items, BATCH_TOKENS, share)[0]:
        found.update(zip(batch, token_log_probs(model, [items[i] for i in batch], share), strict=True))
    return [found[i].double() for i in range(len(items))]


def _sums(rows: Sequence[Any]) -> list[float]:
    return [float(row.sum()) for row in rows]


def _an_adapter(ready: Assembled, size: float, folder: Path) -> Path:
    """One whose B matrices have entries of ± `size`: Adam moves each by about the learning rate a step."""
    import peft
    import torch

    lora = dataclasses.asdict(ready.config.lora)
    model: Any = peft.get_peft_model(ready.runtime.fresh_model(), peft.LoraConfig(task_type="CAUSAL_LM", **lora))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = size * torch.randn_like(parameter).sign()
    model.save_pretrained(folder)
    return folder
