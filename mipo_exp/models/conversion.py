"""GGUF and random models as safetensors folders: the `model` stage."""

import dataclasses
import difflib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mipo_exp.config.groups import ModelConfig
from mipo_exp.errors import ModelError
from mipo_exp.models.loading import ModelSource, load_folder, quiet_libraries, template_override

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

VERSION = 1  # raised when the same source gives another model: nothing computed with the old one is used any more

# ChatML, which SmolLM2 and Qwen2.5 use too; the tokenizer of random models has the two markers as special tokens.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def convert(source: ModelSource, config: ModelConfig, out: Path) -> None:
    """Write a GGUF or random model as a safetensors folder, in float32.

    A model read from GGUF counts as quantized and trainers refuse it, so its quantization state is dropped; the
    written folder is read back and its logits compared with those of what was read.

    Raises:
        ModelError: the GGUF file cannot be read, or the written model computes something else.
    """
    import torch

    quiet_libraries()
    model, tokenizer = _read_gguf(source) if source.kind == "gguf" else _build_random(config.random or {})
    override = template_override(config)
    if override is not None:
        tokenizer.chat_template = override
    if not tokenizer.chat_template:
        raise ModelError(f"{source.description} has no chat template; give one with model.chat_template=FILE")
    model.eval()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    on_cpu = dataclasses.replace(config, attention="sdpa") if config.attention == "flash_attention_2" else config
    again = load_folder(out, on_cpu, torch.float32, "cpu")
    probe = torch.tensor([tokenizer("The sky is blue.", add_special_tokens=False)["input_ids"]])
    with torch.inference_mode():
        gap = (model(probe).logits - again(probe).logits).abs().max().item()
    if not gap < 1e-4:
        raise ModelError(f"{source.description}: the converted model's logits differ by {gap:.2g} from the original's")


def _read_gguf(source: ModelSource) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = cast(Path, source.path)
    log.info("converting %s to safetensors (once)", source.description)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, NotImplementedError) as error:
        raise ModelError(f"{path} cannot be read as a GGUF model ({error})") from error
    for name in ("hf_quantizer", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


def _build_random(spec: Mapping[str, Any]) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A model with random weights and a byte-level tokenizer, from `{"model_type": …, "seed": …, sizes…}`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {name: value for name, value in spec.items() if name not in ("model_type", "seed")}
    _check_names(str(spec.get("model_type")), sizes)
    tokenizer = byte_tokenizer(int(sizes.get("vocab_size", 0)))
    sizes.setdefault("vocab_size", len(tokenizer))
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(spec.get("seed", 0)))
        try:
            model = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(spec["model_type"], **sizes, **ids), dtype=torch.float32
            )
        except Exception as error:
            raise ModelError(f"model.random={dict(spec)} makes no model: {str(error).strip()}") from error
    return model, tokenizer


def _check_names(model_type: str, sizes: Mapping[str, Any]) -> None:
    """Raise `ModelError` for a name that this model type's config does not have: transformers would ignore it."""
    from transformers import AutoConfig

    try:
        # conf/model/tiny.yaml has Llama's names, which another type may do without.
        known = {name for kind in (model_type, "llama") for name in AutoConfig.for_model(kind).to_dict()}
    except ValueError as error:
        raise ModelError(f"model.random.model_type={model_type} is no model type of transformers") from error
    for name in sizes:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ModelError(f"model.random.{name}: {model_type} has no such key{hint}")


def byte_tokenizer(size: int = 0) -> "PreTrainedTokenizerBase":
    """A tokenizer with one token a byte and the ChatML markers, built in memory. It has at least `size` tokens; the
    further ones are words without meaning, which only random weights write."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*special, *alphabet]
    tokens += [f"Ġw{number}" for number in range(len(tokens), size)]
    core = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    return cast("PreTrainedTokenizerBase", tokenizer)
