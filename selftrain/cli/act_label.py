"""``selftrain act label``: a pool labelled by models, its doubtful labels sent to people; ``act labels``."""

from __future__ import annotations

import argparse
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from selftrain.cli.act import KEY_VARIABLE, MAX_BAD_ROWS, MAX_BAD_SHARE, STRATEGIES, desk_of

if TYPE_CHECKING:
    from selftrain.data.posts import Post
    from selftrain.data.task import Task
    from selftrain.review.labelling import LabelFolder, Labelled


def add_label(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `act label`."""
    parser = commands.add_parser(
        "label",
        help="label a pool by a model, and draw the doubtful labels for review",
        description="One model labels every unlabelled post of the manifest, another one says how likely"
        " each label is wrong, and a sample of the doubtful ones goes to review: `selftrain review DIR`."
        " Answers are kept and paid for once; killed, the same command goes on. Two classes or more.",
        epilog=f"The servers' key is taken from {KEY_VARIABLE}, never from the command line.",
    )
    add = parser.add_argument
    add("manifest", type=Path, metavar="MANIFEST", help="JSON lines, CSV or Parquet")
    add("--task", type=Path, required=True, metavar="FILE", help="a TOML file: classes and policy")
    add("--annotator", required=True, metavar="ADDRESS[#MODEL]", help="who labels: a vLLM server")
    add("--criticizer", metavar="ADDRESS[#MODEL]", help="who doubts (default: the annotator itself)")
    add("--annotate", choices=("plain", "reasoning"), default="reasoning", help="(default: %(default)s)")
    add("--strategy", choices=STRATEGIES, default="devils_advocate", help="(default: %(default)s)")
    add("--budget", type=int, required=True, metavar="B", help="posts that people look at")
    add("--rule", choices=("normalised", "exponential", "threshold"), default="exponential")
    add("--floor", type=float, default=0.1, metavar="SHARE", help="spread evenly (default: %(default)s)")
    add("--doubled", type=float, default=0.1, metavar="SHARE", help="reviewed by two (default: %(default)s)")
    add("--seed", type=int, default=0, help="of answers and draw (default: %(default)s)")
    add("--token-cap", type=int, metavar="N", help="most tokens that all of this may cost")
    add("--store", type=Path, metavar="FILE", help="kept answers (default: responses.sqlite beside MANIFEST)")
    add("--out", type=Path, required=True, metavar="DIR", help="the labelling's folder")
    parser.set_defaults(handler=run_label)


def add_labels(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `act labels`."""
    parser = commands.add_parser(
        "labels",
        help="write a manifest with the labels of a labelling: people's, else the machine's",
        description="Every label says where it comes from (`provenance`). Tells how wrong the machine's"
        " labels are, by the reviewed sample, with a 95 %% interval.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="as `selftrain act label` made it")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON lines, CSV or Parquet")
    parser.set_defaults(handler=run_labels)


def run_label(args: argparse.Namespace) -> int:
    """Labels, criticizes and draws; says what is doubtful and what comes next.

    Raises:
        SelftrainError, or an error of the agents' tree: what was paid for is kept.
    """
    from agents.ask.criticizer.asking import Annotator, Criticizer
    from agents.ask.criticizer.wording import Wording
    from selftrain.build import brief_of, store_beside
    from selftrain.data.task import load_task
    from selftrain.review.labelling import Drawing, LabelFolder, begin, label

    task = load_task(args.task)
    posts = _unlabelled(args.manifest, task)
    folder = LabelFolder(args.out)
    wording = Wording(brief_of(task))
    with folder.locked(), ExitStack() as stack:
        begin(folder, args.manifest, args.task, _settings(args))
        store = store_beside(args.manifest, args.store)
        stack.callback(store.close)
        run = f"act label {args.out.resolve()}"
        annotating = desk_of(args.annotator, store, run=run, token_cap=args.token_cap)
        stack.callback(annotating.close)
        criticizing = annotating
        if args.criticizer is not None and args.criticizer != args.annotator:
            criticizing = desk_of(args.criticizer, store, run=run, token_cap=args.token_cap)
            stack.callback(criticizing.close)
        found = label(
            folder, posts,
            annotating=(
                annotating, Annotator(wording, reasoning=args.annotate == "reasoning", seed=args.seed)
            ),
            criticizing=(criticizing, Criticizer(wording, args.strategy, seed=args.seed)),
            classes=task.names,
            drawing=Drawing(args.budget, args.rule, args.floor, args.doubled, args.seed),
        )  # fmt: skip
    _tell(folder, found)
    return 0


def run_labels(args: argparse.Namespace) -> int:
    """Writes the manifest, and tells how wrong the machine's labels are.

    Raises:
        SelftrainError: Nothing is written.
    """
    from selftrain.data.manifest_writing import write_manifest
    from selftrain.data.task import load_task
    from selftrain.review.labelling import LabelFolder, mixed_posts

    folder = LabelFolder(args.folder)
    posts, waiting, errors = mixed_posts(folder, load_task(Path(folder.recipe()["data"]["task"])))
    write_manifest(posts, args.out)
    sources = [post.extra["provenance"]["source"] for post in posts if "provenance" in post.extra]
    human = sources.count("human")
    machine = len(sources) - human
    print(f"{args.out}: {len(posts):,} posts, {human:,} labels from review, {machine:,} of the machine")
    if waiting:
        print(f"{waiting:,} posts wait for a review: selftrain review {shlex.quote(str(args.folder))}")
    if errors is None:
        print("how wrong the machine's labels are cannot be told: nobody has reviewed, or by threshold alone")
    else:
        print(f"wrong machine labels: {_share(errors.all.value, errors.all.low, errors.all.high)}")
        left = errors.all.after_correction()
        print(f"wrong labels left in the file: {_share(left.value, left.low, left.high)}")
    return 0


def _unlabelled(manifest: Path, task: Task) -> list[Post]:
    from selftrain.data.manifest import enforce, read_manifest
    from selftrain.errors import BudgetError

    report = read_manifest(manifest, task)
    enforce(report, MAX_BAD_ROWS, MAX_BAD_SHARE)
    posts = [post for post in report.posts if post.label is None]
    if not posts:
        raise BudgetError(f"{manifest} has no unlabelled post: expected some to label")
    return posts


def _settings(args: argparse.Namespace) -> dict[str, object]:
    """What must stay the same when the command is given again; where models are served may change."""
    names = ("annotate", "strategy", "budget", "rule", "floor", "doubled", "seed")
    return {name: getattr(args, name) for name in names}


def _tell(folder: LabelFolder, found: Labelled) -> None:
    from selftrain._util.printable import printable

    print(f"{found.posts:,} posts labelled in {folder.path}")
    if found.unlabelled:
        print(printable(f"{found.unlabelled:,} posts without a label, one of them: {found.reason}"))
    if found.missing:
        print(f"{found.missing:,} labels without an error estimate count with the mean of the others")
    print(f"the criticizer takes {100 * found.doubt:.1f} % of the labels for wrong")
    print(f"{found.drawn:,} posts drawn for review")
    out = shlex.quote(str(folder.path))
    print(f"next: selftrain review {out}, then selftrain act labels {out} --out labelled.jsonl")


def _share(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
