"""Jobs for the matrix of kills: commands over a folder of inputs, small enough to be repeated often."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from agentps_helpers import training_folder
from annotation_helpers import make_home
from kill_helpers import SMALL

from selftrain.data.drawn import draw_posts

AT_ONCE = 2
MODEL = f"""
[vlm]
servers = ["SERVER"]
concurrency = {AT_ONCE}
"""
DATA = '[data]\nmanifest = "posts.jsonl"\ntask = "task.toml"\n'
AGENTS = """
[agents]
kind = "vlm"
on_near_chance = "continue"
"""
PEOPLE = """
[human]
budget = 7
per_round = 4
"""


@dataclass(frozen=True)
class Job:
    """Commands, one after the other, in the folder `{work}`.

    Attributes:
        made: Writes the inputs into a folder, which is where the commands will find them.
        commands: Words of each command, and the exit status of one that ends.
        before: Commands that belong to the inputs: nothing happens to them.
        at_once: Questions to the server that may be under way.
        served: The folder that the commands serve for review: a reviewer answers until nothing is left.
    """

    made: object
    commands: tuple[tuple[str, int], ...]
    before: tuple[tuple[str, int], ...] = ()
    at_once: int = AT_ONCE
    served: str = ""


def posts(folder, recipe, server):
    draw_posts(folder / "posts", 130, seed=1)
    (folder / "recipe.toml").write_text(recipe.replace("SERVER", server))


def decisions(folder):
    """A reviewer's table: the truth about every post, asked for or not."""
    rows = map(json.loads, (folder / "posts" / "manifest.jsonl").read_text().splitlines())
    table = "".join(f"{row['id']},{row['label']},ann\n" for row in rows)
    (folder / "decisions.csv").write_text(f"post_id,label,reviewer\n{table}")


def offline(folder, server):
    posts(folder, SMALL, server)


def simulated(folder, server):
    posts(folder, SMALL + '[agents]\nkind = "simulated"\n', server)


def asked(folder, server):
    posts(folder, SMALL.replace("k = 15", "k = 6") + AGENTS + MODEL, server)


def reviewed(folder, server):
    posts(folder, SMALL + PEOPLE, server)
    decisions(folder)


def annotated(folder, server):
    make_home(folder)
    (folder / "recipe.toml").write_text(DATA + MODEL.replace("SERVER", server))


def labelled(folder, server):
    posts(folder, SMALL, server)
    decisions(folder)
    manifest = folder / "posts" / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()][:52]
    for row in rows[20:]:
        del row["label"]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))


def trained(folder, server):
    training_folder(folder, posts=20)


RUN = ("run {work}/recipe.toml --out {work}/run", 0)
TASK = "--task {work}/posts/task.toml"
LABELLING = (
    (f"act annotate {{work}}/posts/manifest.jsonl {TASK} --annotator SERVER --annotate plain"
     " --strategy log_probability --budget 12 --out {work}/labels", 0),
    ("review import {work}/labels {work}/decisions.csv", 1),
)  # fmt: skip
JOBS = {
    "run, offline agents": Job(offline, (RUN,)),
    "run, simulated agents": Job(simulated, (RUN,)),
    "run, agents of a server": Job(asked, (RUN,)),
    "run, people": Job(
        # whoever was not asked about is refused line by line, which is what status 1 says
        reviewed, (RUN, ("review import {work}/run {work}/decisions.csv", 1)) * 2 + (RUN,)
    ),
    "filter": Job(
        offline,
        (("filter {work}/run --source {work}/posts/manifest.jsonl --sink {work}/kept.jsonl --recall .8", 0),),
        before=(RUN,),
    ),
    "report": Job(offline, (("report {work}/run --out {work}/page.html", 0),), before=(RUN,)),
    "annotate": Job(
        annotated,
        (("annotate {work}/posts.jsonl --task {work}/task.toml --out {work}/annotated.jsonl"
          " --recipe {work}/recipe.toml --server SERVER --direct", 0),),
    ),
    "act": Job(
        labelled,
        (*LABELLING, ("act export {work}/labels --out {work}/labelled.jsonl", 0)),
        at_once=64,
    ),
    "act train": Job(
        labelled,
        (("act train {work}/labels --out {work}/model --recipe {work}/recipe.toml", 0),),
        before=LABELLING,
    ),
    "review serve": Job(
        offline,
        (("review serve {work}/run --budget 12 --double-annotation-rate .25 --no-browser", 0),),
        before=(RUN,),
        served="run",
    ),
    "agentps train": Job(
        trained,
        (("agentps train {work}/posts.jsonl --task {work}/task.toml --recipe {work}/recipe.toml"
          " --out {work}/model", 0),),
    ),
}  # fmt: skip

# times and this machine; a digest of them; what belongs to a process; a port and a secret
UNREPEATED = {"environment.json", "checksums.json", ".lock", ".review.json", ".review.html"}


def contents(work):
    """Everything that a job leaves, but for times and what the machine is."""
    found = {}
    for file in sorted(work.rglob("*")):
        name = str(file.relative_to(work))
        if file.is_symlink():
            found[name] = str(file.readlink())
        elif file.is_dir() or file.name in UNREPEATED or "tensorboard" in file.parts:
            continue
        elif name == "run/report.html":
            found[name] = "drawn"  # from all of the run, its seconds too
        elif file.suffix == ".sqlite":
            found[name] = kept(file)
        elif file.suffix == ".json":
            found[name] = without(json.loads(file.read_text()), "seconds", "cost", "usage", "stages")
        elif not file.name.endswith((".sqlite-wal", ".sqlite-shm", ".lock")):
            found[name] = file.read_bytes()
    return found


def without(value, *keys):
    """JSON without the fields of these names: times, and what each start has paid."""
    if isinstance(value, list):
        return [without(one, *keys) for one in value]
    if isinstance(value, dict):
        return {key: without(one, *keys) for key, one in value.items() if key not in keys}
    return value


def kept(file: Path):
    """What people decided, or the questions whose answers are kept."""
    with sqlite3.connect(file) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        rows = {}
        for table in sorted(tables):
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            chosen = [one for one in columns if one in ("cache_key", "post_id", "label", "reviewer", "batch")]
            if chosen:
                rows[table] = sorted(database.execute(f"SELECT {', '.join(chosen)} FROM {table}"))
    database.close()
    return rows
