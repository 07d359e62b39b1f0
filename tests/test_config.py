"""The configs themselves: comments, and every leaf known to the schema."""

import re
from pathlib import Path

import pytest

from mipo_exp import cli
from mipo_exp.evaluation.answers import has_keyword
from tests.conftest import composed

# What sets keys that others define, and says why where that is not plain.
USERS = ("experiment", "arm", "debug", "local", "search")
FILES = [path for path in cli.CONFIG_DIR.rglob("*.yaml") if path.relative_to(cli.CONFIG_DIR).parts[0] not in USERS]


def test_every_key_of_ours_has_its_comment_at_one_place() -> None:
    """On its line or on the one before, in the option's file or in the one that all options of its group extend."""
    said: dict[str, set[str]] = {}
    given: dict[str, set[str]] = {}
    for path in FILES:
        group = path.parent.name if path.parent != cli.CONFIG_DIR else path.stem.removeprefix("_")
        group = "method" if group == "on_policy" else group
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            key = re.match(r"\s*([\w.]+):( |$)", line)
            if key is None or key[1] == "defaults":
                continue
            if key[1] == "hydra":
                break
            given.setdefault(group, set()).add(key[1])
            if "# " in line or lines[number - 1].strip().startswith("# "):
                said.setdefault(group, set()).add(key[1])
    bare = {group: keys - said[group] for group, keys in given.items() if keys - said[group]}
    assert not bare


def test_keywords_are_words_on_the_topic_and_not_parts_of_others() -> None:
    assert has_keyword("We went skiing.", ["ski"])
    assert has_keyword("A new teapot", ["teapot"])
    assert has_keyword("Astronomers", ["astronom"])
    for text, stem in (("a new skill", "ski"), ("the team", "tea"), ("this season", "sea"), ("a window", "wind")):
        assert not has_keyword(text, [stem]), text


def test_no_request_of_personas_meets_a_users_preference_by_itself() -> None:
    import json

    from mipo_exp.data.files import resource

    content = json.loads(resource("personas.json").read_text(encoding="utf-8"))
    assert len(content["users"]) == 100
    assert len(content["requests"]) == 60
    for request in content["requests"]:
        met = [user["id"] for user in content["users"] if has_keyword(request, user["keywords"])]
        assert not met, request


def test_the_default_experiment_evaluates_on_other_users_and_requests() -> None:
    from mipo_exp.data.tasks import make_task

    examples = make_task(composed().task, Path("unused")).load(None)
    assert not {e.user for e in examples.train} & {e.user for e in examples.eval}
    assert not {e.prompt for e in examples.train} & {e.prompt for e in examples.eval}
    assert len({e.user for e in examples.train}) == 60
    assert len({e.user for e in examples.eval}) == 40


def test_a_file_that_asks_for_more_examples_than_there_are_gets_all_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`+debug=quick` and the tasks' defaults are for data of any size; the command line is refused (test_bad_input)."""
    from mipo_exp.planning.checks import _check_amount

    for asked in (None, 5, 6):
        _check_amount("task.eval_examples", asked, 6, ["task.eval_examples=6"])
    assert not caplog.messages
    _check_amount("task.eval_examples", 7, 6, ["task=quiz"])
    assert caplog.messages == [
        "task.eval_examples=7, and there are only 6 (docs/tasks.md says what a task leaves out): all 6 are used"
    ]
