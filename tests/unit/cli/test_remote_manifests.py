"""Commands and recipes that read manifests on object storage; those that write anything refuse a URL."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from cli_helpers import here
from object_storage import BUCKET, emptied_bucket
from typer._click.core import Context

from selftrain._util.object_urls import local_path
from selftrain.cli.commands import ENTRIES, load
from selftrain.config import Recipe, load_recipe
from selftrain.data.run_posts import find_posts
from selftrain.errors import RecipeError, StorageError
from selftrain.runs import Run, start

pytest.importorskip("boto3", reason="needs the development tools: pip install .[dev]")
URL = f"s3://{BUCKET}/team/posts.jsonl"


@pytest.fixture
def put(storage, monkeypatch, tmp_path):
    """Write a file of this machine, or a content, as an object."""
    monkeypatch.setenv("SELFTRAIN_CACHE", str(tmp_path / "cache"))
    client = emptied_bucket(storage, monkeypatch)

    def write(key, content):
        body = content.read_bytes() if isinstance(content, Path) else content
        client.put_object(Bucket=BUCKET, Key=key, Body=body)

    return write


def lines(rows):
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


# ---- reading ----------------------------------------------------------------------------------------------


def test_check_predict_and_filter_take_a_url(small_run, put, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifest = small_run.parent / "data" / "manifest.jsonl"
    put("team/posts.jsonl", manifest)
    for picture in sorted((manifest.parent).rglob("*.png")):
        put(f"team/{picture.relative_to(manifest.parent).as_posix()}", picture)
    checked = here("data", "check", URL)
    local = here("data", "check", manifest)
    assert checked.returncode == local.returncode == 0, checked.stderr
    assert checked.stdout == local.stdout.replace(str(manifest), URL)
    for command, source in (("predict", ()), ("filter", ("--source",))):
        outs = []
        for name, given in (("local", manifest), ("remote", URL)):
            out = tmp_path / f"{command}-{name}.jsonl"
            target = ("--out", out) if command == "predict" else ("--sink", out, "--precision", ".5")
            done = here(command, small_run, *source, given, *target)
            assert done.returncode == 0, done.stderr
            outs.append(out.read_text())
        assert outs[0] == outs[1]
        assert outs[0].count("\n") > 5
    assert not [one for one in tmp_path.iterdir() if one.name.startswith("s3:")]


def test_filter_goes_on_where_the_object_has_grown_and_refuses_another_one(small_run, put, tmp_path):
    rows = [{"id": f"p{i}", "text": f"a notice {i}"} for i in range(20)]
    command = ("filter", small_run, "--source", URL, "--sink", tmp_path / "sink.jsonl", "--recall", "1")
    put("team/posts.jsonl", lines(rows[:8]))
    assert "read 8," in here(*command).stdout
    assert "read 8," in here(*command).stdout
    put("team/posts.jsonl", lines(rows))
    assert "read 20," in here(*command).stdout
    put("team/posts.jsonl", lines([{"id": "other", "text": "another"}, *rows]))
    refused = here(*command)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: {URL} does not begin with the 20 rows that were read before")


def recipe_of(small_run, tmp_path, manifest):
    file = tmp_path / "recipe.toml"
    text = (small_run.parent / "small.toml").read_text()
    text = text.replace("data/manifest.jsonl", manifest).replace("max = 2", "max = 1")
    for name in ("data/task.toml", "cache"):
        text = text.replace(f'"{name}"', json.dumps(str(small_run.parent / name)))
    file.write_text(text)
    return file


def test_a_run_of_a_url_goes_on_here_and_on_another_machine_until_its_posts_change(
    small_run, put, tmp_path, monkeypatch
):
    data = small_run.parent / "data"
    put("team/posts.jsonl", data / "manifest.jsonl")
    for picture in sorted(data.rglob("*.png")):
        put(f"team/{picture.relative_to(data).as_posix()}", picture)
    recipe, out = recipe_of(small_run, tmp_path, URL), tmp_path / "run"
    done = here("run", recipe, "--out", out)
    assert done.returncode == 0, done.stderr
    here_too = start(recipe_of(small_run, tmp_path, str(data / "manifest.jsonl")), tmp_path / "local")
    assert [*here_too.rounds()]
    assert [post.id for post in Run(out).grown()] == [post.id for post in here_too.grown()]
    # what the folder keeps is the URL, from which another machine finds its own copy
    recorded = (out / "recipe.toml").read_text()
    assert f'manifest = "{URL}"' in recorded
    recipe_of(small_run, tmp_path, URL)
    monkeypatch.setenv("SELFTRAIN_CACHE", str(tmp_path / "elsewhere"))
    again = here("run", recipe, "--out", out)
    assert again.returncode == 0, again.stderr
    assert "finished earlier" in again.stdout
    shown = here("report", out)
    assert shown.returncode == 0, shown.stderr
    found = find_posts(Run(out).folder, [post.id for post in here_too.grown()])
    assert {i: one.text for i, one in found.items()} == {post.id: post.text for post in here_too.grown()}
    changed = (data / "manifest.jsonl").read_text().splitlines()[:-3]
    put("team/posts.jsonl", "\n".join(changed).encode())
    refused = here("run", recipe, "--out", out)
    assert refused.returncode == 2
    assert "holds a run of another identity" in refused.stderr


def test_a_recipe_names_manifests_alone_by_url(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFTRAIN_CACHE", str(tmp_path))
    file = tmp_path / "recipe.toml"
    file.write_text(f'data = {{ manifest = "{URL}", task = "task.toml", pool = "gs://pool/a.parquet" }}\n')
    recipe = load_recipe(file, ["data.test=s3://tests/b.csv.gz"])
    assert recipe.data.manifest == local_path(URL)
    assert recipe.data.test == local_path("s3://tests/b.csv.gz")
    written = recipe.model_dump(mode="json")
    assert [written["data"][one] for one in ("manifest", "pool", "test")] == [
        URL, "gs://pool/a.parquet", "s3://tests/b.csv.gz",
    ]  # fmt: skip
    assert Recipe.model_validate(written) == recipe
    for key in ("data.task", "backbone.cache", "vlm.store", "agents.file"):
        with pytest.raises(RecipeError, match=f"{key.split('.')[1]} is a URL: expected a path on a disk"):
            load_recipe(file, [f"{key}=s3://bucket/x"])
    with pytest.raises(RecipeError, match=r"data.manifest: s3://b/a.csv has \? or #") as refused:
        load_recipe(file, ["data.manifest=s3://b/a.csv?X-Amz-Signature=secret"])
    assert "secret" not in str(refused.value)
    with pytest.raises(RecipeError, match="files is a URL"):
        load_recipe(file, ['agents.files=["s3://b/a.csv"]'])


def test_answers_that_are_paid_for_are_not_kept_in_the_cache(tmp_path, monkeypatch, put):
    put("team/posts.jsonl", lines([{"id": f"p{i}", "text": "a", "label": "yes"} for i in range(4)]))
    task = tmp_path / "task.toml"
    task.write_text('name = "t"\npositive = "yes"\npolicy = "p"\n[classes]\nyes = "a"\nno = "b"\n')
    told = here("act", "select-models", URL, "--task", task, "--server", "http://127.0.0.1:9")
    assert told.returncode == 2
    assert "--store FILE" in told.stderr


# ---- writing ----------------------------------------------------------------------------------------------


def parameters():
    """Every command with each of its parameters."""
    for entry in ENTRIES:
        found = load(entry)
        for command in found.commands.values() if entry.commands else (found,):
            name = entry.name if command.name == entry.name else f"{entry.name} {command.name}"
            yield from ((name, command, one) for one in command.params)


def test_every_parameter_that_names_a_file_refuses_a_url_but_for_tables_that_are_read(monkeypatch, tmp_path):
    monkeypatch.setenv("SELFTRAIN_CACHE", str(tmp_path))
    tables, refused = set(), 0
    for name, command, parameter in parameters():
        several = parameter.multiple or parameter.nargs != 1
        try:
            found = parameter.process_value(Context(command), [URL] if several else URL)
        except StorageError:
            refused += 1
        except typer.BadParameter:
            pass  # a number, or one of some words
        else:
            if isinstance(found, Path):
                assert found == local_path(URL)
                tables.add(f"{name} {parameter.name}")
            else:
                assert parameter.metavar not in ("FILE", "DIR", "RUN", "MANIFEST", "RECIPE"), name
    assert refused > 50
    assert tables == {
        "predict manifest", "filter source", "filter validation", "annotate manifest", "data check manifest",
        "agentps train source", "agentps predict manifest", "agentps evaluate manifest",
        "act select-models manifest", "act annotate manifest", "act train validation", "act train test",
    }  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [
        ("predict", "MODEL", "posts.jsonl", "--out", "s3://bucket/out.jsonl"),
        ("filter", "MODEL", "--source", "posts.jsonl", "--sink", "s3://bucket/sink.jsonl"),
        ("run", "recipe.toml", "--out", "s3://bucket/run"),
        ("quickstart", "--out", "s3://bucket/run"),
        ("agentps", "train", "MODEL", "--out", "s3://bucket/model"),
        ("agentps", "predict", "MODEL", "posts.jsonl", "--out", "gs://bucket/out.csv"),
        (
            "act",
            "select-models",
            "posts.jsonl",
            "--task",
            "t.toml",
            "--server",
            "u",
            "--json",
            "s3://b/c.json",
        ),
        ("predict", "s3://bucket/model", "posts.jsonl", "--out", "out.jsonl"),
        ("compare", "runs/a", "s3://bucket/run"),
    ],
)
def test_a_url_where_a_path_is_expected_is_refused_and_makes_no_folder(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = here(*command)
    assert told.returncode == 2
    assert "where a path on a disk of this machine is expected" in told.stderr
    assert [*tmp_path.iterdir()] == []


def test_runs_and_models_in_python_refuse_a_url_too(tmp_path, monkeypatch):
    from selftrain.agentps.train import train_agentps

    monkeypatch.chdir(tmp_path)
    for make in (lambda: Run("s3://bucket/run"), lambda: train_agentps(None, "s3://bucket/model")):
        with pytest.raises(StorageError, match="is expected"):
            make()
    assert [*tmp_path.iterdir()] == []
