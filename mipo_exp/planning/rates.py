"""How fast earlier stages were on this machine, from what their manifests record."""

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mipo_exp.store.artefacts import Stage
from mipo_exp.store.manifest import MANIFEST, machine


def earlier_rate(root: Path, stage: Stage, device: str) -> float | None:
    """Counted tokens a second of the finished artefacts that are like a stage: of its name, from inputs of its kinds,
    of the same model, engine and method, made on this machine and device. None where there are none.

    Interrupted builds have recorded nothing: their time is that of a part.

    Args:
        device: as `Runtime.device_name` has it.
    """
    wanted = _like(stage.inputs, stage.config, {"device": device, "machine": machine()})
    tokens, seconds = 0, 0.0
    for path in (root / stage.name).glob(f"*/{MANIFEST}"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # no manifest of ours
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["work"] and _like(found["inputs"], found["config"], found["work"]) == wanted:
                tokens, seconds = tokens + found["work"]["tokens"], seconds + found["seconds"]
    return tokens / seconds if tokens and seconds else None


def _like(roles: Iterable[str], config: Mapping[str, Any], work: Mapping[str, Any]) -> list[Any]:
    names = [(config.get(part) or {}).get("name") for part in ("engine", "method")]
    return [sorted(roles), config.get("runtime"), *names, work["device"], work["machine"]]
