"""`python -m runs.bench judges`: what answers of real models bring, by every rule that could use them.

Sets are folders with `manifest.jsonl`, `task.toml` and files of answers, one a model (docs/formats.md). By
the seed 30 % of the posts become test, n posts are labelled, stratified, and the rest is the pool. All
methods see the same splits and the same features. The loop compares its rounds by leaving every label out
once, unless `--validation` holds a share of them out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from runs.bench.paired import differences_table, halves_table, means_table
from runs.bench.study import Figure, Figures, named, numbers
from selftrain.config import Recipe, load_recipe
from selftrain.errors import DataError

if TYPE_CHECKING:
    from backbones.base import Backbone
    from runs.bench.peers import Student
    from selftrain._util.types import FloatArray, IntArray, LabelArray
    from selftrain.data.corpus import Corpus
    from selftrain.data.posts import Post
    from selftrain.data.preparation import PreparedData
    from selftrain.data.splits import Splits
    from selftrain.data.task import Task
    from selftrain.rounds import SplitMetrics

STUDY = "judges"
TEST_SHARE = 0.3
ALL = "all"

AGENTS: Mapping[str, tuple[str, ...]] = {
    "hatebiasnet": ("llama-3.1", "gpt-4o"),
    "hatexplain": ("hermes-3-llama-3.1-70b-q5_k_s", "llama3.3-70b-instruct-q6_k"),
    "tweeteval_hate": ("gpt-4", "gpt-3.5-12-shot"),
    "hatevlms_mami": ("gpt-4o-def-ocr-in-ex-out", "gpt-4o-vn-in-ex-out"),
}
"""Set -> the agents that are asked; of any other set the first two files by name."""

# ---- ours, and the article's: the recipes that are measured ---------------------------------------------


def ours(asked: int, pool: int) -> list[str]:
    """Return the recipe for agents that are models of their own where `asked` of `pool` posts may be asked.

    The posts that the classifier is least sure of, in two rounds, or the whole pool in one.
    """
    rounds = 1 if asked >= pool else 2
    k = pool if asked >= pool else max(asked // rounds, 1)
    return [
        "verification.rule=posterior", "selection.kind=uncertain", f"selection.k={k}",
        f"rounds.max={rounds}", f"rounds.budget={asked}",
    ]  # fmt: skip


def article(asked: int, pool: int) -> list[str]:
    """Return the article's rule: four rounds on the surest posts, 500 each unless fewer may be asked."""
    k = min(500, pool) if asked >= pool else max(asked // 4, 1)
    return [
        "verification.rule=unanimous", "selection.kind=top_k", f"selection.k={k}", "rounds.max=4",
        f"rounds.budget={asked}",
    ]  # fmt: skip


def judged_probs(folder: Path, corpus: Corpus) -> dict[str, list[float]]:
    """Return post id -> the posterior [K], of all pool posts that the loop judged.

    Args:
        folder: A run's.
        corpus: Its posts.
    """
    from selftrain.rounds import replay
    from selftrain.store.run_dir import RunFolder

    state, _ = replay(RunFolder(folder))
    posteriors = {post_id: last.verdict.posterior for post_id, last in state.last_verdicts.items()}
    return {
        post_id: [one.probs[name] for name in corpus.classes]
        for post_id, one in posteriors.items()
        if one is not None
    }


# ---- one set, one seed ----------------------------------------------------------------------------------


class JudgedSet(NamedTuple):
    """Posts with gold labels, and who answered about them.

    Attributes:
        name: The folder's, with the agents' where they are not the usual ones.
        folder: Where it lies.
        task: Its classes.
        posts: In the manifest's order; those without a label are pool posts of unknown truth.
        agents: A file of answers each.
    """

    name: str
    folder: Path
    task: Task
    posts: tuple[Post, ...]
    agents: tuple[Path, ...]


@dataclass(frozen=True)
class Trial:
    """One set, split by one seed, with its features.

    Attributes:
        judged: The set.
        prepared: Its posts in their splits.
        recipe: A recipe file that replays `judged.agents`.
        folder: For runs and for files of answers; emptied afterwards.
        seed: Of the split and of every other draw.
        changes: What is changed in our recipe, section.key=value each.
    """

    judged: JudgedSet
    prepared: PreparedData
    recipe: Path
    folder: Path
    seed: int
    changes: tuple[str, ...] = ()

    @property
    def corpus(self) -> Corpus:
        """The posts as the loop sees them: some of the n labels are the validation split."""
        return self.prepared.corpus

    @cached_property
    def whole(self) -> Corpus:
        """The posts as a method sees them that needs no validation split: all n labels are to learn from."""
        return replace(self.corpus, labelled=np.concatenate([self.corpus.labelled, self.corpus.validation]))

    @cached_property
    def head(self) -> Student:
        """The product's head on the labels alone."""
        from runs.bench.peers import train_on_labels

        return train_on_labels(self.corpus, self.seed)

    def least_sure(self, count: int) -> IntArray:
        """Return the pool posts that a peer asks about: the head on the labels is least sure of them."""
        from selftrain.selection import Uncertain

        chunks = self.head.trainer.logits(self.head.model, self.corpus, self.corpus.pool)
        chosen = Uncertain(count).select(chunks, most=None, classes=self.corpus.classes, seed=self.seed)
        return chosen.positions

    def ask(self, positions: IntArray) -> tuple[IntArray, int]:
        """Return the agents' answers [N, A] about some posts, and the calls that they took."""
        from agents.replayed import AnswersPanel
        from runs.bench.peers import answer_matrix
        from selftrain.data.answer_files import read_answers

        names = self.judged.task.names
        panel = AnswersPanel([(file, read_answers(file, names)) for file in self.judged.agents])
        said = panel.predict_out_of_fold([self.corpus.posts[position] for position in positions])
        labels = {role: [one.label for one in answers] for role, answers in said.items()}
        return answer_matrix(labels, self.corpus.classes), panel.usage().calls

    def score(self, student: Student) -> dict[str, float]:
        """Return the student's figures on test."""
        from selftrain.models.metrics import evaluate

        test = self.corpus.test
        return _figures(evaluate(self.corpus.labels[test], student.logits(self.corpus, test)))


def _figures(measured: SplitMetrics) -> dict[str, float]:
    return {"macro_f1": measured.macro_f1, "auc": measured.auc if measured.auc is not None else 0.5}


def calibration_error(corpus: Corpus, positions: IntArray, probs: FloatArray) -> dict[str, float]:
    """Return the expected calibration error of pool labels [N, K] where truth is known; {}: nowhere."""
    from selftrain._util.numeric import decide
    from selftrain.models.metrics import reliability
    from selftrain.store.scores import Scored

    known = corpus.truth[positions] >= 0
    if not known.any():
        return {}
    logits = np.log(np.clip(probs[known], 1e-6, 1 - 1e-6)).astype(np.float32)
    ids = [corpus.posts[position].id for position in positions[known]]
    truth = corpus.truth[positions[known]]
    right = float(np.mean(decide(logits) == truth))
    return {"ece": reliability(Scored(ids, truth, logits)).ece, "pool_accuracy": right}


# ---- the methods ----------------------------------------------------------------------------------------

Measure = Callable[[Trial, int], dict[str, float]]
"""(trial, posts that may be asked about) -> metric -> value."""


def _baseline(name: str, trial: Trial, asked: int) -> dict[str, float]:
    from runs.bench.baselines import BASELINES

    return BASELINES[name](trial.whole, trial.seed)


def _labels_only_head(trial: Trial, asked: int) -> dict[str, float]:
    from runs.bench.peers import pool_probs

    pool = trial.corpus.pool
    probs = pool_probs(trial.head, trial.corpus, pool)
    return trial.score(trial.head) | calibration_error(trial.corpus, pool, probs)


def _all_labels_head(trial: Trial, asked: int) -> dict[str, float]:
    from runs.bench.baselines import told
    from runs.bench.peers import train_on_labels

    return trial.score(train_on_labels(told(trial.corpus), trial.seed))


def _one_model(trial: Trial, positions: IntArray) -> tuple[FloatArray, int]:
    """Take one model at its word, as tools that let a model label everything do."""
    from runs.bench.peers import majority

    answers, calls = trial.ask(positions)
    return majority(answers[:, :1], len(trial.corpus.classes)), calls // answers.shape[1]


def _cleaned(trial: Trial, positions: IntArray) -> tuple[FloatArray, int]:
    """Let cleanlab leave out of the majority's labels what it takes for mistakes."""
    from runs.bench.peers import cleaned

    probs, calls = _majority(trial, positions)
    return cleaned(probs, trial.corpus.rows(positions)), calls


def _majority(trial: Trial, positions: IntArray) -> tuple[FloatArray, int]:
    from runs.bench.peers import majority

    answers, calls = trial.ask(positions)
    return majority(answers, len(trial.corpus.classes)), calls


def _dawid_skene(trial: Trial, positions: IntArray) -> tuple[FloatArray, int]:
    from runs.bench.peers import dawid_skene

    labelled = trial.whole.labelled
    answers, calls = trial.ask(np.concatenate([labelled, positions]))
    unknown: LabelArray = np.full(len(positions), -1, np.int16)
    known = np.concatenate([trial.whole.labels[labelled], unknown])
    return dawid_skene(answers, known, len(trial.corpus.classes))[len(labelled) :], calls


def _crowdlab(trial: Trial, positions: IntArray) -> tuple[FloatArray, int]:
    from runs.bench.peers import crowdlab, pool_probs

    answers, calls = trial.ask(positions)
    return crowdlab(answers, pool_probs(trial.head, trial.corpus, positions)), calls


def _peer(
    label: Callable[[Trial, IntArray], tuple[FloatArray, int]], trial: Trial, asked: int
) -> dict[str, float]:
    """Label the posts asked about, and teach them to the student."""
    from runs.bench.peers import train_student

    positions = trial.least_sure(asked)
    probs, calls = label(trial, positions)
    known = ~np.isnan(probs).any(1)
    student = train_student(trial.corpus, positions[known], probs[known], trial.seed)
    return (
        trial.score(student)
        | calibration_error(trial.corpus, positions[known], probs[known])
        | {"asked": float(len(positions)), "calls": float(calls)}
    )


def _loop(
    overrides: Callable[[int, int], list[str]],
    agents: Callable[[Trial], Sequence[Path]],
    trial: Trial,
    asked: int,
) -> dict[str, float]:
    """Run the product on the agents' answers."""
    from runs.bench.loop_study import loop_rounds, summarise

    files = json.dumps([str(path) for path in agents(trial)])
    chosen = [f"agents.files={files}", *overrides(asked, len(trial.corpus.pool))]
    if overrides is ours:
        chosen += trial.changes
    rounds = loop_rounds(load_recipe(trial.recipe, chosen), trial.prepared, trial.folder / "run")
    probs = judged_probs(trial.folder / "run", trial.corpus)
    positions = trial.corpus.positions_of(probs)
    values = np.array([probs[trial.corpus.posts[position].id] for position in positions])
    values = values.reshape(-1, len(trial.corpus.classes))
    return summarise(rounds) | calibration_error(trial.corpus, positions, values)


def _agents_alone(trial: Trial, asked: int) -> dict[str, float]:
    """Learn what the agents agree on, and no label by people: posts are drawn, not chosen by a classifier."""
    from runs.bench.peers import majority, train_on_labels

    corpus = trial.corpus
    drawn = np.random.RandomState(trial.seed).permutation(corpus.pool)[:asked]
    answers, calls = trial.ask(drawn)
    probs = majority(answers, len(corpus.classes))
    known = ~np.isnan(probs).any(1)
    labels = corpus.labels.copy()
    labels[drawn[known]] = probs[known].argmax(1)
    told = replace(corpus, labels=labels, labelled=drawn[known])
    student = train_on_labels(told, trial.seed)
    return trial.score(student) | {"asked": float(len(drawn)), "calls": float(calls)}


# ---- agents that are worth nothing ----------------------------------------------------------------------

Answer = Callable[[str | None, str | None, np.random.RandomState], str | None]
"""(gold label, the agent's own answer, draws) -> what a broken agent answers instead."""


def broken(kind: str, trial: Trial) -> list[Path]:
    """Write the answers of two agents that are broken in one way, and return the files."""
    shown = trial.corpus.shown
    positive, negative = shown[:2]
    # each class for the next: of two, the other
    flipped = dict(zip((*shown, None), (*shown[1:], positive, None), strict=True))

    def drawn(
        draws: np.random.RandomState, share: float, first: str | None, second: str | None
    ) -> str | None:
        return first if draws.random_sample() < share else second

    answers: Mapping[str, Answer] = {
        "random": lambda gold, own, draws: drawn(draws, 0.5, positive, negative),
        "always": lambda gold, own, draws: positive,
        "55%": lambda gold, own, draws: drawn(draws, 0.55, gold, flipped[gold]),
        "inverted": lambda gold, own, draws: flipped[own],
        "abstain 80%": lambda gold, own, draws: drawn(draws, 0.8, None, own),
    }
    files = []
    for number, source in enumerate(trial.judged.agents):
        draws = np.random.RandomState(1000 + 100 * number + trial.seed)
        own = _labels_of(source)
        rows = [
            {"id": post.id, "label": answers[kind](post.label, own.get(post.id), draws)}
            for post in trial.judged.posts
        ]
        files.append(trial.folder / f"{kind.replace(' ', '_').replace('%', '')}_{number}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return files


def _labels_of(file: Path) -> dict[str, str | None]:
    rows = (json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip())
    return {row["id"]: row["label"] for row in rows}


BROKEN = ("random", "always", "55%", "inverted", "abstain 80%")


def _real(trial: Trial) -> Sequence[Path]:
    return trial.judged.agents


WITHOUT_AGENTS: Mapping[str, Measure] = {
    "labels_only": partial(_baseline, "labels_only C=10"),
    "labels_only C=1": partial(_baseline, "labels_only C=1"),
    "labels_only_head": _labels_only_head,
    "all_labels": partial(_baseline, "all_labels C=10"),
    "all_labels C=1": partial(_baseline, "all_labels C=1"),
    "all_labels_head": _all_labels_head,
    "sklearn_self_training": partial(_baseline, "sklearn_self_training C=10"),
    "label_spreading": partial(_baseline, "label_spreading"),
    "fixmatch": partial(_baseline, "fixmatch"),
    "active_learning": partial(_baseline, "active_learning"),
}
WITH_AGENTS: Mapping[str, Measure] = {
    "agents_alone": _agents_alone,
    "one_model": partial(_peer, _one_model),
    "majority_hard": partial(_peer, _majority),
    "cleanlab": partial(_peer, _cleaned),
    "dawid_skene": partial(_peer, _dawid_skene),
    "crowdlab": partial(_peer, _crowdlab),
    "article": partial(_loop, article, _real),
    "ours": partial(_loop, ours, _real),
    **{f"ours {kind}": partial(_loop, ours, partial(broken, kind)) for kind in BROKEN},
}
METHODS = {**WITHOUT_AGENTS, **WITH_AGENTS}
REFERENCES = ("labels_only", "labels_only_head")
CHOICES = {
    "whom to ask": ("ours", "ours selection.kind=random", "ours selection.kind=top_k"),
    "in how many rounds": ("ours", "ours rounds.max=1 selection.k=500"),
    "the rule": ("ours", "article"),
}
"""Defaults, and the recipes that they were chosen from."""

# ---- the study ------------------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets, or one set's folder")
    parser.add_argument("--sets", default=ALL, help="names of sets, by commas (default: all)")
    parser.add_argument(
        "--n", type=numbers, default="50,100", help="numbers of labels, by commas (default: 50,100)"
    )
    parser.add_argument("--seeds", type=numbers, default="0..9", help="as 0..9, or by commas (default: 0..9)")
    parser.add_argument("--asked", default="500,all", help="posts that may be asked about (default: 500,all)")
    parser.add_argument("--agents", help="files of answers in each set, by commas (default: two of each set)")
    names = ", ".join(METHODS).replace("%", "%%")
    parser.add_argument("--methods", default=ALL, help=f"by commas, of: {names} (default: all)")
    parser.add_argument(
        "--validation", type=float, default=0.0,
        help="share of the n labels; 0: each label is left out once instead (default: 0)",
    )  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change ours")
    parser.add_argument(
        "--halves", action="store_true",
        help="measure nothing: choose the defaults on each half of the sets, and confirm them on the other",
    )  # fmt: skip


def run(args: argparse.Namespace, figures: Figures) -> None:
    """Measure what --json does not hold yet, and print the tables.

    Raises:
        DataError: No set, or a method or a file of answers that is not there.
    """
    sizes, budgets = args.n, args.asked.split(",")
    methods = _chosen(args.methods, METHODS, "method")
    sets = list(find_sets(args.data, args.sets, args.agents))
    if args.halves:
        print("\n".join(_halves(figures, [one.name for one in sets], sizes, budgets)))
        return
    for judged in sets:
        for n in sizes:
            for seed in args.seeds:
                measure_seed(
                    judged, figures, methods, n=n, seed=seed, budgets=budgets,
                    validation=args.validation, changes=args.set,
                )  # fmt: skip
    shown = [_shown(method, args.set) for method in methods]
    # what was measured before without the changes is what they are compared with
    shown = list(dict.fromkeys([*shown, *methods]))
    print("\n".join(tables(figures, [one.name for one in sets], shown, sizes, budgets)))


def find_sets(data: Path, names: str = ALL, agents: str | None = None) -> Iterator[JudgedSet]:
    """Yield the sets below a folder, or the one that it is.

    Raises:
        DataError: No set there, or none of these names, or a file of answers that a set does not have.
    """
    from selftrain.data.manifest import read_manifest
    from selftrain.data.task import load_task

    places = [data, *sorted(data.iterdir())] if data.is_dir() else []
    found = {place.name: place for place in places if _answer_files(place)}
    if not found:
        raise DataError(
            f"{data} holds no set: expected folders with manifest.jsonl, task.toml and files of answers, one"
            " a model; see docs/formats.md"
        )
    for name in _chosen(names, found, "set"):
        task = load_task(found[name] / "task.toml")
        report = read_manifest(found[name] / "manifest.jsonl", task)
        if report.problems:
            first = report.problems[0]
            print(f"{name}: {len(report.problems)} rows left out, line {first.line} first: {first.reason}")
        files = _agents_of(found[name], agents)
        shown = name if agents is None else f"{name} ({'+'.join(file.stem for file in files)})"
        yield JudgedSet(shown, found[name], task, tuple(report.posts), files)


def _answer_files(folder: Path) -> dict[str, Path]:
    """Return stem -> file of answers, by name; {} where the folder is no set."""
    if not all((folder / name).is_file() for name in ("manifest.jsonl", "task.toml")):
        return {}
    return {file.stem: file for file in sorted(folder.glob("*.jsonl")) if file.stem != "manifest"}


def _agents_of(folder: Path, named: str | None) -> tuple[Path, ...]:
    files = _answer_files(folder)
    usual = AGENTS.get(folder.name, ())
    if named is None:
        names = usual if set(usual) <= set(files) and usual else tuple(files)[:2]
    else:
        names = tuple(name.removesuffix(".jsonl") for name in named.split(","))
    if missing := [name for name in names if name not in files]:
        raise DataError(f"{folder} has no answers of {missing}: expected some of {', '.join(files)}")
    return tuple(files[name] for name in names)


def _chosen(names: str, known: Mapping[str, object], what: str) -> list[str]:
    chosen = list(known) if names == ALL else names.split(",")
    if unknown := [name for name in chosen if name not in known]:
        raise DataError(f"no {what} is called {unknown}: expected some of {', '.join(known)}")
    return chosen


def measure_seed(
    judged: JudgedSet,
    figures: Figures,
    methods: Sequence[str],
    *,
    n: int,
    seed: int,
    budgets: Sequence[str],
    validation: float,
    changes: Sequence[str] = (),
) -> None:
    """Measure all that is missing of one set, number of labels and seed."""
    wanted = [
        (method, asked)
        for method in methods
        for asked in (budgets if _asks(method) else [""])
        if not figures.has(STUDY, _shown(method, changes), n, seed, dataset=judged.name, asked=asked)
    ]
    if not wanted:
        return
    from backbones import load_backbone

    with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as folder:
        backbone = load_backbone("minilm_efficientnet")
        trial = open_trial(
            judged, backbone, Path(folder), n=n, seed=seed, validation=validation, changes=changes
        )
        for method, asked in wanted:
            if method == "crowdlab" and len(judged.agents) < 2:
                continue  # it weighs agents by their agreement with each other
            pool = len(trial.corpus.pool)
            began = time.perf_counter()
            values = METHODS[method](trial, pool if asked in ("", ALL) else min(int(asked), pool))
            values.setdefault("seconds", time.perf_counter() - began)
            shown = _shown(method, changes)
            figures.add([Figure(STUDY, judged.name, shown, n, seed, *item, asked) for item in values.items()])
            told = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            print(f"{judged.name} n={n} seed={seed} asked={asked or '-'} {shown}: {told}", flush=True)


def _shown(method: str, changes: Sequence[str]) -> str:
    """Return the name of a method's figures: nothing but ours has a recipe to change."""
    return named(method, changes) if method.split(maxsplit=1)[0] == "ours" else method


def open_trial(
    judged: JudgedSet,
    backbone: Backbone,
    folder: Path,
    *,
    n: int,
    seed: int,
    validation: float,
    changes: Sequence[str] = (),
) -> Trial:
    """Split a set by the seed, and look up its features: they are computed once, for the usual cache."""
    from selftrain.data.preparation import SplitPosts, prepare_split

    recipe_file = folder / "recipe.toml"
    paths = {"manifest": judged.folder / "manifest.jsonl", "task": judged.folder / "task.toml"}
    data = "".join(f"{name} = {json.dumps(str(path.resolve()))}\n" for name, path in paths.items())
    files = json.dumps([str(path.resolve()) for path in judged.agents])
    recipe_file.write_text(
        # how many are chosen is said by whoever chooses, once the pool is known
        f'seed = {seed}\n[data]\n{data}duplicates = "off"\n[selection]\nk = 1\n'
        f'[agents]\nkind = "replayed"\non_near_chance = "continue"\nfiles = {files}\n',
        encoding="utf-8",
    )
    recipe: Recipe = load_recipe(recipe_file)
    splits = draw(judged, n, seed, validation)
    prepared = prepare_split(recipe, SplitPosts(judged.task, splits, recipe.data, seed, []), backbone)
    return Trial(judged, prepared, recipe_file, folder, seed, tuple(changes))


def draw(judged: JudgedSet, n: int, seed: int, validation: float) -> Splits:
    """Split a set: 30 % of each class are test; of the rest n posts are labelled, stratified.

    Of the n, `validation` of each class, two at least unless it is 0, are the validation split. All else is
    pool, its labels hidden.

    Raises:
        DataError: Too few posts for so many labels.
    """
    from selftrain.data.splits import LEAST_PER_CLASS, split_given

    task, posts = judged.task, judged.posts
    classes = task.numbered
    random = np.random.RandomState(seed)
    known = sum(post.label is not None for post in posts)
    parts: dict[str, list[int]] = {"test": [], "labelled": [], "validation": []}
    left = n
    for name in classes:
        members = random.permutation([i for i, post in enumerate(posts) if post.label == name])
        tests = round(TEST_SHARE * len(members))
        # the last class takes what rounding left
        count = left if name == classes[-1] else round(n * len(members) / known)
        if count > len(members) - tests:
            there = len(members) - tests
            raise DataError(f"{judged.name}: {n} labels take {count} of {name!r}, {there} are there")
        left -= count
        held_out = max(round(validation * count), LEAST_PER_CLASS) if validation else 0
        parts["test"] += members[:tests].tolist()
        parts["validation"] += members[tests : tests + held_out].tolist()
        parts["labelled"] += members[tests + held_out : tests + count].tolist()
    taken = {i for part in parts.values() for i in part}
    pool = [post for i, post in enumerate(posts) if i not in taken]
    labelled, held, test = (
        [posts[i] for i in sorted(parts[name])] for name in ("labelled", "validation", "test")
    )
    return split_given(task, labelled, held, pool, test, seed=seed)


# ---- what is printed ------------------------------------------------------------------------------------

SHOWN = ("macro_f1", "auc", "asked", "calls", "seconds", "ece")


def tables(
    figures: Figures,
    sets: Sequence[str],
    methods: Sequence[str],
    sizes: Sequence[int],
    budgets: Sequence[str],
) -> Iterator[str]:
    """Yield the tables: means, and paired differences in points with 95 % intervals."""
    for n in sizes:
        for asked in budgets:
            measured = {
                method: {
                    metric: values_of(figures, sets, method, n=n, asked=asked, metric=metric)
                    for metric in SHOWN
                }
                for method in methods
            }
            measured = {method: metrics for method, metrics in measured.items() if metrics["macro_f1"]}
            if not measured:
                continue
            yield f"\n# n = {n}, asked about: {asked}; means of all seeds"
            yield from means_table(measured, sets)
            for metric in ("macro_f1", "auc"):
                compared = {method: metrics[metric] for method, metrics in measured.items()}
                for reference in (name for name in (*REFERENCES, "ours") if name in compared):
                    yield f"\n# n = {n}, asked about: {asked}; points of {metric} over {reference}"
                    yield from differences_table(compared, reference, sets)
            yield from _over_round_0(figures, sets, methods, n=n, asked=asked)


def _halves(
    figures: Figures, sets: Sequence[str], sizes: Sequence[int], budgets: Sequence[str]
) -> Iterator[str]:
    """Yield a table a choice of which two recipes at least were measured, in points of macro-F1."""
    for n, asked, (choice, recipes) in product(sizes, budgets, CHOICES.items()):
        get = partial(values_of, figures, sets, n=n, asked=asked, metric="macro_f1")
        measured = {method: values for method in recipes if (values := get(method))}
        if len(measured) > 1:
            yield f"\n# n = {n}, asked about: {asked}; {choice}; the reference is {REFERENCES[0]}"
            yield from halves_table(measured, get(REFERENCES[0]), sets)


def _over_round_0(
    figures: Figures, sets: Sequence[str], methods: Sequence[str], *, n: int, asked: str
) -> Iterator[str]:
    """Yield what the loop brings beyond its own round 0, the labels alone decided at the same cut."""
    gains: dict[str, dict[tuple[str, int], float]] = {}
    for method in methods:
        first, last = (
            values_of(figures, sets, method, n=n, asked=asked, metric=metric)
            for metric in ("macro_f1_round_0", "macro_f1")
        )
        if first:
            gains[method] = {key: last[key] - value for key, value in first.items()}
    if gains:
        yield f"\n# n = {n}, asked about: {asked}; points of macro_f1 over the method's own round 0"
        nothing = {key: 0.0 for values in gains.values() for key in values}
        yield from differences_table({**gains, "round 0": nothing}, "round 0", sets)


def values_of(
    figures: Figures, sets: Sequence[str], method: str, *, n: int, asked: str, metric: str
) -> dict[tuple[str, int], float]:
    """Return (set, seed) -> value; what needs no agents is the same whatever may be asked."""
    budget = asked if _asks(method) else ""
    return {
        (name, seed): value
        for name in sets
        for seed, value in figures.values(method, n, metric, dataset=name, asked=budget).items()
    }


def _asks(method: str) -> bool:
    return method not in WITHOUT_AGENTS
