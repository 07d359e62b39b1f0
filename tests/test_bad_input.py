"""Bad input, as a user meets it: one message with the key or the file and the way out, exit code 2, in seconds."""

import dataclasses
import functools
import json
import re
import shutil
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader

from mipo_exp.cli import CONFIG_DIR
from mipo_exp.config.parsing import VARIANTS, parse
from mipo_exp.config.schema import Config, NegativesConfig
from mipo_exp.errors import ConfigError
from mipo_exp.models.runtime import Runtime
from mipo_exp.training.methods.mipo import Mipo
from tests.command_line import run
from tests.conftest import compose_raw

# Of the processor, without what Python takes to import; `test_cli` measures a command from its start.
SECONDS = 3.0


def refused(pattern: str, *arguments: str, cwd: Path, **environment: str) -> None:
    """The run ends with exit code 2 and one message, before a model can have been loaded."""
    done = run(*arguments, cwd=cwd, **environment)
    assert done.returncode == 2, done.stderr
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("error: "), done.stderr
    assert re.search(pattern, message), message
    assert "Traceback" not in done.stderr
    assert done.seconds < SECONDS, f"{done.seconds:.1f} s"


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (
            ["compare", "nowhere"],
            r"nowhere is not a folder; give those of runs, outputs/DATE/TIME or multirun/DATE/TIME",
        ),
        (["method.bta=0.1"], r"unknown config key 'method\.bta'; did you mean 'method\.beta'"),
        (["trainer.share_prompt=false"], r"kernels has replaced it; .* kernels=\[prompt_sharing\] is that alone"),
        (["+scoring.share_prefix=false"], r"kernels has replaced it; kernels=auto has prefix_sharing in it"),
        (["plugins={a: 1}"], r"plugins=\{a: 1\} is not a list; plugins takes a list of modules, plugins=\[my_package"),
        (["engine.batch_rows=[1]"], r"\[1\] is a list, and engine\.batch_rows is a group of keys; set one of them"),
        (["betaa=0.1"], r"unknown config key 'betaa'; did you mean 'method\.beta'"),
        (["+method.betta=0.1"], r"unknown config key 'method\.betta'; did you mean 'method\.beta'"),
        (["+sede=3"], r"unknown config key 'sede'; did you mean 'seed'"),
        (["model=qwen1b"], r"model=qwen1b is not an option; did you mean model=qwen\S+\?"),
        (["task=gsm"], r"task=gsm is not an option; did you mean task=gsm8k\?"),
        (["modle=smollm2"], r"unknown config key 'modle'; did you mean 'model'"),
        (["+experiment=smollm2/gsm9k"], r"smollm2/gsm9k is not an option; did you mean experiment=smollm2/gsm8k"),
        (["experiment=smollm2/gsm8k"], r"\+experiment=smollm2/gsm8k"),
        (["method.beta=0"], r"method\.beta=0\.0 is out of range; it must be greater than 0"),
        (["method.beta=-1"], r"method\.beta=-1\.0 is out of range"),
        (["method.beta=nan"], r"method\.beta=nan is out of range; it must be a finite number"),
        (["sampling.temperature=inf"], r"sampling\.temperature=inf is out of range"),
        (["kernels=fast"], r"kernels='fast' is not an option; .* one of auto, plain, prefix_sharing"),
        (["kernels=[onednn,prompt_sharin]"], r"kernels='prompt_sharin' .* did you mean 'prompt_sharing'\?"),
        (["kernels=[auto,onednn]"], r"kernels=\['auto', 'onednn'\]: auto and plain stand alone"),
        (["evaluation.seed=-1"], r"evaluation\.seed=-1 is out of range"),
        (["seed=99999999999"], r"seed=99999999999 is out of range; it must be at most 4\.29497e\+09"),
        (["seed=1,2"], r"Ambiguous value"),
        (["method.beta=high"], r"method\.beta='high' is not a number"),
        (["method.beta=null"], r"method\.beta"),
        (["seed=1.5"], r"seed=1\.5 is not a whole number"),
        (["negatives.k=0"], r"negatives\.k=0 is out of range; it must be at least 1"),
        (["negatives.strategy=no_contxt"], r"did you mean 'no_context'"),
        (["evaluation.k=1"], r"evaluation\.k=1 is out of range; it must be at least 2"),
        (["evaluation.k=500"], r"evaluation\.k=500 needs 499 contexts .* set evaluation\.k=40"),
        (["negatives=random_context", "negatives.k=100"], r"negatives\.k=100 .* there are 59"),
        (
            ["protocol=authors"],
            r"protocol\.training=authors: task=personas has no such protocol; use protocol=ours, or one of .*gsm8k",
        ),
        (["task=quiz", "protocol=authors_evaluation"], r"protocol\.evaluation=authors: task=quiz has no such protocol"),
        (["protocol=author"], r"protocol=author is not an option; did you mean protocol=authors\?"),
        (
            ["protocol.training=theirs"],
            r"protocol\.training='theirs' .* did you mean 'authors'\? It takes one of ours, authors",
        ),
        (["task=quiz", "negatives=no_context"], r"task=quiz has none; use one of random_prompt, empty_prompt"),
        (["task=quiz", "negatives=mixture"], r"negatives=no_context needs a user context, and task=quiz has none"),
        (
            ["negatives=mixture", "negatives.weights={no_contxt: 1}"],
            r"negatives\.weights='no_contxt' is not an option; did you mean 'no_context'\? It takes one of",
        ),
        (["negatives=mixture", "negatives.weights.no_context=-1"], r"none negative and one above 0"),
        (["negatives=no_context", "negatives.weights={no_context: 1}"], r"use negatives=mixture, or null"),
        (
            ["negatives.embedding_model=x"],
            r"no_context, random_prompt looks? for nothing near; use negatives=hard_context",
        ),
        (["negatives=hard_context", "negatives.embedding_model=/nowhere"], r"embedding_model=/nowhere .*null for BM25"),
        (["method.loss_type=[sigmod]"], r"did you mean 'sigmoid'"),
        (["method.loss_type=[sigmoid]", "method.loss_weights=[1,2]"], r"has 2 entries for 1 losses"),
        (["trainer.lr_scheduler_type=liner"], r"did you mean 'linear'"),
        (["trainer.max_length=100"], r"set trainer\.max_length=null or trainer\.reference=live"),
        (["method.rounds=2", "trainer.reference=live"], r"method\.rounds=2 .* set trainer\.reference=scored"),
        (["method.rounds=3", "trainer.max_steps=2"], r"max_steps=2 are divided among method\.rounds=3"),
        (["method.rounds=5", "task.train_examples=4"], r"method\.rounds=5 divides .* there are 4"),
        (["method.rounds=2", "task.train_examples=2", "negatives=random_prompt"], r"of the 1 training examples allow"),
        (["method=sft", "method.rounds=2"], r"unknown config key 'method\.rounds'"),
        (["+arm=iterated"], r"arm=iterated is not an option; .*It takes one of c_bpo, cad, default"),
        (["arm=sft"], r"arm is not chosen by default; add it: \+arm=sft"),
        (["objective=accuracy"], r"objective='accuracy' is not of the form PHASE/METRIC"),
        (["objective=delta/mi/base/natz"], r"has no metric 'mi/base/natz'; did you mean delta/mi/base/nats\?"),
        (["objective=after/mi/policy/nats", "evaluation.policy_scoring=false"], r"no metric 'mi/policy/nats'"),
        (["device=gpu"], r"device='gpu' is not an option"),
        (["device=cuda0"], r"device='cuda0' is not an option"),
        (["lora.target_modules=5"], r"lora\.target_modules=5 is neither"),
        (["lora.target_modules=[]"], r"lora\.target_modules=\[\] is neither"),
        (["method.loss_weights=[0]"], r"method\.loss_weights=\[0\.0\]: .* above 0"),
        (["model.attention=flash_attention_2"], r"needs the package flash-attn"),
        (["task.path=/tmp"], r"task\.path=/tmp: task=personas is built in"),
        (["task.eval_examples=1", "evaluation.k=2"], r"evaluation\.k=2 needs 1 .* load more evaluation data"),
        (["device=cuda:7"], r"device=cuda:7: torch sees \d+ CUDA devices"),
        (["task=gsm8k", "task.path=nowhere"], r"task\.path=nowhere does not exist"),
        (["task=mmlu", "task.subject=anatomi"], r"task\.subject='anatomi' .* did you mean 'anatomy'"),
        (["evaluation.unrelated_requests=101"], r"evaluation\.unrelated_requests=101 is out of range; .* at most 100"),
        (["task=pahf"], r"task=pahf has no task\.path; get the data: git clone .*, then task\.path=PAHF"),
        (["task=custom"], r"task=custom has neither task\.path nor task\.hub_id; set task\.path=DIR"),
        (["task=custom", "task.family=math"], r"task\.family=math needs task\.columns\.reference"),
        (["model.path=nowhere"], r"model\.path=nowhere does not exist"),
        (["task.eval_users=99"], r"task\.eval_users=99 leaves fewer than 2"),
        (["model=qwen1.5b"], r"Qwen/Qwen2\.5-1\.5B-Instruct is neither .* nor reachable .* model\.path=DIR"),
        (["task=gsm8k"], r"openai/gsm8k.*task\.path"),
        (["@foo=1"], r"^error: '@foo=1' names no key; an override is KEY=VALUE or GROUP=OPTION"),
        (["+@=1"], r"'\+@=1' names no key"),
        (["=1"], r"'=1' names no key"),
        ([""], r"'' names no key"),
        (["~"], r"'~' names no key"),
        (["~model"], r"~model removes what every run needs; choose another option with model=NAME"),
        (["hydra=1"], r"hydra=1: a group takes the name of one of its options"),
        (["model=5"], r"model=5: a group takes the name of one of its options"),
        (["model={a: 1}"], r"model=\{a: 1\}: a group takes"),
        (["a@b"], r"cannot read the override 'a@b'"),
        (["model="], r"model= is not an option; .*It takes one of llama1b"),
        (["model@x=tiny"], r"unknown config key 'model@x'; did you mean 'model'"),
        (["seed=[1"], r"cannot read the override 'seed=\[1'"),
        (["method.label_smoothing=0.1"], r"label_smoothing=0\.1 has no effect on loss_type=sigmoid; .* exo_pair"),
        (["method=infonce", "trainer.per_device_train_batch_size=1"], r"contrasts the responses of a batch"),
        (["method=sft", "trainer.max_length=100"], r"max_length is read by method=mipo only"),
        (["method=sft", "pairs.min_pmi_margin=1"], r"method=sft makes none"),
        (["method=cad", "task=quiz"], r"method=cad is about answering with or without a user context"),
        (["method=cad", "objective=after/mi/policy/nats"], r"has no metric 'mi/policy/nats'"),
        (["method=cad", "method.alpha=0"], r"method\.alpha=0 contrasts nothing; use method=prompted"),
        (["method=cad", "method.alpha=-2"], r"method\.alpha=-2\.0 is out of range; it must be at least -1"),
        (["control=random_label"], r"control=random_label is not an option; did you mean control=random_labels\?"),
        (["control=other_user", "method=sft"], r"control=other_user changes the pairs, and method=sft makes none"),
        (["evaluation.without_context=true", "task=quiz"], r"without_context=true .* task=quiz has none; set it to"),
        (["method=sft", "method.beta=0.1"], r"unknown config key 'method\.beta'"),
        (
            ["method=sft", "+trainer.extra.beta=0.1"],
            r"extra\.beta is not an argument of transformers' TrainingArguments",
        ),
        (["+trainer.extra.adam_beta=0.9"], r"adam_beta is not an argument of TRL's DPOConfig; did you mean"),
        (["method.name=ppo"], r"method\.name='ppo' is not a method; choose one of mipo"),
        (["+experiment=beyond/beta"], r"start it with -m: python -m mipo_exp -m \+experiment=beyond/beta"),
        (["paths.data=nowhere"], r"paths\.data=nowhere is not a folder; set it to null"),
        (["+sweeps=beta_lr"], r"start it with -m: python -m mipo_exp -m \+sweeps=beta_lr"),
        (["model.hub_id=a/b/c", "model.package=null"], r"model\.hub_id='a/b/c' is not of the form OWNER/NAME"),
        (["task=gsm8k", "task.hub_id=a/b/c"], r"task\.hub_id='a/b/c' is not of the form OWNER/NAME"),
        (["model.chat_template=nowhere.jinja"], r"model\.chat_template=nowhere\.jinja is not a file"),
        (["task.train_examples=100000"], r"there are only \d+ .* set task\.train_examples=\d+, or .*null"),
        (["task=quiz", "task.eval_examples=41"], r"there are only 40 .* set task\.eval_examples=40"),
        (
            ["+trainer.extra.adam_beta1=5"],
            r"refuses the trainer group \(Invalid beta parameter .* correct trainer\.extra",
        ),
        (["+trainer.extra.adam_epsilon=abc"], r"trainer\.extra\.adam_epsilon='abc' has the wrong type"),
        (["+trainer.extra.lr_scheduler_kwargs={foo: 1}"], r"refuses the trainer group .*foo"),
        (["negatives=5"], r"negatives=5: a group takes the name of one of its options"),
        (["seed=" + "1" * 6000], r"cannot read the override seed=1+… .* write a shorter number"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_value_is_named_with_the_way_out(arguments: list[str], pattern: str, tmp_path: Path) -> None:
    refused(pattern, *arguments, cwd=tmp_path)


def parsed(*overrides: str) -> Config:
    """The config with values put in place, as `parse` checks them: without what Hydra takes to compose each."""
    raw = _composed(tuple(item for item in overrides if "." not in item.partition("=")[0])).copy()
    for key, _, value in (item.partition("=") for item in overrides if "." in item.partition("=")[0]):
        OmegaConf.update(raw, key, yaml.load(value, get_yaml_loader()), merge=True, force_add=True)
    return parse(raw)


@functools.cache
def _composed(groups: tuple[str, ...]) -> DictConfig:
    return compose_raw("+debug=quick", "paths.output=unused", *groups)


@pytest.mark.parametrize(
    ("overrides", "pattern"),
    [
        (["sampling.temperature=1e300"], r"sampling\.temperature=1e\+300 is out of range; it must be at most 5"),
        (
            ["evaluation.sampling.temperature=1e-300"],
            r"temperature=1e-300 is out of range; it must be 0 or at least 0\.01",
        ),
        (["sampling.top_p=1e-300"], r"top_p=1e-300 is out of range; it must be at least 0\.001"),
        (["sampling.max_new_tokens=1000000000"], r"must be at most 131,072"),
        (["method.beta=1000"], r"method\.beta=1000\.0 is out of range; it must be at most 100"),
        (["method.beta=1e9"], r"method\.beta=1000000000\.0 is out of range"),
        (["trainer.learning_rate=1e-300"], r"learning_rate=1e-300 is out of range; it must be at least 1e-09"),
        (["trainer.num_train_epochs=1e300"], r"must be at most 1,000"),
        (["trainer.max_steps=1000000000000"], r"must be at most 10,000,000"),
        (["negatives.k=1000000000"], r"must be at most 1,000"),
        (["evaluation.k=1000000000"], r"must be at most 1,024"),
        (["method=mi_rl", "method.k=1000000000"], r"method\.k=1000000000 is out of range; it must be at most 1,024"),
        (["evaluation.self_bleu_size=1000000000"], r"must be at most 2,000"),
        (["lora.r=1000000000"], r"must be at most 4,096"),
        (["engine.batch_rows=1000000000000"], r"must be at most 65,536"),
        (["judge=endpoint", "judge.model=m", "judge.retries=1000000000"], r"must be at most 100"),
        (["judge=endpoint", "judge.model=m", "judge.timeout_s=1e300"], r"must be at most 86,400"),
        (["method=rlvr", "method.epsilon=nan"], r"must be a finite number"),
        (["trainer.extra.adam_epsilon=.inf"], r"must be a finite number"),
        (
            ["negatives=mixture", "negatives.weights.no_context=1e300"],
            r"negatives\.weights\.no_context=1e\+300 is out of",
        ),
        (["lora.target_modules='('"], r"lora\.target_modules='\(' is not a regular expression"),
        (["lora.target_modules=[a, [b]]"], r"is neither"),
        (["method.loss_type=[[]]"], r"method\.loss_type=\[\[\]\] has a list or group in it"),
        (["method.loss_type=ipoo"], r"did you mean 'ipo'"),
        (["lora.r=[1, 2]"], r"lora\.r=\[1, 2\] is not a whole number"),
        (["lora.r={a: 1}"], r"lora\.r=\{'a': 1\} is not a whole number"),
        (["engine.batch_rows=null"], r"engine\.batch_rows\.cpu=null is not a whole number"),
        (["lora.r=null"], r"lora\.r"),
        (['model.name="a\\0b"'], r"model\.name='a\\x00b' contains a NUL character"),
        (['model.name="a\\ud800b"'], r"model\.name='a\\ud800b' is not valid UTF-8"),
        (["method=prompted", "task=quiz"], r"at another temperature in method=prompted method\.temperature=…"),
        (["method=base", "method.temperature=0.5", "task=quiz"], r"method=base is about answering with or without"),
        (["method=sft", "method.top_p=0"], r"method\.top_p=0\.0 is out of range"),
        (["method=c_bpo", "method.overlap=1"], r"method\.overlap=1\.0 is out of range; it must be at most 0\.99"),
        (["task.default_negatives=no_contxt"], r"task\.default_negatives='no_contxt' .* did you mean 'no_context'"),
        (["task.default_negatives={no_contxt: 1}"], r"did you mean 'no_context'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_value_that_makes_no_sense_is_refused_with_its_bound(overrides: list[str], pattern: str) -> None:
    with pytest.raises(ConfigError, match=pattern):
        parsed(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.learning_rate=5e-7", "method.beta=0.01"],  # the paper's
        ["method.loss_type=sigmoid_norm", "method.beta=10"],  # SimPO's
        ["sampling.temperature=0", "sampling.top_p=0.001", "sampling.top_k=1"],  # Qwen2-VL's
        ["sampling.temperature=0.1", "sampling.max_new_tokens=81920"],  # the authors'; Qwen3's
        ["method=prompted", "task=quiz", "method.temperature=0.3"],  # what re-tuning alone gives
        ["method=rlvr", "method.epsilon=3e-4", "method.epsilon_high=4e-4", "method.beta=0"],  # GSPO's
        ["method=infonce", "method.temperature=100"],  # the authors' code
        ["lora.r=512", "lora.lora_alpha=1024", "evaluation.k=1024", "trainer.num_train_epochs=100"],
    ],
    ids=" ".join,
)
def test_values_of_published_experiments_pass(overrides: list[str]) -> None:
    parsed(*overrides)


def test_every_number_of_the_schema_has_bounds_on_both_sides() -> None:
    """A number in any schema is an `Annotated` one."""

    def bare(kind: Any) -> bool:
        return kind in (int, float) or (get_origin(kind) is not Annotated and any(map(bare, get_args(kind))))

    schemas: list[Any] = [Config, *(getattr(of, "keys", of) for group in VARIANTS.values() for of in group.values())]
    found = []
    while schemas:
        schema = schemas.pop()
        for item in dataclasses.fields(schema):
            schemas += [item.type] if dataclasses.is_dataclass(item.type) else []
            found += [f"{schema.__name__}.{item.name}"] if bare(item.type) else []
    assert not found
    assert bare(dict[str, float])
    assert bare(int | None)


def test_one_value_is_a_list_of_one() -> None:
    config = parsed("method.loss_type=ipo", "harness.tasks=arc_easy", "tracker.tags=mine", "lora.target_modules=q_proj")
    assert isinstance(config.method, Mipo)
    assert (config.method.loss_type, config.harness.tasks, config.tracker.tags) == (["ipo"], ["arc_easy"], ["mine"])
    assert config.lora.target_modules == ["q_proj"], "as text it would be a pattern of the whole path"
    for kept in ("all-linear", r".*\.q_proj"):
        assert parsed(f"lora.target_modules='{kept}'").lora.target_modules == kept


def test_layers_that_the_model_does_not_have_are_refused_before_anything_is_sampled(tmp_path: Path) -> None:
    done = run("+debug=quick", "lora.target_modules=[q_projj]", "paths.cache=cache", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert re.search(r"error: lora\.target_modules=\['q_projj'\] does not fit this model", done.stderr)
    assert not (tmp_path / "cache" / "chosen").exists()


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (b"seed: [1,\ntask: 2\n", r"mine\.yaml, line 3: not valid YAML"),
        (b"seed: 1\n\ttask: 2\n", r"mine\.yaml, line 2: not valid YAML"),
        (b"seed: 1\nseed: 2\n", r"mine\.yaml, line 2: not valid YAML \(found duplicate key seed\)"),
        (b"seed: 1\nname: caf\xe9\n", r"mine\.yaml, line 2: not valid UTF-8 \(byte 0xe9\); save the file as UTF-8"),
        (b"seed: 1\nname: a\x00b\n", r"mine\.yaml, line 2: the character 0 is not allowed in YAML"),
        (b"seed: " + b"1" * 6000 + b"\n", r"mine\.yaml cannot be read \(Exceeds the limit"),
        (b"seed: 3\n", r"the file of \+experiment=… must begin with the line '# @package _global_'"),
    ],
    ids=["open list", "tab", "twice", "latin-1", "NUL", "digits", "package"],
)
def test_a_config_file_that_cannot_be_read_is_named_with_its_line(content: bytes, pattern: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_bytes(content)
    refused(pattern, f"--config-dir={tmp_path}", "+experiment=mine", cwd=tmp_path)


@pytest.mark.parametrize(
    ("overrides", "weights"),
    [
        (["negatives.weights={no_context: 1, random_prompt: 1}"], {"no_context": 1, "random_prompt": 1}),
        (["negatives.weights.hard_context=2"], {"random_context": 3, "hard_context": 2}),
        (
            ["negatives.weights.hard_context=2", "negatives.weights.random_context=1"],
            {"random_context": 1, "hard_context": 2},
        ),
    ],
    ids=["a dict replaces", "one changes", "each changes"],
)
def test_weights_on_the_command_line_mean_what_they_say(
    overrides: list[str], weights: dict[str, float], tmp_path: Path
) -> None:
    """Over those of an experiment's YAML, which has replaced those of conf/negatives/mixture.yaml."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /negatives: mixture\n"
        "negatives:\n  weights: {random_context: 3, hard_context: 1}\n"
    )
    quick = ("+experiment=mine", "model=qwen1.5b", "tracker=none", "plan=true", "hydra.run.dir=out")
    done = run(f"--config-dir={tmp_path}", *quick, *overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    saved = yaml.safe_load((tmp_path / "out" / ".hydra" / "config.yaml").read_text())["negatives"]
    assert saved["weights"] == weights


def test_the_weights_of_a_mixture_are_those_of_the_task_where_nobody_names_any() -> None:
    """A task's `default_negatives` may hold weights; `conf/negatives/mixture.yaml` has its own."""
    asked = "task.default_negatives={no_context: 0.5, random_prompt: 0.5}"
    assert parsed(asked).negatives == NegativesConfig("mixture", 1, {"no_context": 0.5, "random_prompt": 0.5}, None)
    own = parsed(asked, "negatives.weights={random_context: 1, no_context: 1}").negatives
    assert own.weights == {"random_context": 1, "no_context": 1}
    default = yaml.safe_load((CONFIG_DIR / "negatives" / "mixture.yaml").read_text())["default_weights"]
    assert parsed("negatives=mixture").negatives.weights == default


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        ("", r"train\.jsonl.*empty"),
        ('{"question": "1 + 1?", "answer": "#### 2"}\n{"question": "1 +', r"train\.jsonl.*line 2"),
        ("<!DOCTYPE html><html><body>Not found</body></html>", r"train\.jsonl.*HTML"),
        ('{"prompt": "1 + 1?", "answer": "#### 2"}\n', r"train\.jsonl.*question.*prompt"),
        ('{"question": "1 + 1?", "answer": "two"}\n', r"train\.jsonl.*line 1.*####"),
        ('{"question": 3, "answer": "#### 2"}\n', r"train\.jsonl.*line 1.*question"),
    ],
    ids=["empty", "truncated", "html", "columns", "no gold", "type"],
)
def test_a_bad_data_file_is_named_with_its_line(content: str, pattern: str, tmp_path: Path) -> None:
    good = "".join(f'{{"question": "{i} + 1?", "answer": "#### {i + 1}"}}\n' for i in range(20))
    (tmp_path / "test.jsonl").write_text(good.replace("+ 1?", "+ 1 ="))
    (tmp_path / "train.jsonl").write_text(content)
    refused(pattern, "task=gsm8k", f"task.path={tmp_path}", cwd=tmp_path)


@pytest.fixture
def model_folder(tiny: Runtime, tmp_path: Path) -> Path:
    """A complete model folder to take something away from."""
    assert tiny.folder is not None
    return Path(shutil.copytree(tiny.folder, tmp_path / "model"))


@pytest.mark.parametrize(
    ("harm", "pattern"),
    [
        ("weights", r"holds no weights in safetensors or GGUF format; download"),
        ("pickle", r"pytorch_model\.bin, which can run code when read"),
        ("tokenizer", r"holds no tokenizer \(looked for tokenizer\.json"),
        ("template", r"has no chat template .* model\.chat_template=FILE"),
        ("config", r"has weights but no config\.json"),
        ("truncated", r"model\.safetensors should have \d+ bytes by its header and has \d+"),
        ("bad config", r"config\.json is not valid JSON"),
        ("not gguf", r"is not a GGUF file"),
    ],
)
def test_an_incomplete_model_folder_says_what_is_missing(
    harm: str, pattern: str, model_folder: Path, tmp_path: Path
) -> None:
    weights = model_folder / "model.safetensors"
    if harm in ("weights", "pickle", "not gguf"):
        weights.unlink()
    if harm == "pickle":
        (model_folder / "pytorch_model.bin").write_bytes(b"x")
    if harm == "not gguf":
        (model_folder / "model.gguf").write_bytes(b"something else")
    if harm == "tokenizer":
        (model_folder / "tokenizer.json").unlink()
    if harm == "template":
        (model_folder / "chat_template.jinja").unlink()
    if harm == "config":
        (model_folder / "config.json").unlink()
    if harm == "bad config":
        (model_folder / "config.json").write_text("{")
    if harm == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    refused(pattern, f"model.path={model_folder}", cwd=tmp_path)


def test_a_folder_in_the_place_of_a_data_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
    (tmp_path / "train.jsonl").mkdir()
    refused(r"train\.jsonl is a folder", "task=gsm8k", f"task.path={tmp_path}", cwd=tmp_path)


def test_an_output_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    refused(r"taken", "hydra.run.dir=taken/run", cwd=tmp_path)


def test_a_cache_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    refused(r"paths\.cache=.*taken.* cannot be written", f"paths.cache={tmp_path / 'taken'}", cwd=tmp_path)


def test_an_output_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    refused(r"/proc/run cannot be written .* set hydra\.run\.dir=DIR", "hydra.run.dir=/proc/run", cwd=tmp_path)


def test_an_adapter_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    refused(r"is an adapter and not a model", f"model.path={tmp_path / 'adapter'}", cwd=tmp_path)


def test_a_truncated_lamp_file_is_seen_before_a_model_is_loaded(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        folder = tmp_path / "LaMP_3" / split
        folder.mkdir(parents=True)
        (folder / f"{split}_questions.json").write_text('[{"id": "1",\n "input": "x", "prof')
        (folder / f"{split}_outputs.json").write_text('{"task": "LaMP_3", "golds": []}')
    refused(r"questions\.json, line 2: not valid JSON \(truncated", "task=lamp", f"task.path={tmp_path}", cwd=tmp_path)


def test_a_failed_run_leaves_a_summary_that_says_why(tmp_path: Path) -> None:
    done = run("evaluation.k=500", "hydra.run.dir=out", cwd=tmp_path)
    assert done.returncode == 2
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "evaluation.k=40" in summary["error"]


def test_a_random_model_takes_no_key_that_its_type_lacks(tmp_path: Path) -> None:
    done = run("+debug=quick", "+model.random.num_layers=7", cwd=tmp_path)
    assert done.returncode == 2
    assert "model.random.num_layers: llama has no such key; did you mean 'num_hidden_layers'" in done.stderr


def test_a_cache_with_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "examples").write_text("in the way")
    done = run("+debug=quick", "paths.cache=cache", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert re.search(r"error: .*cache/examples in paths\.cache cannot be written", done.stderr)
    many = run("-m", "+debug=quick", "seed=1,2", "paths.cache=cache", cwd=tmp_path)
    assert many.returncode == 2, many.stderr
    assert "2 of the jobs failed" in many.stderr


def test_one_failing_job_of_a_multirun_does_not_end_the_others(tmp_path: Path) -> None:
    """The second of four is impossible, the last one is refused before it begins; the others finish, and the failures
    are listed at the end and in the table."""
    done = run("-m", "+debug=quick", "evaluation.k=3,500,4,1", "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    listed = done.stderr[done.stderr.rindex("error: ") :]
    assert "2 of the jobs failed" in listed
    assert re.search(r"job 1 \(.*evaluation\.k=500.*\): evaluation\.k=500 needs", listed)
    states = [json.loads((tmp_path / "sweep" / str(n) / "summary.json").read_text())["status"] for n in range(3)]
    assert states == ["ok", "failed", "ok"]
    table = json.loads((tmp_path / "sweep" / "table.json").read_text())
    assert [item["job"] for item in table["missing"]] == ["1", "3"]


def test_too_little_disk_is_said_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Runtime
) -> None:
    from mipo_exp import experiment
    from mipo_exp.config.parsing import parse
    from mipo_exp.errors import StorageError

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(experiment.shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    paths = (f"paths.output={tmp_path / 'out'}", f"paths.cache={tmp_path / 'cache'}")
    config = parse(compose_raw("+debug=quick", *paths))
    with pytest.raises(StorageError, match=r"has 0\.0 GiB free .* needs about .* set paths\.cache=DIR"):
        experiment.assemble(config, tmp_path / "out")
