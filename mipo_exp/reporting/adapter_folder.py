"""`adapter/` of a run: its adapter as others load it, with tokenizer, chat template and a model card."""

import contextlib
import json
import logging
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mipo_exp.config.groups import ModelConfig
from mipo_exp.config.schema import Config
from mipo_exp.errors import ModelError
from mipo_exp.evaluation.measure import PHASES
from mipo_exp.models.loading import template_override
from mipo_exp.models.runtime import Runtime
from mipo_exp.reporting.metrics import contrasted, described, estimate, headlines, spanned, templates
from mipo_exp.reporting.saved import WEIGHTS
from mipo_exp.store.disk import draft_of

log = logging.getLogger(__name__)

SETTINGS = "adapter_config.json"
TOKENIZER_FILES = (
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"),
    *("chat_template.*", "additional_chat_templates/*.jinja", "tokenization_*.py"),
)
# Licences that the hub knows by these names; any other one is `other` with its name.
LICENSES = ("apache-2.0", "mit", "llama3", "llama3.1", "llama3.2", "llama3.3", "gemma")
# What a command has of this machine and of its user's accounts.
_OWN = re.compile(r"\+*(paths\.|hydra[./]|tracker)|[^=]*\b(path|hub_id)=")


def hub_name(config: ModelConfig) -> str | None:
    """OWNER/NAME of the base model on the hub; None where nothing says that it is there.

    A `model.path` replaces what the group names, unless the folder is called like it: `hf download` keeps the
    repository's name, in the hub's cache (models--OWNER--NAME/snapshots/…) as beside `--local-dir`."""
    if config.random is not None:
        return None
    if config.path is None:
        return config.hub_id
    path = Path(config.path).expanduser().absolute()
    for part in path.parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/", 1)
    named = config.hub_id is not None and path.name.casefold() == config.hub_id.rpartition("/")[2].casefold()
    return config.hub_id if named else None


def write_adapter(
    folder: Path, trained: Path, runtime: Runtime, summary: Mapping[str, Any], config: Config, copy: bool
) -> None:
    """Write `folder`, which is replaced once it is complete; `trained` is the adapter as the training left it.

    Args:
        copy: whether the weights are copied, or a link to them is made (a copy where links are not supported).

    Raises:
        OSError: it cannot be written.
    """
    with replacing(folder) as draft:
        for file in (file for file in sorted(trained.iterdir()) if file.suffix != ".md" and file.is_file()):
            if file.suffix == ".safetensors":
                _place(file.resolve(), draft / file.name, copy)
            elif file.name == SETTINGS:
                settings = json.loads(file.read_text(encoding="utf-8"))
                if (name := hub_name(config.model)) is not None:
                    settings["base_model_name_or_path"] = name
                    settings["revision"] = None if config.model.revision == "main" else config.model.revision
                (draft / SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")
        write_tokenizer(draft, runtime)
        (draft / "README.md").write_text(model_card(summary, config), encoding="utf-8")
    if (folder / WEIGHTS).is_symlink():
        _warn_of_link(folder, trained)


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, which takes its place at the end; nothing is left of it where an error ends it."""
    draft = draft_of(folder)
    try:
        draft.mkdir(parents=True)
        yield draft
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            try:
                shutil.rmtree(folder)
            except OSError as error:  # which names a file in it without its folder
                raise OSError(error.errno, error.strerror, str(folder)) from error
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _place(source: Path, target: Path, copy: bool) -> None:
    if not copy:
        try:
            target.symlink_to(source)
        except OSError:
            copy = True
    if copy:
        shutil.copyfile(source, target)


def _warn_of_link(folder: Path, trained: Path) -> None:
    """Say it where the cache will be gone before the run's folder is."""
    temporary = Path(tempfile.gettempdir()).resolve()
    if trained.resolve().is_relative_to(temporary) and not folder.resolve().is_relative_to(temporary):
        log.warning(
            "%s links to weights in the temporary folder %s and is empty when that is cleared; set "
            "paths.copy_adapter=true, or copy it with: python -m mipo_exp export %s",
            *(folder, temporary, folder.parent),
        )


def write_tokenizer(folder: Path, runtime: Runtime) -> None:
    """Copy the base model's tokenizer and the chat template that the run used."""
    base = runtime.model_folder
    for file in sorted({file for pattern in TOKENIZER_FILES for file in base.glob(pattern)}):
        target = folder / file.relative_to(base)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
    with contextlib.suppress(ModelError):  # a template that was there when the run began
        if (template := template_override(runtime.config)) is not None:
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def model_card(summary: Mapping[str, Any], config: Config, merged: bool = False) -> str:
    """The text of README.md: what the hub reads, and what a reader must know before using the model."""
    from huggingface_hub import ModelCardData

    base, license = hub_name(config.model), config.model.license
    if base is None:
        license = None  # the group's, whose model this is not
    known = license in LICENSES
    data = ModelCardData(
        base_model=base,
        base_model_relation=None if base is None else "finetune" if merged else "adapter",
        datasets=[config.task.hub_id] if config.task.hub_id else None,
        library_name="transformers" if merged else "peft",
        license=license if known or license is None else "other",
        license_name=None if known else license,
        pipeline_tag="text-generation",
        tags=["mipo_exp", config.method.name, *(["lora"] if not merged else [])],
    )
    rows = {
        title: [(described(summary, name), [_cell(summary, phase, name) for phase in PHASES]) for name in names]
        for title, names in headlines(summary).items()
    }
    stages = summary.get("stages") or {}
    text = templates(autoescape=False).get_template("model_card.md.jinja")
    return text.render(
        data=data.to_yaml(),
        summary=summary,
        config=config,
        base=base or summary["model"],
        on_hub=base is not None,
        license=license,
        merged=merged,
        rows={title: found for title, found in rows.items() if found},
        contrasted=contrasted(summary),
        command=shlex.join(part for part in shlex.split(summary.get("command") or "") if not _OWN.match(part)),
        seconds=sum(stage.get("seconds") or 0.0 for stage in stages.values()),
        cached=any(stage.get("cached") for stage in stages.values()),
    )


def _cell(summary: Mapping[str, Any], phase: str, name: str) -> str:
    found = estimate(summary, phase, name)
    return "–" if found is None else spanned(described(summary, name), found, signed=phase == "delta")
