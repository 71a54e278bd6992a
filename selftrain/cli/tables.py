"""Tables and stories of runs for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from agents.judgment import Verdict
from selftrain._util.printable import printable
from selftrain._util.types import Interval
from selftrain.cli.printing import number, plain, table
from selftrain.models.metrics import METRICS
from selftrain.report.compare import Comparison
from selftrain.report.post_history import Chapter, PostHistory
from selftrain.report.status import RunStatus, Summary, score
from selftrain.rounds import Cost, RoundResult

SCORES = {
    "validation": "validation macro-F1", "validation_auc": "validation AUC",
    "test": "test macro-F1", "test_auc": "test AUC",
}  # fmt: skip
"""Field of a `Score` -> what it is."""

SIMULATED = "SIMULATED agents: their answers were drawn from the labels"

# ---- a run ------------------------------------------------------------------------------------------


def summary_table(summary: Summary, stopped: str | None) -> Table:
    """Return labels alone beside the loop, then the counts."""
    title = SIMULATED if summary.simulated else None
    after = f"after the loop (round {summary.best_round})"
    found = table(
        "", "labels alone", after, "change", title=title, title_style="bold red", title_justify="left"
    )
    for field, name in SCORES.items():
        before, now = getattr(summary.labels_alone, field), getattr(summary.best, field)
        if before is not None and now is not None:
            found.add_row(name, number(before), number(now), f"{now - before:+.3f}")
    more = f"{summary.grown - summary.labelled:+,}"
    found.add_row("training labels", f"{summary.labelled:,}", f"{summary.grown:,}", more)
    found.add_section()
    for name, value in _facts(summary, stopped):
        found.add_row(name, "", value)
    return found


def _facts(summary: Summary, stopped: str | None) -> list[tuple[str, str]]:
    facts = [
        ("rounds", f"{summary.kept} kept, {summary.rolled_back} rolled back"),
        ("candidates", f"{summary.consistent:,} consistent, {summary.divergent:,} divergent"),
    ]
    if summary.candidate_precision is not None:
        facts.append(("precision of candidates", number(summary.candidate_precision)))
    if summary.pseudo_label_precision is not None:
        facts.append(("precision of pseudo-labels", number(summary.pseudo_label_precision)))
    facts.append(("time in rounds", f"{summary.seconds:.0f} s"))
    if summary.human:
        facts.append(("labels from people", f"{summary.human:,}"))
    return [*facts, ("stopped because", stopped or "it was interrupted: it can go on")]


def rounds_table(rounds: Sequence[RoundResult]) -> Table:
    """Return one line a round; what it cost where its agents ask a server."""
    paid = any(one.cost and one.cost.calls for one in rounds)
    found = table(
        "round", "candidates", "consistent", "divergent", "right", "validation", "test", "s",
        *(("calls", "tokens") if paid else ()),
        left=0, caption_justify="left", caption_style="dim",
        caption="right: share of the consistent posts, if truth is known. validation, test: macro-F1, AUC.",
    )  # fmt: skip
    found.add_column("")
    for one in rounds:
        scores, cost = score(one), one.cost or Cost()
        found.add_row(
            str(one.number), *(str(counts.posts) if one.number else "-" for counts in one.sets),
            number(one.pseudo_label_precision),
            _scores(scores.validation, scores.validation_auc), _scores(scores.test, scores.test_auc),
            f"{one.seconds:.1f}", *((f"{cost.calls:,}", f"{cost.tokens:,}") if paid else ()), _outcome(one),
        )  # fmt: skip
    return found


def _scores(macro_f1: float | None, auc: float | None) -> str:
    return number(macro_f1) if auc is None else f"{number(macro_f1)} {number(auc)}"


def _outcome(one: RoundResult) -> str:
    return f"{one.outcome}, SIMULATED agents" if one.simulated else one.outcome


def status_lines(state: RunStatus) -> list[tuple[str, str]]:
    """Return name and value, one a line."""
    held = {True: "yes, a process works on it now", False: "no", None: "not known here"}[state.held]
    lines = [
        ("run", state.path),
        ("recipe", state.recipe or "made in Python"),
        ("task", state.task),
        ("finished rounds", str(state.finished)),
        ("locked", held),
    ]
    if state.last is not None:
        scores = score(state.last)
        told = ", ".join(
            f"{name} {number(value)}"
            for field, name in SCORES.items()
            if (value := getattr(scores, field)) is not None
        )
        lines += [
            ("best round", str(state.best_round)),
            ("last round", f"{state.last.number}, {_outcome(state.last)}"),
            ("its scores", told),
            ("grown dataset", f"{state.last.grown:,} posts"),
        ]
    if state.posterior is not None:
        lines.append(("posterior", str(state.posterior)))
    if state.stopped:
        following = f"nothing: {state.stopped}"
        if state.untaken:
            following = f"no round: {state.stopped}; but {state.untaken}"
    elif state.waiting:
        following = f"round {state.finished}; {state.waiting}"
    elif state.held:
        following = f"round {state.finished} is under way"
    else:
        following = f"round {state.finished}, when the command that began the run is given again"
    return [*lines, ("next", following)]


# ---- a post -----------------------------------------------------------------------------------------


def post_lines(post: PostHistory) -> list[Text]:
    """Return the post, then each round with everybody's words."""
    text = "(not in the run's manifests any more)" if post.text is None else post.text or "(no text)"
    lines = [_field("post", post.post_id), _field("text", text)]
    lines += [_field("image", image) for image in post.images]
    lines += [_field("remark", post.remark)] if post.remark else []
    for chapter in post.chapters:
        outcome = "kept" if chapter.kept else "rolled back: its verdicts did not count"
        lines += [Text(), plain(f"round {chapter.round}, {outcome}", "bold")]
        lines += verdict_lines(chapter.verdict)
    return lines


def verdict_lines(verdict: Verdict) -> list[Text]:
    """Return the classifier's label, every judgment in the order it was made, and what came of it."""
    label = f"{verdict.classifier_label} ({number(verdict.classifier_probability, 2)})"
    lines = [_field("classifier", label, 2)]
    for one in verdict.judgments:
        label = str(one.state) if one.label is None else f"{one.label} ({number(one.probability, 2)})"
        step = "alone" if one.step == 0 else f"after cross-review, step {one.step}"
        lines.append(_field(one.agent, f"{label}, {step}, state {one.state}", 2))
        lines.append(plain(f"{'':14}{one.reasons or '(no rationale)'}", "dim"))
    return [*lines, *_decision(verdict)]


def _decision(verdict: Verdict) -> list[Text]:
    """What came of a verdict and, where it was decided by a posterior, what each party added to it."""
    found, outcome = verdict.posterior, "consistent" if verdict.consistent else "divergent"
    if found is None:
        agreed = "classifier and agents agree" if verdict.consistent else "no agreement"
        return [_field("verdict", f"{outcome}: {agreed}", 2)]
    compared = f"{found.probability:.2f}, learned from {found.threshold:.2f} on"
    shares = ", ".join(f"{party} {added:+.2f}" for party, added in found.log_odds.items())
    return [
        _field("posterior", f"{found.label} {compared}", 2),
        plain(f"{'':14}log-odds: {shares}", "dim"),
        _field("verdict", outcome, 2),
    ]


def verdict_line(verdict: Verdict) -> Text:
    """Return one verdict on one line: id, outcome, and each party's last label."""
    last = {role: judgments[-1] for role, judgments in verdict.by_agent().items()}
    parties = [f"classifier {verdict.classifier_label} ({number(verdict.classifier_probability, 2)})"]
    parties += [f"{role} {one.label or one.state}" for role, one in last.items()]
    outcome = "consistent" if verdict.consistent else "divergent"
    return plain(f"{verdict.post_id}  {outcome:<10}  {', '.join(parties)}")


def chapter_line(chapter: Chapter) -> Text:
    """Return one verdict on one line, its round before it."""
    outcome = "kept" if chapter.kept else "rolled back"
    line = plain(f"round {chapter.round:>2}, {outcome:<11}  ", "dim")
    return line.append_text(verdict_line(chapter.verdict))


def _field(name: str, value: object, indent: int = 0) -> Text:
    return plain(" " * indent + f"{printable(name):<{12 - indent}}  ", "bold").append_text(
        plain(value, "not bold")
    )


# ---- runs side by side --------------------------------------------------------------------------------


def final_table(comparison: Comparison) -> Table:
    """Return one column a run: final metrics with their intervals, then what the run came to."""
    found, runs = _comparison_table(comparison), comparison.runs
    for split in comparison.splits:
        for name in METRICS:
            cells = [_interval(run.estimates[split][name], ".3f") for run in runs]
            found.add_row(f"{split} {name.replace('_f1', '-F1')}", *cells)
            if name == "macro_f1":
                found.add_row("  gain", *(_interval(one, "+.3f") for one in comparison.gains[split]))
                found.add_row(f"{split} AUC", *(number(run.splits[split].auc) for run in runs))
        found.add_section()
    sums = [run.summary for run in runs]
    if any(run.simulated for run in runs):
        found.add_row("agents", *("SIMULATED" if run.simulated else "" for run in runs))
    found.add_row("rounds kept", *(f"{one.kept} of {one.rounds}, best {one.best_round}" for one in sums))
    found.add_row("labels, grown to", *(f"{one.labelled:,}, {one.grown:,}" for one in sums))
    found.add_row("pseudo-label precision", *(number(one.pseudo_label_precision) for one in sums))
    found.add_row("candidates", *(f"{one.candidates:,}" for one in sums))
    found.add_row("agent calls", *(f"{run.cost.calls:,}" if run.cost else "-" for run in runs))
    found.add_row("tokens", *(f"{run.cost.tokens:,}" if run.cost else "-" for run in runs))
    found.add_row("seconds in rounds", *(f"{one.seconds:.0f}" for one in sums))
    if any(run.posterior for run in runs):
        told = [run.posterior for run in runs]
        found.add_row("posterior, learned", *(f"{p.learned:,} of {p.posts:,}" if p else "-" for p in told))
        found.add_row("posterior, weight", *(number(p.weight if p else None) for p in told))
        ece = [p.calibration.ece if p and p.calibration else None for p in told]
        found.add_row("posterior, calibration error", *map(number, ece))
    return found


def curves_table(comparison: Comparison) -> Table:
    """Return validation macro-F1 and AUC, one line a round; what was rolled back stands in brackets."""
    found = _comparison_table(comparison)
    for place in range(max(len(run.rounds) for run in comparison.runs)):
        cells = [plain("")] * len(comparison.runs)
        for column, run in enumerate(comparison.runs):
            if place < len(run.rounds):
                scores = score(run.rounds[place])
                kept, value = run.rounds[place].kept, _scores(scores.validation, scores.validation_auc)
                cells[column] = plain(f"{value} ") if kept else plain(f"({value})", "dim")
        found.add_row(f"round {place}", *cells)
    return found


def recipe_table(comparison: Comparison) -> Table:
    """Return the keys that are not the same in all recipes."""
    found = _comparison_table(comparison)
    for key, values in comparison.recipe:
        found.add_row(plain(key), *(plain("-" if value is None else value) for value in values))
    return found


def _comparison_table(comparison: Comparison) -> Table:
    found = table("")
    for run in comparison.runs:
        found.add_column(plain(run.name), justify="right", overflow="fold")
    return found


def _interval(one: Interval | None, digits: str) -> str:
    return "-" if one is None else f"{one.value:{digits}} [{one.low:{digits}} {one.high:{digits}}]"
