"""MIPO from the data to the results in one file, with stock transformers, PEFT and TRL.

    python examples/plain_mipo.py --model HuggingFaceTB/SmolLM2-135M-Instruct

MIPO (arXiv 2603.19294) makes preference pairs out of nothing but contexts: the chosen response is sampled with the
user's context, the rejected one without it or for another request. DPO on such pairs raises the mutual information
between responses and contexts, here of short user profiles with everyday requests. Without a network give a folder in
hub layout: `python -m mipo_exp` leaves its converted model in ~/.cache/mipo_exp/model/*/model.
"""

import argparse
import json
import math
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from trl import DPOConfig, DPOTrainer

PERSONAS = Path(__file__).parents[1] / "mipo_exp" / "data" / "resources" / "personas.json"
HELD_OUT_USERS, HELD_OUT_REQUESTS = 40, 20
Ids = list[int]


@dataclass(frozen=True)
class Example:
    """A request of a user: c, x, and words of which a good response has one."""

    context: str
    prompt: str
    keywords: tuple[str, ...] = ()


def load(train: int, held_out: int, rng: random.Random) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples that share neither users nor requests."""
    content = json.loads(PERSONAS.read_text(encoding="utf-8"))
    users, requests = (rng.sample(content[name], len(content[name])) for name in ("users", "requests"))

    def cross(users: list[dict[str, Any]], requests: list[str], count: int) -> list[Example]:
        every = [Example(user["profile"], text, tuple(user["keywords"])) for user in users for text in requests]
        return rng.sample(every, count)

    seen = cross(users[HELD_OUT_USERS:], requests[HELD_OUT_REQUESTS:], train)
    return seen, cross(users[:HELD_OUT_USERS], requests[:HELD_OUT_REQUESTS], held_out)


def ask(tokenizer: Any, context: str | None, prompt: str) -> Ids:
    """A request as token ids, with the context of the user who asks in front of it."""
    content = prompt if context is None else f"{context}\n\n{prompt}"
    messages = [{"role": "user", "content": content}]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])


@torch.inference_mode()
def sample(
    model: Any, tokenizer: Any, prompts: Sequence[Ids], new_tokens: int, temperature: float = 0.7, rows: int = 8
) -> list[Ids]:
    """A response to each prompt, with its end of turn where it comes to an end."""
    settings = GenerationConfig(
        max_new_tokens=new_tokens, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    settings.update(**({"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}))
    responses: list[Ids] = []
    for start in range(0, len(prompts), rows):
        batch = {"input_ids": list(prompts[start : start + rows])}
        inputs = tokenizer.pad(batch, padding_side="left", return_tensors="pt").to(model.device)
        for ids in model.generate(**inputs, generation_config=settings)[:, inputs["input_ids"].shape[1] :].tolist():
            end = ids.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in ids else len(ids)
            responses.append(ids[:end])
    return responses


@torch.inference_mode()
def log_probs(model: Any, prompts: Sequence[Ids], responses: Sequence[Ids], rows: int = 8) -> list[float]:
    """log p(response | prompt) of each pair, in nats, summed over the response's tokens."""
    found = []
    for start in range(0, len(prompts), rows):
        batch = list(zip(prompts[start : start + rows], responses[start : start + rows], strict=True))
        ids = pad_sequence([torch.tensor(prompt + response) for prompt, response in batch], batch_first=True)
        mask = pad_sequence([torch.ones(len(prompt + response)) for prompt, response in batch], batch_first=True)
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.long().to(model.device)).logits[:, :-1]
        tokens = logits.float().log_softmax(-1).gather(2, ids[:, 1:, None].to(model.device))[..., 0]
        for row, (prompt, response) in zip(tokens, batch, strict=True):
            found.append(float(row[len(prompt) - 1 : len(prompt) + len(response) - 1].sum()))
    return found


def make_pairs(
    tokenizer: Any, prompts: Sequence[Ids], chosen: Sequence[Ids], rejected: Sequence[Ids]
) -> list[dict[str, Ids]]:
    """Preference pairs as token ids: what was sampled is what is trained on. Equal and empty sides teach nothing."""
    pairs = []
    for prompt, *sides in zip(prompts, chosen, rejected, strict=True):
        texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in sides]
        if all(texts) and texts[0] != texts[1]:
            pairs.append({"prompt_ids": prompt, "chosen_ids": sides[0], "rejected_ids": sides[1]})
    return pairs


class PairTrainer(DPOTrainer):
    """TRL's trainer on pairs that are token ids already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


def make_trainer(
    model: Any, tokenizer: Any, pairs: Sequence[dict[str, Ids]], folder: str, lora: LoraConfig, **settings: Any
) -> DPOTrainer:
    """DPO with LoRA; the reference is the model with its adapter switched off."""
    on_cpu = model.device.type == "cpu"
    more = {"max_length": None, "gradient_checkpointing": False, "report_to": "none", "save_strategy": "no"}
    config = DPOConfig(folder, use_cpu=on_cpu, bf16=not on_cpu, logging_steps=1, disable_tqdm=True, **more, **settings)
    data = Dataset.from_list(list(pairs))
    return PairTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=lora)


def pmi(log_probs: Sequence[float]) -> float:
    """log p(y|c₀,x) − log (1/K) Σₖ p(y|cₖ,x) in nats, at most log K: its mean is InfoNCE's bound on I(Y; C | X)."""
    top = max(log_probs)
    return log_probs[0] - top - math.log(sum(math.exp(value - top) for value in log_probs) / len(log_probs))


def evaluate(model: Any, scorer: Any, tokenizer: Any, examples: Sequence[Example], k: int, new_tokens: int) -> str:
    """Mutual information of a model's responses and their contexts, judged by the base model, and accuracy."""
    rng = random.Random(0)  # the same contexts before and after
    prompts = [ask(tokenizer, example.context, example.prompt) for example in examples]
    responses = sample(model, tokenizer, prompts, new_tokens)
    contexts = sorted({example.context for example in examples})
    under = []
    for example in examples:
        others = rng.sample([context for context in contexts if context != example.context], k - 1)
        under += [ask(tokenizer, context, example.prompt) for context in (example.context, *others)]
    scores = log_probs(scorer, under, [response for response in responses for _ in range(k)])
    mean = sum(pmi(scores[i : i + k]) for i in range(0, len(scores), k)) / len(examples)
    texts = [tokenizer.decode(ids, skip_special_tokens=True).lower() for ids in responses]
    right = [any(word in text for word in one.keywords) for one, text in zip(examples, texts, strict=True)]
    return f"MI {mean:.2f} nats (at most {math.log(k):.2f}), accuracy {sum(right) / len(right):.0%}"


def main() -> None:
    """Data, conditions, responses, pairs, training, results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="a hub id or a folder")
    defaults = {"train": 48, "held-out": 24, "k": 4, "new-tokens": 32, "steps": 12, "batch": 4, "seed": 1}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()

    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    tokenizer: Any = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(device).eval()
    model.generation_config = GenerationConfig()  # π_ref is the plain distribution, not what it was published with
    train, held_out = load(args.train, args.held_out, rng)

    right = [ask(tokenizer, example.context, example.prompt) for example in train]
    alone = [ask(tokenizer, None, example.prompt) for example in train]
    chosen = sample(model, tokenizer, right, args.new_tokens)
    unasked = sample(model, tokenizer, alone, args.new_tokens)
    # Half of the negatives lack the context, half answer another request: each alone teaches to forget the other one.
    rejected = [unasked[i] if i % 2 else chosen[i - 1] for i in range(len(train))]
    pairs = make_pairs(tokenizer, right, chosen, rejected)

    print(f"{len(pairs)} pairs; before: {evaluate(model, model, tokenizer, held_out, args.k, args.new_tokens)}")
    with tempfile.TemporaryDirectory() as folder:
        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        sizes = {"per_device_train_batch_size": args.batch, "max_steps": args.steps, "seed": args.seed}
        trainer = make_trainer(model, tokenizer, pairs, folder, lora, learning_rate=2.5e-4, beta=0.1, **sizes)
        trainer.train()
    policy: Any = trainer.model.eval()
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(device).eval()
    print(f"after {args.steps} steps: {evaluate(policy, base, tokenizer, held_out, args.k, args.new_tokens)}")


if __name__ == "__main__":
    main()
