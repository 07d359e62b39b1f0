"""On a CUDA device: the whole job in bf16, and the same log-probabilities as on the CPU."""

from pathlib import Path

import pytest
import torch

from mipo_exp.runtime import Runtime
from mipo_exp.scoring.log_probs import token_log_probs
from tests.conftest import Experiment, composed, make_runtime
from tests.test_log_probs import some_items

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_the_whole_job_runs_in_bf16(experiment: Experiment) -> None:
    summary, _ = experiment("device=cuda")
    assert summary["device"] == "cuda"
    assert summary["model_source"]["dtype"] == "bfloat16"
    assert summary["resources"]["peak_gpu_memory_gib"] > 0


def test_log_probabilities_agree_with_the_cpu(tmp_path: Path, tiny: Runtime) -> None:
    runtime = make_runtime(composed("+debug=quick"), tmp_path)
    items = some_items(8, 250)
    there = token_log_probs(runtime.fresh_model().to("cuda"), items)
    for expected, row in zip(token_log_probs(tiny.fresh_model(), items), there, strict=True):
        assert torch.allclose(expected, row, atol=1e-3)
