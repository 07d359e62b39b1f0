"""PAHF: personas and scenes, how they are asked and read, and what is wrong with files of them."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mipo_exp.data.pahf_personas import first_person, nearest, read_personas, written
from mipo_exp.errors import DataError
from mipo_exp.evaluation.accuracy import measure
from mipo_exp.evaluation.answers import read_choice
from mipo_exp.evaluation.error_kinds import kinds
from mipo_exp.store.records import OptionScores, Response
from tests.conftest import Experiment
from tests.personal_data import by_name, disjoint, load, make, pahf_folder, persona, scene, write_rows
from tests.public_files import real
from tests.test_pipeline import artefact


def test_scenes_ask_for_an_object_or_a_place_and_show_the_nearest_lines(tmp_path: Path) -> None:
    found = load("pahf", pahf_folder(tmp_path), "task.lines=1")
    assert disjoint(found)
    assert {len({row.user for row in side}) for side in (found.train, found.eval)} == {6}
    assert all(row.id.startswith("A/") for row in found.train), "training has the scenes of A"
    assert all(row.id.startswith("B/") for row in found.eval)
    for row in found.eval:
        user, number = divmod(int(row.id[2:]), 100)
        asked = json.loads(row.reference)
        wanted = asked["options"]["ABCD".index(asked["answer"])]
        if number % 3:
            assert (wanted, asked["asks"], len(asked["options"])) == (f"tea {user}", "object", 4)
            assert row.context == (
                f"About me:\n- My favorite drink is drink {user} but context matters:\n"
                f"  * When I'm tired, I prefer tea {user} (not coffee) as it helps me rest"
            )
            listed = ", ".join(asked["options"])
            assert row.prompt == (
                f"Situation: Tired\nBring me something, B {number}?\nThere are: {listed}.\nWhich one do you bring me?"
            )
        else:
            assert (wanted, asked["asks"], len(asked["options"])) == (f"shelf {user}", "place", 2)
            assert "It is about this: book.\nThe places are: " in row.prompt
            assert f"* For books: prefer shelf {user}" in (row.context or "")


def test_the_whole_persona_is_shown_where_lines_are_null_and_options_do_not_stand_in_order(tmp_path: Path) -> None:
    found = load("pahf", pahf_folder(tmp_path), "task.lines=null")
    row = by_name(found)[found.eval[0].id[2:]]
    user = int(row.id[2:]) // 100
    assert row.context == "About me:\n" + first_person(persona(user)).replace("\n\n", "\n").strip()
    answers = {json.loads(row.reference)["answer"] for row in found.eval}
    assert answers == set("ABCD")
    task = make("pahf", tmp_path)
    assert task.messages("C", "P")[0]["content"] == "C\n\nP\n\nName it first, then say why in one sentence."


def test_the_authors_python_file_is_parsed_and_not_run(tmp_path: Path) -> None:
    texts = {f"P{user}": persona(user) for user in range(3)}
    prompts = [
        f'prompt_{name.lower()} = """You simulate {name}.\n\nYOUR PERSONA:\n{text}\nINTERACTION TYPES:\n\n- Rule"""\n'
        for name, text in texts.items()
    ]
    names = "".join(f'    "{name}": prompt_{name.lower()},\n' for name in texts)
    path = tmp_path / "original_persona.py"
    path.write_text(f"raise SystemExit\n{''.join(prompts)}prompt_dict = {{\n{names}}}\n", encoding="utf-8")
    (tmp_path / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    assert read_personas(path) == read_personas(tmp_path / "texts.json")
    assert len(read_personas(path)["P0"]) == 4


def test_lines_keep_their_order_and_their_heading_is_written_once(tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text(json.dumps({"P0": persona(0)}), encoding="utf-8")
    lines = read_personas(tmp_path / "texts.json")["P0"]
    assert written(nearest(lines, "celebrating with tea, tired of books", 3)).count("My favorite drink") == 1
    assert [line.heading is None for line in lines] == [True, False, False, False]
    assert nearest(lines, "celebrating", 1)[0].text == "When celebrating, I prefer water (not wine)"
    assert (
        first_person("You're what makes you warm; your shelf is yours.") == "I'm what makes me warm; my shelf is mine."
    )


DRINKS = ["energy drink", "herbal tea", "walnuts", "black coffee"]
PLACES = ["refrigerator top shelf", "top shelf", "counter", "island counter"]


@pytest.mark.parametrize(
    ("text", "options", "letter"),
    [
        ("Herbal tea.", DRINKS, "B"),
        ("**herbal tea**: you like rest, not black coffee", DRINKS, "B"),
        ("The herbal tea, because black coffee wakes you up.", DRINKS, "B"),
        ("I would bring you a black coffee.", DRINKS, "D"),
        ("I'll bring the herbal tea instead of the black coffee.", DRINKS, "B"),
        ("I would not bring black coffee. I'd bring herbal teas.", DRINKS, "B"),
        ("Here is your black coffee! I know that you like herbal tea at night.", DRINKS, "D"),
        ("A walnut", DRINKS, "C"),
        ("The answer is: walnuts. You like black coffee.", DRINKS, "C"),
        ("Herbal tea is not right. Black coffee.", DRINKS, "D"),
        ("You prefer herbal tea over black coffee.", DRINKS, None),
        ("Herbal tea or black coffee", DRINKS, None),
        ("Energy drink, herbal tea, walnuts, black coffee", DRINKS, None),
        ("Bring black coffee and herbal tea", DRINKS, None),
        ("Coffee", DRINKS, None),
        ("A", DRINKS, None),
        ("Answer: B", DRINKS, None),
        ("", DRINKS, None),
        ("On the top shelf, where you see it.", PLACES, "B"),
        ("I put it on the refrigerator top shelf.", PLACES, "A"),
        ("I will place it on the island counter, next to the sink.", PLACES, "D"),
        ("An ice-cold sparkling water", ["sparkling water", "ice-cold sparkling water"], "B"),
        ("Rough foods", ["rough foods (crunchy and soft)", "treats"], "A"),
    ],
)
def test_a_choice_is_read_by_its_name(text: str, options: list[str], letter: str | None) -> None:
    assert read_choice(text, options) == letter


def test_accuracy_of_objects_and_places_by_hand() -> None:
    """Three choices of objects (of 4, 4 and 2), one right and one unparsed; one of a place (of 2), right."""
    asked = [("object", DRINKS, "B"), ("object", DRINKS, "A"), ("object", DRINKS[:2], "A"), ("place", PLACES[2:], "B")]
    references = [json.dumps({"asks": asks, "options": options, "answer": key}) for asks, options, key in asked]
    texts = ["Herbal tea", "Tea or coffee", "Herbal tea", "Island counter"]
    found = {name: of.result() for name, of in measure("choice", references, texts).items()}
    assert found == {
        "accuracy": 2 / 4,
        "accuracy/object": pytest.approx(1 / 3),
        "accuracy/place": 1,
        "accuracy/chance": (1 / 4 + 1 / 4 + 1 / 2 + 1 / 2) / 4,
        "answer/unparsed_rate": 1 / 4,
    }


def test_a_right_name_is_as_asked(tmp_path: Path) -> None:
    row = load("pahf", pahf_folder(tmp_path)).eval[0]
    wanted = json.loads(row.reference)
    right = wanted["options"]["ABCD".index(wanted["answer"])]
    texts = [f"{right}, for you", "coffee or nuts or desk"]
    responses = [Response(row.id, [1], text, True) for text in texts]
    assert kinds("choice", [row, row], responses) == ["right", "no_answer"]


Damage = Callable[[Path], object]


def _scenes(folder: Path, **changes: Any) -> Path:
    rows = [{**scene(user, number), **(changes if user == 1 else {})} for user in range(12) for number in range(6)]
    return write_rows(folder / "original_scenarios_A.json", rows)


def _cut(path: Path) -> None:
    path.write_text(path.read_text()[:-40])


def _personas(folder: Path, text: str, name: str = "original_personas.json") -> None:
    (folder / "original_personas.json").unlink()
    (folder / name).write_text(text)


BAD: list[tuple[Damage, str]] = [
    (lambda folder: _cut(folder / "original_scenarios_B.json"), r"scenarios_B\.json, line 1: not valid JSON"),
    (lambda folder: _scenes(folder, scene_objects=[]), r"A\.json, row 6: 'scene_objects' is empty.*6 of 72 rows"),
    (lambda folder: _scenes(folder, scene_objects=None), r"row 6: 'scene_objects'.*6 of 72 rows are incomplete"),
    (lambda folder: _scenes(folder, user_intent_object="gin"), r"row 6: '\w+ ?1?' is not one of .*scene_objects"),
    (lambda folder: _scenes(folder, scene_objects="tea"), r"row 6: 'scene_objects' should be .*list"),
    (lambda folder: _scenes(folder, user="Zoe"), r"row 6: 'Zoe' has no persona in original_personas\.json"),
    (
        lambda folder: write_rows(folder / "original_scenarios_A.json", [{"index": 0, "user": "P1", "request": "x"}]),
        r"row 0: the field '\w+' is missing \(found: index, user, request\)",
    ),
    (lambda folder: (folder / "original_personas.json").unlink(), r"lacks data/embodied/personas/original_persona\.py"),
    (lambda folder: _personas(folder, "[]"), r"personas\.json holds no personas"),
    (
        lambda folder: _personas(folder, '{"P0": "Likes tea."}'),
        r"the persona of 'P0' has no line that begins with '- '",
    ),
    (lambda folder: _personas(folder, 'a = """- x', "original_persona.py"), r"persona\.py, line 1: not valid Python"),
    (lambda folder: _personas(folder, "a = 1", "original_persona.py"), r"original_persona\.py holds no personas"),
]


@pytest.mark.parametrize(("damage", "message"), BAD)
def test_bad_files_are_named_with_the_way_out(tmp_path: Path, damage: Damage, message: str) -> None:
    pahf_folder(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        make("pahf", tmp_path).prepare(download=False)
    assert "docs/tasks.md" in str(error.value)
    assert "for the hub" not in str(error.value), "the hub has no such data"


def test_without_a_path_the_message_says_where_the_data_is() -> None:
    task = make("pahf", ".")
    task.config = dataclasses.replace(task.config, path=None)
    with pytest.raises(DataError, match=r"git clone https://github\.com/facebookresearch/PAHF, then task\.path=PAHF"):
        task.prepare()


def test_the_published_files() -> None:
    """Of 2400 scenes, 8 lack the wanted object (one has none at all), and 12 more the wanted place."""
    found = load("pahf", real("pahf"), "task.train_examples=null", "task.eval_examples=null")
    assert found.notes["incomplete_rows"] == 20
    assert found.notes["users"] == 40
    assert (found.notes["train_users"], found.notes["eval_users"]) == (20, 20)
    assert disjoint(found)
    chances = measure("choice", [row.reference for row in found.eval], [""] * len(found.eval))["accuracy/chance"]
    assert 0.25 < chances.result() < 0.4
    told = [
        json.loads(row.reference)["options"]["ABCDE".index(json.loads(row.reference)["answer"])] for row in found.eval
    ]
    words = [
        (name.split()[-1].lower().rstrip("s"), row.context or "") for name, row in zip(told, found.eval, strict=True)
    ]
    assert np.mean([word in context.lower() for word, context in words]) > 0.85, "four lines say what is wanted"


def test_a_run_has_choices_likelihoods_and_the_same_without_the_persona(tmp_path: Path, experiment: Experiment) -> None:
    data = f"task.path={pahf_folder(tmp_path / 'data')}"
    objective = "objective=delta/no_context/options/accuracy"
    summary, _ = experiment("task=pahf", data, objective, "trainer.max_steps=1", "task.max_new_tokens=8")
    wanted = {"accuracy", "accuracy/object", "accuracy/chance", "no_context/accuracy", "options/accuracy"}
    for phase in ("before", "after"):
        assert {*wanted, "no_context/options/accuracy"} <= set(summary["metrics"][phase])
        questions = artefact(summary, f"{phase}_no_context_option_scores").table("options", OptionScores)
        assert questions != artefact(summary, f"{phase}_option_scores").table("options", OptionScores)
    assert summary["transitions"]["options"]
    alone, _ = experiment("task=pahf", data, "method=base", "task.max_new_tokens=8")
    base = summary["metrics"]["before"]["no_context/accuracy"]
    assert alone["metrics"]["after"]["accuracy"]["mean"] == base["mean"], "method=base is this as a row of a table"
    assert alone["stages"]["after_responses"]["cached"]
