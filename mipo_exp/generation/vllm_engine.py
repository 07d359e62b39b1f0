"""Sampling on a GPU with vLLM, in a process of its own: when it ends, its memory is free for scoring and training.

The parent sends JSON lines (`vllm_worker` says which) and reads one back for each shard. Responses have random
generators of their own.
"""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

from mipo_exp.config.fields import Between, schema
from mipo_exp.config.schema import ENGINES, Config, EngineConfig
from mipo_exp.errors import ConfigError, ModelError
from mipo_exp.generation.engine import Engine, Request, Sampled, up_to_stop
from mipo_exp.models.loading import load_folder
from mipo_exp.models.runtime import Runtime

# Of LoRA adapters, what vLLM has kernels for; larger ones are refused.
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
LOG_TAIL = 2000  # characters of the worker's log that an error shows


@ENGINES.register("vllm")
@schema
class VllmConfig(EngineConfig):
    needs = ("vllm", "vllm")
    takes_gpu = True
    install_note = (
        " in a virtual environment of its own, without constraints.txt, since it wants other versions of torch and "
        "transformers (docs/engines.md)"
    )
    memory_fraction: Annotated[float, Between(0.01, 1)]

    def check(self, config: Config, on_gpu: bool) -> None:
        """See `EngineConfig.check`."""
        if not on_gpu:
            raise ConfigError("engine=vllm needs a GPU, and device is cpu; use engine=transformers or engine=openvino")
        if config.lora.use_dora or config.lora.r > LORA_RANKS[-1]:
            raise ConfigError(
                f"engine=vllm serves adapters without DoRA and of rank {LORA_RANKS[-1]} at most (lora.use_dora="
                f"{config.lora.use_dora}, lora.r={config.lora.r}); use engine=transformers"
            )

    def open(self, runtime: Runtime, adapter: Path | None, folder: Path | None, scratch: Path) -> "VllmEngine":
        """See `EngineConfig.open`."""
        return VllmEngine(self, runtime, adapter, scratch)


class VllmEngine(Engine):
    """A worker that serves one model, the adapter unmerged.

    Args:
        runtime: the model and how it is prompted; its own copy on the GPU is given up before the worker starts.
        scratch: where the worker's log is written.
    """

    shard_rows = 4096  # several times what is sampled at once: towards its end a shard has fewer and fewer rows

    def __init__(self, config: VllmConfig, runtime: Runtime, adapter: Path | None, scratch: Path) -> None:
        super().__init__(runtime, adapter)
        self.config, self.log = config, scratch / "vllm.log"
        self._worker: subprocess.Popen[str] | None = None

    def sample(self, request: Request) -> list[Sampled]:
        """See `Engine.sample`. Raises `ModelError`: the worker ended; the end of its log says why."""
        if self._worker is None:
            self._worker = self._start(request.longest)
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
        }
        found: list[list[int]] = self._ask(self._worker, asked)
        return [up_to_stop(ids, set(stops)) for ids in found]

    def close(self) -> None:
        """See `Engine.close`: the end of its input ends the worker."""
        if self._worker is None:
            return
        worker, self._worker = self._worker, None
        if worker.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it has ended by itself, and its log says why
                worker.stdin.close()
        try:
            worker.wait(timeout=60)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        if worker.stdout is not None:
            worker.stdout.close()

    def _start(self, longest: int) -> "subprocess.Popen[str]":
        """A worker for sequences of at most `longest` tokens; the first shard has the longest prompt."""
        import torch

        self.runtime.release()
        # vLLM would pass over tensors that config.json does not ask for.
        load_folder(self.runtime.model_folder, self.runtime.config, torch.float32, "meta")
        model: dict[str, Any] = {
            "model": str(self.runtime.model_folder),
            "dtype": self.runtime.dtype,
            "max_model_len": longest,
            "max_num_seqs": self.config.batch_rows.on(self.runtime.device),
            "max_num_batched_tokens": max(self.config.batch_tokens.on(self.runtime.device), longest),
            "gpu_memory_utilization": self.config.memory_fraction,
            "trust_remote_code": self.runtime.config.trust_remote_code,
        }
        if self.adapter is not None:
            settings = json.loads((self.adapter / "adapter_config.json").read_text(encoding="utf-8"))
            model.update(enable_lora=True, max_lora_rank=next(rank for rank in LORA_RANKS if rank >= settings["r"]))
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w", encoding="utf-8") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "mipo_exp.generation.vllm_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._worker = worker
        self._ask(worker, {"model": model, "adapter": None if self.adapter is None else str(self.adapter.resolve())})
        return worker

    def _ask(self, worker: "subprocess.Popen[str]", request: Any) -> Any:
        """The worker's reply to one line."""
        if worker.stdin is None or worker.stdout is None:
            raise RuntimeError("the worker has no pipes")
        try:
            worker.stdin.write(json.dumps(request) + "\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            worker.wait()
            said = self.log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:].strip()
            raise ModelError(f"the vLLM process ended with status {worker.returncode}. The end of its log:\n{said}")
        return json.loads(line)
