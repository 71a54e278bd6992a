"""Files for and from Label Studio, held against its own converter (install_label_studio.sh brings it)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import processes
import pytest

from selftrain.cli import main
from selftrain.review.exchange.review_import import import_reviews, read_reviews
from selftrain.review.ledger import ReviewLedger
from selftrain.review.ledger_reader import LEDGER
from selftrain.review.sampling import request_reviews, verdicts_among
from selftrain.store.run_dir import RunFolder

pytestmark = pytest.mark.integration

CHECKOUT = Path(__file__).parents[2]
PYTHON = CHECKOUT / ".venv-label-studio" / "bin" / "python"

# annotates every task as a person would, holds tasks and predictions against the configuration, converts
CONVERT = """
import json, sys
from label_studio_sdk.converter import Converter
from label_studio_sdk.label_interface import LabelInterface
folder, label = sys.argv[1:]
config, tasks = open(folder + "/tasks.xml").read(), json.load(open(folder + "/tasks.json"))
interface = LabelInterface(config)
interface.validate()
for number, task in enumerate(tasks, 1):
    assert interface.validate_task({"data": task["data"]}), task
    for prediction in task["predictions"]:
        assert interface.validate_prediction(prediction), prediction
    result = [{"from_name": "label", "to_name": "text", "type": "choices", "value": {"choices": [label]}}]
    annotation = {"id": number, "completed_by": 5, "result": result, "was_cancelled": False,
                  "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z", "lead_time": 2}
    assert interface.validate_annotation(annotation)
    task |= {"id": number, "annotations": [annotation]}
json.dump(tasks, open(folder + "/annotated.json", "w"))
converter = Converter(config, folder, download_resources=False)
for kind in ("JSON", "JSON_MIN", "CSV"):
    converter.convert(folder + "/annotated.json", folder + "/" + kind, kind, is_dir=False)
"""


@pytest.fixture
def run(small_run, tmp_path):
    shutil.copytree(small_run, tmp_path / "run", symlinks=True)
    folder = RunFolder(tmp_path / "run")
    request_reviews(folder, budget=min(8, len(verdicts_among(folder, "divergent"))), batch="divergent")
    return folder


@pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-label-studio: install_label_studio.sh makes it")
def test_label_studios_converter_reads_what_goes_out_and_what_it_writes_is_read(run, tmp_path):
    out = tmp_path / "tasks.json"
    assert main(["review", "export", str(run.path), "--to", "label-studio", "--out", str(out)]) == 0
    ledger = ReviewLedger(run.path / LEDGER)
    label = ledger.classes[0]
    converted = subprocess.run(
        [str(PYTHON), "-c", CONVERT, str(tmp_path), label], capture_output=True, text=True, check=False
    )
    assert converted.returncode == 0, converted.stderr
    files = [next((tmp_path / kind).iterdir()) for kind in ("JSON", "JSON_MIN", "CSV")]
    found = [read_reviews(file) for file in files]
    expected = [(post_id, label, "label-studio 5") for post_id in ledger.drawn("divergent")]
    for one in found:
        assert [(d.post_id, d.label, d.reviewer) for d in one.decisions] == expected
        assert (one.refused, one.empty) == ((), 0)
    # one person's work in three formats: taken once, known afterwards
    assert import_reviews(run, files[0]).taken == len(expected)
    assert [import_reviews(run, file).known for file in files] == [len(expected)] * 3


KILLED = """
import os, signal, sys
from pathlib import Path
from selftrain.review import ledger
from selftrain.review.exchange.review_import import import_reviews
from selftrain.store.run_dir import RunFolder
run, file, point = sys.argv[1:]
left = int(point)
log = ledger.Transaction.log
def die(*args, **kwargs):
    global left
    log(*args, **kwargs)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
ledger.Transaction.log = die
print(import_reviews(RunFolder(Path(run)), Path(file)).taken, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(run, file, point):
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    return processes.run(("-c", KILLED, run.path, file, point), cwd=CHECKOUT, env=environment)


def test_an_import_killed_half_way_has_taken_nothing_and_the_same_file_again_takes_all(run, tmp_path):
    ledger = ReviewLedger(run.path / LEDGER)
    drawn = ledger.drawn("divergent")
    file = tmp_path / "reviews.csv"
    rows = "".join(f"{post_id},{ledger.classes[0]},ann\n" for post_id in drawn)
    file.write_text("post_id,label,reviewer\n" + rows)
    for point in (1, len(drawn)):
        assert killed(run, file, point).returncode == -signal.SIGKILL
        assert ledger.progress().reviewed == 0
        assert ledger.waiting() == drawn
    done = killed(run, file, 0)  # after the last line
    assert (done.returncode, done.stdout.strip()) == (-signal.SIGKILL, str(len(drawn)))
    assert ledger.progress().reviewed == len(drawn)
    again = import_reviews(run, file)
    assert (again.taken, again.known, again.refused) == (0, len(drawn), ())
    assert [one.label for one in ledger.decisions()] == [ledger.classes[0]] * len(drawn)
