"""The MIPO job done the plain way, with public tools only: the baseline that our speed is measured against.

It does what a competent user would write in an afternoon: two `generate` calls per pair, TRL's DPOTrainer with its
defaults on a PEFT LoRA, and mutual information scored with one full forward pass per (response, condition).

    MIPO_BENCH_DATA=DIR python benchmarks/public_tools.py --model DIR_OR_HUB_ID --workload gsm8k|lamp
        [--pairs 32 --new-tokens 48 --steps 4 --k 4]

DIR has gsm8k/train.jsonl and lamp3_extract/LaMP_3/train/train_questions.json. Prints one JSON line per stage: seconds,
response tokens, tokens per second, peak resident memory so far in MiB. `python -m benchmarks compare` runs it and this
framework in turn.
"""

import argparse
import json
import os
import random
import resource
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

DATA = Path(os.environ.get("MIPO_BENCH_DATA", "data"))


def gsm8k(n, rng):
    rows = [json.loads(line) for line in (DATA / "gsm8k/train.jsonl").open()]
    rows = rng.sample(rows, n)
    return [{"context": None, "prompt": r["question"]} for r in rows]


def lamp(n, rng):
    rows = json.loads((DATA / "lamp3_extract/LaMP_3/train/train_questions.json").read_text())
    rows = [rows[i % len(rows)] for i in rng.sample(range(max(n, len(rows))), n)]
    out = []
    for r in rows:
        reviews = [f'{p["score"]} is the score for "{p["text"][:400]}"' for p in r["profile"][-6:]]
        out.append({"context": ", and ".join(reviews), "prompt": r["input"][:800]})
    return out


WORKLOADS = {"gsm8k": gsm8k, "lamp": lamp}


def messages(prompt, context):
    system = [{"role": "system", "content": context}] if context else []
    return system + [{"role": "user", "content": prompt}]


def report(stage, started, tokens, **more):
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = {
        "stage": stage,
        "seconds": round(seconds, 2),
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 1),
    }
    gpu = {"peak_gpu_mib": round(torch.cuda.max_memory_allocated() / 2**20)} if torch.cuda.is_available() else {}
    print(json.dumps(line | {"peak_mib": round(peak)} | gpu | more), flush=True)


@torch.inference_mode()
def generate(model, tokenizer, conversations, new_tokens, batch=8):
    texts = []
    for i in range(0, len(conversations), batch):
        inputs = tokenizer.apply_chat_template(
            conversations[i : i + batch],
            add_generation_prompt=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device)
        out = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=True, temperature=1.0)
        texts += tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


@torch.inference_mode()
def score(model, tokenizer, prompts, responses, batch=8):
    """Sum of response log-probabilities, full logits."""
    totals = []
    for i in range(0, len(prompts), batch):
        ids, masks = [], []
        for prompt, response in zip(prompts[i : i + batch], responses[i : i + batch], strict=True):
            head = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
            tail = tokenizer(response, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            ids.append(torch.tensor(head + tail))
            masks.append(torch.tensor([0] * len(head) + [1] * len(tail)))
        ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id).to(
            model.device
        )
        mask = torch.nn.utils.rnn.pad_sequence(masks, batch_first=True).to(model.device)
        logits = model(input_ids=ids, attention_mask=(torch.cumsum(mask.flip(1), 1).flip(1) > 0).long()).logits
        log_probs = torch.log_softmax(logits[:, :-1].float(), dim=-1)
        picked = log_probs.gather(2, ids[:, 1:, None])[..., 0]
        totals += (picked * mask[:, 1:]).sum(1).tolist()
    return totals


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--workload", choices=WORKLOADS, default="gsm8k")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(device)
    examples = WORKLOADS[args.workload](args.pairs, rng)

    right = [messages(e["prompt"], e["context"]) for e in examples]
    if examples[0]["context"]:
        wrong = [messages(e["prompt"], None) for e in examples]
    else:
        shift = rng.randrange(1, len(examples))
        wrong = [right[(i + shift) % len(right)] for i in range(len(right))]

    started = time.perf_counter()
    chosen = generate(model, tokenizer, right, args.new_tokens)
    rejected = generate(model, tokenizer, wrong, args.new_tokens)
    count = sum(len(tokenizer(t)["input_ids"]) for t in chosen + rejected)
    report("pairs", started, count, pairs=len(right))

    tokenizer.padding_side = "right"
    started = time.perf_counter()
    conditions = []
    for i, example in enumerate(examples):
        others = rng.sample(examples[:i] + examples[i + 1 :], args.k - 1)
        if example["context"]:  # conditional MI: the same prompt under other contexts
            conditions.append([right[i]] + [messages(example["prompt"], o["context"]) for o in others])
        else:
            conditions.append([right[i]] + [messages(o["prompt"], None) for o in others])
    flat = [(c, y) for cs, y in zip(conditions, chosen, strict=True) for c in cs]
    score(model, tokenizer, [c for c, _ in flat], [y for _, y in flat])
    count = args.k * sum(len(tokenizer(t)["input_ids"]) for t in chosen)
    report("score", started, count, conditions=args.k)

    rows = [
        {
            "prompt": p,
            "chosen": [{"role": "assistant", "content": c}],
            "rejected": [{"role": "assistant", "content": r}],
        }
        for p, c, r in zip(right, chosen, rejected, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=args.batch,
            max_steps=args.steps,
            learning_rate=2e-4,
            beta=0.1,
            bf16=device == "cuda",
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            max_length=None,
            disable_tqdm=True,
            use_cpu=device == "cpu",
        )
        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = DPOTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=lora,
        )
        started = time.perf_counter()
        trainer.train()
        tokens = sum(int(x.get("num_tokens", 0)) for x in trainer.state.log_history[-2:-1])
        report("train", started, tokens, steps=args.steps, batch=args.batch)


if __name__ == "__main__":
    main()
