"""What the campaign of random strikes rests on: that it goes on where it was, and would see a fault."""

import json
import signal
import time
from functools import partial
from pathlib import Path
from random import Random

import pytest

from campaign import config_values, damage, places
from campaign.runs import SMALL, Running, difference, left_over, run, wrong_message, wrong_words
from campaign.table import write_page
from campaign.tries import Held, Part, Try, run_part


def test_a_terminated_run_says_so_and_writes_its_summary(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    started = Running(*SMALL, "hydra.run.dir=run", cwd=tmp_path, more={"TMPDIR": str(temporary)})
    while not list(tmp_path.glob("cache/chosen/*")) and started.code is None:
        time.sleep(0.02)
    assert started.strike(signal.SIGTERM, 0)
    done = started.wait()
    assert done.returncode == 143, done.stderr
    assert done.stderr.endswith("error: terminated; rerun the same command to resume\n")
    assert "Traceback" not in done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["error"]) == ("failed", "terminated; rerun the same command to resume")
    assert not list(temporary.iterdir())


def test_a_folder_in_which_hydra_finds_no_room_is_named(tmp_path: Path) -> None:
    done = run(*SMALL, "hydra.run.dir=run", cwd=tmp_path, before=partial(places.limit_files, 3000))
    assert wrong_message(done, ["run cannot be written (File too large); set hydra.run.dir"]) is None, done.stderr


@pytest.mark.slow
def test_every_bad_value_of_every_key_is_refused_by_its_name() -> None:
    found: list[str] = []

    def take(value: config_values.Value) -> None:
        wrong = config_values.wrong(value)
        found.extend([] if wrong is None else [f"{value.key}={value.value!r}: {wrong}"])

    config_values.draw(60, 0, take)
    assert not found


def test_a_campaign_goes_on_where_it_was_and_makes_again_what_did_not_hold(tmp_path: Path) -> None:
    made: list[int] = []

    def attempt(one: Try) -> Held:
        made.append(one.number)
        assert not list(one.folder.iterdir())
        (one.folder / "left").touch()
        return Held(f"{one.random.random()}", "fell\u2028here\x85" if one.number == 1 else None)

    part = Part("mine", "a row", 3, attempt)
    first = list(run_part(part, tmp_path, 5, range(2), 1, again=False))
    assert [record.wrong for record in first] == [None, "fell\u2028here\x85"]
    assert (tmp_path / "5" / "mine" / "1" / "left").exists(), "the folder of what did not hold stays"
    assert not (tmp_path / "5" / "mine" / "0").exists()
    more = list(run_part(part, tmp_path, 5, range(3), 1, again=False))
    assert [record.number for record in more] == [2]
    (again,) = run_part(part, tmp_path, 5, range(3), 1, again=True)
    assert (again.number, again.case) == (1, first[1].case), "the same seed draws the same"
    assert made == [0, 1, 2, 1]
    write_page(tmp_path / "page.md", tmp_path, [part])
    page = (tmp_path / "page.md").read_text()
    assert "| `mine`: a row | 3 | 2 |  | 3 | 5 |" in page
    assert "`mine` 1, seed 5" in page


def test_what_a_strike_must_not_leave_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.arrow").write_bytes(b"x")
    (tmp_path / "summary.json.host.12.tmp").touch()
    assert left_over(tmp_path) == ["summary.json.host.12.tmp"]
    assert difference({"a": "x", "b": 1}, {"a": "y"}) == "a differs (y); b is only in one"
    assert difference({"m": {"k": 1, "l": 2}}, {"m": {"k": 1, "l": 3}}) == "m differs in l"
    assert wrong_words("error: seed=-1 is out of range", ["seed"], 1.0) is None
    for message, seconds in (("seed", 1.0), ("error: seed\n" * 13, 1.0), ("error: seed", 6.0), ("error: sede", 1.0)):
        assert wrong_words(message, ["seed"], seconds) is not None


@pytest.mark.parametrize(("name", "harm"), damage.OF_FILES, ids=lambda value: value if isinstance(value, str) else "")
def test_each_damage_of_a_file_is_one(name: str, harm: damage.Harm, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"another one's")
    path = tmp_path / "file"
    path.write_bytes(bytes(range(200)))
    path.chmod(0o644)
    harm(path, Random(1), [tmp_path / "other"])
    assert not path.is_file() or path.read_bytes() != bytes(range(200)) or path.stat().st_mode & 0o777 != 0o644
