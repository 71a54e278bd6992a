"""The ways in which a criticizer can be asked, and how an answer becomes an error estimate.

===============  =====================  ==========  ======================================================
strategy         reasons first          sees        error estimate e
===============  =====================  ==========  ======================================================
plain            no                     the label   per cent in tens
reasoning        for and against        the label   per cent in tens
graded           no                     the label   five grades in words: 0, .25, .5, .75, 1
devils_advocate  against                the label   the five grades
                                        and the
                                        annotator's
                                        reasons
log_probability  no                     the label   P(yes) / (P(yes) + P(no)) of "is it wrong?"
perplexity       for                    the label   1 - 1/perplexity of these reasons: hard to find words
                                                    for, or not
===============  =====================  ==========  ======================================================

Where the server gives log-probabilities, an estimate in grades or per cent is the mean over the answers by
their probability, not the one answer written: finer, and without ties.

Source: "ACT as Human" (arXiv 2511.09833) for the strategies; all wording is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from agents.ask.answer_schema import FormName

Reading = Literal["answer", "log_probability", "perplexity"]


class Strategy(NamedTuple):
    """One way to criticize.

    Attributes:
        name: Its prompt file is ``criticize.NAME.txt``.
        form: Whether reasons are written first.
        options: Answer -> the probability of an error that it stands for.
        sees_reasoning: Whether the prompt shows the annotator's reasons.
        reading: What the estimate is read from: the answer (by its log-probabilities if there are any), its
            log-probabilities alone, or the perplexity of the reasons.
    """

    name: str
    form: FormName
    options: Mapping[str, float]
    sees_reasoning: bool = False
    reading: Reading = "answer"


PER_CENT: Mapping[str, float] = {str(number): number / 100 for number in range(0, 101, 10)}
GRADES: Mapping[str, float] = {
    "certainly right": 0.0,
    "probably right": 0.25,
    "could be either": 0.5,
    "probably wrong": 0.75,
    "certainly wrong": 1.0,
}
WRONG: Mapping[str, float] = {"yes": 1.0, "no": 0.0}

STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy("plain", "label_only", PER_CENT),
        Strategy("reasoning", "reason_first", PER_CENT),
        Strategy("graded", "label_only", GRADES),
        Strategy("devils_advocate", "reason_first", GRADES, sees_reasoning=True),
        Strategy("log_probability", "label_only", WRONG, reading="log_probability"),
        Strategy("perplexity", "reason_first", WRONG, reading="perplexity"),
    )
}
UNREADABLE = "cannot be read"
"""The answer of a criticizer that can say nothing: the estimate is missing."""
