"""PRISM and Community Alignment: rows in their public schemas, in every layout, and what users did before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mipo_exp.data.files import read_jsonl
from mipo_exp.data.histories import earlier, shorten
from mipo_exp.data.prism import DEMOGRAPHICS, TRAITS
from mipo_exp.errors import ConfigError, DataError
from tests.conftest import composed
from tests.personal_data import (
    Row,
    by_name,
    choice_row,
    choice_rows,
    disjoint,
    load,
    make,
    prism_conversation,
    prism_folder,
    prism_rows,
    prism_user,
    write_rows,
)
from tests.public_files import real

# --- histories


def test_what_is_shown_of_before_is_not_about_the_same_prompt() -> None:
    assert earlier(["Hi", "Why?", "hi ", "So?"], 3) == [0, 1, 2]
    assert earlier(["Hi", "Why?", "hi ", "So?"], 2) == [1]
    assert shorten("one\n two", 20) == "one two"
    assert shorten("one two three four five", 13) == "one two …"
    assert shorten("one two three four five", 15) == "one two three …"
    assert shorten("one two three four five", 23) == "one two three four five"
    assert shorten("x" * 30, 20) == "x" * 18 + " …"


# --- PRISM


def test_prism_puts_the_profile_and_earlier_choices_before_the_opening(tmp_path: Path) -> None:
    prism_folder(tmp_path, *prism_rows())
    found = load("prism", tmp_path, "task.history=2")
    assert by_name(found)["c303"].context == (
        "About me: I keep 3 bees and value honesty.\n"
        "How an assistant should be: Be kind and brief.\n"
        "How important it is to me, from 0 to 100, that an assistant: reflects my values 20, is creative 70, is well "
        "written 90, is factual 95, shows several viewpoints 40, is safe 80, learns from our conversations 50, is "
        "helpful 100\n\n"
        "My earlier conversations:\n\n"
        "I asked: What of u3 c1?\nI liked: Answer 2 to u3 c1.\n\n"
        "I asked: What of u3 c2?\nI liked: Answer 2 to u3 c2."
    )
    one = by_name(found)["c303"]
    assert (one.user, one.prompt, one.reference) == ("user3", "What of u3 c3?", "{}")
    assert disjoint(found)
    # Eight users, of whom two are evaluated on, with three conversations each that have an earlier one.
    assert (len(found.train), len(found.eval)) == (18, 6)
    assert found.notes["conversations_with_too_little_history"] == 8
    assert found.notes["users_with_too_little_history"] == 0
    assert make("prism", tmp_path).judging == "pairwise"


def test_prism_reads_json_lines_and_parquet_alike(tmp_path: Path) -> None:
    survey, conversations = prism_rows()
    prism_folder(tmp_path / "repository", survey, conversations)
    for name, rows in (("survey", survey), ("conversations", conversations)):
        write_rows(tmp_path / "converted" / name / "train" / "0000.parquet", rows)
        write_rows(tmp_path / "flat" / f"{name}.parquet", rows)
    found = load("prism", tmp_path / "repository")
    assert found == load("prism", tmp_path / "converted") == load("prism", tmp_path / "flat")


def test_prism_goes_by_time_and_not_by_the_order_of_the_file(tmp_path: Path) -> None:
    survey, conversations = prism_rows()
    prism_folder(tmp_path / "a", survey, conversations)
    prism_folder(tmp_path / "b", survey, conversations[::-1])
    assert by_name(load("prism", tmp_path / "a")) == by_name(load("prism", tmp_path / "b"))
    for row in conversations:
        del row["generated_datetime"]
    prism_folder(tmp_path / "c", survey, conversations)
    assert by_name(load("prism", tmp_path / "c")) == by_name(load("prism", tmp_path / "a"))


def test_prism_counts_users_without_enough_history(tmp_path: Path) -> None:
    survey, conversations = prism_rows(users=6)
    survey += [prism_user(6), prism_user(7, survey_only=True)]
    prism_folder(tmp_path, survey, [*conversations, prism_conversation(6, 0)])
    found = load("prism", tmp_path, "task.min_history=2")
    assert found.notes["users"] == 8
    assert found.notes["users_without_conversations"] == 1
    assert found.notes["users_with_too_little_history"] == 1
    assert found.notes["conversations_with_too_little_history"] == 6 * 2 + 1
    # Whose only conversation is of another type has none to be too little for.
    other = load("prism", tmp_path, "task.min_history=2", "task.conversation_types=[values guided,controversy guided]")
    assert other.notes["users_with_too_little_history"] == 0
    everybody = load("prism", tmp_path, "task.min_history=0")
    assert everybody.notes["users_with_too_little_history"] == 0
    assert "My earlier conversations" not in (by_name(everybody)["c600"].context or "")


def test_prism_takes_the_types_and_the_parts_of_the_profile_that_are_asked_for(tmp_path: Path) -> None:
    survey, conversations = prism_rows()
    survey[3]["self_description"] = " "
    prism_folder(tmp_path, survey, conversations)
    types = "task.conversation_types=[values guided,controversy guided]"
    found = load("prism", tmp_path, types, "task.profile=[self_description,demographics]", "task.history=0")
    assert {name[-1] for name in by_name(found)} == {"1", "2"}
    assert found.notes["conversations_of_other_types"] == 16
    assert by_name(found)["c301"].context == (
        "My background: age: 25-34 years old, gender: Female, education: Vocational, employment: Student, "
        "country: Spain, religion: No Affiliation, ethnicity: Hispanic"
    )
    assert (by_name(found)["c101"].context or "").startswith("About me: I keep 1 bees")


def test_prism_prefers_the_choice_then_the_score_and_skips_empty_responses(tmp_path: Path) -> None:
    survey, conversations = prism_rows()
    first, second = conversations[0], conversations[1]
    for item in first["conversation_history"]:
        item["if_chosen"] = None
    second["conversation_history"][3]["content"] = "EMPTY STRING"
    prism_folder(tmp_path, survey, conversations)
    context = by_name(load("prism", tmp_path))["c3"].context or ""
    assert "Answer 3 to u0 c0." in context
    assert "u0 c1" not in context
    assert "u0 c2" in context


def test_prism_shares_no_opening_between_the_sides(tmp_path: Path) -> None:
    survey, conversations = prism_rows()
    for row in conversations[3::4]:
        row["opening_prompt"] = "Hello"
    prism_folder(tmp_path, survey, conversations)
    found = load("prism", tmp_path)
    assert disjoint(found)
    assert found.notes["rows_of_both_sides"] in (2, 6)
    with pytest.raises(DataError, match=r"share the questions of 6 training rows \(e\.g\. 'Hello'\)"):
        load("prism", tmp_path, "task.overlap=refuse")


def _prism(change: Callable[[list[Row], list[Row]], Any]) -> Callable[[Path], Any]:
    def loaded(folder: Path) -> Any:
        survey, conversations = prism_rows()
        change(survey, conversations)
        prism_folder(folder, survey, conversations)
        return load("prism", folder)

    return loaded


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s, c: s.append(prism_user(0)),
            r"survey\.jsonl, line 9: the user_id 'user0' .*line 1 \(the rows are",
        ),
        (
            lambda s, c: c[5].update(conversation_id="c0"),
            r"conversations\.jsonl, line 6: the conversation_id 'c0' .*line 1 \(the rows differ\)",
        ),
        (lambda s, c: s.pop(2), r"conversations\.jsonl, line 9: the user 'user2' is not in the survey"),
        (
            lambda s, c: [one.update(opening_prompt=" ") for one in c[1:3]],
            r"conversations\.jsonl, line 2: 'opening_prompt' is empty",
        ),
        (
            lambda s, c: [one.pop("conversation_type") for one in c[1:3]],
            r"line 2: the field 'conversation_type' is missing",
        ),
        (
            lambda s, c: [one.update(conversation_history=[]) for one in c[1:3]],
            r"line 2: the opening has no response that is chosen",
        ),
        (lambda s, c: c[1].update(conversation_history=["x"]), r"line 2, conversation_history 0 should be an object"),
        (lambda s, c: s[1].update(stated_prefs=5), r"survey\.jsonl, line 2: 'stated_prefs' should be dict"),
        (
            lambda s, c: s[1]["stated_prefs"].update(safety=180),
            r"line 2, stated_prefs: 'safety' should be a number",
        ),
        (lambda s, c: s[1].update(self_description=3), r"survey\.jsonl, line 2: 'self_description' should be str"),
    ],
)
def test_bad_prism_rows_are_named(tmp_path: Path, change: Callable[[list[Row], list[Row]], Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        _prism(change)(tmp_path)
    assert "task.path=DIR" in str(caught.value)


def test_an_incomplete_conversation_of_prism_is_left_out(tmp_path: Path) -> None:
    found = _prism(lambda s, c: (c[1].update(opening_prompt=None), s[0].update(stated_prefs=None)))(tmp_path)
    assert found.notes["incomplete_rows"] == 1


def test_prism_says_what_is_missing(tmp_path: Path) -> None:
    prism_folder(tmp_path, *prism_rows())
    (tmp_path / "conversations.jsonl").unlink()
    with pytest.raises(DataError, match=r"has survey\.jsonl and lacks conversations\.jsonl or .*task\.path=null"):
        make("prism", tmp_path).prepare(download=False)
    with pytest.raises(ConfigError, match=r"task\.profile='self_descriptoin' .*did you mean 'self_description'\?"):
        composed("task=prism", "task.profile=[self_descriptoin]")
    with pytest.raises(ConfigError, match=r"task\.conversation_types is empty"):
        composed("task=prism", "task.conversation_types=[]")
    with pytest.raises(ConfigError, match=r"task\.profile is empty.* set task\.history and task\.min_history to 1"):
        composed("task=prism", "task.profile=[]", "task.min_history=0")


def test_prism_fields_are_those_of_the_codebook_and_real_openings_are_read(tmp_path: Path) -> None:
    folder = Path(real("prism"))
    codebook = (folder / "prism_codebook.txt").read_text(encoding="utf-8")
    for field in (
        *TRAITS,
        *("_".join(path) for path in DEMOGRAPHICS.values()),
        *prism_user(0),
        *prism_conversation(0, 0),
    ):
        assert field in codebook, field
    openings = [record.text("opening_prompt") for record in read_jsonl(folder / "opening_prompts_sample.jsonl")]
    assert len(openings) == 115
    conversations = [
        prism_conversation(index // 5, index % 5, opening_prompt=text) for index, text in enumerate(openings)
    ]
    prism_folder(tmp_path, [prism_user(user) for user in range(23)], conversations)
    found = load("prism", tmp_path)
    # Each user's first conversation has none before it; the real openings have two that say the same.
    assert len(by_name(found)) + found.notes["rows_of_both_sides"] == 23 * 4
    assert {row.prompt for row in by_name(found).values()} <= {text.strip() for text in openings}


# --- Community Alignment


def test_community_alignment_shows_earlier_choices_without_end_marks(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "community_alignment.csv", choice_rows())
    found = load("community_alignment", path, "task.history=2", "task.others=2")
    one = by_name(found)["3003"]
    assert (one.user, one.prompt, one.reference) == ("53", "Tell me of a3 q3.", "{}")
    assert one.context == (
        "Responses that I chose before:\n\n"
        "I asked: Tell me of a3 q1.\nI preferred: Text b on a3 q1.\n"
        "Over: Text a on a3 q1.\nOver: Text c on a3 q1.\n\n"
        "I asked: Tell me of a3 q2.\nI preferred: Text b on a3 q2.\n"
        "Over: Text a on a3 q2.\nOver: Text c on a3 q2."
    )
    assert disjoint(found)
    assert (len(found.train), len(found.eval)) == (18, 6)
    assert found.notes["rows_with_too_little_history"] == 8
    assert make("community_alignment", path).judging == "pairwise"


def test_community_alignment_reads_every_layout_alike(tmp_path: Path) -> None:
    rows = choice_rows()
    paths = [
        *("v11/community_alignment.csv", "v10/data/filtered_community_alignment.csv"),
        *("converted/default/train/0000.parquet", "v10p/default/filtered/0000.parquet", "lines/train.jsonl"),
    ]
    found = load("community_alignment", write_rows(tmp_path / "one.csv", rows))
    for path in paths:
        write_rows(tmp_path / path, rows)
        assert load("community_alignment", tmp_path / path.split("/")[0]) == found, path
    full = write_rows(tmp_path / "v10" / "data" / "full_community_alignment.csv", rows[:16])
    assert load("community_alignment", tmp_path / "v10") == found
    assert load("community_alignment", full).notes["annotators"] == 4


def test_each_prompt_of_many_annotators_is_on_one_side(tmp_path: Path) -> None:
    rows = choice_rows()
    for row in rows:
        row["first_turn_prompt"] = f"Tell me of {row['conversation_id'] % 4}."
    path = write_rows(tmp_path / "community_alignment.csv", rows)
    found = load("community_alignment", path)
    assert disjoint(found)
    assert found.notes["rows_of_both_sides"] == 24 - len(found.train) - len(found.eval) > 0
    with pytest.raises(DataError, match=r"the questions of \d+ training rows"):
        load("community_alignment", path, "task.overlap=refuse")
    kept = load("community_alignment", path, "task.overlap=allow")
    assert len(kept.train) + len(kept.eval) == 24


def test_community_alignment_counts_what_it_leaves_out(tmp_path: Path) -> None:
    rows = [*choice_rows(), *(choice_row(20 + index, 1, assigned_lang="fr") for index in range(3)), choice_row(30, 1)]
    rows[0].update(first_turn_preferred_response=None)
    rows[4].update(first_turn_response_b="<|end_of_text|>")
    # Somebody who is given one prompt twice has no other choice to show.
    rows.append(choice_row(30, 2, first_turn_prompt=rows[-1]["first_turn_prompt"]))
    found = load("community_alignment", write_rows(tmp_path / "x.csv", rows))
    assert found.notes["rows_of_other_languages"] == 3
    assert found.notes["rows_without_a_choice"] == 2
    assert found.notes["annotators"] == 9
    assert found.notes["annotators_with_too_little_history"] == 1
    assert found.notes["rows_with_too_little_history"] == 8 + 2
    with pytest.raises(DataError, match=r"task\.languages=\['de'\]: no row has .*the data has en, fr"):
        load("community_alignment", tmp_path / "x.csv", "task.languages=[de]")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conversation_id": 1}, r"line 7: the conversation_id '1' was already used in .*line 3 \(the rows differ\)"),
        ({"first_turn_preferred_response": "response_e"}, r"line 7: .* is 'response_e' and none of response_a, respon"),
        ({"annotator_id": None}, r"line 7: 'annotator_id' is empty"),
    ],
)
def test_bad_community_alignment_rows_are_named(tmp_path: Path, change: Row, message: str) -> None:
    rows = choice_rows()
    rows[5].update(change)
    if None in change.values():  # one incomplete row would be left out
        rows[6].update(change)
    with pytest.raises(DataError, match=r"community_alignment\.csv, " + message) as caught:
        load("community_alignment", write_rows(tmp_path / "community_alignment.csv", rows))
    assert "task.path=DIR" in str(caught.value)


def test_a_table_without_a_column_of_community_alignment_is_refused(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "annotator_id"} for row in choice_rows()]
    for name in ("x.csv", "x.parquet"):
        with pytest.raises(
            DataError, match=rf"{name}.*: the column 'annotator_id' is missing \(found: conversation_id"
        ):
            load("community_alignment", write_rows(tmp_path / name, rows))
    broken = write_rows(tmp_path / "x.csv", choice_rows())
    broken.write_bytes(broken.read_bytes()[:-40] + b"\xff\xfe")
    with pytest.raises(DataError, match=r"x\.csv is not UTF-8 text \(at or soon after line \d+\)"):
        load("community_alignment", broken)
    with pytest.raises(ConfigError, match=r"task\.history=0 is out of range; it must be at least 1"):
        composed("task=community_alignment", "task.history=0")
