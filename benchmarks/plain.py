"""The MIPO job done the plain way, with the functions of examples/plain_mipo.py: what our speed is measured against.

    python -m benchmarks.plain --model DIR_OR_HUB_ID --workload gsm8k|lamp [--pairs 32 --new-tokens 48 --steps 4 --k 4]

Two `generate` calls per pair, one full forward pass for each response under each condition, TRL's DPOTrainer on a PEFT
LoRA. Prints one JSON line per stage: seconds, response tokens, tokens per second, peak resident memory so far in MiB.
`python -m benchmarks compare` runs it and this framework in turn.
"""

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mipo_exp.data.files import resource as data_file
from mipo_exp.data.personas import RESOURCE
from mipo_exp.data.word_problems import generate, templates

Prompt = tuple[str | None, str]  # with its context
PROFILES = 64  # in a context of `lamp`: some 550 tokens


def gsm8k(count: int, rng: random.Random, data: Path) -> list[Prompt]:
    """Short prompts without a context: GSM8K's questions, or the built-in word problems."""
    file = data / "gsm8k" / "train.jsonl"
    if file.is_file():
        prompts = [json.loads(line)["question"] for line in file.open(encoding="utf-8")]
    else:
        prompts = [text for template in templates()[1] for text, _ in generate(template, 8, 0)]
    return [(None, prompt) for prompt in rng.sample(prompts, count)]


def lamp(count: int, rng: random.Random, data: Path) -> list[Prompt]:
    """Long contexts: reviews of LaMP-3, or many of the built-in profiles in a row."""
    file = data / "lamp3_extract" / "LaMP_3" / "train" / "train_questions.json"
    if not file.is_file():
        content = json.loads(data_file(RESOURCE).read_text(encoding="utf-8"))
        profiles, requests = [user["profile"] for user in content["users"]], content["requests"]
        return [(" ".join(rng.sample(profiles, PROFILES)), rng.choice(requests)) for _ in range(count)]
    rows = json.loads(file.read_text(encoding="utf-8"))
    found: list[Prompt] = []
    for row in (rows[i % len(rows)] for i in rng.sample(range(max(count, len(rows))), count)):
        reviews = [f'{past["score"]} is the score for "{past["text"][:400]}"' for past in row["profile"][-6:]]
        found.append((", and ".join(reviews), row["input"][:800]))
    return found


WORKLOADS: Mapping[str, Callable[[int, random.Random, Path], list[Prompt]]] = {"gsm8k": gsm8k, "lamp": lamp}


def report(stage: str, seconds: float, tokens: int, **more: Any) -> None:
    """One line about a stage, with the peak of resident memory so far in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = {"stage": stage, "seconds": round(seconds, 3), "tokens": tokens, "tokens_per_second": tokens / seconds}
    gpu = {}
    if "torch" in sys.modules and (cuda := sys.modules["torch"].cuda).is_available():
        gpu = {"peak_gpu_mib": round(cuda.max_memory_allocated() / 2**20)}
    sys.stdout.write(json.dumps({**line, "peak_mib": round(peak), **gpu, **more}) + "\n")
    sys.stdout.flush()


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """The options that both sides have."""
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--data", type=Path, default=Path("data"), help="holds gsm8k/ and lamp3_extract/, or nothing")
    for name, default in (("pairs", 32), ("new-tokens", 48), ("steps", 4), ("batch", 8), ("k", 4), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)


def main() -> None:
    """Sample, score and train."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    from examples.plain_mipo import ask, log_probs, make_pairs, make_trainer, sample

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    add_sizes(parser)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer: Any = AutoTokenizer.from_pretrained(args.model)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(device).eval()
    model.generation_config = GenerationConfig()
    rows = WORKLOADS[args.workload](args.pairs, rng, args.data)
    right = [ask(tokenizer, context, prompt) for context, prompt in rows]
    with_contexts = rows[0][0] is not None
    shift = rng.randrange(1, len(rows))
    wrong = right[shift:] + right[:shift]
    if with_contexts:
        wrong = [ask(tokenizer, None, prompt) for _, prompt in rows]

    started = time.perf_counter()
    chosen, rejected = (sample(model, tokenizer, prompts, args.new_tokens, 1.0) for prompts in (right, wrong))
    report("pairs", time.perf_counter() - started, sum(map(len, chosen + rejected)), pairs=len(right))

    under = []
    for i, (_, prompt) in enumerate(rows):
        others = rng.sample(rows[:i] + rows[i + 1 :], args.k - 1)
        # With contexts the same prompt under other contexts, else other prompts.
        prompts = [ask(tokenizer, context, prompt if with_contexts else other) for context, other in others]
        under += [right[i], *prompts]
    started = time.perf_counter()
    log_probs(model, under, [response for response in chosen for _ in range(args.k)])
    report("score", time.perf_counter() - started, args.k * sum(map(len, chosen)), conditions=args.k)

    pairs = make_pairs(tokenizer, right, chosen, rejected)
    with tempfile.TemporaryDirectory() as folder:
        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        sizes = {"per_device_train_batch_size": args.batch, "max_steps": args.steps}
        trainer = make_trainer(model, tokenizer, pairs, folder, lora, learning_rate=2e-4, beta=0.1, **sizes)
        started = time.perf_counter()
        trainer.train()
        tokens = int(trainer.state.log_history[-2]["num_tokens"])
        report("train", time.perf_counter() - started, tokens, steps=args.steps, batch=args.batch)


if __name__ == "__main__":
    main()
