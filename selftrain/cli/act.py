"""``selftrain act``: models label a pool, and people put right what is likely wrong, within a budget."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from agents.ask.annotator import AnnotationPrompts, Annotator
from agents.ask.cache import ResponseCache
from agents.ask.criticizer import STRATEGIES, Criticizer
from agents.ask.runner import Runner
from backbones.images import MAX_PIXELS
from selftrain._util.types import Interval
from selftrain.act.budget import Rule
from selftrain.act.error_estimate import ErrorEstimate
from selftrain.act.select_models import MODES, AnnotatorScore, CriticizerScore, ModelSelection
from selftrain.act.select_models import select_models as select_from
from selftrain.cli.commands import noun
from selftrain.cli.options import KEY_VARIABLE, Manifest, Overrides
from selftrain.cli.printing import console, plain, print_json, quoted, say
from selftrain.config import load_recipe
from selftrain.data.manifest import enforce, read_manifest
from selftrain.data.manifest_writing import write_manifest
from selftrain.data.posts import Post
from selftrain.data.task import Task, load_task
from selftrain.errors import BudgetError, RecipeError
from selftrain.panels import ModelServers, brief_of, cache_beside
from selftrain.review.act_training import train_on_reviews
from selftrain.review.labelling import (
    LabelFolder,
    PoolLabels,
    SampleSettings,
    annotate_pool,
    begin,
    mixed_posts,
)
from selftrain.store import atomic

app = noun("Label a pool by models, and have people put right what is likely wrong.")

MAX_BAD_ROWS, MAX_BAD_SHARE = 100, 0.05  # as a recipe's defaults
KEY_NOTE = f"The servers' key is taken from {KEY_VARIABLE}, never from the command line."
ASKING, REVIEW, COST = "How models are asked", "What people review", "Cost"


def _known_strategy(name: str) -> str:
    if name not in STRATEGIES:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(STRATEGIES)}")
    return name


def _known_strategies(names: list[str]) -> list[str]:
    return [_known_strategy(name) for name in names or ()]


TaskFile = Annotated[Path, typer.Option(metavar="FILE", help="A TOML file: classes and policy.")]
TokenCap = Annotated[
    int | None,
    typer.Option(metavar="N", rich_help_panel=COST, help="Most tokens that all of this may cost."),
]
Store = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", rich_help_panel=COST,
        help="Kept answers; by default responses.sqlite beside MANIFEST.",
    ),
]  # fmt: skip
LabelDir = Annotated[Path, typer.Argument(metavar="DIR", help="As `selftrain act annotate` made it.")]


@app.command(
    "select-models",
    help="Test models on labelled posts: who annotates, who criticizes, what budget.\n\n"
    "Every model annotates the labelled posts. The most accurate one is to annotate, the second most"
    " accurate one to criticize, in the way that finds its errors best; the budget is the share of wrong"
    f" labels and a buffer. Answers are kept and paid for once. {KEY_NOTE}",
    epilog="Example: selftrain act select-models posts.jsonl --task task.toml --server http://127.0.0.1:8000"
    " --server http://127.0.0.1:8001",
)
def select_models(
    manifest: Manifest,
    *,
    task: TaskFile,
    servers: Annotated[
        list[str],
        typer.Option(
            "--server",
            metavar="URL#MODEL",
            help="A vLLM server, and after # the model's name where it serves several; once for each model.",
        ),
    ],
    json_file: Annotated[
        str | None,
        typer.Option(
            "--json", metavar="FILE", help="Write everything that was measured; - for standard output."
        ),
    ] = None,
    strategies: Annotated[
        list[str],
        typer.Option(
            "--strategy",
            metavar="NAME",
            default_factory=list,
            show_default=False,
            callback=_known_strategies,
            autocompletion=lambda: list(STRATEGIES),
            rich_help_panel=ASKING,
            help=f"A way to criticize, may be given several times; by default all: {', '.join(STRATEGIES)}.",
        ),
    ],
    annotate: Annotated[
        Literal["plain", "reasoning", "both"],
        typer.Option(rich_help_panel=ASKING, help="How the annotators answer."),
    ] = "both",
    self_criticism: Annotated[
        bool, typer.Option("--self", rich_help_panel=ASKING, help="Try the annotator as criticizer too.")
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", rich_help_panel=ASKING, help="Prompt files that replace the built-in ones."
        ),
    ] = None,
    labelled: Annotated[int, typer.Option(metavar="N", help="Labelled posts to test on.")] = 100,
    pool: Annotated[
        int | None,
        typer.Option(metavar="N", help="Posts that the budget is for; by default the unlabelled ones."),
    ] = None,
    buffer: Annotated[float, typer.Option(metavar="SHARE", help="On top of the errors.")] = 0.1,
    seed: Annotated[int, typer.Option(metavar="N", help="Chooses the labelled posts.")] = 0,
    token_cap: TokenCap = None,
    store: Store = None,
) -> None:
    """Print the tables, and write the JSON object when one is asked for.

    Raises:
        SelftrainError, or an error of the agents' tree: what was paid for is kept.
    """
    loaded = load_task(task)
    posts, unlabelled = read_labelled(manifest, loaded, labelled, seed)
    with _runners(servers, manifest, store, token_cap) as runners:
        choice = select_from(
            runners,
            posts,
            AnnotationPrompts(brief_of(loaded), folder=prompts),
            strategies=tuple(dict.fromkeys(strategies or STRATEGIES)),
            modes=MODES if annotate == "both" else (annotate,),
            self_criticism=self_criticism,
            buffer=buffer,
            pool=unlabelled if pool is None else pool,
            seed=seed,
        )
    if json_file == "-":
        print_json(choice.to_json())
        return
    if json_file is not None:
        atomic.write_json(Path(json_file), choice.to_json())
    _print_choice(choice)


def read_labelled(manifest: Path, task: Task, count: int, seed: int) -> tuple[list[Post], int]:
    """Return at most `count` labelled posts, drawn by the seed, and how many posts have no label.

    Raises:
        ManifestError, QuarantineError: It cannot be read, or too many of its rows are bad.
        BudgetError: Fewer than two labelled posts, or asked for.
    """
    posts = _read_posts(manifest, task)
    labelled = [post for post in posts if post.label is not None]
    if count < 2 or len(labelled) < 2:
        raise BudgetError(
            f"{manifest} has {len(labelled)} labelled posts, {count} asked for: expected at least two; label"
            " some by hand, a hundred are plenty"
        )
    drawn = random.Random(seed).sample(range(len(labelled)), min(count, len(labelled)))
    return [labelled[place] for place in sorted(drawn)], len(posts) - len(labelled)


def _read_posts(manifest: Path, task: Task) -> list[Post]:
    report = read_manifest(manifest, task, videos=False)
    enforce(report, MAX_BAD_ROWS, MAX_BAD_SHARE)
    return list(report.posts)


@contextmanager
def _runners(
    servers: Sequence[str], manifest: Path, store: Path | None, token_cap: int | None
) -> Iterator[dict[str, Runner]]:
    """Yield model name -> a runner on its server; two of one name are told apart by their addresses."""
    cache = cache_beside(manifest, store)
    with ExitStack() as stack:
        stack.callback(cache.close)
        runners: dict[str, Runner] = {}
        for server in dict.fromkeys(servers):
            run = f"act select-models {manifest.resolve()}"
            runner = _runner_of(server, cache, run=run, token_cap=token_cap)
            stack.callback(runner.close)
            name = runner.identity().model
            runners[name if name not in runners else f"{name} at {server}"] = runner
        yield runners


def _runner_of(server: str, cache: ResponseCache, *, run: str, token_cap: int | None) -> Runner:
    """Return the model at URL#MODEL at work.

    Raises:
        ServerRefusedError: An address that is none.
    """
    address, _, model = server.partition("#")
    served = ModelServers(servers=(address,), model=model, key_variable=KEY_VARIABLE, token_cap=token_cap)
    return served.runner(cache, run=run, max_pixels=MAX_PIXELS, progress=sys.stderr.isatty())


def _print_choice(choice: ModelSelection) -> None:
    shown = console()
    shown.print(plain("annotators, on labelled posts [95 % interval]", "dim"))
    shown.print(annotators_table(choice.annotators))
    shown.print(plain(f"criticizers of the labels of {choice.annotator.model}", "dim"))
    shown.print(criticizers_table(choice.criticizers))
    for line in recommendation(choice):
        shown.print(plain(line))


def recommendation(choice: ModelSelection) -> Iterator[str]:
    """Yield what to do, in words."""
    annotator, criticizer, budget = choice.annotator, choice.criticizer, choice.budget
    yield f"annotate with {annotator.model} ({annotator.mode})"
    yield f"criticize with {criticizer.model} ({criticizer.strategy})"
    posts = ""
    if budget.posts is not None:
        value, low, high = budget.posts
        posts = f": {value:,} posts [{low:,}, {high:,}]"
    wrong, share = _per_cent(budget.error), _per_cent(budget.share)
    yield f"wrong labels {wrong}, buffer {100 * budget.buffer:g} %, budget {share}{posts}"
    for warning in choice.warnings:
        yield f"note: {warning}"


def annotators_table(scores: Sequence[AnnotatorScore]) -> Table:
    """Return one line a model and way of annotating, best first."""
    table = _table("model", "asked", "accuracy", "without a label", "tokens")
    for one in scores:
        _row(table, one.model, one.mode, _per_cent(one.accuracy), f"{one.unlabelled}", f"{one.tokens:,}")
    return table


def criticizers_table(scores: Sequence[CriticizerScore]) -> Table:
    """Return one line a model and strategy, best first."""
    table = _table("model", "strategy", "AUC", "ABS", "mean estimate", "missing", "tokens")
    for one in scores:
        auc = "-" if one.auc is None else f"{one.auc.value:.3f} [{one.auc.low:.3f}, {one.auc.high:.3f}]"
        gain = "-" if one.abs is None else f"{one.abs:.3f}"
        mean, missing, tokens = f"{one.mean_error:.3f}", f"{one.missing}", f"{one.tokens:,}"
        _row(table, one.model, one.strategy, auc, gain, mean, missing, tokens)
    return table


def _table(*columns: str) -> Table:
    table = Table()
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < 2 else "right")
    return table


def _row(table: Table, *cells: str) -> None:
    table.add_row(*map(plain, cells))


def _per_cent(share: Interval | ErrorEstimate) -> str:
    return f"{100 * share.value:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}]"


# ---- a pool labelled ----------------------------------------------------------------------------------


@app.command(
    help="Label a pool by a model, and draw the doubtful labels for review.\n\n"
    "One model labels every unlabelled post of the manifest, another one says how likely each label is"
    " wrong, and a sample of the doubtful ones goes to review: `selftrain review serve DIR`. Answers are"
    f" kept and paid for once; killed, the same command goes on. Two classes or more. {KEY_NOTE}",
    epilog="Example: selftrain act annotate posts.jsonl --task task.toml --annotator http://127.0.0.1:8000"
    " --budget 200 --out labels",
)
def annotate(
    manifest: Manifest,
    *,
    task: TaskFile,
    annotator: Annotated[str, typer.Option(metavar="URL#MODEL", help="Who labels: a vLLM server.")],
    budget: Annotated[int, typer.Option(metavar="B", help="Posts that people look at.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The labelling's folder.")],
    criticizer: Annotated[
        str | None,
        typer.Option(metavar="URL#MODEL", help="Who doubts; by default the annotator itself."),
    ] = None,
    mode: Annotated[
        Literal["plain", "reasoning"],
        typer.Option("--annotate", rich_help_panel=ASKING, help="How the annotator answers."),
    ] = "reasoning",
    strategy: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            callback=_known_strategy,
            autocompletion=lambda: list(STRATEGIES),
            rich_help_panel=ASKING,
            help=f"How the criticizer is asked: {', '.join(STRATEGIES)}.",
        ),
    ] = "devils_advocate",
    rule: Annotated[
        Rule, typer.Option(rich_help_panel=REVIEW, help="How likely errors are drawn more often.")
    ] = "exponential",
    floor: Annotated[
        float, typer.Option(metavar="SHARE", rich_help_panel=REVIEW, help="Spread evenly.")
    ] = 0.1,
    doubled: Annotated[
        float,
        typer.Option(
            "--double-annotation-rate", metavar="SHARE", rich_help_panel=REVIEW, help="Reviewed by two."
        ),
    ] = 0.1,
    seed: Annotated[int, typer.Option(metavar="N", help="Of answers and draw.")] = 0,
    token_cap: TokenCap = None,
    store: Store = None,
) -> None:
    """Label, criticize and draw; print what is doubtful and what comes next.

    Raises:
        SelftrainError, or an error of the agents' tree: what was paid for is kept.
    """
    # what must stay the same when the command is given again; where models are served may change
    settings = {
        "annotate": mode, "strategy": strategy, "budget": budget, "rule": rule, "floor": floor,
        "double_annotation_rate": doubled, "seed": seed,
    }  # fmt: skip
    loaded = load_task(task)
    posts = [post for post in _read_posts(manifest, loaded) if post.label is None]
    if not posts:
        raise BudgetError(f"{manifest} has no unlabelled post: expected some to label")
    folder, prompts = LabelFolder(out), AnnotationPrompts(brief_of(loaded))
    with folder.locked(), ExitStack() as stack:
        begin(folder, manifest, task, settings)
        cache = cache_beside(manifest, store)
        stack.callback(cache.close)
        run = f"act annotate {out.resolve()}"
        annotating = criticizing = _runner_of(annotator, cache, run=run, token_cap=token_cap)
        stack.callback(annotating.close)
        if criticizer not in (None, annotator):
            criticizing = _runner_of(criticizer, cache, run=run, token_cap=token_cap)
            stack.callback(criticizing.close)
        found = annotate_pool(
            folder,
            posts,
            annotating=(annotating, Annotator(prompts, reasoning=mode == "reasoning", seed=seed)),
            criticizing=(criticizing, Criticizer(prompts, strategy, seed=seed)),
            classes=loaded.names,
            drawing=SampleSettings(budget, rule, floor, doubled, seed),
        )
    _print_labelled(folder, found)


@app.command(
    help="Write a manifest with the labels of a labelling: people's, else the machine's.\n\n"
    "Every label says where it comes from (`provenance`). Tells how wrong the machine's labels are, by"
    " the reviewed sample, with a 95 % interval.",
    epilog="Example: selftrain act export labels --out labelled.jsonl",
)
def export(
    folder: LabelDir, out: Annotated[Path, typer.Option(metavar="FILE", help="JSON lines, CSV or Parquet.")]
) -> None:
    """Write the manifest, and print how wrong the machine's labels are.

    Raises:
        SelftrainError: Nothing is written.
    """
    labels = LabelFolder(folder)
    posts, waiting, errors = mixed_posts(labels, load_task(Path(labels.recipe()["data"]["task"])))
    write_manifest(posts, out)
    sources = [post.extra["provenance"]["source"] for post in posts if "provenance" in post.extra]
    human = sources.count("human")
    machine = len(sources) - human
    say(f"{out}: {len(posts):,} posts, {human:,} labels from review, {machine:,} of the machine")
    if waiting:
        say(f"{waiting:,} posts wait for a review: selftrain review serve {quoted(folder)}")
    if errors is None:
        say("how wrong the machine's labels are cannot be told: nobody has reviewed, or by threshold alone")
    else:
        say(f"wrong machine labels: {_per_cent(errors.all)}")
        say(f"wrong labels left in the file: {_per_cent(errors.all.after_correction())}")


@app.command(
    help="Train a classifier on the reviews of a labelling or a run, with the ACT loss.\n\n"
    "Learns from the machine's label of every post and from people's labels of those that they reviewed;"
    " what the machine gets wrong is corrected for, as long as every post had a chance of review. Two"
    " classes or more. predict, serve and filter open the model.",
    epilog="Example: selftrain act train labels --out models/labels --validation validation.jsonl",
)
def train(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A labelling's or a run's folder, with reviews.")
    ],
    *,
    out: Annotated[Path, typer.Option(metavar="MODEL", help="The model's folder.")],
    validation: Annotated[
        Path | None, typer.Option(metavar="MANIFEST", help="Labelled posts that choose the epoch.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(metavar="MANIFEST", help="Labelled posts to measure on.")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="RECIPE", help="Take the sections backbone and classifier of it."),
    ] = None,
    overrides: Overrides,
    power: Annotated[float, typer.Option(metavar="LAMBDA", help="Lambda of the loss.")] = 1.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Of split, weights and dropout.")] = 0,
) -> None:
    """Train, write the model, and print what it learned from, how good it is and what comes next.

    Raises:
        SelftrainError, BackboneError: Nothing is written.
    """
    if overrides and recipe is None:
        raise RecipeError("--set changes a value of a recipe, and none is given: add --recipe")
    sections = None if recipe is None else load_recipe(recipe, overrides)
    found = train_on_reviews(
        folder,
        out,
        validation=validation,
        test=test,
        backbone=None if sections is None else sections.backbone,
        classifier=None if sections is None else sections.classifier,
        power=power,
        seed=seed,
        progress=sys.stderr.isatty(),
    )
    say(f"{out}: learned from {found.posts:,} labels, {found.human:,} of them people's")
    if found.left_out:
        say(f"{len(found.left_out):,} posts could not be encoded and are left out, see act.json")
    if not found.unbiased:
        say("note: some posts had no chance of review (threshold without a floor): as wrong as their labels")
    for split, quality in found.quality.items():
        say(f"{split}: {quality}")
    say(f"next: selftrain predict {quoted(out)} MANIFEST --out FILE, or serve, filter")


def _print_labelled(folder: LabelFolder, found: PoolLabels) -> None:
    say(f"{found.posts:,} posts labelled in {folder.path}")
    if found.unlabelled:
        say(f"{found.unlabelled:,} posts without a label, one of them: {found.reason}")
    if found.missing:
        say(f"{found.missing:,} labels without an error estimate count with the mean of the others")
    say(f"the criticizer takes {100 * found.doubt:.1f} % of the labels for wrong")
    say(f"{found.drawn:,} posts drawn for review")
    out = quoted(folder.path)
    say(f"next: selftrain review serve {out}, then selftrain act export {out} --out labelled.jsonl")
