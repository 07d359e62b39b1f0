"""What is in the keys of stages: the libraries and the parts of `kernels` that compute them, and no others."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mipo_exp.config.fields import KERNELS
from mipo_exp.data.tasks import declare_examples
from mipo_exp.generation.transformers_engine import SAMPLING_PARTS
from mipo_exp.judging.judge import Judge
from mipo_exp.judging.local import Local
from mipo_exp.judging.stage import Judging, declare_judgements
from mipo_exp.judging.templates import load_templates
from mipo_exp.models.runtime import Runtime, declare_model
from mipo_exp.pipeline import declare
from mipo_exp.store.artefacts import Stage
from tests.conftest import composed, with_kernels


def stages(runtime: Runtime, *overrides: str) -> dict[str, Stage]:
    config = composed("+debug=quick", *overrides)
    return declare(config, runtime, declare_examples(config, runtime.task, "data", None))


def without(runtime: Runtime, part: str) -> Runtime:
    return with_kernels(runtime, *(name for name in KERNELS if name != part))


@pytest.mark.parametrize(
    ("part", "first"),
    [
        ("onednn", "chosen"),
        ("prefix_sharing", "scored_pairs"),
        ("prompt_sharing", "adapter"),
        ("micro_batches", "adapter"),
    ],
)
def test_without_a_part_of_the_kernels_only_what_uses_it_is_made_anew(tiny: Runtime, part: str, first: str) -> None:
    before, after = stages(tiny), stages(without(tiny, part))
    changed = {name for name in before if before[name].key != after[name].key}
    order = ["chosen", "rejected", "pairs", "scored_pairs", "adapter"]
    assert changed & set(order) == set(order[order.index(first) :])
    assert ("before_responses" in changed) == (first == "chosen")
    assert ("before_scores_base" in changed) == (first != "adapter")


def test_the_kernel_of_gpus_is_in_no_key_of_a_cpu(tiny: Runtime) -> None:
    def key(device: str, *kernels: str) -> str:
        runtime = Runtime(tiny.config, tiny.source, tiny.task, device, kernels)
        return stages(runtime)["adapter"].key

    assert key("cpu", *KERNELS) == key("cpu", *(name for name in KERNELS if name != "flex_attention"))
    assert key("cuda", *KERNELS) != key("cuda", *(name for name in KERNELS if name != "flex_attention"))


def test_a_method_that_samples_while_it_trains_depends_on_the_parts_that_sample_and_score(tiny: Runtime) -> None:
    on_policy = stages(tiny, "method=rlvr", "task=word_problems")["adapter"].config
    assert on_policy["runtime"]["kernels"] == sorted(set(KERNELS) - {"flex_attention"})
    assert on_policy["rollout"]["engine"] == {"name": "transformers", "batch_rows": 64, "batch_tokens": 32768}
    assert stages(tiny)["pairs"].config["runtime"]["kernels"] == []


def test_the_version_of_an_engine_is_in_the_keys_of_what_it_samples_only(tiny: Runtime) -> None:
    found = stages(tiny, "engine=openvino")
    assert [name for name in ("chosen", "scored_pairs", "adapter") if "openvino-genai" in found[name].libraries] == [
        "chosen"
    ]
    assert "openvino-genai" not in stages(tiny)["chosen"].libraries


def test_the_libraries_of_near_negatives_and_of_a_gguf_are_in_the_keys(tiny: Runtime) -> None:
    assert "bm25s" in stages(tiny, "negatives=hard_context")["rejected"].libraries
    assert "bm25s" not in stages(tiny, "negatives=random_context")["rejected"].libraries
    encoder = dataclasses.replace(composed("negatives=hard_prompt").negatives, embedding_model="some/encoder")
    assert encoder.compares_with == "sentence-transformers"
    source = dataclasses.replace(tiny.source, kind="gguf")
    gguf = Runtime(tiny.config, source, tiny.task, "cpu")
    model = declare_model(gguf)
    assert model is not None
    assert set(model.libraries) == {"gguf", "tokenizers", "torch", "transformers"}
    assert "gguf" in stages(gguf)["chosen"].libraries
    assert "gguf" not in stages(tiny)["chosen"].libraries


def test_a_local_judges_libraries_are_in_the_keys_of_its_verdicts_and_replies(tiny: Runtime, tmp_path: Path) -> None:
    config = composed("+debug=quick", "judge=local", "model@judge.model=tiny")
    asked: Any = config.judge
    backend = Local(asked, config.engine, tiny)
    judging = Judging(asked, Judge(backend, load_templates(None), tmp_path), "rubric")
    found = declare_judgements(judging, declare_examples(config, tiny.task, "data", None), stages(tiny))
    assert found.libraries == backend.libraries == judging.judge.replies.identity["libraries"]
    assert set(found.libraries) == {"tokenizers", "torch", "transformers"}
    assert backend.identity["runtime"]["kernels"] == sorted(SAMPLING_PARTS)


def test_another_temperature_is_that_of_after_alone_and_of_no_training(tiny: Runtime) -> None:
    for method, own in (("sft", {"adapter"}), ("prompted", set[str]())):
        usual = stages(tiny, f"method={method}")
        other = stages(tiny, f"method={method}", "method.temperature=0.3", "method.top_p=0.9")
        assert own <= set(usual)
        changed = {name for name in usual if usual[name].key != other[name].key}
        assert changed == {name for name in usual if name.startswith("after_") and "option" not in name}
        assert other["after_responses"].config["sampling"]["temperature"] == 0.3
        assert other["before_responses"].config["sampling"]["temperature"] == 1.0
    same = stages(tiny, "method=prompted", "method.temperature=1.0")
    assert same["after_responses"].key == same["before_responses"].key, "the usual temperature, by name"


def test_answers_without_the_context_are_stages_beside_the_others(tiny: Runtime) -> None:
    usual, more = stages(tiny), stages(tiny, "evaluation.without_context=true")
    assert {name: stage.key for name, stage in usual.items()}.items() <= {n: s.key for n, s in more.items()}.items()
    assert set(more) - set(usual) == {
        f"{phase}_no_context_{what}" for phase in ("before", "after") for what in ("responses", "scores_base")
    }
    without = stages(tiny, "method=base")
    assert more["before_no_context_responses"].key == without["after_responses"].key
    assert more["after_no_context_responses"].key != without["after_responses"].key
