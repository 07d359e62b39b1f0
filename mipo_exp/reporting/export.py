"""A run's adapter, or the model with the adapter merged into it, as a folder for others: verified, and pushed to the
hub where that is asked for."""

import json
import logging
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo_exp.errors import DataError, ModelError, StorageError, gib
from mipo_exp.models.hub import refusal, unreachable
from mipo_exp.models.loading import load_folder
from mipo_exp.models.rendering import Renderer
from mipo_exp.reporting.adapter_folder import hub_name, model_card, replacing, write_adapter, write_tokenizer
from mipo_exp.reporting.opened import Opened
from mipo_exp.store.disk import full_disk, make_writable

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

MARK = "mipo_export.json"  # what an export says of itself; a folder without it is not replaced
# How far the exported model's logits may be from the adapter's, relative to the largest: rounding of the precision in
# which the weights are kept, through all layers.
TOLERANCE = {"float64": 1e-8, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
LEAST = 1e-5  # the same, of what float32 itself gives
# Of what the adapter changes, rounding may take so much.
OF_EFFECT = 0.25
BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
# The hub is given so long for each answer; huggingface_hub, which repeats some requests, would wait for ever.
ANSWER_SECONDS = 60.0
PROBES = (
    ("About me: I love sailing boats.", "Suggest a gift for my best friend."),
    (None, "Explain in one sentence why the sky is blue."),
    ("I live in Oslo and have two children, 3 and 5 years old.", "What shall we do on a rainy Sunday?"),
)


@dataclass(frozen=True)
class Verified:
    """How far the logits of an export are from those of the adapter on the same prompts.

    Attributes:
        difference: the largest one.
        allowed: what it may be.
        effect: the largest change that the adapter itself makes.
        tokens: positions that were compared.
    """

    difference: float
    allowed: float
    effect: float
    tokens: int


def export(run: Opened, folder: Path, merged: bool) -> Verified:
    """Write a run's adapter, or with `merged` its model, into `folder`. Nothing is written there, and an export that
    was there stays, unless the logits of what was written are those of the adapter.

    Raises:
        StorageError: `folder` cannot be written or has something else in it, or its disk is full.
        ModelError: the logits differ.
    """
    make_writable(folder.parent, "--to", "give another folder")
    if folder.exists() and not (folder.is_dir() and ((folder / MARK).is_file() or not any(folder.iterdir()))):
        raise StorageError(f"--to={folder} has something else in it; give a new folder")
    dtype = run.runtime.dtype
    _check_room(folder.parent, _size(run, merged))
    try:
        with replacing(folder) as draft:
            found = _write(run, draft, merged, dtype)
            facts = {"run_id": run.results.run_id, "merged": merged, "dtype": dtype, "logits": asdict(found)}
            (draft / MARK).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    except Exception as error:
        if (full := full_disk(error, {"--to": folder.parent})) is not None:
            raise full from error
        raise
    finally:
        run.runtime.release()
    return found


def _write(run: Opened, draft: Path, merged: bool, dtype: str) -> Verified:
    from transformers import AutoTokenizer

    runtime = run.runtime
    ids = [runtime.renderer.prompt_ids(runtime.task.messages(*probe)) for probe in PROBES]
    model: Any = runtime.model(run.adapter)
    wanted = _logits(model, ids)
    with model.disable_adapter():
        plain = _logits(model, ids)
    if merged:
        log.info("merging the adapter into the weights (%s)", dtype)
        model.merge_and_unload().save_pretrained(draft)
        write_tokenizer(draft, runtime)
        (draft / "generation_config.json").unlink(missing_ok=True)  # ours is empty
        with suppress(FileNotFoundError):
            shutil.copyfile(runtime.model_folder / "generation_config.json", draft / "generation_config.json")
        (draft / "README.md").write_text(model_card(run.results.summary, run.config, merged=True), encoding="utf-8")
        del model
        runtime.release()
        import torch

        again: Any = load_folder(draft, run.config.model, getattr(torch, dtype), runtime.device)
    else:
        write_adapter(draft, run.adapter, runtime, run.results.summary, run.config, copy=True)
        again = runtime.model(draft)
    tokenizer = AutoTokenizer.from_pretrained(draft, trust_remote_code=run.config.model.trust_remote_code)
    renderer = Renderer(tokenizer, None, "the exported tokenizer")
    for probe, known in zip(PROBES, ids, strict=True):
        if renderer.prompt_ids(runtime.task.messages(*probe)) != known:
            raise ModelError(
                "the exported tokenizer writes a prompt in other tokens than the run's; nothing was written"
            )
    return compare_logits(wanted, plain, _logits(again, ids), dtype)


def compare_logits(
    wanted: "Sequence[torch.Tensor]", plain: "Sequence[torch.Tensor]", found: "Sequence[torch.Tensor]", dtype: str
) -> Verified:
    """Hold the logits (tokens, V) of an export against those of the adapter and of the base model, prompt by prompt.
    Raises `ModelError`: they differ by more than is allowed."""

    def largest(others: "Sequence[torch.Tensor]") -> float:
        return max((a - b).abs().max().item() for a, b in zip(wanted, others, strict=True))

    scale = max(of.abs().max().item() for of in wanted)
    difference, effect = largest(found), largest(plain)
    allowed = min(TOLERANCE[dtype] * scale, max(OF_EFFECT * effect, LEAST * scale))
    if not difference <= allowed:
        finer = "" if dtype in ("float32", "float64") else "; keep the weights with --dtype=float32"
        raise ModelError(
            f"the exported model's logits differ from the adapter's by up to {difference:.2g}, and {allowed:.2g} is "
            f"allowed ({dtype}; the adapter itself changes them by up to {effect:.2g}); nothing was written{finer}"
        )
    return Verified(difference, allowed, effect, sum(len(of) for of in wanted))


def _logits(model: Any, prompts: Sequence[Sequence[int]]) -> "list[torch.Tensor]":
    """(tokens, V) in float32 of each prompt."""
    import torch

    device = next(model.parameters()).device
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([ids], device=device)).logits[0].float().cpu() for ids in prompts]


def _size(run: Opened, merged: bool) -> float:
    """Bytes that an export takes, without its small files."""
    if not merged:
        return sum(file.stat().st_size for file in run.adapter.iterdir() if file.is_file())
    weights = sum(file.stat().st_size for file in run.runtime.model_folder.glob("*.safetensors"))
    kept = str(getattr(run.runtime.text_config, "dtype", None) or "float32").removeprefix("torch.")
    return weights * BYTES[run.runtime.dtype] / BYTES.get(kept, 4)


def _check_room(folder: Path, needed: float) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"--to: {folder} has {gib(free)} free and the export takes {gib(needed)}; free some space, or give "
            "--to=DIR on a larger disk"
        )


def check_repository(repository: str) -> None:
    """Raise `DataError` for a name or a state of the hub with which a push cannot work; asked before a model loads."""
    from huggingface_hub import get_token

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise DataError(f"--push={repository} is not of the form OWNER/NAME")
    if get_token() is None:
        raise DataError(
            f"--push={repository} needs a token of the hub that may write: put it into the variable HF_TOKEN, or run "
            "hf auth login"
        )
    if (why := unreachable()) is not None:
        raise DataError(f"--push={repository}: the hub cannot be asked ({why}); export without --push")


def push(folder: Path, repository: str, public: bool, config: Any) -> str:
    """Upload an export to a repository on the hub, which is made where it does not exist; returns its address. Raises
    `DataError`: the hub refuses, is slow or breaks off; the folder is kept."""
    from huggingface_hub import HfApi, get_session

    if hub_name(config.model) is None:
        log.warning("the adapter names a base model that is on this machine only: others cannot load it without that")
    session = get_session()
    before, session.timeout = session.timeout, ANSWER_SECONDS
    try:
        made = HfApi().create_repo(repository, private=not public, exist_ok=True)
        HfApi().upload_folder(repo_id=repository, folder_path=folder, commit_message="Export of a run of mipo_exp")
    except Exception as error:  # those of the HTTP library depend on the version of huggingface_hub
        said = refusal(error, f"--push={repository}", repository, remedy="")
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DataError(
            f"{said or f'--push={repository}: the upload broke off ({type(error).__name__}: {first})'}. The export is "
            f"in {folder}; upload it with the same command, or with: hf upload {repository} {folder}"
        ) from error
    finally:
        session.timeout = before
    return str(made)
