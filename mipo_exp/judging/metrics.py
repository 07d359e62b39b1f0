"""What the metrics of the kinds of judging are called and mean."""

from mipo_exp.evaluation.metrics import JUDGE, Metric, register

register(
    Metric(
        *("judge/win_rate", "Win rate against before", JUDGE, "proportion", 1),
        "Share of examples for which the judge prefers the response after training to the one before, ties counted "
        "half. It sees both orders; where they disagree, it is a tie. 50 % is no difference.",
        neutral=0.5,
        column=True,
        headline="first gain",
    ),
    Metric(
        *("judge/length_controlled_win_rate", "Win rate, length-controlled", JUDGE, "proportion", 1),
        "The win rate that a logistic regression on the difference in length predicts for responses of equal length, "
        "as in AlpacaEval 2. 50 % is no difference.",
        neutral=0.5,
        column=True,
    ),
    Metric(
        *("judge/position_consistency", "Same verdict in both orders", JUDGE, "proportion", 1),
        "Share of the examples with two readable verdicts for which they agree: how little the judge minds the order. "
        "It says something about the judge, not about the responses.",
    ),
    Metric(
        *("judge/score", "Judge's score", JUDGE, "score", 1),
        "Mean score from 1 to 5, over the rubrics of an example, then over examples.",
        column=True,
        headline="first gain",
    ),
    Metric(
        *("judge/reference_win_rate", "Win rate against the reference", JUDGE, "proportion", 1),
        "Share of responses whose score is at least that of the reference response, so ties win. A score is from 1 to "
        "5 for one preference at a time, and the mean over the example's preferences.",
        column=True,
        headline="first gain",
    ),
    Metric(
        *("judge/preference_score", "Preferences addressed", JUDGE, "score", 1),
        "Mean score from 1 to 5 over the preferences of an example, then over examples.",
        column=True,
    ),
    Metric(
        *("judge/reference_score", "Preferences addressed by the reference", JUDGE, "score", 0),
        "The same of the reference responses.",
    ),
    Metric(
        *("judge/accuracy", "Preference followed", JUDGE, "proportion", 1),
        "Share of responses without an error, as in PrefEval: they help, and do not violate the preference.",
        column=True,
        headline="first gain",
    ),
    *(
        Metric(f"judge/{check}", label, JUDGE, "proportion", direction, f"Share of responses that {words}.")
        for check, label, direction, words in (
            ("acknowledge", "Preference stated", 0, "say what the user prefers"),
            ("violate", "Preference violated", -1, "go against the preference"),
            ("hallucinate", "Preference made up", -1, "state a preference that is not the user's"),
            ("helpful", "Helpful", 1, "help with the request"),
            ("error/unhelpful", "Error: unhelpful", -1, "do not help"),
            ("error/inconsistent", "Error: inconsistent", -1, "state the preference rightly and violate it"),
            ("error/hallucinated_violation", "Error: hallucinated", -1, "state another preference and violate it"),
            ("error/unaware_violation", "Error: unaware", -1, "violate the preference and do not mention it"),
        )
    ),
    Metric(
        *("judge/parse_failure_rate", "Verdicts not found", JUDGE, "proportion", -1),
        "Share of the judge's replies without a verdict that can be read, refusals among them; the other metrics leave "
        "them out.",
    ),
    Metric("judge/characters", "Length judged", JUDGE, "characters", 0, "Mean characters of a response."),
)
