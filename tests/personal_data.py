"""Made-up rows of PRISM, Community Alignment, Multi-Bench, PrefEval and PAHF in their public schemas, and files."""

import csv
import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mipo_exp.config.schema import TaskConfig
from mipo_exp.data.base import Examples, Task
from mipo_exp.data.tasks import make_task
from mipo_exp.store.records import Example
from tests.conftest import SCRATCH, composed

Row = dict[str, Any]


@functools.cache
def config(name: str, *overrides: str) -> TaskConfig:
    """The composed config of a task; composing takes a while."""
    return composed(f"task={name}", *overrides).task


def make(name: str, path: Path | str, *overrides: str) -> Task:
    return make_task(dataclasses.replace(config(name, *overrides), path=str(path)), SCRATCH)


def load(name: str, path: Path | str, *overrides: str) -> Examples:
    one = make(name, path, *overrides)
    one.prepare(download=False)
    return one.load(None)


def by_name(found: Examples) -> dict[str, Example]:
    """The examples by their ids without the side."""
    return {row.id.partition("/")[2]: row for row in (*found.train, *found.eval)}


def disjoint(found: Examples) -> bool:
    """Whether the sides share neither users nor prompts."""
    sides = (found.train, found.eval)
    users, prompts = ([{getattr(row, name) for row in side} for side in sides] for name in ("user", "prompt"))
    return not users[0] & users[1] and not prompts[0] & prompts[1]


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    """A .jsonl, .json, .csv or .parquet file; CSV writes null as nothing, as the sources do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        text = json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows))
        path.write_text(text, encoding="utf-8")
    return path


# --- PRISM


def prism_user(user: int, **changes: Any) -> Row:
    """One row of the survey."""
    prefs = {"values": 20, "creativity": 70, "fluency": 90, "factuality": 95, "diversity": 40, "safety": 80}
    return {
        "user_id": f"user{user}",
        "survey_only": False,
        "self_description": f"I keep {user} bees and value honesty.",
        "system_string": "Be kind and brief.",
        "stated_prefs": {**prefs, "personalisation": 50, "helpfulness": 100, "other": None, "other_text": None},
        "age": "25-34 years old",
        "gender": "Female",
        "education": "Vocational",
        "employment_status": "Student",
        "marital_status": "Prefer not to say",
        "location": {"birth_country": "Chile", "reside_country": "Spain", "same_birth_reside_country": "No"},
        "religion": {"self_described": "none", "categorised": "Non-religious", "simplified": "No Affiliation"},
        "ethnicity": {"self_described": "latina", "categorised": "Hispanic / Latino", "simplified": "Hispanic"},
        **changes,
    }


def prism_conversation(user: int, number: int, **changes: Any) -> Row:
    """One row of the conversations, four responses to the opening and one more turn."""
    name = f"u{user} c{number}"
    answers = [
        {
            "turn": 0,
            "role": "model",
            "content": f"Answer {index} to {name}.",
            "model_name": f"m{index}",
            "model_provider": "p",
            "score": 20 * index + 1,
            "if_chosen": index == 2,
            "within_turn_id": index,
        }
        for index in range(4)
    ]
    plain = dict.fromkeys(("model_name", "model_provider", "score", "if_chosen", "within_turn_id"))
    return {
        "user_id": f"user{user}",
        "conversation_id": f"c{100 * user + number}",
        "conversation_type": ("unguided", "values guided", "controversy guided")[number % 3],
        "opening_prompt": f"What of {name}?",
        "conversation_turns": 2,
        "conversation_history": [
            {"turn": 0, "role": "user", "content": f"What of {name}?", **plain},
            *answers,
            {"turn": 1, "role": "user", "content": "And then?", **plain},
            {**answers[2], "turn": 1, "content": "A later answer."},
        ],
        "open_feedback": "Fine.",
        "generated_datetime": f"2023-12-{number + 1:02d} 10:00:00",
        **changes,
    }


def prism_rows(users: int = 8, each: int = 4) -> tuple[list[Row], list[Row]]:
    survey = [prism_user(user) for user in range(users)]
    return survey, [prism_conversation(user, number) for user in range(users) for number in range(each)]


def prism_folder(folder: Path, survey: Sequence[Row], conversations: Sequence[Row]) -> str:
    """The repository's layout."""
    write_rows(folder / "survey.jsonl", survey)
    write_rows(folder / "conversations.jsonl", conversations)
    return f"task.path={folder}"


# --- Community Alignment


def choice_row(annotator: int, number: int, **changes: Any) -> Row:
    """One conversation: four responses to its first prompt, and no later turn."""
    name = f"a{annotator} q{number}"
    row: Row = {
        "conversation_id": 1000 * annotator + number,
        "assigned_lang": "en",
        "annotator_id": 50 + annotator,
        "first_turn_feedback": None,
        "first_turn_preferred_response": "response_b",
        "first_turn_prompt": f"Tell me of {name}.",
    }
    for letter in "abcd":
        row[f"first_turn_response_{letter}"] = f"Text {letter} on {name}.<|end_of_text|>"
    for turn in ("second", "third", "fourth"):
        row.update({f"{turn}_turn_prompt": None, f"{turn}_turn_preferred_response": None})
    return {**row, "annotator_age": "18-34", "annotator_country": "india", **changes}


def choice_rows(annotators: int = 8, each: int = 4) -> list[Row]:
    """Everybody has prompts of their own, but for a first one that all answer."""
    return [
        choice_row(annotator, number, **({"first_turn_prompt": "Tell me a joke."} if number == 0 else {}))
        for annotator in range(annotators)
        for number in range(each)
    ]


# --- Multi-Bench


def rubric(text: str) -> Row:
    scores = {str(score): f"{text}, {score} of 5." for score in range(1, 6)}
    return {"criteria": f"Is it {text}?", "score_descriptions": scores}


def persona_row(prompt: int, persona: int, **changes: Any) -> Row:
    return {
        "source": "koala",
        "preference_set": [{"dimension": "style", "subdimension": "s", "preference": "p", "description": "d"}],
        "system": f"You are narrator {prompt}/{persona}.",
        "prompt": f"Explain thing {prompt}.",
        "reference_answer": f"Thing {prompt} for {persona}.",
        "rubrics": [rubric("vivid"), rubric("brief")],
        **changes,
    }


def persona_rows(prompts: int = 10, personas: int = 3) -> list[Row]:
    return [persona_row(prompt, persona) for prompt in range(prompts) for persona in range(personas)]


# --- PrefEval

TOPICS = ("travel_hotel", "travel_restaurant", "shop_home", "lifestyle_fit")


def preference_row(topic: str, number: int, form: str = "explicit", hub: bool = False, **changes: Any) -> Row:
    """A row as the authors have it, or with the hub's columns."""
    name = f"{topic} {number}"
    row: Row = {
        "preference": f"I avoid {name}.",
        "question": f"What would suit me in {name}?",
        "explanation": f"Most answers are {name}.",
    }
    if form == "implicit_choice":
        turns = {
            "query": f"Options in {topic}?",
            "assistant_options": f"1. {name} 2. another",
            "user_selection": f"Not {name}.",
            "assistant_acknowledgment": "Understood.",
        }
        row |= {"implicit_query": turns["query"], "options": [name, "another"], "aligned_op": "another"}
        row |= {f"conversation_{key}": text for key, text in turns.items()} if hub else {"conversation": turns}
    if form == "implicit_persona":
        said = [
            {"user": f"Hello from {name}.", "assistant": "Hello."},
            {"user": f"Never {name}!", "assistant": "Noted."},
        ]
        filled: dict[str, Any] = {str(index): turn for index, turn in enumerate(said)}
        row |= {"persona": "A baker", "conversation": {**filled, "2": None} if hub else filled}
    if hub:
        row |= {"topic": topic, "preference_type": form}
    return {**row, **changes}


def options_row(topic: str, number: int, **changes: Any) -> Row:
    """A row of `mcq_options`: the first option is the right one."""
    options = [f"good {topic} {number}", *(f"bad {index} {topic} {number}" for index in range(3))]
    return {
        **preference_row(topic, number),
        "violation_probability": 1.0,
        "classification_task_options": options,
        **changes,
    }


FOLDERS = {
    "explicit": "explicit_preference",
    "implicit_choice": "implicit_preference/choice-based",
    "implicit_persona": "implicit_preference/persona-driven",
}


def prefeval_repository(folder: Path, each: int = 5, form: str = "explicit") -> Path:
    """The authors' layout, with one form and the options."""
    for topic in TOPICS:
        rows = [preference_row(topic, number, form) for number in range(each)]
        write_rows(folder / "benchmark_dataset" / FOLDERS[form] / f"{topic}.json", rows)
        options = [options_row(topic, number) for number in range(each)]
        write_rows(folder / "benchmark_dataset" / "mcq_options" / f"{topic}.json", options)
    return folder


# --- PAHF


def persona(user: int) -> str:
    """A persona of three preferences under two headings."""
    return (
        f"- Your name is P{user}\n"
        f"- Your favorite drink is drink {user} but context matters:\n"
        f"  * When you're tired, you prefer tea {user} (not coffee) as it helps you rest\n"
        f"  * When celebrating, you prefer water (not wine)\n\n"
        f"- Your location preferences have reasons:\n"
        f"  * For books: prefer shelf {user} (not drawers)\n"
    )


def scene(user: int, number: int, side: str = "A", **changes: Any) -> Row:
    """A scene: every third one asks for a place."""
    row: Row = {"index": 100 * user + number, "user": f"P{user}", "context": "Tired"}
    if number % 3:
        objects = [f"tea {user}", "coffee", f"cake {number}", "nuts"]
        row |= {"task": f"Bring me something, {side} {number}?", "scene_objects": objects}
        return {**row, "user_intent_object": f"tea {user}", "user_intent_location": "pick-up", **changes}
    row |= {
        "task": f"Could you put this book away, {side} {number}?",
        "scene_objects": ["book", f"shelf {user}", "desk"],
    }
    row |= {"context": "Books", "user_intent_object": "book", "user_intent_location": f"shelf {user}"}
    return {**row, **changes}


def pahf_folder(folder: Path, users: int = 12, each: int = 6) -> Path:
    """The two files of scenes and the personas as JSON."""
    for side in "AB":
        rows = [scene(user, number, side) for user in range(users) for number in range(each)]
        write_rows(folder / f"original_scenarios_{side}.json", rows)
    texts = {f"P{user}": persona(user) for user in range(users)}
    (folder / "original_personas.json").write_text(json.dumps(texts), encoding="utf-8")
    return folder


# What makes the data that a task is run on where there is no copy of the real one; each returns an override.
MADE: dict[str, Callable[[Path], str]] = {
    "prism": lambda folder: prism_folder(folder, *prism_rows()),
    "community_alignment": lambda folder: f"task.path={write_rows(folder / 'community_alignment.csv', choice_rows())}",
    "multi_bench": lambda folder: f"task.path={write_rows(folder / 'multifaceted_bench.json', persona_rows())}",
    "prefeval": lambda folder: f"task.path={prefeval_repository(folder)}",
    "pahf": lambda folder: f"task.path={pahf_folder(folder)}",
}
