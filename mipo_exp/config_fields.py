"""What the schemas of the config groups share: fields with bounds, and values that more than one group names."""

from dataclasses import field
from typing import Any

MAX_SEED = 2**32 - 1  # numpy takes no larger one


STRATEGIES = (
    *("random_prompt", "no_context", "random_context", "empty_prompt", "hard_context", "hard_prompt", "mixture"),
)


# Those whose negative condition keeps the prompt and changes the user context.
CONTEXT_STRATEGIES = ("no_context", "random_context", "hard_context")


def bounded(
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A field without a default whose value `check_bounds` tests (None passes: the type decides whether it may)."""
    bounds = {"above": above, "at_least": at_least, "below": below, "at_most": at_most, "choices": choices}
    return field(metadata={name: bound for name, bound in bounds.items() if bound is not None})
