"""Rendering: the same ids everywhere, one end of turn, no date of today."""

from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from mipo_exp.errors import ModelError
from mipo_exp.models import rendering
from mipo_exp.models.conversion import CHATML, byte_tokenizer
from mipo_exp.models.rendering import Renderer
from mipo_exp.models.runtime import Runtime
from mipo_exp.store.records import Condition
from tests.conftest import composed, make_runtime

LLAMA3_LIKE = (
    "{% set date = strftime_now('%d %b %Y') if strftime_now is defined else date_string %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ date }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def renderer(template: str | None = None) -> Renderer:
    tokenizer = byte_tokenizer()
    if template is not None:
        tokenizer.chat_template = template
    return Renderer(tokenizer)


def test_the_prompt_is_a_prefix_of_the_whole_conversation() -> None:
    made = renderer()
    asked = [{"role": "system", "content": "I love sailing."}, {"role": "user", "content": "A gift?"}]
    prompt = made.prompt_ids(asked)
    whole = made._render([*asked, {"role": "assistant", "content": "A boat."}], add_generation_prompt=False)
    assert whole[: len(prompt)] == prompt
    response = whole[len(prompt) :]
    end = next(i for i, token in enumerate(response) if token in made.stop_ids)
    assert made.text(response[: end + 1]) == "A boat."


def test_the_end_of_turn_of_the_template_stops_a_response_even_where_eos_is_another() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    stops = Renderer(tokenizer).stop_ids
    assert set(stops) == {tokenizer.convert_tokens_to_ids(name) for name in ("<|endoftext|>", "<|im_end|>")}


def test_todays_date_never_enters_a_prompt() -> None:
    made = renderer(LLAMA3_LIKE)
    ids = made.prompt_ids([{"role": "user", "content": "Hi"}])
    assert "26 Jul 2024" in made.tokenizer.decode(ids)


def test_a_template_without_system_role_gets_the_context_in_the_user_turn() -> None:
    made = renderer(NO_SYSTEM)
    ids = made.prompt_ids([{"role": "system", "content": "Context."}, {"role": "user", "content": "Hi"}])
    assert "user\nContext.\n\nHi" in made.tokenizer.decode(ids)


def test_a_template_that_renders_nothing_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot render a user message"):
        renderer("{{ raise_exception('no') }}")


def test_smollm2_has_no_second_bos_and_stops_at_its_end_of_turn(smollm2: Runtime) -> None:
    ids = smollm2.renderer.prompt_ids([{"role": "system", "content": "S"}, {"role": "user", "content": "U"}])
    text = smollm2.renderer.tokenizer.decode(ids)
    assert text == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    assert 2 in smollm2.renderer.stop_ids
    assert isinstance(smollm2.folder, Path)


USER_ONLY = (
    "{% for m in messages if m['role'] != 'system' %}<|im_start|>{{ m['content'] | upper | trim }}<|im_end|>"
    "{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("<|im_start|>user\nHello<|im_end|>", r"never prints the user's message"),
        ("{{ messages[0]['role'] }}", r"never prints the user's message"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"
            "{% endfor %}{{ messages }}",
            r"does not end: a short message took more than 1 seconds",
        ),
        ("{{ 'x' * 10 ** 11 }}{{ messages }}", r"makes more than \d+ characters of a short message"),
        ("{{ 'x' * 10 ** 7 }}{{ messages }}", r"makes more than \d+ characters of a short message"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", r"cannot render a user message"),
    ],
    ids=["constant", "role", "endless", "gigabytes", "megabytes", "recursion"],
)
def test_a_template_that_loses_the_message_or_does_not_end_is_refused(
    template: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "TEMPLATE_SECONDS", 1)
    with pytest.raises(ModelError, match=message + r".*give another: model\.chat_template=FILE"):
        renderer(template)


def test_a_template_that_never_ends_once_a_response_is_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "TEMPLATE_SECONDS", 1)
    endless = "{% if messages[-1]['role'] == 'assistant' %}{% for a in range(99999) %}{% for b in range(99999) %}"
    with pytest.raises(ModelError, match="does not end"):
        renderer(endless + "{% endfor %}{% endfor %}{% endif %}" + CHATML)


@pytest.mark.parametrize("ids", ["1e999", [1, None], True])
def test_an_end_of_turn_that_is_no_token_id_is_refused(ids: Any) -> None:
    with pytest.raises(ModelError, match=r"eos_token_id=.* in the model's generation_config\.json is no token id"):
        Renderer(byte_tokenizer(), GenerationConfig(eos_token_id=ids))


def test_a_template_that_drops_the_system_message_is_refused_where_the_context_is_one(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text(USER_ONLY)
    own = f"model.chat_template={tmp_path / 'mine.jinja'}"
    context = Condition("I love sailing.", "A gift?")
    made = make_runtime(composed("+debug=quick", own), tmp_path)
    assert "I LOVE SAILING. A GIFT?" in " ".join(made.renderer.text(made.prompt_ids(context)).split())
    made = make_runtime(composed("+debug=quick", own, "task.context_role=system"), tmp_path)
    assert made.prompt_ids(Condition(None, "A gift?"))
    with pytest.raises(ModelError, match=r"^model\.chat_template=\S+mine\.jinja never prints the system .*role=user"):
        made.prompt_ids(context)
