"""The GPU benchmark on the CPU and the tiny model: that it runs to its table."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_gpu_benchmark_runs_on_a_small_model(tmp_path: Path) -> None:
    sizes = ["--prompt-tokens", "60", "--new-tokens", "8", "--pairs", "4", "--batch", "2", "--steps", "2"]
    command = [sys.executable, "-m", "benchmarks", "gpu", "--device", "cpu", "--no-vllm", *sizes]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ours, stock, ratio = map(float, re.findall(r"DPO step, s: .* \| ([\d.]+), ([\d.]+) \(([\d.]+)×\)", done.stdout)[0])
    assert min(ours, stock) > 0
    assert abs(stock / ours - ratio) < 0.02
    (share,) = re.findall(r"share of the matrix rate \| (\d+)%", done.stdout)
    assert 0 <= int(share) < 100
