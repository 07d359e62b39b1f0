"""What is read from files of the public formats, and what is said about bad ones."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mipo_exp.data.downloads import download_json
from mipo_exp.data.files import parse_json, read_csv, read_json, read_jsonl
from mipo_exp.errors import DataError
from tests.public_files import GSM8K_ROW, gsm8k_folder, prepare_and_load, task, write_parquet


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"train\.jsonl is empty"),
        ("\n \n", r"train\.jsonl is empty"),
        ("<!DOCTYPE html><html>", r"train\.jsonl is an HTML page \(line 1"),
        (json.dumps(GSM8K_ROW) + '\n{"question": "Wha', r"train\.jsonl, line 2: not valid JSON"),
        (json.dumps(GSM8K_ROW) + "\n[1]\n", r"train\.jsonl, line 2: a list instead of a JSON object"),
        ('{"question": "x"}', r"train\.jsonl, line 1: the field 'answer' is missing \(found: question\)"),
        ('{"q": "x"}', r"train\.jsonl, line 1: the field 'question' is missing \(found: q\)"),
        ('{"question": 3, "answer": "#### 3"}', r"train\.jsonl, line 1: 'question' should be str and is int"),
        ('{"question": " ", "answer": "#### 3"}', r"train\.jsonl, line 1: 'question' is empty"),
        ('{"question": "x", "answer": "3"}', r"train\.jsonl, line 1: 'answer' does not end in '#### <number>'"),
        ('{"question": "x", "answer": "#### three"}', r"line 1: 'answer' does not end in '#### <number>' \('three'\)"),
        (b'{"question": "\xff"}', r"train\.jsonl is not UTF-8 text \(byte 14\)"),
    ],
)
def test_bad_lines_are_named_with_a_way_out(tmp_path: Path, content: str | bytes, message: str) -> None:
    broken = gsm8k_folder(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        prepare_and_load(broken)
    assert "task.path=DIR" in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    gsm8k_folder(tmp_path, json.dumps(GSM8K_ROW))
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(DataError, match=r"has train\.jsonl and lacks test\.jsonl or main/test-\*\.parquet"):
        task("gsm8k", path=str(tmp_path)).prepare(download=False)
    with pytest.raises(DataError, match=r"has no ARC-Easy/train-\*\.parquet and .*ARC-Easy-Train\.jsonl"):
        task("arc", path=str(tmp_path)).prepare(download=False)
    with pytest.raises(DataError, match=r"does not exist"):
        read_json(tmp_path / "none.json")


def test_truncated_json_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('[{"id": "1"},\n {"id": "2"', encoding="utf-8")
    with pytest.raises(DataError, match=r"x\.json, line 2: not valid JSON .*\(the file seems truncated\)"):
        read_json(path)


def test_json_lines_may_hold_unicode_line_separators(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": "one\u2028line"}\r\n', encoding="utf-8")
    assert [record.values for record in read_jsonl(path)] == [{"a": "one\u2028line"}]


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train-0.parquet"
    write_parquet(tmp_path / "test-0.parquet", [GSM8K_ROW])
    path.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(DataError, match=r"train-0\.parquet is not a readable parquet file"):
        task("gsm8k", path=str(tmp_path)).load(None)
    write_parquet(path, [{"question": "x"}])
    with pytest.raises(DataError, match=r"train-0\.parquet: the column 'answer' is missing \(found: question\)"):
        task("gsm8k", path=str(tmp_path)).load(None)
    pq.write_table(pa.table({"question": pa.array([], pa.string()), "answer": pa.array([], pa.string())}), path)
    with pytest.raises(DataError, match=r"train-0\.parquet: no rows"):
        task("gsm8k", path=str(tmp_path)).load(None)


def test_csv_keeps_quotes_commas_and_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('\ufeffa, b\r\n"one, ""two""\nthree",4\r\n\r\n5,6\r\n', encoding="utf-8", newline="")
    records = read_csv(path)
    assert [record.values for record in records] == [{"a": 'one, "two"\nthree', "b": "4"}, {"a": "5", "b": "6"}]
    assert [record.where for record in records] == [f"{path}, line 2", f"{path}, line 5"]


def test_csv_takes_a_field_of_any_length(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n" + 200_000 * "x" + ",1\n", encoding="utf-8")
    assert len(read_csv(path)[0].values["a"]) == 200_000


def test_data_that_is_not_on_this_machine_is_not_fetched_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    missing = "openai/no-such-data-set-on-this-machine"
    with pytest.raises(DataError, match=r"is not on this machine yet; download it .*task\.path=DIR"):
        task("gsm8k", hub_id=missing).prepare(download=False)
    with pytest.raises(DataError, match=r"neither in the hub's local cache nor reachable .*task\.path=DIR"):
        task("arc", hub_id=missing).prepare(download=True)
    with pytest.raises(DataError, match=r"neither task\.path nor task\.hub_id"):
        task("gsm8k", hub_id=None).prepare(download=False)


def test_download_takes_json_only(tmp_path: Path) -> None:
    page, good, cut = tmp_path / "page", tmp_path / "good", tmp_path / "cut"
    page.write_text("\n<!DOCTYPE html>", encoding="utf-8")
    good.write_text("[1]", encoding="utf-8")
    cut.write_text("[1", encoding="utf-8")
    target = tmp_path / "deep" / "data.json"
    with pytest.raises(DataError, match="answers with an HTML page instead of JSON"):
        download_json(page.as_uri(), target)
    with pytest.raises(DataError, match="sent no complete JSON"):
        download_json(cut.as_uri(), target)
    with pytest.raises(DataError, match=r"cannot be downloaded .*task\.path=DIR"):
        download_json((tmp_path / "none").as_uri(), target)
    assert not target.exists()
    download_json(good.as_uri(), target)
    assert target.read_text(encoding="utf-8") == "[1]"
    assert [path.name for path in target.parent.iterdir()] == ["data.json"]


NOT_READABLE = {
    "half a pair": (r'"\ud83d"', r"\\ud83d is half of a surrogate pair"),
    "the other half": (r'"\\ud83d\ude00"', r"\\ude00 is half of a surrogate pair"),
    "a key": (r'{"\udfff": 1}', r"\\udfff is half of a surrogate pair"),
    "digits": ("9" * 6000, r"a whole number of more than 4300 digits; write it as a text"),
    "NaN": ("NaN", r"not valid JSON \(NaN is no number there; write null\)"),
    "infinity": ('["NaN", -Infinity]', r"not valid JSON \(-Infinity is no number there"),
    "depth": ("[" * 100_000 + "]" * 100_000, r"lists or objects are nested too deeply"),
}


@pytest.mark.parametrize("name", NOT_READABLE)
def test_json_without_a_value_here_is_named_with_its_line(name: str, tmp_path: Path) -> None:
    text, message = NOT_READABLE[name]
    whole = f'[{{"a": "{"8" * 6000}"}},\n {{"a": {text}}}]'
    (tmp_path / "x.json").write_text(whole, encoding="utf-8")
    with pytest.raises(DataError, match=r"x\.json, line 2: " + message):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.jsonl").write_text(f'{{"a": "\U0001f600"}}\n\n{{"a": {text}}}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"x\.jsonl, line 3: " + message + ".*task\\.path=DIR"):
        read_jsonl(tmp_path / "x.jsonl")


def test_whole_surrogate_pairs_and_escaped_backslashes_are_text() -> None:
    assert parse_json(r'["\ud83d\ude00", "\\ud800", "NaN"]', "x") == ["\U0001f600", "\\ud800", "NaN"]
