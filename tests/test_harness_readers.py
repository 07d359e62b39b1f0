"""The answer readers against lm-evaluation-harness's own filters and metric, on generated and adversarial responses."""

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from mipo_exp.data.base import reference
from mipo_exp.data.files import Record
from mipo_exp.data.gsm8k import gold_answer
from mipo_exp.data.options import letters
from mipo_exp.evaluation.accuracy import measure
from mipo_exp.evaluation.answers import flexible_number, read_letter, strict_number

lm_eval = pytest.importorskip("lm_eval", reason="pip install 'mipo-exp[eval]'")

HAND_WRITTEN = [
    *("", " ", "\n", ".", "..", "...", ",", "$", "-", "#", "####", "#### ", "#### .", "#### ,", "#### -", "#### $"),
    *(
        "#### 5",
        "####5",
        "###5",
        "##### 5",
        "####  5",
        "####\t5",
        "####\n5",
        "#### \n5",
        "#### 5.",
        "#### 5..",
        "#### 5,",
    ),
    *("#### -5", "#### - 5", "#### −5", "#### –5", "#### +5", "#### $5", "#### -$5", "#### $-5", "#### 5$", "#### 5%"),
    *("#### 1,080", "#### 1.080,00", "#### 1 080", "#### 1'080", "#### 10,80", "#### ,5", "#### .5", "#### 5.0"),
    *("#### **5**", "#### (5)", "#### =5", "#### five", "#### x = 5", "#### 5 apples", "#### 5 #### 6", "####5 #### 6"),
    *("#### 1/2", "#### 2e3", "#### 0x1F", "#### 05", "#### 00", "#### --5", "#### 5-3", "#### 1.2.3", "#### 1,,2"),
    *(
        "The answer is 5",
        "The answer is 5.",
        "The answer is $5.",
        "the answer is 5.00",
        "It is 5-3",
        "It is 5 - 3",
        "5%",
    ),
    *(
        "5\n",
        "5\r\n6",
        "5\u20286",
        "5 6",
        "٥",
        "５",
        "5²",
        "½",
        "Ⅴ",
        "5\u00a0000",
        "five",
        "−5",
        "-5",
        "- 5",
        "$-5",
        "-$5",
    ),
    *(
        "5 km/h",
        "5km",
        "a5",
        "5a",
        "v2.0",
        "3:15",
        "1,2,3",
        "1, 2, 3",
        "(5)",
        "[5]",
        "$$5$$",
        "\\boxed{5}",
        "5!",
        "5...",
    ),
    *(
        "Well... 5... done...",
        "$",
        "$.",
        "$,",
        "-.",
        "-$",
        "-,",
        "5.$",
        "5,.",
        "5$.",
        ".5.",
        "$5.5.5",
        "10,000.00.",
        "1.000",
    ),
    *(
        "#### 5\n#### 6",
        "so 3 + 4 = 7\n#### 7\nI checked 2 times.",
        "<<3*4=12>>12",
        "#### 12 <|im_end|>",
        "Question: 5",
    ),
]
GOLDS = [
    *("#### 5", "… so it is 6.\n#### 6", "#### 1,080", "#### -5", "3 * 4 = <<3*4=12>>12 apples.\n#### 12", "#### 0"),
    *("#### 7", "#### 2", "#### 80", "#### 5.5"),
]


def generated(count: int) -> list[str]:
    """Responses put together from pieces that readers get wrong."""
    rng = random.Random(0)
    signs = ["", "", "", "-", "−", "+", "- ", "–"]
    money = ["", "", "$", "€", "US$", "$ "]
    endings = [
        "",
        "",
        ".",
        "..",
        ",",
        "!",
        "%",
        " km",
        " apples.",
        "\n",
        "\r\n",
        "$",
        ").",
        "**",
        "°",
        ".\n",
        "²",
        "\u00a0",
    ]
    leads = ["####", "### ", "####  ", "The answer is ", "= ", "So ", "(", "**", "Answer: ", "#### **", "", ""]
    leads += ["#### "] * len(leads)
    fillers = [
        "",
        "There are ",
        "Ann has 3 bags. ",
        "In 1999, ",
        "…",
        "٣ ",
        "Well... ",
        "2 + 2\n",
        "x ",
        "a, b, ",
        "3\nQuestion: ",
    ]

    def number() -> str:
        whole = rng.choice([0, 5, 7, 12, 80, 1080, rng.randrange(10**7)])
        form = rng.choice(["{}", "{}", "{:,}", "{}.0", "{}.50", ".{}", "0{}", "{:,}.00", "{}/2", "{}-3", "{}e3", "{},"])
        return rng.choice(signs) + rng.choice(money) + form.format(whole) + rng.choice(endings)

    def piece() -> str:
        return rng.choice(fillers) + rng.choice(leads) + (number() if rng.random() < 0.85 else "none")

    return ["".join(piece() + rng.choice(["", " ", "\n"]) for _ in range(rng.randrange(1, 4))) for _ in range(count)]


def harness_yaml(path: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks" / path).read_text(encoding="utf-8"))
    return found


def filtered(task: Mapping[str, Any], name: str, responses: Sequence[str], doc: Mapping[str, Any]) -> list[str]:
    """What the harness's own filters of this name read."""
    from lm_eval.api.instance import Instance
    from lm_eval.filters import build_filter_ensemble

    (steps,) = [item["filter"] for item in task["filter_list"] if item["name"] == name]
    parts = [(step["function"], {key: step[key] for key in step if key != "function"}) for step in steps]
    rows = [
        Instance("generate_until", doc=dict(doc), arguments=("", {}), idx=0, resps=[response]) for response in responses
    ]
    build_filter_ensemble(name, parts).apply(rows)
    return [row.filtered_resps[name] for row in rows]


def exact_match(task: Mapping[str, Any], prediction: str, gold: str) -> float:
    """The harness's own metric, with the task's arguments."""
    from lm_eval.api.metrics import exact_match_fn

    (arguments,) = task["metric_list"]
    settings = {
        key: value for key, value in arguments.items() if key not in ("metric", "aggregation", "higher_is_better")
    }
    return float(exact_match_fn(predictions=[prediction], references=[gold], **settings)["exact_match"])


@pytest.mark.parametrize(
    ("name", "read", "metric"),
    [("strict-match", strict_number, "accuracy/strict"), ("flexible-extract", flexible_number, "accuracy")],
)
def test_numbers_are_read_and_compared_as_by_the_harness(name: str, read: Any, metric: str) -> None:
    """Fractions and more than one space after `####` are read in another way on purpose: the test below."""
    task = harness_yaml("gsm8k/gsm8k.yaml")
    texts = [
        re.sub(r"####[ \t]+", "#### ", text)
        for text in [*HAND_WRITTEN, *generated(4000)]
        if not re.search(r"[0-9]/[0-9]", text) and re.search(r"\w", text.partition("Question:")[0])
    ]
    assert len(texts) > 3000
    assert sum("Question:" in text for text in texts) > 100
    assert "Question:" in task["generation_kwargs"]["until"]
    ignored = task["metric_list"][0]["regexes_to_ignore"]
    theirs = filtered(task, name, [text.partition("Question:")[0] for text in texts], {})
    for text, found in zip(texts, theirs, strict=True):
        for pattern in ignored:
            found = re.sub(pattern, "", found)
        assert read(text) == (found if re.search("[0-9]", found) else None), text
    rng = random.Random(1)
    # Half the golds are what was read, where that is a number, written as the data writes them; the others are not.
    golds = [
        f"{rng.choice(['', 'So it is so. '])}#### {found}"
        if rng.random() < 0.5 and (found := read(text)) and re.fullmatch(r"-?\d+(\.\d+)?", found)
        else rng.choice(GOLDS)
        for text in texts
    ]
    references = [reference(answer=gold_answer(Record("here", {"answer": gold}))) for gold in golds]
    ours = measure("number", references, texts)[metric].values
    scores = [exact_match(task, found, gold) for found, gold in zip(theirs, golds, strict=True)]
    wrong = [text for text, a, b in zip(texts, ours, scores, strict=True) if a != b]
    assert not wrong
    assert 100 < sum(scores) < len(texts) - 100, "both outcomes occur"


@pytest.mark.parametrize(
    ("text", "strict", "flexible", "their_strict", "their_flexible"),
    [
        ("#### 5/2", "5/2", "5/2", "5", "2"),  # one number: neither 5 nor 2
        ("so \\frac{5}{2}", None, "5/2", "[invalid]", "2"),
        ("####  5", "5", "5", "[invalid]", "5"),  # the form that was asked for
        # A response that repeats the question first is read; the harness has stopped before it.
        ("Question: 4?\n#### 5\nQuestion: 6", "5", "5", "[invalid]", "[invalid]"),
    ],
)
def test_where_numbers_are_read_in_another_way_on_purpose(
    text: str, strict: str | None, flexible: str, their_strict: str, their_flexible: str
) -> None:
    task = harness_yaml("gsm8k/gsm8k.yaml")
    stopped = text.partition("Question:")[0]
    assert (strict_number(text), flexible_number(text)) == (strict, flexible)
    theirs = [filtered(task, name, [stopped], {})[0] for name in ("strict-match", "flexible-extract")]
    assert theirs == [their_strict, their_flexible]


OPTIONS = ["carbon dioxide", "food", "protection", "water"]
LETTER_TASK = "mmlu/flan_cot_zeroshot/_mmlu_flan_cot_zeroshot_template_yaml"


def test_letters_in_brackets_are_read_as_by_the_harness() -> None:
    """The form that the harness's `mmlu_flan_cot_zeroshot` asks for, anywhere in a text without a second letter."""
    task = harness_yaml(LETTER_TASK)
    rng = random.Random(0)
    before = ["", "Lichens are alive. ", "Let's think step by step.\nAlgae make sugar. ", "So "]
    forms = [
        "({})",
        "the answer is ({})",
        "The answer is ({})",
        "Answer: ({})",
        "I choose ({})",
        "**({})**",
        "Answer: {}",
    ]
    after = ["", ".", ", because it fits.", "\n", "!"]
    texts = [rng.choice(before) + rng.choice(forms).format(rng.choice("ABCD")) + rng.choice(after) for _ in range(500)]
    theirs = filtered(task, "flexible-extract", texts, {"choices": OPTIONS})
    for text, found in zip(texts, theirs, strict=True):
        assert f"({read_letter(text, OPTIONS)})" == found, text
    assert set(theirs) == {f"({letter})" for letter in letters(4)}


@pytest.mark.parametrize(
    ("text", "ours", "theirs"),
    [
        # Chat models answer with the bare letter; the harness wants brackets, or a colon before it.
        ("C", "C", "[invalid]"),
        ("The answer is C.", "C", "[invalid]"),
        ("C) protection", "C", "(C)"),
        # Where several options are named and no word says which is meant, ours reads none and the harness the last.
        ("(A) or (B)", None, "(B)"),
        ("It is food or water", None, "(D)"),
        # What follows "answer" counts more than what comes last.
        ("The answer is (B), not (A).", "B", "(A)"),
        # An article, and an option inside a longer word, name nothing.
        ("Answer: A plant needs light", None, "(A)"),
        ("These are foodstuffs", None, "(B)"),
        # A letter that is no option is unparsed here; both are wrong.
        ("(E)", None, "(E)"),
        ("I do not know.", None, "[invalid]"),
    ],
)
def test_where_letters_are_read_in_another_way_on_purpose(text: str, ours: str | None, theirs: str) -> None:
    found = filtered(harness_yaml(LETTER_TASK), "flexible-extract", [text], {"choices": OPTIONS})
    assert (read_letter(text, OPTIONS), found[0]) == (ours, theirs)
