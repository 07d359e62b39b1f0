"""What is different between a run and its repetition: where it ran, which stages were made anew, what came out."""

from collections.abc import Mapping
from typing import Any

from mipo_exp.reporting.metrics import headlines


def settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs of versions, commit and hardware, a line each, as the heads of two summaries tell it."""
    if not old:
        return ["the run has no summary.json: it did not end, and there is nothing to compare with"]
    lines = [f"commit: {old['git']} → {new['git']}"] if old["git"] != new["git"] else []
    for title in ("versions", "hardware"):
        then, now = old.get(title), new[title]
        if then is None:
            lines.append(f"{title}: not recorded then")
            continue
        for name in dict.fromkeys((*then, *now)):
            if then.get(name) != now.get(name):
                lines.append(f"{name}: {then.get(name)} → {now.get(name)}")
    return lines or ["the same commit, versions and hardware"]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs of the device, the model, the stages and the metrics of two finished runs, a line each."""
    if not old.get("stages"):
        return []
    lines = [
        f"{title}: {then} → {now}"
        for title, then, now in (
            ("device", old.get("device"), new["device"]),
            ("model", *((of.get("model_source") or {}).get("fingerprint") for of in (old, new))),
            ("run_id", old["run_id"], new["run_id"]),
        )
        if then != now
    ]
    keys = [{name: stage["key"] for name, stage in of["stages"].items()} for of in (old, new)]
    changed = [name for name in dict.fromkeys((*keys[0], *keys[1])) if keys[0].get(name) != keys[1].get(name)]
    lines.append(f"stages of another key: {', '.join(changed) or 'none'}")
    cached = sum(stage["cached"] for stage in new["stages"].values())
    if cached:
        lines.append(f"{cached} of {len(new['stages'])} stages came from the cache; paths.cache=DIR computes all anew")
    then, now = (
        {(phase, name): of["mean"] for phase, found in run["metrics"].items() for name, of in found.items()}
        for run in (old, new)
    )
    other = [key for key in dict.fromkeys((*then, *now)) if then.get(key) != now.get(key)]
    lines.append(
        f"metrics: {len(other)} of {len(now)} have another value" if other else f"metrics: all {len(now)} are the same"
    )
    shown = [("after", name) for names in headlines(new).values() for name in names]
    return lines + [f"  after, {key[1]}: {then.get(key)} → {now.get(key)}" for key in shown if key in other]
