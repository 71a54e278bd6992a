"""Tables and stories for the terminal. Whatever comes from posts or agents goes through `plain`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.judgment import Verdict
from selftrain._util.printable import printable
from selftrain.report.post_history import PostHistory
from selftrain.report.status import RunStatus, Score, Summary, score
from selftrain.rounds import Cost, RoundResult

NARROWEST = 100  # columns of output that goes into a file


def console() -> Console:
    """Standard output, where square brackets and colons mean nothing but themselves."""
    shown = Console(markup=False, highlight=False, emoji=False)
    if not shown.is_terminal:
        shown.width = max(shown.width, NARROWEST)
    return shown


def plain(text: object, style: str = "") -> Text:
    """Text that is shown as it is: control characters escaped, markup not read."""
    return Text(printable(str(text)), style=style)


def number(value: float | None, digits: int = 3) -> str:
    """A figure, or a dash where it is not known."""
    return "-" if value is None else f"{value:.{digits}f}"


# ---- a run ------------------------------------------------------------------------------------------


def summary_table(summary: Summary, stopped: str | None) -> Table:
    """Labels alone beside the loop, then the counts."""
    title = "SIMULATED agents: their answers were drawn from the labels" if summary.simulated else None
    table = Table(title=title, title_style="bold red", title_justify="left", show_edge=False, pad_edge=False)
    table.add_column()
    table.add_column("labels alone", justify="right")
    table.add_column(f"after the loop (round {summary.best_round})", justify="right")
    table.add_column("change", justify="right")
    for name in Score._fields:
        before, after = getattr(summary.labels_alone, name), getattr(summary.best, name)
        if before is not None and after is not None:
            table.add_row(f"{name} macro-F1", number(before), number(after), f"{after - before:+.3f}")
    table.add_row("training labels", f"{summary.labelled:,}", f"{summary.grown:,}", _signed(summary))
    table.add_section()
    for name, value in _facts(summary, stopped):
        table.add_row(name, "", value)
    return table


def _signed(summary: Summary) -> str:
    return f"{summary.grown - summary.labelled:+,}"


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
    """One line a round; what it cost where its agents ask a server."""
    paid = any(one.cost and one.cost.calls for one in rounds)
    table = Table(
        show_edge=False, pad_edge=False, caption_justify="left", caption_style="dim",
        caption="precision: of the consistent posts, where truth is known. validation, test: macro-F1.",
    )  # fmt: skip
    for name in ("round", "candidates", "consistent", "divergent", "precision", "validation", "test", "s"):
        table.add_column(name, justify="right")
    for name in ("calls", "tokens") if paid else ():
        table.add_column(name, justify="right")
    table.add_column("")
    for one in rounds:
        scores, cost = score(one), one.cost or Cost()
        table.add_row(
            str(one.number), *(str(counts.posts) if one.number else "-" for counts in one.sets),
            number(one.pseudo_label_precision), number(scores.validation), number(scores.test),
            f"{one.seconds:.1f}", *((f"{cost.calls:,}", f"{cost.tokens:,}") if paid else ()), _outcome(one),
        )  # fmt: skip
    return table


def _outcome(one: RoundResult) -> str:
    return f"{one.outcome}, SIMULATED agents" if one.simulated else one.outcome


def status_lines(state: RunStatus) -> list[tuple[str, str]]:
    """Name and value, one a line."""
    held = {True: "yes, a process works on it now", False: "no", None: "cannot be told here"}[state.held]
    lines = [
        ("run", state.path),
        ("recipe", state.recipe or "made in Python"),
        ("task", state.task),
        ("finished rounds", str(state.finished)),
        ("locked", held),
    ]
    if state.last is not None:
        scores = score(state.last)
        test = "" if scores.test is None else f", test {number(scores.test)}"
        lines += [
            ("best round", str(state.best_round)),
            ("last round", f"{state.last.number}, {_outcome(state.last)}"),
            ("its macro-F1", f"validation {number(scores.validation)}{test}"),
            ("grown dataset", f"{state.last.grown:,} posts"),
        ]
    if state.stopped:
        following = f"nothing: {state.stopped}"
    elif state.waiting:
        following = f"round {state.finished}; {state.waiting}"
    elif state.held:
        following = f"round {state.finished} is under way"
    else:
        following = f"round {state.finished}, when the command that began the run is given again"
    return [*lines, ("next", following)]


# ---- a post -----------------------------------------------------------------------------------------


def post_lines(post: PostHistory) -> list[Text]:
    """The post, then each round with everybody's words."""
    text = "(not in the run's manifests any more)" if post.text is None else post.text or "(no text)"
    lines = [_field("post", post.post_id), _field("text", text)]
    lines += [_field("image", image) for image in post.images]
    for chapter in post.chapters:
        outcome = "kept" if chapter.kept else "rolled back: its verdicts did not count"
        lines += [Text(), plain(f"round {chapter.round}, {outcome}", "bold")]
        lines += verdict_lines(chapter.verdict)
    return lines


def verdict_lines(verdict: Verdict) -> list[Text]:
    """The classifier's word, every judgment in the order it was made, and what came of it."""
    said = f"{verdict.classifier_label} ({number(verdict.classifier_probability, 2)})"
    lines = [_field("classifier", said, 2)]
    for one in verdict.judgments:
        said = str(one.state) if one.label is None else f"{one.label} ({number(one.probability, 2)})"
        step = "alone" if one.step == 0 else f"after cross-review, step {one.step}"
        lines.append(_field(one.agent, f"{said}, {step}, state {one.state}", 2))
        lines.append(plain(f"{'':14}{one.rationale or '(no rationale)'}", "dim"))
    agreed = "consistent: classifier and agents agree" if verdict.consistent else "divergent: no agreement"
    return [*lines, _field("verdict", agreed, 2)]


def verdict_line(verdict: Verdict) -> Text:
    """One verdict on one line: id, outcome, and each party's last label."""
    last = {role: judgments[-1] for role, judgments in verdict.by_agent().items()}
    parties = [f"classifier {verdict.classifier_label} ({number(verdict.classifier_probability, 2)})"]
    parties += [f"{role} {one.label or one.state}" for role, one in last.items()]
    outcome = "consistent" if verdict.consistent else "divergent"
    return plain(f"{verdict.post_id}  {outcome:<10}  {', '.join(parties)}")


def _field(name: str, value: object, indent: int = 0) -> Text:
    return plain(" " * indent + f"{printable(name):<{12 - indent}}  ", "bold").append_text(
        plain(value, "not bold")
    )
