"""On a GPU: a DPO step beside TRL's own and the card's matrix rate, sampling with vLLM beside vLLM itself.

Random weights in the shape of Qwen2.5-1.5B, whose tokenizer has a token for each byte: prompts are random letters.
Every part is a process of its own, so that each has the card's memory for itself.
"""

import argparse
import json
import random
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.compare import run_part, step, step_with_reference
from benchmarks.ours import SAME_TRAINING, Sizes, prepared, train
from benchmarks.plain import report
from mipo_exp.generation.engine import Request
from mipo_exp.generation.responses import opened_engine
from mipo_exp.generation.vllm_engine import VllmConfig, environment
from mipo_exp.pipeline import Assembled
from mipo_exp.planning.shape import find_shape
from mipo_exp.store.records import Condition

# What TRL and PEFT do without this package: every sequence with a prompt of its own, the whole batch at once, and the
# reference by a second forward pass in each step.
STOCK = (*("kernels=plain", "trainer.reference=live"),)
SHAPES = {"cuda": "+experiment=qwen1.5b_shape", "cpu": "model=tiny"}
# Run where vLLM is: `report`'s arguments go to a file.
RAW = """
import json, sys, time
from vllm import LLM, SamplingParams

asked = json.load(sys.stdin)
model, sampling = LLM(**asked["model"]), SamplingParams(**asked["sampling"])
prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
model.generate(prompts[:1], sampling, use_tqdm=False)
started = time.perf_counter()
found = model.generate(prompts, sampling, use_tqdm=False)
seconds = time.perf_counter() - started
with open(sys.argv[1], "w") as file:
    json.dump({"seconds": seconds, "tokens": sum(len(of.outputs[0].token_ids) for of in found)}, file)
"""
CHAT_TOKENS = 64  # at most what the chat template adds to a prompt
SIZES = {"prompt-tokens": 1472, "new-tokens": 256, "pairs": 32, "batch": 4, "steps": 8, "vllm-prompts": 2048}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gpu`."""
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cuda", help="cpu tries the command, with a small model")
    parser.add_argument("--no-vllm", action="store_true", help="leave sampling out")
    parser.add_argument("--vllm-python", default="null", help="engine.python: .venv-vllm/bin/python")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    parser.add_argument(
        "--set", dest="override", nargs="*", default=[], help="of the config: +experiment=qwen1.5b_shape"
    )


def main(args: argparse.Namespace) -> None:
    """Run one part, or all of them and print a table."""
    if args.part is not None:
        PARTS[args.part](args)
        return
    parts = [name for name in PARTS if not (args.no_vllm and "vllm" in name)]
    found: dict[str, Mapping[str, float]] = {}
    with tempfile.TemporaryDirectory() as cache:
        for part in parts:
            sizes = [text for name in SIZES for text in (f"--{name}", str(getattr(args, name.replace("-", "_"))))]
            command = [sys.executable, "-m", "benchmarks", "gpu", "--part", part, "--cache", cache, *sizes]
            command += [
                "--vllm-python",
                args.vllm_python,
                "--device",
                args.device,
                *(["--set", *args.override] if args.override else []),
            ]
            found.update(run_part(command, {}))
    sys.stdout.write("\n".join([*table(found), ""]))


def table(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What the parts found, as a Markdown table."""
    rates, ours, stock = found["rates"], found["train"], found["stock-train"]
    each, whole, theirs = step(found), step_with_reference(found), step({"train": stock})
    reached = rates["operations"] / each
    lines = ["| | |", "| --- | --- |", f"| matrix products, TFLOP/s | {rates['matmul'] / 1e12:.1f} |"]
    lines.append(f"| DPO step, s: this package, TRL | {each:.4f}, {theirs:.4f} ({theirs / each:.2f}×) |")
    lines.append(
        f"| the same with its share of scoring the reference | {whole:.4f}, {theirs:.4f} ({theirs / whole:.2f}×) |"
    )
    lines.append(f"| the step's share of the matrix rate | {reached / rates['matmul']:.0%} |")
    if "peak_gpu_mib" in ours:
        peaks = f"{ours['peak_gpu_mib']:.0f}, {stock['peak_gpu_mib']:.0f}"
        lines.append(f"| peak GPU memory of training, MiB: this package, TRL | {peaks} |")
    if "continuous" in found:
        speed, batched = (found[name]["tokens_per_second"] for name in ("continuous", "transformers"))
        lines.append(
            f"| sampled tokens/s: continuous, transformers' generate | {speed:.0f}, {batched:.0f} "
            f"({speed / batched:.2f}×) |"
        )
    if "vllm" in found:
        speed, raw = (found[name]["tokens_per_second"] for name in ("vllm", "raw-vllm"))
        lines.append(f"| sampled tokens/s: this package, vLLM itself | {speed:.0f}, {raw:.0f} ({speed / raw:.0%}) |")
    return lines


def _sizes(args: argparse.Namespace) -> Sizes:
    return Sizes(args.pairs, args.new_tokens, args.steps, args.batch, 2, 0)


def _prompts(count: int, tokens: int) -> list[str]:
    """Random letters; the byte tokenizer makes one token of each."""
    draw = random.Random(0)
    return ["".join(draw.choices(string.ascii_lowercase, k=tokens)) for _ in range(count)]


def _prepared(args: argparse.Namespace, *more: str) -> Assembled:
    """The experiment on random prompts; its pairs are shared by the parts."""
    data = args.cache / "data"
    data.mkdir(exist_ok=True)
    lines = [json.dumps({"prompt": text}) + "\n" for text in _prompts(args.pairs, args.prompt_tokens)]
    (data / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    (data / "test.jsonl").write_text(json.dumps({"prompt": "a"}) + "\n" + json.dumps({"prompt": "b"}), encoding="utf-8")
    shape = [] if any(text.startswith(("+experiment", "model")) for text in args.override) else [SHAPES[args.device]]
    return prepared(
        [
            *shape,
            *("task=custom", f"task.path={data}", "task.family=open", "negatives=random_prompt"),
            *(f"task.max_new_tokens={args.new_tokens}", "evaluation.k=2", f"device={args.device}", "tracker=none"),
            *(f"trainer.per_device_train_batch_size={args.batch}", f"trainer.max_steps={args.steps}"),
            *(f"trainer.save_steps={args.steps}", *SAME_TRAINING),
            *(f"paths.cache={args.cache}", f"paths.output={args.cache / 'output'}"),
            *args.override,
            *more,
        ]
    )


def _rates(args: argparse.Namespace) -> None:
    """What the card does, and the operations of a step on shared prompts: as many as there have to be."""
    ready = _prepared(args)
    shape = find_shape(ready.config.model, ready.runtime.folder, ready.runtime.dtype)
    if shape is None:
        raise SystemExit("error: the model's config.json does not say how large it is")
    started = time.perf_counter()
    matmul = _matrix_rate(args.device, ready.runtime.dtype)
    tokens, heads = args.prompt_tokens + CHAT_TOKENS + 2 * args.new_tokens, 2 * args.new_tokens
    attention = 4 * shape.layers * shape.width * tokens / 2
    forward = tokens * (2 * shape.body + attention) + heads * 2 * shape.width * shape.vocabulary
    # The backward pass makes no gradients of the frozen weights: as much as the forward pass, not twice as much.
    operations = args.batch * 2 * forward
    report("rates", time.perf_counter() - started, 0, matmul=matmul, operations=operations)


def _matrix_rate(device: str, dtype: str, repeats: int = 10) -> float:
    """Floating-point operations a second in large matrix products."""
    import torch

    width = 8192 if device.startswith("cuda") else 1024
    left = torch.ones(width, width, dtype=getattr(torch, dtype), device=device)
    for _ in range(3):
        left @ left
    float(left[0, 0])  # waits
    started = time.perf_counter()
    for _ in range(repeats):
        product = left @ left
    float(product[0, 0])
    return 2 * width**3 * repeats / (time.perf_counter() - started)


def _step(args: argparse.Namespace) -> None:
    """The reference's log-probabilities, which the steps then read, and the steps."""
    ready = _prepared(args)
    for name in ("chosen", "rejected", "pairs"):
        ready.run.fetch(name, ready.stages[name])
    ready.runtime.model()
    started = time.perf_counter()
    ready.run.fetch("scored_pairs", ready.stages["scored_pairs"])
    report("reference", time.perf_counter() - started, 0, pairs=args.pairs)
    train(ready, _sizes(args))


def _stock_step(args: argparse.Namespace) -> None:
    """The reference by a second pass in every step."""
    train(_prepared(args, *STOCK), _sizes(args), "stock-train")


def _vllm(args: argparse.Namespace) -> None:
    _sample(args, "engine=vllm", f"engine.python={args.vllm_python}")


def _transformers(args: argparse.Namespace) -> None:
    _sample(args, "engine=transformers")


def _continuous(args: argparse.Namespace) -> None:
    _sample(args, "engine=continuous")


def _sample(args: argparse.Namespace, *overrides: str) -> None:
    """Sampling as the stages do it, with the model loaded or the worker started before the clock."""
    ready = _prepared(args, *overrides)
    prompts = _token_ids(ready, args)
    sampling = ready.config.sampling
    config = ready.config.engine.settled(args.device)
    with opened_engine(ready.runtime, None, config, None, args.cache) as engine:
        engine.sample(Request(prompts[:1], sampling, 0, [0]))
        started = time.perf_counter()
        shards = engine.plan([len(prompt) for prompt in prompts], sampling.max_new_tokens)
        found = [
            row
            for number, shard in enumerate(shards)
            for row in engine.sample(Request([prompts[i] for i in shard], sampling, number, shard))
        ]
    report(config.name, time.perf_counter() - started, sum(len(row.token_ids) for row in found))
    ready.runtime.release()


def _raw_vllm(args: argparse.Namespace) -> None:
    """The same prompts through vLLM's own `generate`, all at once, with its defaults."""
    ready = _prepared(args, "engine=vllm", f"engine.python={args.vllm_python}")
    engine, sampling = ready.config.engine, ready.config.sampling
    if not isinstance(engine, VllmConfig):
        raise SystemExit("error: --set may not name another engine")
    asked = {
        "prompts": _token_ids(ready, args),
        "sampling": {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "stop_token_ids": list(ready.runtime.renderer.stop_ids),
            "detokenize": False,
        },
        "model": {
            "model": str(ready.runtime.model_folder),
            "dtype": ready.runtime.dtype,
            "max_model_len": args.prompt_tokens + CHAT_TOKENS + args.new_tokens,
            "generation_config": "vllm",
            **engine.extra,
        },
    }
    found = args.cache / "raw-vllm.json"
    command, variables = [engine.interpreter, "-c", RAW, str(found)], environment(engine.interpreter)
    subprocess.run(command, input=json.dumps(asked), text=True, env=variables, check=True)
    report("raw-vllm", **json.loads(found.read_text()))


def _token_ids(ready: Assembled, args: argparse.Namespace) -> Sequence[list[int]]:
    texts = _prompts(args.vllm_prompts, args.prompt_tokens)
    return [ready.runtime.prompt_ids(Condition(None, text)) for text in texts]


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "rates": _rates,
    "step": _step,
    "stock-step": _stock_step,
    "transformers": _transformers,
    "continuous": _continuous,
    "vllm": _vllm,
    "raw-vllm": _raw_vllm,
}
