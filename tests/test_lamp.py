"""LaMP: the official prompts, retrieval, token budgets, users, and what is said about bad files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from mipo_exp.data import lamp
from mipo_exp.data.base import Examples
from mipo_exp.data.lamp import Lamp, LampConfig
from mipo_exp.data.lamp_prompts import FORMS, profile_text, retrieve, truncate
from mipo_exp.data.lamp_users import recover_users
from mipo_exp.errors import DataError
from mipo_exp.evaluation.accuracy import measure
from tests.conftest import SCRATCH
from tests.public_files import REAL, config

EXTRACT = REAL / "lamp3_extract"
needs_real = pytest.mark.skipif(not EXTRACT.exists(), reason="no lamp3_extract in $MIPO_TEST_DATA")


def words(text: str) -> int:
    return len(text.split())


def task(cache: Path = SCRATCH, **changes: Any) -> Lamp:
    return Lamp(cast(LampConfig, config("lamp", **changes)), cache)


def prepare_and_load(lamp_task: Lamp) -> Examples:
    lamp_task.prepare(download=False)
    return lamp_task.load(words)


# For each task: two profile items, an input, a gold output, and the official prompt with both items. BM25 ranks the
# second one first; the test adds a third that shares no word with the input.
CASES: dict[int, tuple[list[dict[str, str]], str, str, str]] = {
    1: (
        [
            {"title": "Deep Nets", "abstract": "about nets"},
            {"title": "Fish Farms", "abstract": "about fish"},
        ],
        'For an author who has written the paper with the title "Ponds", which reference is related? Just answer with '
        '[1] or [2] without explanation. [1]: "Fish health" [2]: "Water fish"',
        "[1]",
        'For an author who has written the paper with the title, and "Fish Farms", and "Deep Nets" "Ponds", which '
        "reference is related? Just answer with [1] or [2] without explanation. "
        '[1]: "Fish health" [2]: "Water fish"',
    ),
    2: (
        [
            {"tag": "comedy", "description": "a funny dog"},
            {"tag": "sci-fi", "description": "a ship in space"},
        ],
        "Which tag does this movie relate to? Just answer with the tag name. tags: [sci-fi, comedy] description: "
        "Lost in space",
        "sci-fi",
        'the tag for the movie: "a ship in space" is "sci-fi" , and the tag for the movie: "a funny dog" is "comedy" . '
        "Which tag does this movie relate to? Just answer with the tag name. tags: [sci-fi, comedy] description: "
        "Lost in space",
    ),
    3: (
        [{"text": "bad soap", "score": "1"}, {"text": "great book", "score": "5"}],
        "What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, 3, 4, or 5 without "
        "further explanation. review: a fine book",
        "4",
        '5 is the score for "great book" , and 1 is the score for "bad soap" . What is the score of the following '
        "review on a scale of 1 to 5? just answer with 1, 2, 3, 4, or 5 without further explanation. review: a fine "
        "book",
    ),
    4: (
        [{"title": "Dogs", "text": "dogs bark"}, {"title": "Cats", "text": "cats sleep"}],
        "Generate a headline for the following article: Why cats are quiet",
        "Quiet Cats",
        '"Cats" is the title for "cats sleep" , and "Dogs" is the title for "dogs bark" . Generate a headline for the '
        "following article: Why cats are quiet",
    ),
    5: (
        [{"title": "On Nets", "abstract": "we study nets"}, {"title": "On Fish", "abstract": "we study fish"}],
        "Generate a title for the following abstract of a paper: All about fish",
        "Fish",
        '"On Fish" is a title for "we study fish" , and "On Nets" is a title for "we study nets" . Following the given '
        "patterns Generate a title for the following abstract of a paper: All about fish",
    ),
    6: (
        [{"title": "Lunch", "text": "shall we eat"}, {"title": "Budget", "text": "the numbers are in"}],
        "Generate a subject for the following email: the new numbers",
        "Numbers",
        '"Budget" is the title for "the numbers are in" , and "Lunch" is the title for "shall we eat" . Generate a '
        "subject for the following email: the new numbers",
    ),
    7: (
        [{"text": "rain again"}, {"text": "so much sun"}],
        "Paraphrase the following tweet without any explanation before or after it: the sun is out",
        "sun is out",
        '"so much sun" , and "rain again"  are written by a person. Following the given patterns Paraphrase the '
        "following tweet without any explanation before or after it: the sun is out",
    ),
}


def write_files(
    root: Path,
    number: int,
    train: list[dict[str, Any]],
    dev: list[dict[str, Any]],
    output: str = "5",
    inner: str = "",
) -> Path:
    for split, rows in (("train", train), ("dev", dev)):
        folder = root / f"LaMP_{number}" / inner / split
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{split}_questions.json").write_text(json.dumps(rows), encoding="utf-8")
        golds = [{"id": row["id"], "output": output} for row in rows if "id" in row]
        outputs = {"task": f"LaMP_{number}", "golds": golds}
        (folder / f"{split}_outputs.json").write_text(json.dumps(outputs), encoding="utf-8")
    return root


def row(name: str, text: str, profile: list[dict[str, str]]) -> dict[str, Any]:
    items = [{"id": f"{name}{index}", **item} for index, item in enumerate(profile)]
    return {"id": name, "input": text, "profile": items}


def rating_rows(side: str, count: int = 2) -> list[dict[str, Any]]:
    return [
        row(f"{side}{index}", f"review: {side} {index}", [{"text": f"{side} old {index} {part}", "score": "4"}])
        for index in range(count)
        for part in range(1)
    ]


# --- prompts


@pytest.mark.parametrize("number", CASES)
def test_official_prompt(number: int, tmp_path: Path) -> None:
    profile, text, output, expected = CASES[number]
    profile = [*profile, dict.fromkeys(profile[0], "nothing")]
    other = [{key: f"other {value}" for key, value in item.items()} for item in profile]
    write_files(tmp_path, number, [row("1", text, profile)], [row("2", f"{text} or not", other)], output)
    lamp_task = task(number=number, path=str(tmp_path), items=2)
    found = prepare_and_load(lamp_task)
    (example,) = found.train
    assert lamp_task.messages(example.context, example.prompt) == [{"role": "user", "content": expected}]
    assert lamp_task.messages(None, example.prompt) == [{"role": "user", "content": text}]
    assert lamp_task.messages(example.context, "") == [{"role": "user", "content": example.context}]
    assert lamp_task.messages(None, None) == [{"role": "user", "content": ""}]
    assert found.eval[0].id == "dev/2"
    assert found.notes["users"] == 2
    scores = measure(lamp_task.scorer, [example.reference], [output])
    best = {"mae": 0.0, "rmse": 0.0, "answer/unparsed_rate": 0.0, "macro_f1": 1 / 2 if number == 1 else 1 / 15}
    for name, item in scores.items():
        assert item.result() == pytest.approx(best.get(name, 1.0)), name
    if number in (1, 2):
        assert set(scores) == {"accuracy", "macro_f1", "answer/unparsed_rate"}
    elif number == 3:
        assert set(scores) == {"accuracy", "mae", "rmse", "answer/unparsed_rate"}
    else:
        assert set(scores) == {"rouge1", "rougeL"}


def test_context_as_system_message_and_instruction() -> None:
    system = task(number=3, context_role="system", instruction="Answer with one digit.")
    assert system.messages("the profile", "the input") == [
        {"role": "system", "content": "the profile"},
        {"role": "user", "content": "the input\n\nAnswer with one digit."},
    ]
    user = task(number=3, instruction="One digit.")
    assert user.messages("p", "i") == [{"role": "user", "content": "p. i\n\nOne digit."}]


def test_citation_input_without_the_word_title_gets_the_titles_in_front() -> None:
    assert task(number=1).messages('"T"', "Which?") == [{"role": "user", "content": '"T", and Which?'}]


@pytest.mark.parametrize(
    ("number", "text", "query"),
    [
        (1, 'the title "A", which? [1]: "B "quoted" C" [2]: "D"', 'B "quoted" C D'),
        (2, "tags: [a] description: x: y", "x: y"),
        (3, "review: good review: yes", "good review: yes"),
        (4, "for the article: x", "x"),
        (5, "for the following abstract: x paper: y", "x paper: y"),
        (5, "for the following abstract of a paper: x abstract: y", "x abstract: y"),
        (6, "the email: a: b", "a: b"),
        (7, "no mark", "no mark"),
    ],
)
def test_retrieval_query(number: int, text: str, query: str) -> None:
    assert FORMS[number].query(text) == query


# --- retrieval


def test_retrieval_methods() -> None:
    profile = [
        {"text": "red apples taste nice", "score": "1", "date": "2015-03-01"},
        {"text": "green pears", "score": "2", "date": "2016-10-01"},
        {"text": "a dog", "score": "3", "date": "2016-2-01"},
        {"text": "a cat", "score": "4", "date": "2014-01-01"},
    ]

    def scores(method: str, count: int, items: list[dict[str, str]] = profile, seed: str = "s") -> list[str]:
        return [item["score"] for item in retrieve(FORMS[3], method, "review: red apples", items, count, seed)]

    assert scores("bm25", 3) == ["1", "2", "3"]  # equal scores in file order
    assert scores("recency", 4) == ["2", "3", "1", "4"]  # 2016-10 is later than 2016-2
    undated = [{key: value for key, value in item.items() if key != "date"} for item in profile]
    assert scores("recency", 2, undated) == ["4", "3"]
    assert scores("random", 4) == scores("random", 4)
    assert sorted(scores("random", 9)) == ["1", "2", "3", "4"]
    assert len({tuple(scores("random", 2, seed=str(seed))) for seed in range(20)}) > 3
    assert scores("bm25", 2, [{"text": "", "score": "1"}]) == ["1"]


def test_bm25_searches_titles_and_texts_together() -> None:
    profile = [{"title": "x", "text": "y"}, {"title": "cats", "text": "y"}, {"title": "x", "text": "z"}]
    found = retrieve(FORMS[4], "bm25", "article: cats", profile, 1, "s")
    assert found == [profile[1]]


# --- budgets


def test_items_are_cut_to_equal_shares_and_short_ones_leave_tokens_to_the_next() -> None:
    """Budget by hand, in words: 40 for the prompt, input 4 → 36 for the profile; minus 1 and 2 for the joint: 33, so 16
    for each of two items. The frame `4 is the score for " " ` is 7 words: 9 words of text. A first item of 2 words
    leaves 7 more to the second: 16."""
    long = " ".join(f"w{index}" for index in range(30))
    text = "review: one two three"

    def shown(first: str, second: str) -> list[int]:
        items = [{"text": first, "score": "4"}, {"text": second, "score": "4"}]
        context = profile_text(FORMS[3], text, items, 40, words)
        assert context is not None
        parts = context.split(" , and ")
        return [words(part.split('"')[1]) for part in parts]

    assert shown(long, long) == [9, 9]
    assert shown("two words", long) == [2, 16]


def test_a_long_input_takes_at_most_its_share_and_less_if_the_items_do_not_fit() -> None:
    """60 % of 50 leaves 20 words: (20 − 1 − 2) // 2 = 8, of which the frame takes 7."""
    items = [{"text": "a b c d e f g h", "score": "4"}] * 2
    text = "review: " + "x " * 200
    both = '4 is the score for "a" , and 4 is the score for "a" '
    assert profile_text(FORMS[3], text, items, 50, words) == both
    # Of 40, 60 % leaves 16 and (16 − 3) // 2 = 6 is too small; 50 % leaves 20.
    assert profile_text(FORMS[3], text, items, 40, words) == both
    # Not even 17 words hold two items; one gets 17 − 0.5 · 17 − 1 = 8, of which the frame takes 7.
    assert profile_text(FORMS[3], text, items, 17, words) == '4 is the score for "a" '
    assert profile_text(FORMS[3], text, items, 8, words) is None


def test_truncation_keeps_whole_words_within_the_limit() -> None:
    assert truncate("one  two three", 2, words) == "one  two"
    assert truncate("one two", 2, words) == "one two"
    assert truncate("abcdef gh", 3, len) == "abc"
    assert truncate("abc de fgh", 7, len) == "abc de"


def test_braces_in_texts_are_no_slots() -> None:
    items = [{"text": "{score} {x}", "score": "{text}"}]
    assert profile_text(FORMS[3], "review: x", items, 100, words) == '{text} is the score for "{score} {x}" '


def test_rows_without_usable_profile_are_left_out_and_counted(tmp_path: Path) -> None:
    train = [*rating_rows("t"), row("empty", "review: y", [])]
    train[1]["profile"][0]["score"] = "word " * 60  # a frame that fits no budget
    write_files(tmp_path, 3, train, rating_rows("d"))
    found = task(path=str(tmp_path), max_prompt_tokens=40).load(words)
    assert [example.id for example in found.train] == ["train/t0"]
    assert (found.notes["rows_without_profile"], found.notes["rows_whose_profile_does_not_fit"]) == (1, 1)


def test_token_counts_are_needed(tmp_path: Path) -> None:
    assert Lamp.needs_tokenizer
    with pytest.raises(ValueError, match="needs count_tokens"):
        task(path=str(tmp_path)).load(None)


# --- users


def test_users_are_rows_that_share_half_a_profile() -> None:
    def profile(*numbers: int) -> list[dict[str, str]]:
        return [{"text": f"item {number}", "date": str(index)} for index, number in enumerate(numbers)]

    rows = [
        profile(0, 1, 2, 3),  # user 0
        profile(10, 11, 12, 3),  # shares one text only: somebody else
        profile(2, 3, 4, 5),  # a later window of user 0
        [],
        profile(4, 5, 6, 7, 8, 9),  # the next window: linked through the one before
        profile(10, 11),
    ]
    assert recover_users(rows) == [0, 1, 0, 2, 0, 1]


def test_common_texts_do_not_join_strangers() -> None:
    common = [{"text": "Great!", "score": "5"}]
    rows = [common + [{"text": f"own {user} {part}", "score": "5"} for part in range(3)] for user in range(200)]
    assert len(set(recover_users(rows))) == 200


# --- files


@pytest.mark.parametrize("given", ["above", "task", "new"])
def test_folder_may_be_given_at_any_depth(tmp_path: Path, given: str) -> None:
    profile, text, output, _ = CASES[2]
    other = [{"tag": "classic", "description": "other"}]
    write_files(tmp_path, 2, [row("1", text, profile)], [row("2", "description: b", other)], output, inner="new")
    folder = {"above": tmp_path, "task": tmp_path / "LaMP_2", "new": tmp_path / "LaMP_2" / "new"}[given]
    assert len(task(number=2, path=str(folder)).load(words).train) == 1


def test_time_split_has_its_own_folder(tmp_path: Path) -> None:
    write_files(tmp_path, 3, rating_rows("t"), rating_rows("d"))
    write_files(tmp_path / "time", 3, rating_rows("t", 3), rating_rows("d"))
    assert len(task(path=str(tmp_path)).load(words).train) == 2
    assert len(task(path=str(tmp_path), split="time").load(words).train) == 3


def test_downloads_follow_the_servers_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    local = write_files(tmp_path / "server", 3, rating_rows("t"), rating_rows("d"))

    def fake(url: str, path: Path) -> None:
        asked.append(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((local / "LaMP_3" / path.parent.name / path.name).read_bytes())

    monkeypatch.setattr(lamp, "download_json", fake)
    monkeypatch.setattr(lamp, "READ_EARLY_BYTES", 0)  # the files served here are all of LaMP-3
    for number, split, folder in (
        (2, "user", "LaMP_2/new"),
        (2, "time", "time/LaMP_2/new"),
        (5, "time", "time/LaMP_5"),
    ):
        asked.clear()
        task(tmp_path, number=number, split=split, base_url="https://host/LaMP/").prepare()
        assert asked[0] == f"https://host/LaMP/{folder}/train/train_questions.json"
        assert asked[3] == f"https://host/LaMP/{folder}/dev/dev_outputs.json"
    here = task(tmp_path)
    with pytest.raises(DataError, match=r"train_questions\.json of LaMP_3 is not on this machine yet"):
        here.prepare(download=False)
    here.prepare()
    assert here.prepare(download=False) == task(path=str(local)).prepare(download=False)
    assert len(here.load(words).train) == 2
    assert (tmp_path / "data" / "lamp" / "LaMP_3" / "dev" / "dev_outputs.json").is_file()


def _drop(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda question: question.pop(key)


def test_a_damaged_row_is_found_before_a_tokenizer_is_asked_for(tmp_path: Path) -> None:
    rows = rating_rows("t", 3)
    for row in rows[1:]:
        row.pop("input")
    write_files(tmp_path, 3, rows, rating_rows("d"))
    with pytest.raises(DataError, match="row 1: the field 'input' is missing"):
        task(path=str(tmp_path)).prepare(download=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("id"), r"row 1: the field 'id' is missing \(found: input, profile\)"),
        (_drop("input"), r"row 1: the field 'input' is missing"),
        (_drop("profile"), r"row 1: the field 'profile' is missing"),
        (lambda q: q.update(id="t0"), r"row 1: the id 't0' was already used in .*row 0"),
        (lambda q: q.update(profile={}), r"row 1: 'profile' should be list and is dict"),
        (lambda q: q["profile"][0].pop("score"), r"row 1, profile item 0: the field 'score' is missing"),
        (lambda q: q["profile"][0].update(text=None), r"row 1, profile item 0: 'text' should be str and is NoneType"),
        (lambda q: q["profile"].append("x"), r"row 1, profile item 1 should be an object and is str"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    train = rating_rows("t", 3)
    write_files(tmp_path, 3, train, rating_rows("d"))
    for row in train[1:]:
        change(row)
    (tmp_path / "LaMP_3" / "train" / "train_questions.json").write_text(json.dumps(train), encoding="utf-8")
    with pytest.raises(DataError, match=r"train_questions\.json, " + message):
        task(path=str(tmp_path)).load(words)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("questions", "<!DOCTYPE html><p>404", r"train_questions\.json is an HTML page \(line 1"),
        ("outputs", "\n <html>", r"train_outputs\.json is an HTML page"),
        ("questions", "", r"train_questions\.json is empty"),
        ("questions", "[]", r"train_questions\.json holds no rows"),
        ("questions", '[{"id": "t0", "inp', r"train_questions\.json, line 1: not valid JSON"),
        ("questions", "{}", r"train_questions\.json holds a dict where a list of rows is expected"),
        ("outputs", "[]", r"train_outputs\.json holds a list instead of"),
        ("outputs", '{"task": "LaMP_4", "golds": []}', r"train_outputs\.json is of LaMP_4, and task\.number=3"),
        ("outputs", '{"task": "LaMP_3"}', r"train_outputs\.json: the field 'golds' is missing \(found: task\)"),
        (
            "outputs",
            '{"task": "LaMP_3", "golds": [{"id": "t0", "output": "6"}]}',
            r"train_outputs\.json, row 0: the output '6' is none of 1, 2, 3, 4, 5",
        ),
        (
            "outputs",
            '{"task": "LaMP_3", "golds": [{"id": "t0", "output": 5}]}',
            r"train_outputs\.json, row 0: 'output' should be str and is int",
        ),
        (
            "outputs",
            '{"task": "LaMP_3", "golds": [{"id": "t0", "output": "5"}]}',
            r"train_questions\.json, row 1: train_outputs\.json has no output for the id 't1'",
        ),
    ],
)
def test_bad_files_are_named(tmp_path: Path, file: str, content: str, message: str) -> None:
    write_files(tmp_path, 3, rating_rows("t", 3), rating_rows("d"))
    (tmp_path / "LaMP_3" / "train" / f"train_{file}.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        prepare_and_load(task(path=str(tmp_path)))


def test_a_row_without_an_output_is_left_out(tmp_path: Path) -> None:
    write_files(tmp_path, 3, rating_rows("t", 3), rating_rows("d"))
    whole = task(path=str(tmp_path)).load(words)
    path = tmp_path / "LaMP_3" / "train" / "train_outputs.json"
    outputs = json.loads(path.read_text())
    del outputs["golds"][1]["output"]
    path.write_text(json.dumps(outputs), encoding="utf-8")
    found = task(path=str(tmp_path)).load(words)
    assert (whole.notes["incomplete_rows"], found.notes["incomplete_rows"]) == (0, 1)
    assert [row.id for row in found.train] == ["train/t0", "train/t2"]


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no LaMP_3/train/train_questions\.json"):
        task(path=str(tmp_path)).prepare(download=False)
    write_files(tmp_path, 3, rating_rows("t"), rating_rows("d"))
    (tmp_path / "LaMP_3" / "dev" / "dev_outputs.json").unlink()
    with pytest.raises(DataError, match=r"dev_outputs\.json does not exist"):
        task(path=str(tmp_path)).prepare(download=False)


def test_mails_without_their_texts_are_explained(tmp_path: Path) -> None:
    write_files(tmp_path, 6, [{"id": "1", "profile": [{"id": "2"}]}], [{"id": "3", "profile": [{"id": "4"}]}])
    with pytest.raises(DataError, match=r"row 0: LaMP-6 is published as ids only"):
        task(number=6, path=str(tmp_path)).load(words)


def test_unknown_movie_tags_are_named(tmp_path: Path) -> None:
    assert len(FORMS[2].answers) == len(set(FORMS[2].answers)) == 15
    write_files(tmp_path, 2, [row("1", "description: a", [])], [row("2", "description: b", [])], output="western")
    with pytest.raises(DataError, match=r"the output 'western' is none of sci-fi, based on a book"):
        task(number=2, path=str(tmp_path)).load(words)


# --- the real extract


@needs_real
def test_real_extract_is_refused_since_its_users_are_on_both_sides() -> None:
    with pytest.raises(DataError, match=r"share 4 users \(e\.g\. 'user-00000'; 48 training rows are theirs\)"):
        task(path=str(EXTRACT)).load(words)


@needs_real
def test_real_extract_keeps_all_rows_when_overlap_is_allowed() -> None:
    found = task(path=str(EXTRACT), overlap="allow").load(words)
    assert (len(found.train), len(found.eval)) == (48, 32)
    assert (found.notes["users"], found.notes["shared_users"]) == (4, 4)
    by_user = {example.user for example in found.train if example.id.startswith("train/31")}
    assert len(by_user) == 1
    gold = [example.reference for example in found.eval]
    fives = measure("lamp_rating", gold, ["5"] * len(gold))["mae"].result()
    # Of the 32 ratings 17 are 5, 11 are 4, one is 3 and three are 1.
    assert fives == pytest.approx((11 * 1 + 1 * 2 + 3 * 4) / 32)
    for example in found.train:
        assert example.context is not None
        assert example.context.count(" is the score for ") >= 4


@needs_real
def test_real_extract_can_be_split_by_user() -> None:
    first = task(path=str(EXTRACT), overlap="split").load(words)
    assert (len(first.train), len(first.eval)) == (24, 16)
    assert not {example.user for example in first.train} & {example.user for example in first.eval}
    assert first == task(path=str(EXTRACT), overlap="split").load(words)
    eval_users = {
        frozenset(
            example.user or "" for example in task(path=str(EXTRACT), overlap="split", seed=seed).load(words).eval
        )
        for seed in range(4)
    }
    assert len(eval_users) > 1


@needs_real
@pytest.mark.parametrize("retrieval", ["bm25", "recency", "random"])
def test_real_prompts_keep_to_the_budget(retrieval: str) -> None:
    lamp_task = task(path=str(EXTRACT / "LaMP_3"), overlap="split", retrieval=retrieval, max_prompt_tokens=200, items=3)
    for example in lamp_task.load(words).train:
        (message,) = lamp_task.messages(example.context, example.prompt)
        spare = max(0, words(example.prompt) - 120)
        assert words(message["content"]) <= 200 + spare
