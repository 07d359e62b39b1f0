"""The templates of the word problems: a text, the range of each number in it, and the formula of the answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

NAMES = (
    *("Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Hugo", "Ines", "Jonas"),
    *("Kira", "Leo", "Maria", "Noah", "Olga", "Paul", "Rosa", "Sam", "Tara", "Victor"),
)


@dataclass(frozen=True)
class Template:
    """One kind of problem.

    `text` has slots for `name`, the `numbers` and the `derived` values, which are computed from the numbers so that
    divisions come out even. `answer` takes the numbers by name.
    """

    name: str
    text: str
    numbers: Mapping[str, Sequence[int]]
    answer: Callable[..., int]
    derived: Mapping[str, Callable[..., int]] = field(default_factory=dict)


SMALL, MIDDLE, LARGE = range(2, 10), range(10, 31), range(40, 100)

TEMPLATES: tuple[Template, ...] = (
    # One step
    Template(
        "marbles",
        "{name} has {a} marbles and buys {b} more. How many marbles does {name} have now?",
        {"a": MIDDLE, "b": SMALL},
        lambda a, b: a + b,
    ),
    Template(
        "balloons",
        "There are {a} balloons at a party. {b} of them burst. How many balloons are left?",
        {"a": LARGE, "b": MIDDLE},
        lambda a, b: a - b,
    ),
    Template(
        "egg_boxes",
        "A box holds {a} eggs. How many eggs are in {b} full boxes?",
        {"a": range(6, 13), "b": range(2, 13)},
        lambda a, b: a * b,
    ),
    Template(
        "sharing_sweets",
        "{name} shares {total} sweets equally among {a} friends. How many sweets does each friend get?",
        {"a": SMALL, "b": range(3, 13)},
        lambda a, b: b,
        {"total": lambda a, b: a * b},
    ),
    Template(
        "age_later",
        "{name} is {a} years old. How old will {name} be in {b} years?",
        {"a": range(5, 60), "b": range(3, 20)},
        lambda a, b: a + b,
    ),
    Template(
        "change",
        "{name} pays for a book that costs ${a} with a $100 bill. How many dollars of change does {name} get?",
        {"a": range(11, 90)},
        lambda a: 100 - a,
    ),
    Template(
        "legs",
        "A spider has 8 legs. How many legs do {a} spiders have?",
        {"a": range(2, 60)},
        lambda a: 8 * a,
    ),
    Template(
        "weeks",
        "{name} goes on a journey that lasts {a} weeks. How many days is that?",
        {"a": range(2, 20)},
        lambda a: 7 * a,
    ),
    Template(
        "difference_books",
        "{name} has {more} books and a neighbour has {a} books. How many more books does {name} have?",
        {"a": MIDDLE, "b": SMALL},
        lambda a, b: b,
        {"more": lambda a, b: a + b},
    ),
    Template(
        "tables",
        "{total} guests sit down at tables for {a}. All tables are full. How many tables are there?",
        {"a": range(3, 9), "b": range(3, 15)},
        lambda a, b: b,
        {"total": lambda a, b: a * b},
    ),
    Template(
        "half_ribbon",
        "A ribbon is {total} centimetres long. {name} uses half of it. How many centimetres does {name} use?",
        {"a": range(5, 60)},
        lambda a: a,
        {"total": lambda a: 2 * a},
    ),
    Template(
        "twice_as_old",
        "{name} is {a} years old. {name}'s aunt is three times as old. How old is the aunt?",
        {"a": range(6, 25)},
        lambda a: 3 * a,
    ),
    # Two steps
    Template(
        "bus_stop",
        "A bus carries {a} passengers. At a stop {b} get off and {c} get on. How many passengers are on the bus now?",
        {"a": range(20, 41), "b": range(2, 15), "c": SMALL},
        lambda a, b, c: a - b + c,
    ),
    Template(
        "pens_and_notebook",
        "{name} buys {a} pens for ${b} each and a notebook for ${c}. How many dollars does {name} pay in total?",
        {"a": SMALL, "b": range(2, 6), "c": range(3, 13)},
        lambda a, b, c: a * b + c,
    ),
    Template(
        "apples_in_bags",
        "{name} packs {a} bags with {b} apples each and then eats {c} of the apples. How many apples are left?",
        {"a": range(3, 9), "b": range(4, 11), "c": range(1, 6)},
        lambda a, b, c: a * b - c,
    ),
    Template(
        "chickens_and_cows",
        "A farm has {a} chickens and {b} cows. A chicken has 2 legs and a cow has 4 legs. How many legs do the animals "
        "have altogether?",
        {"a": SMALL, "b": SMALL},
        lambda a, b: 2 * a + 4 * b,
    ),
    Template(
        "saving",
        "{name} has ${a} and saves ${b} every week. How many dollars does {name} have after {c} weeks?",
        {"a": MIDDLE, "b": SMALL, "c": SMALL},
        lambda a, b, c: a + b * c,
    ),
    Template(
        "stickers",
        "{name} has {a} stickers, gives {b} to a brother and {c} to a sister. How many stickers does {name} keep?",
        {"a": LARGE, "b": range(5, 20), "c": range(5, 20)},
        lambda a, b, c: a - b - c,
    ),
    Template(
        "pages_left",
        "A book has {a} pages. {name} reads {b} pages a day for {c} days. How many pages are left to read?",
        {"a": range(100, 151), "b": range(5, 16), "c": range(2, 6)},
        lambda a, b, c: a - b * c,
    ),
    Template(
        "twice_as_many",
        "{name} picks {a} flowers, and {name}'s mother picks twice as many. How many flowers do they pick together?",
        {"a": range(4, 30)},
        lambda a: 3 * a,
    ),
    Template(
        "two_crates",
        "One crate holds {a} bottles and another holds {b} bottles more. How many bottles do the two crates hold "
        "together?",
        {"a": MIDDLE, "b": SMALL},
        lambda a, b: 2 * a + b,
    ),
    Template(
        "speed",
        "A car drives {a} kilometres an hour for {b} hours and then {c} kilometres more. How many kilometres does it "
        "drive in total?",
        {"a": range(30, 91, 10), "b": range(2, 5), "c": range(5, 16)},
        lambda a, b, c: a * b + c,
    ),
    Template(
        "cinema",
        "A cinema has {a} rows with {b} seats each. {c} seats are taken. How many seats are free?",
        {"a": range(5, 11), "b": range(6, 13), "c": range(5, 26)},
        lambda a, b, c: a * b - c,
    ),
    Template(
        "share_the_rest",
        "{name} has {total} cookies, eats {c} and shares the rest equally among {a} friends. How many cookies does "
        "each friend get?",
        {"a": range(2, 7), "b": range(3, 10), "c": range(1, 6)},
        lambda a, b, c: b,
        {"total": lambda a, b, c: a * b + c},
    ),
    Template(
        "teams",
        "{a} girls and {b} boys form teams of {size}. Everybody is in a team. How many teams are there?",
        {"size": range(3, 7), "n": range(4, 9), "a": range(5, 9)},
        lambda size, n, a: n,
        {"b": lambda size, n, a: size * n - a},
    ),
    Template(
        "hourly_wage",
        "{name} earns ${a} an hour and works {b} hours a day. How many dollars does {name} earn in {c} days?",
        {"a": range(8, 16), "b": range(2, 7), "c": range(2, 6)},
        lambda a, b, c: a * b * c,
    ),
    Template(
        "three_days",
        "{name} runs {a} kilometres on Monday, {b} on Tuesday and {c} on Wednesday. How many kilometres is that in "
        "total?",
        {"a": SMALL, "b": SMALL, "c": SMALL},
        lambda a, b, c: a + b + c,
    ),
    Template(
        "discount",
        "A jacket costs ${a}. In a sale it is ${b} cheaper. How many dollars do two jackets cost in the sale?",
        {"a": range(40, 81), "b": range(5, 16)},
        lambda a, b: 2 * (a - b),
    ),
    Template(
        "older_sister",
        "{name} is {a} years old. A sister is {b} years older. How old are the two together?",
        {"a": range(5, 20), "b": SMALL},
        lambda a, b: 2 * a + b,
    ),
    Template(
        "fish_tanks",
        "{name} has {a} tanks with {b} fish each and buys {c} more fish. How many fish does {name} have?",
        {"a": range(2, 7), "b": range(5, 13), "c": range(3, 10)},
        lambda a, b, c: a * b + c,
    ),
    # Three steps
    Template(
        "lemonade",
        "{name} sells {a} glasses of lemonade for ${b} each and {c} cookies for $1 each. The ingredients cost ${d}. "
        "How many dollars of profit does {name} make?",
        {"a": range(10, 21), "b": range(2, 5), "c": range(5, 16), "d": range(4, 16)},
        lambda a, b, c, d: a * b + c - d,
    ),
    Template(
        "two_kinds_of_ticket",
        "A family buys {a} tickets for adults at ${b} each and {c} tickets for children at ${d} each. How many dollars "
        "do they pay in total?",
        {"a": range(2, 4), "b": range(9, 16), "c": range(2, 5), "d": range(4, 9)},
        lambda a, b, c, d: a * b + c * d,
    ),
    Template(
        "library",
        "A library has {a} books. It buys {b} boxes with {c} books each and gives away {d} books. How many books does "
        "it have now?",
        {"a": range(100, 201, 10), "b": range(2, 6), "c": range(10, 21), "d": range(5, 30)},
        lambda a, b, c, d: a + b * c - d,
    ),
    Template(
        "split_bill",
        "{a} friends order pizzas for ${b} and drinks for ${c}. They share the bill equally. How many dollars does "
        "each friend pay?",
        {"a": range(2, 7), "n": range(8, 15), "c": range(4, 12)},
        lambda a, n, c: n,
        {"b": lambda a, n, c: a * n - c},
    ),
    Template(
        "garden_rows",
        "{name} plants {a} rows of {b} tulips and {c} rows of {d} roses. How many flowers does {name} plant?",
        {"a": range(2, 7), "b": range(5, 11), "c": range(2, 7), "d": range(5, 11)},
        lambda a, b, c, d: a * b + c * d,
    ),
    Template(
        "change_from_items",
        "{name} has ${a} and buys {b} toy cars for ${c} each and a puzzle for ${d}. How many dollars are left?",
        {"a": range(60, 101), "b": range(2, 6), "c": range(3, 8), "d": range(5, 16)},
        lambda a, b, c, d: a - b * c - d,
    ),
    Template(
        "half_then_some",
        "A baker makes {total} rolls, sells half of them in the morning and {b} in the afternoon. How many rolls are "
        "left?",
        {"a": range(30, 71), "b": range(5, 26)},
        lambda a, b: a - b,
        {"total": lambda a, b: 2 * a},
    ),
    Template(
        "perimeter",
        "A rectangular field is {a} metres long and {b} metres wide. {name} walks around it {c} times. How many metres "
        "does {name} walk?",
        {"a": range(20, 61, 5), "b": range(10, 31, 5), "c": range(2, 5)},
        lambda a, b, c: 2 * (a + b) * c,
    ),
    Template(
        "practice_minutes",
        "{name} practises the piano for {a} minutes on each of {b} days and for {c} minutes on each of 2 days. How "
        "many minutes is that in total?",
        {"a": range(10, 31, 5), "b": range(3, 6), "c": range(40, 61, 5)},
        lambda a, b, c: a * b + 2 * c,
    ),
    Template(
        "three_boxes",
        "{name} has three boxes. The first holds {a} pencils, the second {b} more than the first, and the third twice "
        "as many as the first. How many pencils are there in all?",
        {"a": range(5, 21), "b": SMALL},
        lambda a, b: 4 * a + b,
    ),
    Template(
        "water_tank",
        "A tank holds {a} litres of water. {b} buckets of {c} litres are taken out, and then {d} litres of rain fall "
        "in. How many litres are in the tank now?",
        {"a": range(100, 151), "b": range(3, 8), "c": range(5, 11), "d": range(5, 21)},
        lambda a, b, c, d: a - b * c + d,
    ),
    Template(
        "parking",
        "A car park has {a} floors with {b} places each. {c} cars are parked, and then {d} more arrive. How many "
        "places are free?",
        {"a": range(3, 6), "b": range(20, 31), "c": range(15, 36), "d": range(3, 16)},
        lambda a, b, c, d: a * b - c - d,
    ),
)
