"""The peak memory that `plan=true` says of each stage, beside what the stage then takes."""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.ours import prepared
from mipo_exp.planning.memory import LIBRARIES_BYTES, needs
from mipo_exp.planning.shape import find_shape
from mipo_exp.planning.work import estimate_work
from mipo_exp.store.records import Example

STATUS, RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `plan`."""
    parser.add_argument("override", nargs="*", help="of the experiment's config")


def main(args: argparse.Namespace) -> None:
    """Run the experiment's stages with an empty cache in this process, and print a line for each."""
    with tempfile.TemporaryDirectory() as folder:
        own = ["tracker=none", f"paths.cache={folder}/cache", f"paths.output={folder}/output"]
        ready = prepared([*args.override, *own])
        config, runtime, run = ready.config, ready.runtime, ready.run
        shape = find_shape(config.model, runtime.folder, runtime.dtype)
        if shape is None:
            raise SystemExit("error: the size of this model is not known before it is loaded")
        examples = run.finished["examples"].artefact
        train, held_out = examples.table("train", Example), examples.table("eval", Example)
        works = estimate_work(config, train, held_out, runtime.device, runtime.prompt_ids)
        works = {name: work for name, work in works.items() if name in ready.stages}
        predicted = needs(config, works, shape, runtime.device)
        runtime.model()  # loading and its imports are not a stage's
        lines = ["| stage | GiB, predicted → measured | |", "| --- | --- | --- |"]
        for name, stage in ready.stages.items():
            _reset_peak(runtime.device)
            run.fetch(name, stage)
            if name in predicted:
                need, peak = predicted[name].total / 2**30, _peak(runtime.device) / 2**30
                lines.append(f"| {name} | {need:.2f} → {peak:.2f} | {peak / need - 1:+.0%} |")
    sys.stdout.write("\n".join([*lines, ""]))


def _reset_peak(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()  # of the stage before
        torch.cuda.reset_peak_memory_stats(device)
    else:
        RESET_PEAK.write_text("5")  # proc(5): VmHWM begins again at what is resident now


def _peak(device: str) -> int:
    """Bytes at most since the last reset: of the GPU, or resident ones of this process."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_reserved(device) + LIBRARIES_BYTES["cuda"])  # torch does not count CUDA's own
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
