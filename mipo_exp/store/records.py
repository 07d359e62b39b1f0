"""The rows of every table that travels between stages; how they lie on disk is in `tables`."""

from dataclasses import dataclass


def normalise(text: str) -> str:
    """The text without differences of case and white space: equal for what counts as the same prompt."""
    return " ".join(text.casefold().split())


@dataclass(frozen=True, slots=True)
class Example:
    """One (x, c) of a task, with what is needed to check a response to it.

    `question` names the prompt x independently of the user, `user` names whose context c is; training and evaluation
    share neither. `reference` is JSON for the task's scorer; it never reaches the model."""

    id: str
    user: str | None
    question: str
    context: str | None
    prompt: str
    reference: str

    @property
    def condition(self) -> "Condition":
        """The true condition (c, x)."""
        return Condition(self.context, self.prompt)


@dataclass(frozen=True, slots=True)
class Condition:
    """What a response is conditioned on: a prompt and perhaps a context. A `plain` prompt is asked without the task's
    instruction and form."""

    context: str | None
    prompt: str
    plain: bool = False


@dataclass(frozen=True, slots=True)
class Negative:
    """The condition of an example's `index`-th rejected response, and the strategy that chose it.

    `source` is the example whose true condition this is, where there is one: its sampled response can be reused."""

    example: str
    index: int
    strategy: str
    context: str | None
    prompt: str
    source: str | None

    @property
    def id(self) -> str:
        """The id of the response sampled under it."""
        return f"{self.example}#{self.index}"

    @property
    def condition(self) -> Condition:
        """What the rejected response is sampled under."""
        return Condition(self.context, self.prompt)


@dataclass(frozen=True, slots=True)
class Response:
    """A sampled response. `finished` is false where the token limit cut it off (then no end-of-turn token follows)."""

    id: str
    token_ids: list[int]
    text: str
    finished: bool


@dataclass(frozen=True, slots=True)
class Pair:
    """A contrastive pair, to be trained under the true condition `prompt_ids`.

    `negative_ids` renders the condition that the rejected response was sampled under; `reused` says that this response
    was sampled as another example's chosen one."""

    example: str
    negative: int
    strategy: str
    reused: bool
    prompt_ids: list[int]
    negative_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class ScoredPair(Pair):
    """A pair with the log-probabilities (nats, summed over tokens) of its sides under the base model.

    Given the true condition they are DPO's reference; `pmi_margin` needs those given the negative condition too and is
    null where they were not asked for."""

    ref_chosen_log_prob: float
    ref_rejected_log_prob: float
    pmi_margin: float | None


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities (nats, summed over tokens) of one response: under K conditions, the true one first, and
    under its own marginal (the prompt without context; the empty prompt where the task has no context).

    `prompt_log_probs` are those under K prompts with the same context, the true one first; null where they were not
    asked for: `log_probs` has them already where there are no contexts, and the policy is not asked."""

    id: str
    tokens: int
    log_probs: list[float]
    marginal_log_prob: float
    prompt_log_probs: list[float] | None


@dataclass(frozen=True, slots=True)
class TokenPmi:
    """The pointwise mutual information (nats) of a response's tokens with its condition, against another one, in pieces
    of text; one of several tokens, where they are one character, has their sum."""

    id: str
    pieces: list[str]
    pmi: list[float]


@dataclass(frozen=True, slots=True)
class OptionScores:
    """Log-probabilities (nats, summed over tokens) of each option of one multiple-choice example as the response.

    `lengths` are the options' characters; null where letters were scored, which are all of one length."""

    id: str
    log_probs: list[float]
    lengths: list[int] | None


@dataclass(frozen=True, slots=True)
class HarnessResult:
    """One metric of a task or group of lm-evaluation-harness over `n` documents, with its standard error (null where
    the harness gives none). `filter` says how answers were read out of responses."""

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    n: int


@dataclass(frozen=True, slots=True)
class HarnessSample:
    """One document of a task of lm-evaluation-harness. All but the first three are JSON: the right answer, the
    requests' responses (texts, or pairs of log-probability and whether it is the greedy choice), what the filter read
    from them, and the document's value of each metric that has one."""

    task: str
    filter: str
    document: int
    target: str
    responses: str
    answer: str
    metrics: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """One verdict of the judge. `subject` is whose response it is of (`before`, `after`), or `pair`.

    `item` is which of the example's judgements: the order of a pair, the number of a rubric, the name of a check.
    `verdict` is null where none could be read; `reply` is what the judge wrote, null where it refused (`refusal` says
    why) or did not have to be asked."""

    example: str
    subject: str
    item: str
    verdict: str | None
    reply: str | None
    refusal: str | None
    input_tokens: int
    output_tokens: int
