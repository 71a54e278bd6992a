"""`run --mirror`, killed while it writes to the store and reads from it: the bytes of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal

import pytest
from object_storage import BUCKET
from processes import run

boto3 = pytest.importorskip("boto3", reason="needs the development tools: pip install .[dev]")
pytestmark = pytest.mark.integration
URL = f"s3://{BUCKET}/killed"

# the command, which kills itself in one of its requests: as PLACE says, in the COUNT-th
CHILD = """
import os, signal, sys
from selftrain.cli import main
from selftrain.store import mirror

mirror.BEAT, mirror.STALE = 0.1, 1.0
place, count, *words = sys.argv[1:]
calls = 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def counted(request):
    def before(*args):
        global calls
        calls += 1
        if calls == int(count):
            die()
        return request(*args)
    return before

def after_step(request):
    def then(self, name, value, etag):
        done = request(self, name, value, etag)
        if value["step"] == int(count) and done:
            die()
        return done
    return then

if place != "nowhere":
    around = after_step if place == "replace" else counted
    setattr(mirror._Bucket, place, around(getattr(mirror._Bucket, place)))
sys.exit(main(words))
"""
COMPARED = ("candidates.jsonl", "verdicts.jsonl", "scores.jsonl", "model.safetensors")


def content(folder):
    """What does not hang on when and where a run was."""
    found = {"grown.jsonl": (folder / "grown.jsonl").read_bytes()}
    for file in folder.glob("rounds/*/*"):
        if file.name in COMPARED:
            found[str(file.relative_to(folder))] = file.read_bytes()
    for file in folder.glob("rounds/*/metrics.json"):
        found[str(file.relative_to(folder))] = json.loads(file.read_bytes()) | {"seconds": 0, "stages": []}
    assert {"rounds/0000/metrics.json", "rounds/0002/verdicts.jsonl"} < found.keys()
    return found


def test_killed_at_three_moments_it_ends_with_the_same_bytes(storage, small_run, tmp_path):
    client = boto3.client("s3", **{
        "endpoint_url": storage["AWS_ENDPOINT_URL"], "region_name": storage["AWS_DEFAULT_REGION"],
        "aws_access_key_id": storage["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": storage["AWS_SECRET_ACCESS_KEY"],
    })  # fmt: skip

    def kept():
        return json.loads(client.get_object(Bucket=BUCKET, Key="killed/run.json")["Body"].read())

    def start(out, place="nowhere", count=0):
        recipe = small_run.parent / "small.toml"
        words = ("run", recipe, "--out", out, "--mirror", URL, "--set", "threads=1")
        return run(("-c", CHILD, place, count, *words), env=os.environ | storage)

    alone, here, there = tmp_path / "alone", tmp_path / "here", tmp_path / "there"
    done = run((
        "-m", "selftrain", "run", small_run.parent / "small.toml", "--out", alone, "--set", "threads=1",
    ))  # fmt: skip
    assert done.returncode == 0, done.stderr

    # while the first files are uploaded: nothing names them
    assert start(here, "upload", 3).returncode == -signal.SIGKILL
    assert (kept()["files"], kept()["writer"] is None) == ({}, False)
    # in the same folder, as soon as round 1 is named and what it replaced is still there
    assert start(here, "replace", 2).returncode == -signal.SIGKILL
    assert "rounds/0001/metrics.json" in kept()["files"]
    # elsewhere, while it fetches what it lacks
    assert start(there, "download", 5).returncode == -signal.SIGKILL
    assert len([one for one in there.rglob("*") if one.is_file() and one.name[0] != "."]) == 4
    done = start(there)
    assert done.returncode == 0, done.stderr
    assert "finished earlier" in done.stdout
    assert content(there) == content(alone)
    assert kept()["writer"] is None
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix="killed/files/")["Contents"]
    named = {f"killed/files/{path}/{digest}" for path, digest in kept()["files"].items()}
    assert named <= {one["Key"] for one in listed}
