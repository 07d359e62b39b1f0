"""The benchmarks of the GPU and of the planner, on the CPU and the tiny model; the tables by hand."""

import argparse
import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report_page
from benchmarks.compare import run_part
from benchmarks.gpu import table
from benchmarks.kernels import table as kernels_table

ROOT = Path(__file__).parents[1]


def test_the_table_of_the_gpu_benchmark() -> None:
    """4 s in 8 steps are 0.5 s each: 200 TFLOP in 0.5 s are half of 800 TFLOP/s; four
    pairs of 32 take 1 of the 8 s of scoring the reference. TRL takes 1.5 s a step."""
    found = {
        "rates": {"matmul": 8e14, "operations": 2e14},
        "train": {"seconds": 4.0, "steps": 8, "batch": 4, "peak_gpu_mib": 100},
        "reference": {"seconds": 8.0, "pairs": 32},
        "stock-train": {"seconds": 12.0, "steps": 8, "peak_gpu_mib": 400},
        "transformers": {"tokens_per_second": 100.0},
        "continuous": {"tokens_per_second": 300.0},
        "vllm": {"tokens_per_second": 900.0},
        "raw-vllm": {"tokens_per_second": 1000.0},
    }
    assert table(found)[2:] == [
        "| matrix products, TFLOP/s | 800.0 |",
        "| DPO step, s: this package, TRL | 0.5000, 1.5000 (3.00×) |",
        "| the same with its share of scoring the reference | 1.5000, 1.5000 (1.00×) |",
        "| the step's share of the matrix rate | 50% |",
        "| peak GPU memory of training, MiB: this package, TRL | 100, 400 |",
        "| sampled tokens/s: continuous, transformers' generate | 300, 100 (3.00×) |",
        "| sampled tokens/s: this package, vLLM itself | 900, 1000 (90%) |",
    ]


def test_the_plan_is_laid_beside_what_the_stages_take(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "plan", "+debug=quick"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in done.stdout.splitlines()}
    assert {"chosen", "rejected", "scored_pairs", "adapter", "after_scores_policy"} <= set(lines)
    least, most = (float(value) for value in lines["adapter"].split(" | ")[1].split(" → "))
    assert 0.3 < least < 3
    assert 0.3 < most < 3


@pytest.mark.slow
def test_a_step_is_timed_on_prompts_of_the_size_asked_for(tmp_path: Path) -> None:
    sizes = ["--prompt-tokens", "60", "--new-tokens", "8", "--pairs", "4", "--batch", "2", "--steps", "2"]
    command = [sys.executable, "-m", "benchmarks", "gpu", "--device", "cpu", "--part", "step", *sizes]
    line = run_part([*command, "--cache", str(tmp_path)], {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})["train"]
    assert (line["steps"], line["batch"]) == (2, 2)
    assert line["seconds"] > 0
    assert line["tokens"] >= 2 * 2 * 2 * 60, "two steps of two pairs, whose sequences have a prompt each"


def test_the_table_of_the_kernels_has_shares_of_the_same_round() -> None:
    found = {
        "0/main/all": {"seconds": 100.0, "gib": 2.0},
        "0/main/onednn": {"seconds": 150.0, "gib": 1.0},
        "1/main/all": {"seconds": 200.0, "gib": 2.0},
        "1/main/onednn": {"seconds": 340.0, "gib": 1.0},
    }
    assert kernels_table(found, 2, ["main"], ["all", "onednn"])[2:] == [
        "| nothing | 150 s | 2 GiB |",
        "| `onednn` | 1.60 | 0.50 |",
    ]


def test_a_published_report_names_no_path_of_the_machine_and_keeps_its_figures(tmp_path: Path) -> None:
    figure = '<?xml version="1.0"?>\n<svg width="9pt">\n <path d="M 1.23456789 2\nL 0.015625 9"/>\n</svg>'
    paths = {"output": "/home/me/outputs/1", "cache": "/home/me/cache"}
    command = "python -m mipo_exp model.path=/data/models/a.gguf paths.cache=/home/me/cache"
    facts = {"run_id": "r", "status": "ok", "metrics": {}, "paths": paths, "command": command}
    (tmp_path / "summary.json").write_text(json.dumps(facts))
    image = f'<img src="data:image/svg+xml;base64,{base64.b64encode(figure.encode()).decode()}">'
    body = f"<p>{command}</p><p>/home/me/outputs/1/adapter judge/win_rate 1/8 https://a.b/c/d</p>"
    options = argparse.Namespace(run=tmp_path, page=tmp_path / "default.html")
    (tmp_path / "report.html").write_text(body + image)
    report_page.main(options)
    text, _, shown = options.page.read_text().partition("<img ")
    assert text == (
        "<p>python -m mipo_exp model.path=a.gguf paths.cache=~/.cache/mipo_exp</p>"
        "<p>outputs/default/adapter judge/win_rate 1/8 https://a.b/c/d</p>"
    )
    small = "<svg width='9pt'><path d='M 1.2346 2 L 0.015625 9'/></svg>"
    assert shown == f'src="data:image/svg+xml,{small}">'
    (tmp_path / "report.html").write_text(f"{body} /srv/secret/place")
    with pytest.raises(SystemExit, match="still names /srv/secret/place"):
        report_page.main(options)
    (tmp_path / "report.html").write_text("x" * 400_001)
    with pytest.raises(SystemExit, match="takes 400,001 bytes, more than 400,000"):
        report_page.main(options)
