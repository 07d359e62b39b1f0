"""Reading a judge's verdict from its reply. A reply that names several different verdicts has none."""

import re
from collections.abc import Iterable

_CHOICE = re.compile(r"\[\[\s*([abc])\s*\]\]", re.IGNORECASE)
# Not the first figure of 10, 45 or 4.5.
_SCORE = re.compile(r"\[result\][\s:=*(\[]*([1-5])(?!\d|[.,]\d)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\d.,-])([1-5])(?!\d|[.,]\d)")
_ANSWER = re.compile(r"<answer>\s*(yes|no)\s*[.!]?\s*(?=<|$)", re.IGNORECASE)
_RESTATEMENT = re.compile(r"<preference>(.*?)(?:</preference>|<answer>|$)", re.IGNORECASE | re.DOTALL)
_AROUND = " \t\r\n.*\"'`[]()"


def read_choice(reply: str) -> str | None:
    """`A`, `B` or `C` (a tie) from `[[A]]`, or a reply that is nothing but the letter; None where there is none."""
    return _only(_CHOICE.findall(reply), reply, "ABC")


def read_score(reply: str) -> int | None:
    """The integer from 1 to 5 after `[RESULT]`, or a reply that is nothing but it; None where there is none."""
    found = _only(_SCORE.findall(reply), reply, "12345")
    return None if found is None else int(found)


def read_number(reply: str) -> int | None:
    """The first integer from 1 to 5 in a reply that was to be nothing but the number; None where there is none."""
    found = _NUMBER.search(reply)
    return None if found is None else int(found[1])


def read_yes_no(reply: str) -> bool | None:
    """True for `<answer>Yes</answer>`, False for No, or a reply that is nothing but the word; else None."""
    found = _only(_ANSWER.findall(reply), reply, ("YES", "NO"))
    return None if found is None else found == "YES"


def read_restatement(reply: str) -> str:
    """The text between `<preference>` tags; empty where there is none."""
    found = _RESTATEMENT.search(reply)
    return found[1].strip() if found else ""


def _only(found: Iterable[str], reply: str, verdicts: Iterable[str]) -> str | None:
    named = {verdict.upper() for verdict in found}
    if not named:
        bare = reply.strip(_AROUND).upper()
        return bare if bare in tuple(verdicts) else None
    return named.pop() if len(named) == 1 else None
