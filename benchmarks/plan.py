"""What `plan=true` says of each stage beside what the stage then takes: seconds and peak memory."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.ours import prepared
from mipo_exp.planning.cost import seconds
from mipo_exp.planning.fit import needs
from mipo_exp.planning.machine import measure
from mipo_exp.planning.memory import LIBRARIES_BYTES
from mipo_exp.planning.shape import find_shape
from mipo_exp.planning.work import Work, estimate_work
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
        runtime.model()  # loading and its imports are not a stage's
        machine = measure(runtime.device, runtime.dtype)
        lines = ["| stage | seconds, predicted → measured | | GiB, predicted → measured | |", "| --- |" + " --- |" * 4]
        times, peaks = [], []
        for name, stage in ready.stages.items():
            _reset_peak(runtime.device)
            started = time.perf_counter()
            run.fetch(name, stage)
            took, peak = time.perf_counter() - started, _peak(runtime.device)
            work = works.get(name, Work())
            if work == Work():
                continue
            times.append((seconds(work, shape, machine, config.engine.name), took))
            need = needs(config, {name: work}, shape, runtime.device)[name].total
            peaks.append((need / 2**30, peak / 2**30))
            lines.append(_line(name, times[-1], peaks[-1]))
    whole = sum(one for one, _ in times), sum(one for _, one in times)
    largest = max(one for one, _ in peaks), max(one for _, one in peaks)
    sys.stdout.write("\n".join([*lines, _line("all, at the peak", whole, largest), ""]))


def _line(name: str, times: tuple[float, float], peaks: tuple[float, float]) -> str:
    cells = [f"{a:.{digits}f} → {b:.{digits}f} | {b / a - 1:+.0%}" for (a, b), digits in ((times, 1), (peaks, 2))]
    return f"| {name} | {' | '.join(cells)} |"


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
