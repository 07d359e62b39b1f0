"""PAHF (Liang et al. 2026, https://arxiv.org/abs/2602.16173): what a person with unusual habits wants brought.

    persona  "- Your favorite drink is black coffee but …:  * When you are drowsy, you prefer herbal tea …"
    scene    {"index": 1, "user": "Alex", "context": "Drowsy", "task": "I'm feeling so drowsy … bring me something …",
              "scene_objects": ["energy drink", "herbal tea", "walnuts", "black coffee"],
              "user_intent_object": "herbal tea", "user_intent_location": "pick-up"}

Forty people with thirty scenes in each of two files. In a scene a thing is to be brought ("pick-up"), one of four; or a
thing is to be put away, and the other objects of the scene are the places for it. So one choice is asked of each scene,
the object or the place, by its name.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from mipo_exp.config.fields import Count, schema
from mipo_exp.config.schema import TASKS, TaskConfig
from mipo_exp.data.base import Examples, reference
from mipo_exp.data.consistency import check_unique
from mipo_exp.data.file_task import FileTask, Layout
from mipo_exp.data.files import WAY_OUT, IncompleteError, Record, read_json_rows
from mipo_exp.data.left_out import LeftOut
from mipo_exp.data.options import letters
from mipo_exp.data.overlap import question_key
from mipo_exp.data.pahf_personas import Line, nearest, read_personas, written
from mipo_exp.errors import DataError
from mipo_exp.store.records import Example

REPOSITORY = "https://github.com/facebookresearch/PAHF"
SIDES = ("A", "B")  # of the scenes: training, evaluation
BROUGHT = "pick-up"  # the place of what is brought


@schema
class PahfConfig(TaskConfig):
    lines: Count | None


@TASKS.register("pahf")
class Pahf(FileTask):
    """Training has scenes of A and evaluation scenes of B, which ask in other words; `overlap` keeps people apart."""

    keys = PahfConfig
    config: PahfConfig
    scorer = "choice"

    def layouts(self) -> Sequence[Layout]:
        """See `FileTask.layouts`: a clone of the repository, a folder of it, or the files in one folder."""
        folders = ("data/embodied/{}/", "{}/", "")
        scenes = {
            side: tuple(folder.format("scenarios") + f"original_scenarios_{side}.json" for folder in folders)
            for side in SIDES
        }
        texts = tuple(folder.format("personas") + "original_persona.py" for folder in folders)
        return [{**scenes, "personas": (*texts, "original_personas.json")}]

    def root(self, download: bool) -> Path:
        """See `FileTask.root`; no hub has the data."""
        if self.config.path is None and self.config.hub_id is None:
            raise DataError(f"task=pahf has no task.path; get the data: git clone {REPOSITORY}, then task.path=PAHF")
        return super().root(download)

    def prepare(self, download: bool = True) -> str:
        """See `Task.prepare`."""
        self._read(LeftOut(), None)
        return super().prepare(download)

    def load(self, count_tokens: Callable[[str], int] | None = None) -> Examples:
        """See `Task.load`."""
        left_out = LeftOut()
        sides = self._read(left_out, self.config.lines)
        users = len({row.user for rows in sides.values() for row in rows})
        return self.select(sides["A"], sides["B"], {"users": users, **left_out.notes(self.config.name)})

    def _read(self, left_out: LeftOut, lines: int | None) -> dict[str, list[Example]]:
        """The examples of both sides, whose contexts have the nearest `lines`; all with None, which takes no search."""
        files = self.files(download=False)
        personas = read_personas(files["personas"][0])
        sides = {}
        for side in SIDES:
            records = read_json_rows(files[side][0])
            check_unique([record for record in records if "index" in record.values], "index")
            for record in records:
                if "user" in record.values and record.text("user") not in personas:
                    raise DataError(
                        f"{record.where}: {record.text('user')!r} has no persona in {files['personas'][0].name}; "
                        f"{WAY_OUT}"
                    )
            sides[side] = [row for _, row in left_out.read(records, partial(self._example, side, personas, lines))]
        return sides

    def _example(self, side: str, personas: Mapping[str, Sequence[Line]], count: int | None, record: Record) -> Example:
        """A scene as an example.

        Raises:
            IncompleteError: it lacks a field, its objects, or what is wanted among them.
        """
        name, user = f"{side}/{record.name('index')}", record.text("user")
        thing, place = record.text("user_intent_object").strip(), record.text("user_intent_location").strip()
        objects = [
            record.child(f"object {index}", {"name": value}).text("name").strip()
            for index, value in enumerate(record.get("scene_objects", list))
        ]
        if not objects:
            raise IncompleteError(f"{record.where}: 'scene_objects' is empty; {WAY_OUT}")
        brought = place == BROUGHT
        wanted, options = (thing, objects) if brought else (place, [one for one in objects if one != thing])
        if not {thing, wanted} <= set(objects) or len(options) < 2 or len(set(options)) < len(options):
            raise IncompleteError(
                f"{record.where}: {wanted!r} is not one of several different 'scene_objects' ({', '.join(objects)}); "
                f"{WAY_OUT}"
            )
        # The sources have the wanted one first or second, mostly.
        random.Random(f"options/{self.config.seed}/{name}").shuffle(options)
        request, choice = record.text("task").strip(), ", ".join(options)
        lines = [f"Situation: {record.text('context').strip()}", request]
        if brought:
            lines += [f"There are: {choice}.", "Which one do you bring me?"]
        else:
            lines += [f"It is about this: {thing}.", f"The places are: {choice}.", "Where do you put it?"]
        prompt, known = "\n".join(lines), personas[user]
        shown = known if count is None else nearest(known, prompt, count)
        return Example(
            id=name,
            user=user,
            question=question_key(request),
            context=written(shown),
            prompt=prompt,
            reference=reference(
                answer=letters(len(options))[options.index(wanted)],
                options=options,
                asks="object" if brought else "place",
            ),
        )
