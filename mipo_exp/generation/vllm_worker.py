"""The process that vLLM runs in: `python -m mipo_exp.generation.vllm_worker`, started by `vllm_engine`.

JSON lines on standard input: first `{"model": {arguments of vllm.LLM}, "adapter": folder or null}`, answered with null
when the model is loaded; then `{"prompts": [[ids]], "seeds": [int], "sampling": {…}}`, each answered with the sampled
ids of each prompt, the stop token included. The end of the input ends the process. What the libraries print goes to
standard error.
"""

import json
import os
import sys
from typing import Any, TextIO


def main() -> None:
    """Serve until standard input ends."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin, replies)


def serve(requests: TextIO, replies: TextIO) -> None:
    """Answer each line of `requests` with a line of `replies`."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    start = json.loads(requests.readline())
    # generation_config="vllm": not the sampling settings that the model was published with.
    model = LLM(**start["model"], generation_config="vllm")
    adapter = None if start["adapter"] is None else LoRARequest("policy", 1, start["adapter"])
    _reply(replies, None)
    for line in requests:
        request = json.loads(line)
        found = model.generate(
            [{"prompt_token_ids": prompt} for prompt in request["prompts"]],
            [SamplingParams(**request["sampling"], seed=seed, detokenize=False) for seed in request["seeds"]],
            lora_request=adapter,
            use_tqdm=False,
        )
        _reply(replies, [[int(token) for token in of.outputs[0].token_ids] for of in found])


def _reply(replies: TextIO, value: Any) -> None:
    replies.write(json.dumps(value) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
