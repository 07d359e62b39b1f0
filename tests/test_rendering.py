"""Rendering: the same ids everywhere, one end of turn, no date of today."""

from pathlib import Path

import pytest

from mipo_exp.conversion import byte_tokenizer
from mipo_exp.data.rendering import Renderer
from mipo_exp.errors import ModelError
from mipo_exp.runtime import Runtime

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
