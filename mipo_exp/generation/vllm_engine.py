"""Sampling with vLLM, in a process of its own that may have an environment of its own (`engine.python`).

One process serves the base model and the policies of a run; on a GPU it sleeps where it does not sample, its weights in
the host's memory. It is sent JSON lines (`vllm_worker` says which) and answers each. Responses have random generators
of their own.
"""

import contextlib
import functools
import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Annotated, Any

from mipo_exp.config.fields import Between, schema
from mipo_exp.config.schema import ENGINES, Config, EngineConfig
from mipo_exp.errors import ConfigError, ModelError
from mipo_exp.execution.progress import TO_FILE
from mipo_exp.generation.engine import Engine, Request, Sampled, up_to_stop
from mipo_exp.models.loading import load_folder
from mipo_exp.models.runtime import Runtime

log = logging.getLogger(__name__)

WORKER = Path(__file__).with_name("vllm_worker.py")
# Of LoRA adapters, what vLLM has kernels for; larger ones are refused.
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
COLDEST, HOTTEST = 0.01, 2.0  # vLLM raises lower temperatures to the first and refuses those above the second
SHORTEST = 1024  # positions that the process has at least
CPU_CACHE_BYTES = 1 << 30  # of keys and values on a CPU; engine.extra.kv_cache_memory_bytes takes more
# Arguments that follow from other keys; `engine.extra` may not name them.
OWN = (
    *("model", "dtype", "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization", "trust_remote_code"),
    *("generation_config", "skip_tokenizer_init", "enable_lora", "max_lora_rank"),
)
CAUSE_LINES = 12  # of the log that an error shows
LOG_CHARACTERS = 200_000  # of it that the run's log gets
SECONDS_TO_END = 60.0


@ENGINES.register("vllm")
@schema
class VllmConfig(EngineConfig):
    needs = "vllm"
    takes_gpu = True
    install_note = (
        " in a virtual environment of its own, or make vllm and engine.python=.venv-vllm/bin/python (docs/engines.md)"
    )
    memory_fraction: Annotated[float, Between(0.01, 1)]
    lora_rank: Annotated[int, Between(1, 4096)]
    python: str | None
    extra: dict[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        """See `EngineConfig.identity`."""
        return {**super().identity, **({"extra": self.extra} if self.extra else {})}

    @property
    def interpreter(self) -> str:
        """What the process is started with."""
        return sys.executable if self.python is None else os.path.expanduser(self.python)

    def version(self) -> str | None:
        """See `EngineConfig.version`."""
        found = installed(self.interpreter)
        if self.python is not None and not found:
            raise ConfigError(f"engine.python={self.python} has no vllm; make vllm makes an environment that has it")
        return found.partition("+")[0] or None

    def check(self, config: Config, on_gpu: bool) -> None:
        """See `EngineConfig.check`."""
        for_cpu = "cpu" in installed(self.interpreter)
        if on_gpu and for_cpu:
            raise ConfigError(
                f"the vLLM of {self.interpreter} is built for CPUs, and device is cuda; use device=cpu, or an "
                "environment with vLLM for GPUs (make vllm)"
            )
        if not on_gpu and not for_cpu:
            raise ConfigError(
                "engine=vllm needs a GPU, and device is cpu; use engine=transformers or engine=openvino, or vLLM's "
                "build for CPUs (docs/engines.md)"
            )
        if config.lora.use_dora or not config.lora.r <= self.lora_rank <= LORA_RANKS[-1]:
            raise ConfigError(
                f"engine=vllm serves adapters without DoRA, of rank engine.lora_rank, {LORA_RANKS[-1]} at most "
                f"(lora.use_dora={config.lora.use_dora}, lora.r={config.lora.r}, engine.lora_rank={self.lora_rank}); "
                "use engine=transformers"
            )
        asked = {"sampling": config.sampling, "evaluation.sampling": config.evaluation.sampling}
        for key, group in (asked | {"method": config.method.decoding}).items():
            if group.temperature and not COLDEST <= group.temperature <= HOTTEST:
                raise ConfigError(
                    f"{key}.temperature={group.temperature:g}: engine=vllm samples at temperatures of {COLDEST:g} to "
                    f"{HOTTEST:g} and at 0; choose one of them, or use engine=transformers"
                )
        for name in sorted(set(self.extra).intersection(OWN)):
            raise ConfigError(f"engine.extra.{name} follows from other keys of the config; remove it from engine.extra")

    def open(self, runtime: Runtime, adapter: Path | None, folder: Path | None, scratch: Path) -> "VllmEngine":
        """See `EngineConfig.open`."""
        return VllmEngine(runtime, adapter, runtime.keep(self, partial(Server, self, runtime)))


class VllmEngine(Engine):
    """A model that a server serves, the adapter unmerged."""

    shard_rows = 4096  # several times what is sampled at once: towards its end a shard has fewer and fewer rows

    def __init__(self, runtime: Runtime, adapter: Path | None, server: "Server") -> None:
        super().__init__(runtime, adapter)
        self.server = server
        self._adapter = None if adapter is None else [next(server.numbers), str(adapter.resolve())]

    def sample(self, request: Request) -> list[Sampled]:
        """See `Engine.sample`. Raises `ModelError`: the server ended; what it said first is shown."""
        stops, sampling = self.runtime.renderer.stop_ids, request.sampling
        asked = {
            "prompts": [list(prompt) for prompt in request.prompts],
            "seeds": list(request.seeds),
            "sampling": {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "max_tokens": sampling.max_new_tokens,
                "stop_token_ids": list(stops),
            },
            "adapter": self._adapter,
        }
        found: list[list[int]] = self.server.sample(asked, request.longest)
        return [up_to_stop(ids, set(stops)) for ids in found]

    def close(self) -> None:
        """See `Engine.close`: the server stays, asleep."""
        self.server.rest()


class Server:
    """A process that serves the base model of a runtime, and adapters on it. The runtime's own copy is given up before
    it samples."""

    def __init__(self, config: VllmConfig, runtime: Runtime) -> None:
        self.config, self.runtime = config, runtime
        self.numbers = itertools.count(1)  # of adapters
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[bytes] | None = None
        self._positions = 0
        self._asleep = True

    def sample(self, asked: dict[str, Any], longest: int) -> Any:
        """What the process answers; sequences have at most `longest` tokens."""
        if longest > self._positions:
            self.close()
        self.runtime.unload()
        if self._process is None:
            self._start(longest)
        self._asleep = False
        return self._ask(asked)

    def rest(self) -> None:
        """Leave the GPU to others until the next request."""
        if self._asleep or not self.runtime.device.startswith("cuda"):
            return
        if self.config.extra.get("enable_sleep_mode", True):
            self._ask(None)
            self._asleep = True
        else:
            self.close()

    def close(self) -> None:
        """End the process: the end of its input does."""
        if self._process is None:
            return
        process, self._process, self._asleep = self._process, None, True
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it has ended by itself, and its log says why
                process.stdin.close()
        _wait(process)
        for file in (process.stdout, self._log):
            if file is not None:
                file.close()

    def arguments(self, longest: int) -> dict[str, Any]:
        """Those of vllm.LLM, for sequences of at most `longest` tokens.

        There are more positions than that: with their number unchanged from run to run, vLLM finds the graphs that it
        compiled before.
        """
        runtime, config = self.runtime, self.config
        positions = max(SHORTEST, 1 << (longest - 1).bit_length())
        if runtime.max_positions is not None:
            positions = max(longest, min(positions, runtime.max_positions))
        if runtime.device.startswith("cuda"):
            room = {"gpu_memory_utilization": config.memory_fraction, "enable_sleep_mode": True}
        else:
            room = {"kv_cache_memory_bytes": CPU_CACHE_BYTES}
        return {
            "model": str(runtime.model_folder),
            "dtype": runtime.dtype,
            "max_model_len": positions,
            "max_num_seqs": config.batch_rows.on(runtime.device),
            "max_num_batched_tokens": max(config.batch_tokens.on(runtime.device), positions),
            "trust_remote_code": runtime.config.trust_remote_code,
            "generation_config": "vllm",  # not the sampling settings that the model was published with
            "skip_tokenizer_init": True,
            "enable_lora": True,
            "max_lora_rank": next(rank for rank in LORA_RANKS if rank >= config.lora_rank),
            **room,
            **config.extra,
        }

    def _start(self, longest: int) -> None:
        import torch

        # vLLM would pass over tensors that config.json does not ask for.
        load_folder(self.runtime.model_folder, self.runtime.config, torch.float32, "meta")
        arguments = self.arguments(longest)
        positions = arguments["max_model_len"]
        if not isinstance(positions, int) or positions < longest:
            raise ConfigError(
                f"engine.extra.max_model_len={positions} has no room for the prompts and responses of this run, which "
                f"have up to {longest} tokens; set it to {longest} or more, or leave it out"
            )
        self._positions = positions
        self._log = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - closed with the process
        started = time.monotonic()
        log.info("starting vLLM %s, which takes a minute or more", self.config.version())
        self._process = subprocess.Popen(
            [self.config.interpreter, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment(self.config.interpreter),
        )
        self._ask(arguments)
        log.info("vLLM serves %s after %.0f s", self.runtime.source.description, time.monotonic() - started)

    def _ask(self, request: Any) -> Any:
        """The process's reply to one line."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None or self._log is None:
            raise RuntimeError("the process is not there")
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        except BaseException:  # interrupted: what it answers would be taken for the next reply
            process.kill()
            self.close()
            raise
        if line.endswith("\n"):  # or it ended in the middle of its reply
            return json.loads(line)
        code = _wait(process)
        self._log.seek(0)
        said = self._log.read().decode("utf-8", "replace")
        self.close()
        log.info("what vLLM said:\n%s", said[-LOG_CHARACTERS:], extra={TO_FILE: True})
        ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        hint = ": memory may have run out" if code == -signal.SIGKILL else ""
        raise ModelError(
            f"the vLLM process {ended}{hint}. What it said first, all of it being in the run's log file:\n{cause(said)}"
        )


@functools.cache
def installed(interpreter: str) -> str:
    """The version of vLLM there, with `+cpu` where it is built for CPUs; empty where there is none. Raises
    `ConfigError`: it is no interpreter."""
    command, variables = [interpreter, str(WORKER), "--version"], environment(interpreter)
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True, timeout=60)
        found = done.stdout
        if re.fullmatch(r"[\w.+]*", found):
            return found
        said = found
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
    last = said.strip().rpartition("\n")[2]
    raise ConfigError(
        f"engine.python={interpreter} is no Python that runs ({last}); name that of an "
        "environment with vLLM, .venv-vllm/bin/python (make vllm makes it)"
    )


def environment(interpreter: str) -> dict[str, str]:
    """The variables of a process: another interpreter than this one has packages of its own."""
    own = () if interpreter == sys.executable else ("PYTHONPATH", "PYTHONHOME")
    return {name: value for name, value in os.environ.items() if name not in own}


def _wait(process: "subprocess.Popen[str]") -> int:
    try:
        return process.wait(timeout=SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


# What vLLM and torch put before a line of an error, and Python's lines about places in the code.
_PREFIX = re.compile(r"^\[rank\d+\]: ?|^(\(.*?pid=\d+\) )?ERROR \S+ \S+ \[.*?\] ?")
_PLACE = re.compile(r"Traceback |  File |    ")


def cause(said: str) -> str:
    """The first lines of a log that tell of errors, without places in the code; the last ones where none does."""
    lines = said.strip().splitlines()
    return "\n".join(list(itertools.islice(_errors(lines), CAUSE_LINES)) or lines[-CAUSE_LINES:])


def _errors(lines: list[str]) -> Iterator[str]:
    """The lines that vLLM marks as errors, and those from the first traceback on."""
    trace = False
    for line in lines:
        text = _PREFIX.sub("", line)
        trace = trace or text.startswith("Traceback ")
        if (trace or text != line) and text.strip() and not _PLACE.match(text):
            yield text
