"""Judging as a part of a run: its metrics, or why they are missing."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mipo_exp.errors import JudgeError, ModelError
from mipo_exp.execution.run import Run
from mipo_exp.judging.kinds import Measures
from mipo_exp.judging.stage import Judging, judge_facts, judge_measures, metric_phases
from mipo_exp.store.artefacts import Stage
from mipo_exp.store.records import Example

log = logging.getLogger(__name__)


def judge(
    run: Run,
    judging: Judging,
    stage: Stage,
    examples: Sequence[Example],
    texts: Mapping[str, Sequence[str]],
    summary: dict[str, Any],
) -> Measures:
    """The judge's metrics by phase; what `summary.json` says of the judge is written into `summary`.

    Where the judge cannot be asked there are no metrics: `summary["missing"]` says why, and the run goes on.

    Args:
        run: has fetched the responses.
        stage: the `judgements` stage.
        texts: the responses by phase.
    """
    backend = judging.judge.backend
    try:
        if backend.runtime is not None and run.store.status(stage) != "cached":
            run.fetch_model(backend.runtime, "judge_model")
        artefact = run.fetch("judgements", stage)
    except (JudgeError, ModelError) as error:
        log.warning("the judge's metrics are missing: %s; the same command asks for what is missing only", error)
        summary["judge"] = judge_facts(judging, None)
        summary["missing"]["judge"] = {"why": str(error), "metrics": sorted(metric_phases(judging.kind_name))}
        return {}
    finally:
        backend.release()
    summary["judge"] = judge_facts(judging, artefact)
    return judge_measures(judging, artefact, examples, texts)
