"""What people bring: each kind of input, the command that reads it, and what has to come of it.

The inputs that lie in ``shared/cases`` beside the checkout, or where SELFTRAIN_CASES says, and others of the
same kinds, written here. ``make cases`` runs this module and writes its table into docs/reliability.md.
"""

from __future__ import annotations

import csv
import json
import os
import re
import traceback
from collections import Counter
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from shutil import copytree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from input_kinds import (
    COLUMN,
    IDS,
    LABELS,
    READ,
    REFUSED,
    ROWS,
    SET_ASIDE,
    TEXTS,
    handed,
    lines,
    ours,
    outsiders,
    parquet,
    picture,
    sheet,
    strangers,
    times,
)  # fmt: skip
from page_tables import write_table
from PIL import Image

from selftrain.cli import main
from selftrain.data.manifest import read_manifest
from selftrain.data.manifest_writing import check_writable, write_manifest
from selftrain.data.task import Task, TaskClass
from selftrain.errors import ManifestError

CHECKOUT = Path(__file__).parents[3]
CASES = Path(os.environ.get("SELFTRAIN_CASES") or CHECKOUT.parent / "shared" / "cases")
TASK = Task("spam", (TaskClass("spam", "unasked for"), TaskClass("fine", "else")), "spam", "p")
OUTCOMES: list[tuple[str, str]] = []


def found(kind, report, status, out):
    """What came of a kind: as expected, or how it went wrong."""
    if kind.outcome == REFUSED:
        right = report is None and status == 2
    elif kind.outcome == READ:
        labels = tuple(post.label for post in report.posts)
        named = any(COLUMN + "label" in one or one == "name classes" for one in kind.told)
        right = tuple(p.id.removesuffix(".0").zfill(3) for p in report.posts) == IDS and (
            named or labels == LABELS
        )
    else:
        right = status == 1 and (kind.posts is None or len(report.posts) == kind.posts)
    if not right:
        return "misread"
    return kind.outcome if all(one in out for one in kind.told) else "silent"


def pictures_in(folder):
    (folder / "pictures").mkdir(exist_ok=True)
    for name in ("a.png", "\u00f6.png"):
        Image.new("RGB", (8, 8), "red").save(folder / "pictures" / name)


@pytest.mark.parametrize("kind", [*handed(), *ours(), *outsiders(), *strangers()], ids=lambda kind: kind.file)
def test_each_kind_is_read_or_refused_with_its_reason(kind, tmp_path, capsys):
    path = CASES / kind.file
    if kind.content is not None:
        pictures_in(tmp_path)
        path = tmp_path / kind.file
        path.write_bytes(kind.content() if callable(kind.content) else kind.content)
    elif not path.is_file():
        pytest.skip(f"no cases: {path} is not there; set SELFTRAIN_CASES to the folder of cases")
    task = tmp_path / "task.toml"
    task.write_text('name = "s"\npositive = "spam"\npolicy = "p"\nclasses = { spam = "s", fine = "f" }\n')
    try:
        status = main(["data", "check", str(path), "--task", str(task), "--no-duplicates"])
        report = read_manifest(path, TASK)
    except ManifestError:
        report = None
    except Exception:
        OUTCOMES.append((kind.name, "traceback"))
        pytest.fail(traceback.format_exc())
    shown = capsys.readouterr()
    outcome = found(kind, report, status, shown.out + shown.err)
    OUTCOMES.append((kind.name, outcome))
    assert outcome == kind.outcome, shown
    if report is not None:
        assert report.rows == len(report.posts) + report.set_aside


# ---- the commands that read a manifest --------------------------------------------------------------------


def case(name):
    path = CASES / name
    if not path.exists():
        pytest.skip(f"no cases: {path} is not there; set SELFTRAIN_CASES to the folder of cases")
    return path


def command(kind, capsys, *words):
    """Run a command; return its status and all that it said."""
    try:
        status = main([str(word) for word in words])
    except Exception:
        OUTCOMES.append((kind, "traceback"))
        raise
    shown = capsys.readouterr()
    return status, shown.out + shown.err


def count(kind, outcome, right, shown):
    OUTCOMES.append((kind, outcome if right else "misread"))
    assert right, shown


def recipe(tmp_path, manifest, task, *more):
    file = tmp_path / "recipe.toml"
    more = "\n".join((*more, "[selection]\nk = 4\n[rounds]\nmax = 1\n[classifier]\nepochs = 2"))
    file.write_text(
        f"[data]\nmanifest = {json.dumps(str(manifest))}\ntask = {json.dumps(str(task))}\n{more}\n"
    )
    return file


def test_run_asks_what_a_split_column_is_for(tmp_path, capsys):
    folder = case("semantics")
    file = recipe(tmp_path, folder / "splitcol.jsonl", folder / "task.toml")
    status, shown = command("split column", capsys, "run", file, "--out", tmp_path / "run")
    right = status == 2 and 'data.split = "column"' in shown and "name a split" in shown
    count("split column", REFUSED, right, shown)
    assert not (tmp_path / "run" / "rounds").exists()


@pytest.mark.parametrize("name", ["alldup", "dup_in_class"])
def test_run_names_copies_as_the_cause_of_too_few_labels(name, tmp_path, capsys):
    folder = case("semantics")
    file = recipe(tmp_path, folder / f"{name}.jsonl", folder / "task.toml")
    status, shown = command("copies", capsys, "run", file, "--out", tmp_path / "run")
    right = status == 2 and "copies of other posts were taken out" in shown
    count("copies", REFUSED, right, shown)


@pytest.mark.parametrize("name", ["conflict", "alldup"])
def test_check_lists_copies_with_different_labels(name, capsys):
    folder = case("semantics")
    words = ("data", "check", folder / f"{name}.jsonl", "--task", folder / "task.toml")
    status, shown = command("copies with different labels", capsys, *words)
    right = status == 0 and "copies with different labels" in shown and "'offensive'" in shown
    count("copies with different labels", READ, right, shown)


def test_labels_are_compared_in_one_normal_form():
    report = read_manifest(
        case("semantics/nfd.jsonl"),
        Task("t", (TaskClass("Caf\u00e9", "a"), TaskClass("th\u00e9", "b")), "Caf\u00e9", "p"),
    )
    count(
        "normal form",
        READ,
        not report.problems and report.counts == {"Caf\u00e9": 30, "th\u00e9": 30, None: 80},
        report,
    )


def test_what_cannot_be_written_is_refused_before_a_call(tmp_path, capsys):
    folder = case("annotate_inf")
    words = (
        "annotate",
        folder / "posts.parquet",
        "--task",
        folder / "task.toml",
        "--server",
        "http://127.0.0.1:9",
    )
    status, shown = command("infinite number", capsys, *words, "--out", tmp_path / "out.jsonl")
    right = status == 2 and "finite numbers" in shown and not list(tmp_path.iterdir())
    count("infinite number", REFUSED, right, shown)
    report = read_manifest(folder / "posts.parquet")
    check_writable(report.posts, tmp_path / "out.parquet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["posts.jsonl", "vid3.jsonl"])
def test_a_model_is_never_asked_blind_about_a_video(name, tmp_path):
    from selftrain.annotation.annotate import annotation_settings, prepare_annotation

    folder = case("annotate_video")
    settings = annotation_settings(None, ["http://127.0.0.1:9"])
    home = tmp_path / "posts"  # what is written names pictures relative to itself
    copytree(folder, home)
    home.chmod(0o755)
    blind = settings._replace(vlm=settings.vlm.model_copy(update={"max_images": 0}))
    found = []
    for one in (settings, blind):
        plan = prepare_annotation(home / name, home / "task.toml", home / "out.jsonl", one).plan
        shown = {post.post.id for post in plan if post.asks and post.asking.video is not None}
        found.append((shown, {post.post.id for post in plan if "video" in str(post.unasked)}))
    count("video", READ, found == [({"v1", "v2"}, set()), (set(), {"v1", "v2"})], found)
    aside = read_manifest(folder / name, videos=False)
    assert {one.post_id for one in aside.problems} == {"v1", "v2"}


def test_predict_needs_no_labels_and_says_how_to_tolerate_more(small_run, tmp_path, capsys):
    home = tmp_path / "posts"
    copytree(case("predict_small"), home)
    words = ("predict", small_run, home / "new.jsonl", "--out", tmp_path / "out.jsonl")
    status, shown = command("one bad picture of few", capsys, *words)
    right = status == 2 and "--max-bad-share 0.13" in shown and "x.heic" in shown
    count("one bad picture of few", REFUSED, right, shown)
    status, shown = command("one bad picture of few", capsys, *words, "--max-bad-share", "0.13")
    scored = (tmp_path / "out.jsonl").read_text().splitlines() if status == 0 else []
    count("one bad picture of few", SET_ASIDE, len(scored) == 7 and "x.heic" in shown, shown)
    odd = home / "odd.csv"
    odd.write_text("id,body,label,process\n1,free money,[,no json\n2,choir,7,{\n")
    out = tmp_path / "out.csv"
    words = ("predict", small_run, odd, "--out", out, "--column", "text=body")
    status, shown = command("column that is not needed", capsys, *words)
    rows = list(csv.DictReader(out.open())) if status == 0 else []
    right = [row["id"] for row in rows] == ["1", "2"] and any("." in name for name in rows[0])
    count("column that is not needed", READ, right, shown)


@pytest.mark.parametrize("name", ["hateful-memes", "sentiment140"])
def test_import_finds_labels_and_encoding(name, tmp_path, capsys):
    source = case("import_hateful/src" if name == "hateful-memes" else "import_s140")
    status, shown = command(
        "published file", capsys, "data", "import", name, source, "--out", tmp_path / "out"
    )
    rows = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    if name == "sentiment140":
        right = [row["text"] for row in rows] == ["sad caf\u00e9 \u2026", "happy na\u00efve \U0001f642"]
    else:
        right = Counter(row["split"] for row in rows) == {"train": 12, "validation": 9, "test": 6}
        right = right and "test has no labels" in shown
    count("published file", READ, status == 0 and right, shown)


def test_entities_are_decoded_where_that_is_asked_for(tmp_path, capsys):
    (tmp_path / "labeled_data.csv").write_text(",count,class,tweet\n0,3,2,I &lt;3 &#128525;\n")
    words = ("data", "import", "hsol", tmp_path, "--out", tmp_path / "out")
    status, shown = command("HTML entities", capsys, *words)
    count("HTML entities", READ, status == 0 and "--decode-entities" in shown, shown)
    command("HTML entities", capsys, *words, "--decode-entities")
    text = json.loads((tmp_path / "out" / "manifest.jsonl").read_text())["text"]
    count("HTML entities", READ, text == "I <3 \U0001f60d", text)


def test_ids_come_back_from_a_spreadsheet():
    from selftrain.review.exchange.review_import import SpreadsheetIds, read_reviews

    read = read_reviews(case("spreadsheet/excel.csv"))
    known = {json.loads(line)["id"] for line in case("spreadsheet/posts.jsonl").read_text().splitlines()}
    ids = [SpreadsheetIds(known).find(one.post_id) or one.post_id for one in read.decisions]
    count("id that a spreadsheet changed", READ, ids == ["0084", "0078"], read)
    tasks = read_reviews(case("spreadsheet/ls_tasks_only.json"))
    count("export without reviews", READ, not tasks.refused and tasks.empty > 0, tasks)
    assert (
        SpreadsheetIds({"1500000000000000123", "1600000000000000123"}).find("1.5E+18")
        == "1500000000000000123"
    )
    assert SpreadsheetIds({"1500000000000000123", "1520000000000000123"}).find("1.5E+18") is None
    assert SpreadsheetIds({"007", "0007"}).find("7") is None
    assert SpreadsheetIds({"0084", "1.000,5", "9e9999"}).find("84") == "0084", "whatever else is an id"


def test_a_recipe_may_begin_with_a_byte_order_mark():
    from selftrain.config import load_recipe

    count("byte order mark before TOML", READ, load_recipe(case("toml/bom.toml")).rounds.max == 1, "")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_recipes_and_tasks_come_in_every_encoding_with_a_mark(encoding, tmp_path, capsys):
    task, manifest = task_file(tmp_path), tmp_path / "posts.jsonl"
    manifest.write_bytes(lines())
    task.write_bytes(task.read_text().replace("f = ", "caf\u00e9 = ").encode(encoding))
    status, shown = command("encoding", capsys, "data", "check", manifest, "--task", task)
    count("encoding", READ, status == 0 and "spam: 3" in shown, shown)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("policy = 'caf\u00e9'\n".encode("latin-1"), "save the file as UTF-8"),
        (b'data.manifest = "C:\\Users\\me\\posts.jsonl"\n', "in single quotes"),
        (b'data.manifest = "D:\\posts.jsonl"\n', "in single quotes"),
    ],
)
def test_what_is_no_toml_says_what_to_change(content, told, tmp_path, capsys):
    (tmp_path / "recipe.toml").write_bytes(content)
    words = ("run", tmp_path / "recipe.toml", "--out", tmp_path / "run")
    status, shown = command("no TOML", capsys, *words)
    count("no TOML", REFUSED, status == 2 and told in shown, shown)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("vlm.servers=http://127.0.0.1:8000", '--set \'KEY=["a", "b"]\''),
        ("agents.files=a.jsonl,b.jsonl", '--set \'KEY=["a", "b"]\''),
        ("data.columns=label=class", "--set 'KEY={name = \"a\"}'"),
        ("vlm.servers=[http://127.0.0.1:8000]", 'vlm.servers=["a", "b"]'),
    ],
)
def test_a_list_on_the_command_line_says_how_it_is_written(given, told, tmp_path, capsys):
    file = recipe(tmp_path, tmp_path / "posts.jsonl", task_file(tmp_path))
    words = ("run", file, "--out", tmp_path / "run", "--set", given)
    status, shown = command("list in --set", capsys, *words)
    count("list in --set", REFUSED, status == 2 and told in shown, shown)


@pytest.mark.parametrize("name", ["predict", "agentps predict"])
def test_what_is_read_is_never_written_over(name, tmp_path, capsys):
    manifest = tmp_path / "posts.jsonl"
    manifest.write_bytes(lines())
    (tmp_path / "link.jsonl").symlink_to(manifest)
    for out in (manifest, tmp_path / "link.jsonl"):
        words = (*name.split(), tmp_path / "model", manifest, "--out", out)
        status, shown = command("output that is read", capsys, *words)
        count("output that is read", REFUSED, status == 2 and "would be lost" in shown, shown)
    assert manifest.read_bytes() == lines()


def test_objects_in_objects_are_reached_by_the_columns_that_are_said(tmp_path, capsys):
    manifest = tmp_path / "posts.jsonl"
    manifest.write_bytes(lines([{"data": {**row, "label": {"name": row["label"]}}} for row in ROWS]))
    columns = [f"--column={one}" for one in ("id=data.id", "text=data.text", "label=data.label.name")]
    words = ("data", "check", manifest, "--task", task_file(tmp_path), *columns)
    status, shown = command("columns in objects", capsys, *words)
    count("columns in objects", READ, status == 0 and "8 posts" in shown and "spam: 3" in shown, shown)


HSOL_CLASSES = [("2", 0), ("2.0", 0), (2, 0), (2.0, 0), ("3", 2), (True, 2)]


@pytest.mark.parametrize(("written", "expected"), HSOL_CLASSES)
def test_published_numbers_are_read_in_every_spelling(written, expected, tmp_path, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    if isinstance(written, str):
        (tmp_path / "posts.csv").write_text(f",class,tweet\n0,{written},hello\n")
    else:
        pq.write_table(pa.table({"class": [written], "tweet": ["hello"]}), tmp_path / "posts.csv")
    words = ("data", "import", "hsol", tmp_path / "posts.csv", "--out", tmp_path / "out")
    status, shown = command("published file", capsys, *words)
    right = status == expected and (
        status == 2 or '"inoffensive"' in (tmp_path / "out/manifest.jsonl").read_text()
    )
    count("published file", REFUSED if expected else READ, right, shown)


STRANGE_REVIEWS = (
    {"annotations": 5}, {"annotations": [{"result": 5}]}, {"annotations": [{"result": "x"}]},
    {"annotations": [{"result": [{"from_name": "label", "value": "spam"}]}]},
    {"annotations": [{"result": [{"from_name": "label", "value": None}]}]},
)  # fmt: skip


def test_reviews_of_a_strange_form_are_refused_one_by_one(tmp_path):
    from selftrain.review.exchange.review_import import SpreadsheetIds, read_reviews

    items = [{"data": {"post_id": "a"}} | one for one in STRANGE_REVIEWS]
    (tmp_path / "export.json").write_text(json.dumps([*items, {"data": 5}, None, {"data": {"post_id": "b"}}]))
    read = read_reviews(tmp_path / "export.json")
    # the one choice that is a plain text is a review after all
    right = (len(read.decisions), len(read.refused), read.empty) == (1, 6, 1)
    count("reviews of another form", SET_ASIDE, right, read)
    assert SpreadsheetIds({"0084"}).find(" 0084 ") == "0084"


def test_reviews_come_as_json_lines_too(tmp_path):
    from selftrain.review.exchange.review_import import read_reviews

    rows = [{"post_id": "a", "label": "spam", "reviewer": "me"}, {"post_id": 7, "label": "fine"}, {"x": 1}]
    (tmp_path / "reviews.jsonl").write_bytes(lines(rows))
    read = read_reviews(tmp_path / "reviews.jsonl")
    found = [(one.post_id, one.label, one.reviewer) for one in read.decisions]
    right = found == [("a", "spam", "me"), ("7", "fine", "")] and len(read.refused) == 1
    count("reviews of another form", SET_ASIDE, right, read)


def test_a_grown_dataset_is_a_manifest_where_its_run_lies(small_run):
    from selftrain.data.drawn import DRAWN_TASK

    report = read_manifest(small_run / "grown.jsonl", DRAWN_TASK)
    right = not report.problems and any(post.images for post in report.posts)
    count("grown dataset", READ, right, report.problems[:3])


def test_a_grown_dataset_is_a_manifest_wherever_it_lies(small_run, tmp_path):
    grown = read_manifest(small_run / "grown.jsonl").posts
    copied = tmp_path / "copied.jsonl"
    copied.write_bytes((small_run / "grown.jsonl").read_bytes())
    found = read_manifest(copied)
    count("grown dataset", READ, found.posts == grown and not found.problems, found.problems[:3])
    post = next(post for post in grown if post.images)
    row = {
        "id": "x",
        "images": ["hostname"],
        "provenance": {"pictures": {"folder": "/etc", "sha256": ["0" * 64]}},
    }
    changed = tmp_path / "pictures" / post.images[0].name
    changed.parent.mkdir()
    changed.write_bytes(post.images[0].read_bytes())
    known = sha256(changed.read_bytes()).hexdigest()
    changed.write_bytes(changed.read_bytes() + b"changed")
    moved = {"folder": str(changed.parent), "sha256": [known]}
    (tmp_path / "strange").mkdir()
    copied = tmp_path / "strange" / "grown.jsonl"
    second = {"id": "y", "images": [changed.name], "provenance": {"pictures": moved}}
    copied.write_text(f"{json.dumps(row)}\n{json.dumps(second)}\n")
    refused = read_manifest(copied)
    right = not refused.posts and all("nor, unchanged, in" in one.reason for one in refused.problems)
    count("grown dataset", SET_ASIDE, right, refused)


def test_pictures_of_a_table_come_along_into_what_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFTRAIN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "in.parquet").write_bytes(parquet(image=[{"bytes": picture(), "path": "a.png"}] * 8))
    posts = read_manifest(tmp_path / "in.parquet").posts
    write_manifest(posts, tmp_path / "out" / "posts.csv")
    back = read_manifest(tmp_path / "out" / "posts.csv").posts
    right = [path.read_bytes() for post in back for path in post.images] == [picture()] * 8
    right = right and all(path.is_relative_to(tmp_path / "out") for post in back for path in post.images)
    count("pictures inside the table", READ, right, back)


def test_columns_of_a_recipe_are_read_by_every_command_that_takes_one(tmp_path, capsys):
    from selftrain.agentps.dataset import load_posts
    from selftrain.agentps.recipe import load_agentps_recipe

    manifest, task = tmp_path / "posts.jsonl", task_file(tmp_path)
    rows = [{"id": row["id"], "body": row["text"], "class": row["label"]} for row in ROWS]
    manifest.write_bytes(lines(rows))
    columns, kind = 'data.columns={text = "body", label = "class"}', "column one word off"
    words = ("agents", "prompts", recipe(tmp_path, manifest, task))
    status, shown = command(kind, capsys, *words)
    count(kind, REFUSED, status == 2 and "--set 'data.columns={text = \"body\"}'" in shown, shown)
    status, shown = command(kind, capsys, *words, "--set", columns)
    count(kind, READ, status == 0 and TEXTS[0] in shown, shown)
    words = ("agentps", "train", manifest, "--task", task, "--out", tmp_path / "model")
    status, shown = command(kind, capsys, *words, "--set", 'data.columns={text = "body"}')
    count(kind, REFUSED, status == 2 and "expected at least 1 of each class" in shown, shown)
    given = [f"data.manifest={json.dumps(str(manifest))}", f"data.task={json.dumps(str(task))}", columns]
    read = load_posts(load_agentps_recipe(None, given).data, 0)
    found = {(post.id, post.text, post.label) for post in (*read.train, *read.validation)}
    count(kind, READ, found == {tuple(row.values()) for row in ROWS if row["label"]}, found)


def task_file(folder):
    path = folder / "task.toml"
    path.write_text('name = "s"\npositive = "spam"\npolicy = "p"\nclasses = { spam = "s", fine = "f" }\n')
    return path


@pytest.mark.parametrize("name", ["fifo", "zero", "folder", "large", "deep", "keys"])
def test_what_is_no_file_or_no_end_is_refused_unopened(name, tmp_path, capsys):
    task, manifest = task_file(tmp_path), tmp_path / "posts.jsonl"
    manifest.write_bytes(lines())
    odd = tmp_path / "odd"
    contents = {
        "large": b"# \n" * 400_000, "deep": b"x = " + b"[" * 9999 + b"]" * 9999,
        "keys": b"a . " * 20_000 + b"b=1",
    }  # fmt: skip
    if name in contents:
        odd.write_bytes(contents[name])
    elif name == "folder":
        odd.mkdir()
    else:
        os.mkfifo(odd) if name == "fifo" else odd.symlink_to("/dev/zero")
    told = {"fifo": "FIFO", "zero": "device", "folder": "folder", "large": "1,000,000", "deep": "100 deep"}
    commands = [("data", "check", manifest, "--task", odd), ("run", odd, "--out", tmp_path / "run")]
    if name == "folder":
        (odd / "a.csv").write_bytes(sheet())
        _, shown = command("no regular file", capsys, "data", "check", odd)
        count("no regular file", REFUSED, "give one of its files, 'a.csv' for instance" in shown, shown)
    if name not in contents:
        commands += [("data", "check", odd, "--task", task)]
    for words in commands:
        status, shown = command("no regular file", capsys, *words)
        count("no regular file", REFUSED, status == 2 and told.get(name, "100 deep") in shown, shown)


ENVIRONMENTS = {
    ("HTTP_PROXY", "socks5://127.0.0.1:9"): "SOCKS is not spoken", ("ALL_PROXY", "socks://x"): "SOCKS",
    ("HTTP_PROXY", "http://127.0.0.1:99999"): "99999", ("HTTPS_PROXY", "http://a..b:1"): "'http://a..b:1'",
    ("SSL_CERT_FILE", "/nonexistent"): "No such file", ("SSL_CERT_FILE", __file__): "no certificate in PEM",
    ("SSL_CERT_DIR", "/nonexistent"): "no folder",
}  # fmt: skip


@pytest.mark.parametrize("variable", ENVIRONMENTS, ids=" ".join)
def test_an_environment_that_no_call_can_use_is_named_by_every_command(
    variable, tmp_path, capsys, monkeypatch
):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv(*variable)
    server = f"{'http' if variable[0] in ('HTTP_PROXY', 'ALL_PROXY') else 'https'}://models.example.org"
    task, manifest = task_file(tmp_path), tmp_path / "posts.jsonl"
    task.write_text(f'{task.read_text()}[[questions]]\nname = "q"\nwording = "?"\nanswers = ["yes", "no"]\n')
    manifest.write_bytes(lines())
    given, out = (manifest, "--task", task), ("--out", tmp_path / "out.jsonl")
    asking = tmp_path / "asking.toml"
    asking.write_text(
        '[data]\nmanifest = "gone.jsonl"\ntask = "task.toml"\n[agents]\nkind = "vlm"\n'
        f'[vlm]\nservers = ["{server}"]\n'
    )
    for words in (
        ("agents", "check", server), ("annotate", *given, "--server", server, *out),
        ("act", "select-models", *given, "--server", server),
        ("act", "annotate", *given, "--annotator", server, "--budget", "1", *out),
        # before posts are read, let alone features computed
        ("run", asking, "--out", tmp_path / "run"), ("run", asking, "--out", tmp_path / "run", "--estimate"),
    ):  # fmt: skip
        status, shown = command("environment", capsys, *words)
        right = status == 2 and f"{variable[0]} is" in shown and ENVIRONMENTS[variable] in shown
        count("environment", REFUSED, right, (words, shown))


def test_a_prompt_file_is_a_file(tmp_path):
    from agents.ask.prompt_files import _read_template
    from agents.errors import PromptFileError

    os.mkfifo(tmp_path / "reviewer.txt")
    with pytest.raises(PromptFileError, match="no regular file"):
        _read_template(tmp_path / "reviewer.txt")


def test_a_padded_picture_is_refused_by_its_size(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    os.truncate(tmp_path / "a.png", 6 << 30)
    (tmp_path / "posts.jsonl").write_text('{"id": "1", "image": "a.png"}\n')
    (problem,) = read_manifest(tmp_path / "posts.jsonl").problems
    count("too much", SET_ASIDE, "at most 200,000,000 are read" in problem.reason, problem)


def test_nothing_that_is_printed_steers_a_terminal(tmp_path, capsys):
    odd = "\x1b[31m\x9b2J\u202e\x07"
    place = tmp_path / f"dir{odd}"
    place.mkdir()
    manifest = place / f"posts{odd}.jsonl"
    manifest.write_bytes(lines([row | {"id": odd + row["id"], "label": odd, f"{odd}x": 1} for row in ROWS]))
    (place / "labeled_data.csv").write_text(f",count,class,tweet\n{odd}0,3,2,hi\n1,3,{odd}9,x\n")
    for words in (
        ("data", "check", manifest), ("data", "check", manifest, "--json"),
        ("data", "check", manifest, "--task", task_file(place)), ("data", "check", place / f"{odd}.csv"),
        ("data", "import", "hsol", place, "--out", place / odd),
        ("run", recipe(place, manifest, place / "task.toml"), "--out", place / "run"),
    ):  # fmt: skip
        _, shown = command("escape sequences", capsys, *words)
        steering = set("\x1b\x9b\u202e\x07") & set(shown)
        count("escape sequences", READ, shown and not steering, shown)


def test_no_cell_that_is_written_begins_like_a_formula(small_run, tmp_path, capsys):
    ids = ["=cmd(1)", "a;=b(1)", "\t@x", "x\n-1", "'+1", "fine"]
    manifest = tmp_path / "posts.jsonl"
    manifest.write_bytes(lines([{"id": one, "text": one} for one in ids]))
    words = ("predict", small_run, manifest, "--out", tmp_path / "out.csv")
    status, shown = command("formulas", capsys, *words)
    posts = read_manifest(manifest).posts
    write_manifest(posts, tmp_path / "posts.csv")
    for path in (tmp_path / "out.csv", tmp_path / "posts.csv"):
        begun = [one for one in re.split(r"[,;|\t\n]", path.read_text()) if one.strip('" ')]
        right = status == 0 and not [one for one in begun if one.lstrip('" ')[:1] in "=+-@"]
        count("formulas", READ, right, (shown, begun))
    assert read_manifest(tmp_path / "posts.csv").posts == posts


@pytest.mark.parametrize("indent", [None, 1])
def test_a_long_list_is_read_in_pieces(indent, tmp_path):
    rows = [{"id": str(n), "text": "\u20ac" * (n % 700) + "x"} for n in range(9000)]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=indent, ensure_ascii=False))
    found = read_manifest(tmp_path / "a.json")
    right = [(post.id, post.text) for post in found.posts] == [(*row.values(),) for row in rows]
    count("JSON that is one list", READ, right, found.problems[:2])
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(text.replace('"id": "8000"', "oops"))
    with pytest.raises(ManifestError, match=f"no JSON from line {1 if indent is None else 8000 * 4 + 2} on"):
        read_manifest(tmp_path / "a.json")


def test_newlines_within_cells_end_no_line_of_an_old_mac(tmp_path):
    rows = [{"id": "a", "text": "one\ntwo\nthree\nfour"}, {"id": "b", "text": "five\nsix"}]
    content = sheet(rows, columns=("id", "text"), lineterminator="\r", quoting=csv.QUOTE_ALL)
    (tmp_path / "mac.csv").write_bytes(content)
    assert [post.text for post in read_manifest(tmp_path / "mac.csv").posts] == [one["text"] for one in rows]


def test_every_command_that_reads_a_manifest_for_output_shares_its_tolerance():
    import typer.main

    found = {}
    for module in ("act", "agentps", "annotate", "data", "models"):
        group = typer.main.get_command(import_module(f"selftrain.cli.{module}").app)
        for name, one in getattr(group, "commands", {module: group}).items():
            found[f"{module} {name}"] = {param.name for param in one.params}
    reading = {name for name, params in found.items() if "columns" in params} - {"data check"}
    assert reading == {name for name, params in found.items() if {"max_bad_rows", "max_bad_share"} <= params}
    assert len(reading) == 7


def test_a_filter_keeps_what_stands_before_a_fault_and_counts_what_fails(small_run, tmp_path, capsys):
    source = tmp_path / "posts.csv"
    source.write_text("id,text\n" + "".join(f"{n},hello\n" for n in range(9)) + "x,\ny,\n" + '9,"open\n')
    words = ("filter", small_run, "--source", source, "--precision", ".1", "--sink")
    status, shown = command("quote that is not closed", capsys, *words, tmp_path / "sink.jsonl")
    right = status == 2 and "line 13 opens" in shown
    right = right and len((tmp_path / "sink.jsonl").read_text().splitlines()) == 9
    count("quote that is not closed", REFUSED, right, shown)
    source.write_text(source.read_text().replace('9,"open\n', ""))
    status, shown = command(
        "one bad row of few", capsys, *words, tmp_path / "b.jsonl", "--max-bad-share", ".1"
    )
    count("one bad row of few", REFUSED, status == 2 and "--max-bad-share 0.19" in shown, shown)


# ---- fuzz: no traceback, and rows in are posts and rows set aside ----

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".csv.gz")
cells = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=6),
    st.sampled_from(
        ["", "1.0", "1e5", "NaN", "None", "[", "['a']", '"', "a;b", "\r", "\n", "\0", "spam", "Spam "]
    ),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.just("spam")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=4,
)
keys = st.one_of(
    st.sampled_from(["id", "text", "label", "images", "img", "image", "process", "video", "split", "Label"]),
    st.text(max_size=4),
)


def read_whole(tmp_path, content, suffix):
    """The report, or None where the file is refused; anything else is a fault of ours."""
    path = tmp_path / f"fuzzed{suffix}"
    path.write_bytes(content)
    try:
        report = read_manifest(path, TASK)
    except ManifestError:
        return None
    assert report.rows == len(report.posts) + report.set_aside
    assert all(str(note) for note in report.notes)
    return report


def fuzz_bytes(tmp_path, content, suffix):
    read_whole(tmp_path, content, suffix)


def fuzz_cells(tmp_path, rows, delimiter, ends, encoding):
    try:
        content = sheet(
            [dict(enumerate(row)) for row in rows] or [{0: "1", 1: "x", 2: ""}],
            columns=("id", "text", "label"), encoding=encoding, delimiter=delimiter, lineterminator=ends,
            quoting=csv.QUOTE_ALL,
        )  # fmt: skip
    except UnicodeEncodeError:
        return
    report = read_whole(tmp_path, content, ".csv")
    assert report is not None
    assert report.rows == max(len(rows), 1)


def fuzz_json(tmp_path, rows, listed):
    first = {"id": "first", "text": "x"}
    told = [json.dumps(row) for row in (first, *rows)]
    content = f"[{', '.join(told)}]" if listed else "\n".join(told)
    report = read_whole(tmp_path, content.encode(), ".json")
    assert report is not None
    assert report.rows == len(told)


def fuzz_parquet(tmp_path, columns):
    import pyarrow as pa

    try:
        content = parquet(**columns)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError, ValueError, TypeError):
        return
    report = read_whole(tmp_path, content, ".parquet")
    assert report is None or report.rows == 8


dates = st.builds(
    times,
    st.sampled_from(["s", "ms", "us", "ns"]),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([None, "UTC", "Mars/Base"]),
)
columns = st.one_of(
    st.lists(values, min_size=8, max_size=8), dates, st.lists(st.binary(max_size=4), min_size=8, max_size=8)
)
FUZZED = (
    (fuzz_bytes, st.tuples(st.binary(max_size=200), st.sampled_from(SUFFIXES))),
    (
        fuzz_cells,
        st.tuples(
            st.lists(st.tuples(cells, cells, cells), max_size=5),
            st.sampled_from(",;\t|"),
            st.sampled_from(["\n", "\r\n", "\r"]),
            st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
        ),
    ),
    (
        fuzz_json,
        st.tuples(
            st.lists(st.one_of(values, st.dictionaries(keys, values, max_size=6)), max_size=4), st.booleans()
        ),
    ),
    (
        fuzz_parquet,
        st.tuples(
            st.dictionaries(
                st.sampled_from(["id", "text", "label", "images", "process", "x"]), columns, max_size=3
            )
        ),
    ),
)


@pytest.mark.parametrize(("reader", "given_to"), FUZZED, ids=lambda one: getattr(one, "__name__", ""))
def test_fuzzed(reader, given_to, tmp_path):
    settings(deadline=None, max_examples=40)(given(given_to)(lambda args: reader(tmp_path, *args)))()


@pytest.mark.slow
@pytest.mark.parametrize(("reader", "given_to"), FUZZED, ids=lambda one: getattr(one, "__name__", ""))
def test_fuzzed_long(reader, given_to, tmp_path):
    settings(deadline=None, max_examples=5000)(given(given_to)(lambda args: reader(tmp_path, *args)))()


# ---- the table ----


def test_the_table_is_written_where_it_is_asked_for():
    """Last of the module."""
    if not os.environ.get("SELFTRAIN_CASES_TABLE"):
        pytest.skip("no table: SELFTRAIN_CASES_TABLE names no page")
    write_table("cases", (READ, SET_ASIDE, REFUSED, "misread", "silent", "traceback"), Counter(OUTCOMES))
