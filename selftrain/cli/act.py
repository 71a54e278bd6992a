"""``selftrain act``: models label a pool, and people put right what is likely wrong, within a budget."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from selftrain._util.choices import Mode, StrategyName
from selftrain._util.deferred import deferred
from selftrain._util.object_urls import url_of, url_or_path
from selftrain.cli import options
from selftrain.cli.commands import noun
from selftrain.cli.options import ASKING, COST, argument, option, several
from selftrain.cli.printing import console, echo, number, plain, print_json, quoted, table
from selftrain.errors import BudgetError
from selftrain.store import atomic

with deferred():
    from agents.ask import annotator as annotators
    from agents.ask import criticizer as criticizers
    from agents.ask import runner as running
    from backbones import images
    from selftrain import config, panels
    from selftrain.act import select_models as selecting
    from selftrain.data import manifest_writing, run_posts
    from selftrain.data import task as tasks
    from selftrain.review import act_training, labelling, sampling

app = noun("Label a pool by models, and have people put right what is likely wrong.")

Store = Annotated[
    Path | None, options.written("Kept answers; by default responses.sqlite beside MANIFEST.", panel=COST)
]
LabelDir = Annotated[Path, argument("DIR", "As `selftrain act annotate` made it.")]


Models = Annotated[
    list[str],
    option(
        "A vLLM server, and after # the model's name where it serves several; once for each model.",
        "--server", metavar="URL#MODEL",
    ),
]  # fmt: skip


def _known(names: list[str] | None) -> list[str]:
    strangers = [name for name in names or () if name not in get_args(StrategyName)]
    if strangers:
        raise typer.BadParameter(f"{strangers[0]!r} is none of {', '.join(get_args(StrategyName))}")
    return names or []


Strategies = Annotated[
    list[str],
    several(
        "How a criticizer is asked; once for each, by default all.",
        "--strategy", metavar="NAME", panel=ASKING,
        callback=_known, autocompletion=lambda: list(get_args(StrategyName)),
    ),
]  # fmt: skip


@app.command(
    "select-models",
    epilog="Example: selftrain act select-models posts.jsonl --task task.toml --server http://127.0.0.1:8000"
    " --server http://127.0.0.1:8001",
)
@options.grouped
def select_models(
    manifest: options.Manifest,
    *,
    task: options.TaskFile,
    servers: Models,
    json_file: Annotated[
        str | None,
        option(
            "Write everything that was measured; - for standard output.",
            "--json",
            metavar="FILE",
            **options.FILE,
        ),
    ] = None,
    strategies: Strategies,
    annotate: Annotated[
        Literal["plain", "reasoning", "both"], option("How an annotator answers.", panel=ASKING)
    ] = "both",
    self_criticism: Annotated[
        bool,
        option("Have the best annotator criticize its own labels too.", "--self-criticism", panel=ASKING),
    ] = False,
    prompts: options.Prompts = None,
    labelled: Annotated[int, option("Labelled posts to test on.", metavar="N")] = 100,
    pool: Annotated[
        int | None,
        option("Posts that the budget is for; by default the unlabelled ones.", metavar="N", min=0),
    ] = None,
    buffer: Annotated[float, option("On top of the errors.", metavar="SHARE", min=0, max=1)] = 0.1,
    reading: options.Reading,
    seed: options.Seed = 0,
    token_cap: options.TokenCap = None,
    store: Store = None,
) -> None:
    """Test models on labelled posts: who annotates, who criticizes, what budget.

    Every model annotates the labelled posts. The most accurate one is to annotate, the second most accurate
    one to criticize, in the way that finds its errors best; the budget is the share of wrong labels and a
    buffer. Answers are kept and paid for once. The servers' key is taken from SELFTRAIN_API_KEY, never from
    the command line.
    """
    loaded = tasks.load_task(task)
    if json_file not in (None, "-"):
        atomic.check_not_read(Path(json_file), manifest, task)
    posts, unlabelled = labelling.read_labelled(
        manifest, loaded, labelled, seed, reading.named, tolerance=reading.tolerance()
    )
    run = f"act select-models {url_or_path(manifest.resolve())}"
    with _runners(servers, manifest, store, token_cap, run) as runners:
        choice = selecting.select_models(
            _by_model(runners), posts,
            annotators.AnnotationPrompts(panels.brief_of(loaded), folder=prompts),
            strategies=tuple(dict.fromkeys(strategies or get_args(StrategyName))),
            modes=get_args(Mode) if annotate == "both" else (annotate,),
            self_criticism=self_criticism, buffer=buffer,
            pool=unlabelled if pool is None else pool, seed=seed,
        )  # fmt: skip
    _tell(choice, json_file)


@contextmanager
def _runners(
    servers: Sequence[str], beside: Path, store: Path | None, token_cap: int | None, run: str
) -> Iterator[dict[str, running.Runner]]:
    """Yield URL#MODEL -> that model at work, with the answers that were paid for before."""
    if store is None and url_of(beside):
        raise BudgetError(
            "answers that are paid for are kept beside the manifest, and this one is on object storage: say"
            " where on a disk, --store FILE"
        )
    cache = panels.cache_beside(beside, store)
    with ExitStack() as stack:
        stack.callback(cache.close)
        runners: dict[str, running.Runner] = {}
        for server in dict.fromkeys(servers):
            url, _, model = server.partition("#")
            served = panels.ModelServers(
                servers=(url,), model=model, key_variable=options.KEY_VARIABLE, token_cap=token_cap
            )
            runners[server] = served.runner(
                cache, run=run, max_pixels=images.MAX_PIXELS, progress=sys.stderr.isatty()
            )
            stack.callback(runners[server].close)
        yield runners


def _by_model(runners: dict[str, running.Runner]) -> dict[str, running.Runner]:
    """Return the runners by their models' names; two of one name are told apart by their servers."""
    named: dict[str, running.Runner] = {}
    for server, runner in runners.items():
        name = runner.identity().model
        named[name if name not in named else f"{name} at {server}"] = runner
    return named


def _tell(choice: selecting.ModelSelection, json_file: str | None) -> None:
    """Print a choice, and write all that was measured to a file; to "-" that alone, on standard output."""
    if json_file == "-":
        print_json(choice.to_json())
        return
    if json_file is not None:
        atomic.write_json(Path(json_file), choice.to_json())
    _print_choice(choice)


def _print_choice(choice: selecting.ModelSelection) -> None:
    shown = console()
    shown.print(plain("annotators, on labelled posts [95 % interval]", "dim"))
    tried = table("model", "asked", "accuracy", "without a label", "tokens", left=2)
    for one in choice.annotators:
        accuracy, tokens = one.accuracy.per_cent(), f"{one.tokens:,}"
        tried.add_row(*map(plain, (one.model, one.mode, accuracy, str(one.unlabelled), tokens)))
    shown.print(tried)
    shown.print(plain(f"criticizers of the labels of {choice.annotator.model}", "dim"))
    tried = table("model", "strategy", "AUC", "ABS", "mean estimate", "missing", "tokens", left=2)
    for critic in choice.criticizers:
        auc = critic.auc
        tried.add_row(
            plain(critic.model), plain(critic.strategy),
            "-" if auc is None else f"{auc.value:.3f} [{auc.low:.3f}, {auc.high:.3f}]", number(critic.abs),
            number(critic.mean_error), str(critic.missing), f"{critic.tokens:,}",
        )  # fmt: skip
    shown.print(tried)
    for line in choice.lines():
        shown.print(plain(line))


@app.command(
    epilog="Example: selftrain act annotate posts.jsonl --task task.toml --annotator http://127.0.0.1:8000"
    " --budget 200 --out labels"
)
@options.grouped
def annotate(
    manifest: options.Manifest,
    *,
    task: options.TaskFile,
    reading: options.Reading,
    annotator: Annotated[str, option("Who labels: a vLLM server.", metavar="URL#MODEL")],
    budget: options.Budget,
    out: Annotated[Path, option("The labelling's folder.", metavar="DIR")],
    criticizer: Annotated[
        str | None, option("Who doubts; by default the annotator itself.", metavar="URL#MODEL")
    ] = None,
    mode: Annotated[Mode, option("How the annotator answers.", "--annotate", panel=ASKING)] = "reasoning",
    strategy: Annotated[
        StrategyName, option("How the criticizer is asked.", panel=ASKING)
    ] = "devils_advocate",
    drawing: options.Drawing,
    seed: options.Seed = 0,
    token_cap: options.TokenCap = None,
    store: Store = None,
) -> None:
    """Label a pool by a model, and draw the doubtful labels for review.

    One model labels every unlabelled post of the manifest, another estimates how likely each label is wrong,
    and a sample of the doubtful ones goes to review: `selftrain review serve DIR`. Answers are kept and paid
    for once; killed, the same command goes on. Two classes or more. The servers' key is taken from
    SELFTRAIN_API_KEY, never from the command line.
    """
    loaded = tasks.load_task(task)
    read = labelling.read_posts(manifest, loaded, reading.named, reading.tolerance())
    posts = [post for post in read if post.label is None]
    if not posts:
        raise BudgetError(f"{manifest} has no unlabelled post: expected some to label")
    if budget > len(posts):  # before anything is paid for, and before the folder keeps to it
        raise BudgetError(
            f"a budget of {budget:,} for {len(posts):,} unlabelled posts: expected at most as many"
        )
    sample = sampling.SampleSettings(budget, *drawing, seed)
    folder, prompts = labelling.LabelFolder(out), annotators.AnnotationPrompts(panels.brief_of(loaded))
    criticizer = criticizer or annotator
    with folder.locked():
        # what must stay the same when the command is given again; where models are served may change
        settings = {"annotate": mode, "strategy": strategy, **sample._asdict()}
        labelling.begin(folder, manifest, task, settings, reading.named, posts=read)
        run = f"act annotate {out.resolve()}"
        with _runners((annotator, criticizer), manifest, store, token_cap, run) as runners:
            labels = annotators.Annotator(prompts, reasoning=mode == "reasoning", seed=seed)
            doubts = criticizers.Criticizer(prompts, strategy, seed=seed)
            found = labelling.annotate_pool(
                folder, posts, annotating=(runners[annotator], labels),
                criticizing=(runners[criticizer], doubts), classes=loaded.names, drawing=sample,
            )  # fmt: skip
    for line in found.lines(out):
        echo(line)


@app.command(epilog="Example: selftrain act export labels --out labelled.jsonl")
def export(folder: LabelDir, out: Annotated[Path, options.written("JSON lines, CSV or Parquet.")]) -> None:
    """Write a manifest with the labels of a labelling: people's, else the machine's.

    Every label has where it comes from (`provenance`). Prints how wrong the machine's labels are, by the
    reviewed sample, with a 95 % interval.
    """
    labels = labelling.LabelFolder(folder)
    atomic.check_not_read(out, *run_posts.files_of(labels))
    found = labelling.mixed_posts(labels, tasks.load_task(labels.data_files().task))
    manifest_writing.write_manifest(found.posts, out)
    labels_of = f"{found.human:,} labels from review, {found.machine:,} of the machine"
    echo(f"{out}: {len(found.posts):,} posts, {labels_of}")
    if found.waiting:
        echo(f"{found.waiting:,} posts wait for a review: selftrain review serve {quoted(folder)}")
    if found.errors is None:
        echo("how wrong the machine's labels are cannot be told: nobody has reviewed, or by threshold alone")
    else:
        echo(f"wrong machine labels: {found.errors.all.interval.per_cent()}")
        echo(f"wrong labels left in the file: {found.errors.all.after_correction().interval.per_cent()}")
    if found.human:
        echo(f"next: {labelling.train_command(folder)}")


@app.command(epilog="Example: selftrain act train labels --out models/labels --validation validation.jsonl")
def train(
    folder: Annotated[Path, argument("DIR", "A labelling's or a run's folder, with reviews.")],
    *,
    out: Annotated[Path, option("The model's folder.", metavar="MODEL")],
    validation: Annotated[
        Path | None, option("Labelled posts that choose the epoch.", metavar="MANIFEST", **options.TABLE)
    ] = None,
    test: Annotated[
        Path | None, option("Labelled posts to measure on.", metavar="MANIFEST", **options.TABLE)
    ] = None,
    recipe: Annotated[
        Path | None, option("Take the sections backbone and classifier of it.", metavar="RECIPE")
    ] = None,
    overrides: options.Overrides,
    power: Annotated[float, option("Lambda of the loss.", metavar="LAMBDA")] = 1.0,
    seed: Annotated[int, option("Of split, weights and dropout.", metavar="N")] = 0,
) -> None:
    """Train a classifier on the reviews of a labelling or a run, with the ACT loss.

    Learns from the machine's label of every post and from people's labels of those that they reviewed; what
    the machine gets wrong is corrected for, as long as every post had a chance of review. Two classes or
    more. predict, serve and filter open the model.
    """
    options.refuse_idle_overrides(recipe, overrides)
    found = act_training.train_on_reviews(
        folder, out, validation=validation, test=test, power=power, seed=seed, progress=sys.stderr.isatty(),
        recipe=None if recipe is None else config.load_recipe(recipe, overrides),
    )  # fmt: skip
    echo(f"{out}: learned from {found.posts:,} labels, {found.human:,} of them people's")
    if found.left_out:
        echo(f"{len(found.left_out):,} posts could not be encoded and are left out, see act.json")
    if not found.unbiased:
        echo("note: some posts had no chance of review (threshold without a floor): as wrong as their labels")
    for split, quality in found.quality.items():
        echo(f"{split}: {quality}")
    echo(f"next: selftrain predict {quoted(out)} MANIFEST --out FILE, or serve, filter")
