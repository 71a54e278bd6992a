"""`python -m runs.bench.page`: the tables of docs/benchmarks.md, docs/scale.md and README.md, by the figures.

A table stands between two marks, `<!-- NAME: ... -->` and `<!-- end of NAME -->`; what stands around them is
written by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, product
from operator import itemgetter
from pathlib import Path
from statistics import fmean, median, stdev
from typing import NamedTuple

from runs.bench import cost, frontier, scale
from runs.bench.act_tables import means_of_ways
from runs.bench.agentps import DIVISORS, ENDS
from runs.bench.agentps import LABELS as LABELLED
from runs.bench.agentps_epochs import LAST as LAST_EPOCH
from runs.bench.judges import values_of
from runs.bench.loop_study import WHOLE
from runs.bench.paired import points_over, t_interval, t_over_seeds
from runs.bench.shown import short, svg, table_head, table_line
from runs.bench.study import Figures
from selftrain._util.types import Interval

CHECKOUT = Path(__file__).parents[2]
FIGURES = CHECKOUT / "docs" / "benchmarks"
PLOT = CHECKOUT / "docs" / "benchmarks.svg"
FRONTIER = CHECKOUT / "docs" / "frontier.svg"
PAGE = CHECKOUT / "docs" / "benchmarks.md"
SCALE = CHECKOUT / "docs" / "scale.md"
README = CHECKOUT / "README.md"
METRICS = ("macro_f1", "auc")
MANY = 1e8


class Row(NamedTuple):
    """A method, and what it is called on the page; a ceiling has labels that nobody else is given."""

    label: str
    method: str
    ceiling: bool = False


class Column(NamedTuple):
    """What is the same for all methods of a column: labels, and posts that may be asked about."""

    label: str
    n: int
    asked: str = ""


# ---- kinds of tables ------------------------------------------------------------------------------------


def means(
    figures: Figures, rows: Sequence[Row], columns: Sequence[Column], *, dataset: str | None = None
) -> Iterator[str]:
    """Yield macro-F1, mean ± sd over the seeds; the best method of a column that is no ceiling is bold."""
    yield from table_head("", *(column.label for column in columns))
    drawn = [
        [list(figures.values(row.method, one.n, "macro_f1", dataset=dataset).values()) for one in columns]
        for row in rows
    ]
    best = [
        max(fmean(cells[c]) for cells, row in zip(drawn, rows, strict=True) if cells[c] and not row.ceiling)
        for c in range(len(columns))
    ]
    for row, cells in zip(rows, drawn, strict=True):
        shown = []
        for cell, most in zip(cells, best, strict=True):
            value = _spread(cell)
            shown.append(f"**{value}**" if cell and fmean(cell) == most else value)
        yield table_line(row.label, *shown)


def points(
    figures: Figures,
    sets: Sequence[str],
    rows: Sequence[Row],
    columns: Sequence[Column],
    *,
    reference: str = "labels_only",
    metrics: Sequence[str] = METRICS,
) -> Iterator[str]:
    """Yield points, by default of macro-F1 and of AUC, over a method, with 95 % intervals over the seeds."""
    yield from table_head("", *(column.label for column in columns))
    for row in rows:
        cells = [
            ", ".join(_interval(_over(figures, sets, row.method, column, one, reference)) for one in metrics)
            for column in columns
        ]
        yield table_line(row.label, *cells)


def _over(  # noqa: PLR0917 -- what is compared, where
    figures: Figures, sets: Sequence[str], method: str, column: Column, metric: str, reference: str
) -> Interval:
    """Return points over the reference, with their interval over the seeds."""
    found, other = (
        values_of(figures, sets, one, n=column.n, asked=column.asked, metric=metric)
        for one in (method, reference)
    )
    return t_over_seeds(points_over(found, other))


def _interval(found: Interval) -> str:
    mean, low, high = (short(value, 1) for value in found)
    return f"{mean if mean.startswith('-') else '+' + mean} [{low}, {high}]"


def _spread(drawn: Sequence[float]) -> str:
    """Return mean ± sd, that of one value alone; empty where nothing was measured."""
    if not drawn:
        return ""
    return short(fmean(drawn), 3) + (f" ± {short(stdev(drawn), 3)}" if len(drawn) > 1 else "")


# ---- the tables -----------------------------------------------------------------------------------------


LABELS = (Column("n=100", 100), Column("n=50", 50))
MORE_LABELS = (Column("n=250", 250), *LABELS)
LOOP = (
    Row("SetFit, its encoder trained on the labels", "setfit"),
    Row("labels only, logistic regression (C=1)", "labels_only C=1"),
    Row("labels only, logistic regression (C=10)", "labels_only C=10"),
    Row("scikit-learn's SelfTrainingClassifier (C=1, threshold .75)", "sklearn_self_training C=1"),
    Row("scikit-learn's SelfTrainingClassifier (C=10, threshold .75)", "sklearn_self_training C=10"),
    Row("scikit-learn's LabelSpreading (nearest neighbours)", "label_spreading"),
    Row("FixMatch on features", "fixmatch"),
    Row("small-text, half of the labels asked for by breaking ties", "active_learning"),
    Row("the labels alone, the loop's classifier", "labels_only_head"),
    Row("selftrain, offline agents", "ours"),
    Row("all labels of the pool, the loop's classifier", "all_labels_head", ceiling=True),
    Row("all labels of the pool, logistic regression (C=1)", "all_labels C=1", ceiling=True),
)
WORDS = ("sentiment140", "hateful-memes", "tweeteval-offensive")
JUDGED = ("hatebiasnet", "hatevlms_mami", "hatexplain", "tweeteval_hate")
EMOTION = ("emotion, agents 0.8, shared 0.7",)
JUDGES = (
    Row("selftrain", "ours"),
    Row("Dawid-Skene", "dawid_skene"),
    Row("CROWDLAB (cleanlab)", "crowdlab"),
    Row("majority vote", "majority_hard"),
    Row("majority vote, cleaned by cleanlab", "cleanlab"),
    Row("one model's labels", "one_model"),
    Row("scikit-learn's SelfTrainingClassifier", "sklearn_self_training"),
    Row("scikit-learn's LabelSpreading", "label_spreading"),
    Row("FixMatch on features", "fixmatch"),
    Row("small-text, half of the labels asked for", "active_learning"),
    Row("the article's rule", "article"),
    Row("the labels alone, the loop's classifier", "labels_only_head"),
    Row("all labels of the pool, the loop's classifier", "all_labels_head", ceiling=True),
    Row("all labels of the pool, logistic regression", "all_labels", ceiling=True),
)
BROKEN = (
    Row("at random", "ours random"),
    Row("always the same", "ours always"),
    Row("right in 55 %", "ours 55%"),
    Row("inverted", "ours inverted"),
    Row("abstaining in 80 %", "ours abstain 80%"),
    Row("as they are", "ours"),
)
PARTS = (
    Row("one agent instead of two", "ours agents.count=1"),
    Row("one round instead of two", "ours rounds.max=1 selection.k=500"),
    Row("posts at random instead of the least sure", "ours selection.kind=random"),
    Row("the surest posts, as the article has it", "ours selection.kind=top_k"),
    Row("training goes on from the best model, not from the start", "ours rounds.start=best"),
    Row("learned only where q reaches .8", "ours verification.threshold=0.8"),
    Row("PN instead of PNU", "ours loss.form=pn"),
    Row("P = 0", "ours loss.balance=0.0"),
    Row("theta .5 instead of estimated", "ours loss.theta=0.5"),
    Row("no quotas", "ours selection.shares=any"),
    Row("divergent posts are not asked about again", "ours selection.reselect_divergent=false"),
)
LOOP_PARTS = (
    Row("no agents", "classifier_only"),
    Row("one agent instead of two", "one_agent"),
    Row("the posterior instead of agreement", "posterior"),
    Row("PN instead of PNU", "pn_instead_of_pnu"),
    Row("P = 0", "p=0"),
    Row("theta .5 instead of estimated", "theta=0.5"),
    Row("soft targets .67 instead of .8", "soft=0.67"),
    Row("the paper's convex form", "form=convex"),
    Row("500 posts a round instead of nearly all", "k=500"),
    Row("all of the article's choices", "article"),
    Row("training goes on from the best model, not from the start", "best_start"),
)
WAYS = {
    "machine labels alone": "machine",
    "normalised, ACT loss": "normalised ACT",
    "exponential, ACT loss": "exponential ACT",
    "threshold, ACT loss": "threshold ACT",
    "normalised, mixed labels": "normalised mixed",
    "exponential, mixed labels": "exponential mixed",
}
ERRORS = ("emotion", "irony", "emotion systematic", "irony systematic")
_AT_TOKENS = "yes", "at their answer tokens"
VARIANTS = {
    "vanilla": ("no", "none"),
    "vanilla, again": ("no", "none"),
    "vanilla, asked": ("yes", "none"),
    "multitask": ("no", "at the last token"),
    "multitask, asked": ("yes", "at the last token"),
    "multitask, fed": ("no", "at the last token"),
    "agentps": _AT_TOKENS,
    "agentps, again": _AT_TOKENS,
    "agentps, rounds": ("each in a turn of its own", "where the assistant's turn has begun"),
    "agentps, fed": _AT_TOKENS,
    **dict.fromkeys((*LABELLED, *DIVISORS), _AT_TOKENS),
}
"""Way of the AgentPS study -> questions in the prompt, and where process answers are read."""
PAIRS = "pairs, exactly one", 1000, ""
PAIRS_ON_CPU = "pairs, exactly one", 1000, ", bfloat16"
PAIRS_BY_QWEN = "pairs, exactly one", 1000, ", qwen2.5-coder-0.5b, bfloat16"
ORDERED = "pairs, the first alone", 1000, ", bfloat16"
MEMES = "hateful memes", 4000, ", bfloat16"
SEVERITY = "harmeme", 2000, ", bfloat16"
AUC_AND_RECALL = {"AUC": "auc", "recall at precision .60": "recall_at_precision_60"}
EVERY_SIZE = tuple(Column(f"{n} labels, {told}", n, asked) for n in (250, 100, 50) for told, asked in
                   (("500 posts asked", "500"), ("whole pool", "all")))  # fmt: skip
USUAL_SIZE = (Column("100 labels, 500 posts asked", 100, "500"),)


def _loop_parts(figures: Figures, name: str) -> Iterator[str]:
    rows = [row for row in LOOP_PARTS if figures.values(row.method, LABELS[0].n, METRICS[0])]
    yield from points(figures, [name], rows, LABELS[:1], reference="ours", metrics=METRICS[:1])


def _act(figures: Figures) -> Iterator[str]:
    yield from table_head("points below all human labels", *(one.replace(" sys", ", sys") for one in ERRORS))
    found = means_of_ways(figures)
    for label, way in WAYS.items():
        yield table_line(label, *(f"{fmean(found[one, way]):.1f}" for one in ERRORS))


def _variants(figures: Figures, dataset: str, n: int, precision: str) -> Iterator[str]:
    yield from table_head(
        "variant", "questions in the prompt", "process heads", "AUC", "macro-F1", "recall at precision .60",
        "AUC of the process answers", "seeds",
    )  # fmt: skip
    for method, about in VARIANTS.items():
        cells = []
        for metric in ("auc", "macro_f1", "recall_at_precision_60", "process_auc"):
            found = figures.values(method + precision, n, metric, dataset=dataset)
            cells.append(_spread(list(found.values())))
        if any(cells):
            seeds = figures.values(method + precision, n, "auc", dataset=dataset)
            yield table_line(method, *about, *cells, str(len(seeds)))


def _last_epochs(figures: Figures, dataset: str, n: int, precision: str) -> Iterator[str]:
    """Yield a line a way: the AUC of each seed after the last epoch."""
    found = {
        way: figures.values(f"{way}{precision}, {LAST_EPOCH}", n, "auc", dataset=dataset) for way in VARIANTS
    }
    seeds = sorted(set().union(*found.values()))
    yield from table_head("AUC after the last epoch", *(f"seed {seed}" for seed in seeds))
    for way, by_seed in found.items():
        if by_seed:
            yield table_line(
                way, *("" if seed not in by_seed else _spread([by_seed[seed]]) for seed in seeds)
            )


def _over_way(
    figures: Figures, dataset: str, n: int, precision: str, *,
    reference: str, metrics: Mapping[str, str], epoch: str = "",
) -> Iterator[str]:  # fmt: skip
    """Yield a line a way: points of each seed, intervals over its test posts, and the mean over the seeds.

    They are of the epochs that were chosen, or of the `epoch` that is named.
    """
    found: dict[str, dict[int, Interval]] = {}
    for way, (told, metric) in product(VARIANTS, metrics.items()):
        over = f"{way}{precision} over {reference}{precision}{epoch and f', {epoch}'}"
        ends = [figures.values(over, n, metric + end, dataset=dataset) for end in ENDS]
        if ends[0]:
            intervals = {seed: Interval(*(100 * one[seed] for one in ends)) for seed in ends[0]}
            found[f"{way}, {told}" if len(metrics) > 1 else way] = intervals
    seeds = sorted(set().union(*found.values()))
    yield from table_head(f"points over {reference}", *(f"seed {seed}" for seed in seeds), "mean")
    for label, by_seed in found.items():
        mean = t_interval([one.value for one in by_seed.values()]) if len(by_seed) > 1 else None
        cells = (*map(by_seed.get, seeds), mean)
        yield table_line(label, *("" if one is None else _interval(one) for one in cells))


def _single(
    figures: Figures,
    rows: Mapping[str, tuple[str, str] | tuple[str, str, int]],
    of: Callable[[list[float]], float] = itemgetter(-1),
) -> Iterator[str]:
    """Yield a line a figure: what it is called -> its method, metric and, where several are, posts.

    Of what was measured more than once it is the last, or what `of` makes of all.
    """
    yield from table_head("", "measured")
    for label, one in rows.items():
        yield table_line(label, f"{of(_measured(figures, *one)):.3g}")


def _measured(figures: Figures, method: str, metric: str, n: int | None = None) -> list[float]:
    """Return a figure as often as it was measured; with so many posts, where that is said."""
    found = (f for f in figures.figures if (f.method, f.metric) == (method, metric))
    return [f.value for f in found if n in (None, f.n)]


QWEN = "qwen2.5-coder-1.5b, label_only, 60 characters"
TURNED = f"turned: {QWEN}, 100 labelled"
FLIPS = f"flips: {QWEN}, 100 labelled"
FORMS = {
    "the label alone": "label_only", "label first, then reasons": "label_first",
    "reasons first, in one answer": "reason_first",
    "reasons first, the label in a turn of its own": "reason_first, label apart",
}  # fmt: skip
FORM_POSTS = 50
AGENTS: Mapping[str, tuple[str, str] | tuple[str, str, int]] = {
    "candidates judged and cross-reviewed a second over one by one, without a cache": ("reference", "ratio"),
    "share of the prompt tokens that the server had cached": ("cache", "cached_share"),
    "injections of 50 that flip an agent's verdict, share (SmolLM2 135 M)": ("injections", "flip_rate"),
    "answers a second over a bare client's that posts, reads and parses, text": ("client", "ratio, text"),
    "the same, a picture of 150 kB": ("client", "ratio, picture"),
    "AUC of Qwen2.5-Coder 1.5B's probabilities on 600 tweets of HSOL, Reviewer": (
        f"judge: {QWEN}",
        "auc, reviewer",
        600,
    ),
    "the same, User": (f"judge: {QWEN}", "auc, user", 600),
    "points of macro-F1 that the loop gains from its answers over 100 labels alone": (
        f"gain: {QWEN}, 100 labelled",
        "points over the labels alone",
    ),
    "injections in words that flip its Reviewer's leaning, share": (FLIPS, "flip_rate"),
    "the same, both agents'": (FLIPS, "flip_rate_both"),
    "the same, both agents' and what the run learns": (FLIPS, "flip_rate_unseen"),
    "the same, and the label that is learned is wrong": (FLIPS, "flip_rate_unseen_and_wrong"),
    "harmless words in their place, the Reviewer's leaning": (FLIPS, "control_flip_rate"),
    "of such posts learned as they ask, were both agents turned to .5": (TURNED, "followed, turned to 0.5"),
    "the same, to .95": (TURNED, "followed, turned to 0.95"),
    "the same, not turned": (TURNED, "followed, not turned"),
}


def _forms(figures: Figures) -> Iterator[str]:
    """Yield a line a form of answer: words that are a class, how many of them are right, and the AUC."""
    roles = ("reviewer", "user")
    shown = ("answered by the {}", "accuracy of the {}'s word", "auc, {}")
    yield from table_head(
        "asked for", *(f"{what}, {role}" for what in ("answered", "right", "AUC") for role in roles)
    )
    for label, form in FORMS.items():
        method = f"judge: qwen2.5-coder-1.5b, {form}, 60 characters"
        metrics = [metric.format(role) for metric in shown for role in roles]
        found = [list(figures.values(method, FORM_POSTS, metric).values())[-1] for metric in metrics]
        answered, right, auc = found[:2], found[2:4], found[4:]
        shares = [f"{share:.2f}" if count else "-" for count, share in zip(answered, right, strict=True)]
        yield table_line(label, *(f"{one:.0f}" for one in answered), *shares, *(f"{one:.3f}" for one in auc))


# with so many labels: a study of others measures a run of its own
WHOLE_RUN = {"seconds": (WHOLE, "seconds", 100), "peak memory, MB": (WHOLE, "peak_rss_mb", 100)}
SERVE = {
    "p99 of honest clients, calm, s": ("calm", "p99"),
    "the same while 20 hostile clients attack, s": ("attacked", "p99"),
    "ratio": ("attacked over calm", "p99"),
    "slowest answer of /health under attack, s": ("attacked", "health"),
}


BARE = {
    "posts a second of `selftrain serve`": ("serve", "posts_per_second"),
    "the same, a bare onnxruntime session behind uvicorn": ("serve", "posts_per_second, bare"),
    "ratio": ("serve", "ratio"),
    "posts a second of `selftrain filter`": ("filter", "posts_per_second"),
    "the same, a loop that reads, asks and writes": ("filter", "posts_per_second, bare"),
    "ratio of these": ("filter", "ratio"),
}


BARE_LOOP = {
    "seconds of a core, agents that answer at once": "cpu_seconds",
    "the same, scikit-learn's SelfTrainingClassifier": "cpu_seconds, bare",
    "ratio": "time ratio",
    "ratio with offline agents": "time ratio, offline agents",
    "the same without what these agents take": "time ratio, offline agents left out",
}
BARE_REPORT = {
    "seconds of a core to write it": "write_cpu_seconds",
    "the same, pandas' `DataFrame.to_html`": "write_cpu_seconds, bare",
    "ratio": "time ratio, written",
    "seconds until a browser shows it": "open_seconds",
    "the same, pandas' table": "open_seconds, bare",
    "ratio of these": "time ratio, opened",
    "size of the file, MB": "page_mb",
    "ratio to pandas' table": "size ratio",
}


def _beside(method: str, of: str, rows: Mapping[str, str], figures: Figures) -> Iterator[str]:
    """Yield the median, lowest and highest of what was measured of a method, a column a size."""
    sizes = sorted({f.n for f in figures.figures if f.method == method})
    yield from table_head("", *(f"{n:,} {of}" for n in sizes))
    for label, metric in rows.items():
        drawn = [_measured(figures, method, metric, n) for n in sizes]
        yield table_line(label, *(f"{median(one):.3g} [{min(one):.3g}, {max(one):.3g}]" for one in drawn))


def _features(figures: Figures) -> Iterator[str]:
    yield from _single(figures, {
        "texts a second": ("ours", "texts_per_second"),
        "the same, sentence-transformers": ("sentence_transformers", "texts_per_second"),
        "ratio": ("ours", "ratio"),
    })  # fmt: skip


def _pools(figures: Figures) -> Iterator[str]:
    sizes = sorted({f.n for f in figures.figures})
    yield from table_head("posts in the pool", *(f"{n:,}" for n in sizes))
    for label, metric in {"seconds": "seconds", "peak memory, MB": "peak_rss_mb"}.items():
        drawn = (list(figures.values("ours", n, metric).values()) for n in sizes)
        yield table_line(label, *(f"{fmean(one):,.0f}" for one in drawn))


def _words(name: str, figures: Figures) -> Iterator[str]:
    yield from means(figures, LOOP, MORE_LABELS, dataset=name)


def first_page() -> Iterator[str]:
    """Yield README's table: four figures and no more."""
    yield from table_head("test macro-F1, 100 labels", "labels alone", "selftrain, offline agents")
    for label, file in {"HSOL (tweets)": "hsol", "HarMeme (memes)": "harmeme"}.items():
        figures = Figures(FIGURES / f"{file}.jsonl")
        drawn = (figures.values(method, 100, "macro_f1") for method in ("labels_only C=10", "ours"))
        yield table_line(label, *(_spread(list(one.values())) for one in drawn))


Lines = Callable[[Figures], Iterator[str]]
TABLES: Mapping[str, tuple[str, Lines]] = {
    "hsol": ("hsol", lambda figures: means(figures, LOOP, MORE_LABELS)),
    "harmeme": ("harmeme", lambda figures: means(figures, LOOP, MORE_LABELS)),
    **{name: ("words", partial(_words, name)) for name in WORDS},
    "judges": ("judges", lambda figures: points(figures, JUDGED, JUDGES, EVERY_SIZE)),
    "broken agents": ("judges", lambda figures: points(figures, JUDGED, BROKEN, USUAL_SIZE)),
    "parts": ("judges", lambda figures: points(figures, JUDGED, PARTS, USUAL_SIZE, reference="ours")),
    "frontier": ("judges", lambda figures: frontier.lines(figures, JUDGED)),
    "whole run": ("hsol", lambda figures: _single(figures, WHOLE_RUN)),
    "same gain": ("judges", lambda figures: frontier.same_gain(figures, JUDGED)),
    "emotion": ("emotion", lambda figures: points(figures, EMOTION, JUDGES, EVERY_SIZE)),
    "hsol parts": ("hsol", lambda figures: _loop_parts(figures, "hsol")),
    "harmeme parts": ("harmeme", lambda figures: _loop_parts(figures, "harmeme")),
    "act": ("act", _act),
    "agentps": ("agentps", lambda figures: _variants(figures, *PAIRS)),
    "agentps, on a CPU": ("agentps", lambda figures: _variants(figures, *PAIRS_ON_CPU)),
    "agentps, by another base": ("agentps", lambda figures: _variants(figures, *PAIRS_BY_QWEN)),
    "agentps, the first alone": ("agentps", lambda figures: _variants(figures, *ORDERED)),
    "agentps, memes": ("agentps", lambda figures: _variants(figures, *MEMES)),
    "agentps, severity": ("agentps", lambda figures: _variants(figures, *SEVERITY)),
    "agentps over vanilla, severity": (
        "agentps",
        lambda figures: _over_way(figures, *SEVERITY, reference="vanilla", metrics=AUC_AND_RECALL),
    ),
    "agentps over vanilla, memes": (
        "agentps",
        lambda figures: _over_way(figures, *MEMES, reference="vanilla", metrics=AUC_AND_RECALL),
    ),
    "agentps, memes, the last epoch": ("agentps", lambda figures: _last_epochs(figures, *MEMES)),
    "agentps over vanilla, memes, the last epoch": (
        "agentps",
        lambda figures: _over_way(
            figures, *MEMES, reference="vanilla", metrics=AUC_AND_RECALL, epoch=LAST_EPOCH
        ),
    ),
    "over agentps": (
        "agentps",
        lambda figures: _over_way(figures, *PAIRS_ON_CPU, reference="agentps", metrics={"AUC": "auc"}),
    ),
    "agents": ("agents", lambda figures: _single(figures, AGENTS)),
    "agent forms": ("agents", _forms),
    "serve": ("serve", lambda figures: _single(figures, SERVE)),
    "bare": ("bare", lambda figures: _single(figures, BARE, median)),
    "bare loop": ("bare", partial(_beside, "loop", "posts in the pool", BARE_LOOP)),
    "bare report": ("bare", partial(_beside, "report", "verdicts", BARE_REPORT)),
    "features": ("features", _features),
    "pools": ("pools", _pools),
}
"""Name -> the file of its figures, and its lines."""
OF_SCALE: Mapping[str, tuple[str, Lines]] = {
    "on a cluster": ("scale", scale.costs),
    "cost": ("cost", cost.wholes),
    "cost of very many": ("cost", lambda found: chain(cost.hours(found, MANY), [""], cost.floors(MANY))),
}
"""The same, on the page about many machines."""


def table(name: str) -> list[str]:
    """Return a table, and a line that says what it was measured with."""
    file, lines = TABLES.get(name) or OF_SCALE[name]
    source = FIGURES / f"{file}.jsonl"
    return [*lines(Figures(source)), "", measured_with(source)]


def measured_with(source: Path) -> str:
    """Say which versions and machines stand in a file of figures."""
    contexts = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    versions = sorted({pair for one in contexts for pair in one["versions"].items()})
    machines = sorted({one["machine"] for one in contexts})
    listed = ", ".join(
        f"{name} {' and '.join(value for other, value in versions if other == name)}"
        for name in dict.fromkeys(name for name, _ in versions)
    )
    return f"[{source.name}](benchmarks/{source.name}): {listed}; {'; '.join(machines)}."


# ---- the pages ------------------------------------------------------------------------------------------


def filled(text: str, name: str, lines: Sequence[str]) -> str:
    """Return a page with a table between its marks.

    Raises:
        ValueError: The page has no such marks.
    """
    found = re.search(rf"(<!-- {name}: .*? -->\n).*?(<!-- end of {name} -->)", text, re.DOTALL)
    if found is None:
        raise ValueError(
            f"no marks of the table {name!r}: expected <!-- {name}: ... --> and <!-- end of {name} -->"
        )
    return f"{text[: found.end(1)]}" + "\n".join(lines) + f"\n{text[found.start(2) :]}"


def written(page: Path) -> str:
    """Return a page with its tables as the figures have them."""
    text = page.read_text(encoding="utf-8")
    if page == README:
        return filled(text, "measured", list(first_page()))
    for name in OF_SCALE if page == SCALE else TABLES:
        text = filled(text, name, table(name))
    return text


def draw(figures: Figures, file: Path) -> None:
    """Draw points of macro-F1 over the labels alone, with intervals: a panel a column, a line a method."""
    places = range(len(JUDGES))
    with svg(file, "benchmarks") as subplots:
        drawn, panels = subplots(2, 3, figsize=(11, 6), sharex=True, sharey=True, layout="constrained")
        for panel, column in zip(panels.T.flat, EVERY_SIZE, strict=True):
            found = [_over(figures, JUDGED, row.method, column, "macro_f1", "labels_only") for row in JUDGES]
            spread = [[one.value - one.low for one in found], [one.high - one.value for one in found]]
            colors = [
                "#0b6e99" if row.method == "ours" else "#999999" if row.ceiling else "#444444"
                for row in JUDGES
            ]
            panel.errorbar([one.value for one in found], places, xerr=spread, fmt="none", ecolor=colors)
            panel.scatter([one.value for one in found], places, c=colors, zorder=3)
            panel.axvline(0, color="#bbbbbb", linewidth=0.8)
            panel.set_title(column.label, fontsize=9)
            panel.spines[["top", "right"]].set_visible(False)
        panels[0, 0].set_yticks(places, [row.label for row in JUDGES])
        panels[0, 0].invert_yaxis()
        drawn.supxlabel("points of test macro-F1 over logistic regression on the labels alone", fontsize=9)


def main() -> int:
    """Write the tables and plots, or say whether the tables are as the figures have them."""
    parser = argparse.ArgumentParser(prog="python -m runs.bench.page", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if a table is another")
    texts = {page: written(page) for page in (PAGE, SCALE, README)}
    if parser.parse_args().check:
        same = {page: text == page.read_text(encoding="utf-8") for page, text in texts.items()}
        for page, is_same in same.items():
            told = "as its figures" if is_same else "not as its figures: python -m runs.bench.page"
            print(f"{page}: {told}")
        return int(not all(same.values()))
    for page, text in texts.items():
        page.write_text(text, encoding="utf-8")
    judges = Figures(FIGURES / "judges.jsonl")
    draw(judges, PLOT)
    frontier.draw(judges, JUDGED, FRONTIER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
