"""What the schemas of the config groups share: fields with bounds, and values that more than one group names."""

from collections.abc import Sequence
from dataclasses import field
from typing import Any

MAX_SEED = 2**32 - 1  # numpy takes no larger one

# Upper bounds that several groups share. They lie above what published experiments use, and below what would run for
# weeks or ask for more memory than there is: 10**9 is a slip of the pen.
MAX_RESPONSE_TOKENS = 2**17  # the longest answers of reasoning models
MAX_SEQUENCE_TOKENS = 2**20  # the longest contexts of today's models
MAX_BATCH_TOKENS = 2**24
MAX_BATCH_ROWS = 2**16
MAX_CONDITIONS = 1024  # of one mutual information: each response is scored under so many
MAX_STEPS = 10**7
MAX_EXAMPLES = 10**8


STRATEGIES = (
    *("random_prompt", "no_context", "random_context", "empty_prompt", "hard_context", "hard_prompt", "mixture"),
)


# Those whose negative condition keeps the prompt and changes the user context.
CONTEXT_STRATEGIES = ("no_context", "random_context", "hard_context")


# The parts of `mipo_exp/kernels/`.
KERNELS = ("prefix_sharing", "prompt_sharing", "micro_batches", "onednn", "causal_blocks", "generation_cache")


def kernel_parts(kernels: Sequence[str]) -> frozenset[str]:
    """The parts that `kernels=` means: all for `auto`, none for `plain`."""
    return frozenset(KERNELS) if "auto" in kernels else frozenset(kernels) - {"plain"}


def bounded(
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    zero_or_at_least: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A field without a default whose value `check_bounds` tests (None passes: the type decides whether it may).

    In a list or a dict, each of its values is tested.
    """
    bounds = {
        **{"above": above, "at_least": at_least, "zero_or_at_least": zero_or_at_least},
        **{"below": below, "at_most": at_most, "choices": choices},
    }
    return field(metadata={name: bound for name, bound in bounds.items() if bound is not None})


def positive(least: float, most: float) -> Any:
    """A field for a number above 0 that means something from `least` to `most`."""
    return bounded(above=0, at_least=least, at_most=most)


def sampling_temperature() -> Any:
    """A field for the temperature of sampling. Below 0.01 logits overflow in half precision, and all but the likeliest
    token are gone, which 0 says; above 5 (min-p's experiments end there) responses are noise."""
    return bounded(at_least=0, zero_or_at_least=0.01, at_most=5)
