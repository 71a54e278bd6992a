"""Reviews that come from elsewhere: what goes out, what comes back, and what of it is refused."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from report_helpers import by_hand
from review_helpers import labelling_of

from selftrain.cli import main
from selftrain.errors import ExchangeError, LedgerError
from selftrain.review.exchange import review_export
from selftrain.review.exchange.review_export import ReviewTask, gather_tasks, to_csv
from selftrain.review.exchange.review_import import import_reviews, read_reviews
from selftrain.review.ledger import OutsideDecision, ReviewLedger
from selftrain.review.ledger_reader import LEDGER, UNSURE, ReviewItem
from selftrain.review.opinions import Opinion, Statement
from selftrain.review.page.review_server import next_command
from selftrain.review.sampling import request_reviews, verdicts_among
from selftrain.store.run_dir import RunFolder

CLASSES = ("rude", "kind")


def make(tmp_path, drawn=4, population=6, double_annotation_rate=0.0):
    """A folder with a ledger: p0, p1, ... of which the first are drawn."""
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "recipe.toml").write_text("")
    ledger = ReviewLedger.create(
        tmp_path / LEDGER, classes=CLASSES, budget=drawn, double_annotation_rate=double_annotation_rate
    )
    entries = [ReviewItem(f"p{i}", "rude", 0.3, drawn / population, "round 1") for i in range(population)]
    ledger.add("round 1", entries, [f"p{i}" for i in range(drawn)])
    return RunFolder(tmp_path), ledger


def table(tmp_path, *rows):
    file = tmp_path / "reviews.csv"
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([("post_id", "batch", "label", "reviewer"), *rows])
    return file


def decided(ledger):
    return {
        (review.post_id, review.reviewer): review.label
        for one in ledger.decisions()
        for review in one.reviews
    }


# ---------------------------------------------------------------- into the ledger


def test_good_lines_are_taken_and_bad_ones_refused_with_their_line_and_reason(tmp_path):
    folder, ledger = make(tmp_path)
    file = table(
        tmp_path,
        ("p0", "round 1", "rude", "ann"),  # line 2
        ("p1", "", UNSURE, "ann"),
        ("p0", "", "rude", "ann"),  # 4: repeats
        ("p1", "", "kind", "ann"),  # 5: contradicts
        ("p0", "", "kind", "bob"),  # 6: over the budget
        ("p5", "", "kind", "ann"),  # 7: not drawn
        ("zz", "", "kind", "ann"),  # 8: unknown post
        ("p2", "", "mean", "ann"),  # 9: unknown class
        ("p2", "", "kind", ""),  # 10: nobody
        ("p2", "round 9", "kind", "ann"),  # 11: of another batch
        ("p3", "", "", ""),  # 12: no review
        ("p2", "round 1", "kind", "cem"),
    )
    found = import_reviews(folder, file)
    assert (found.taken, found.known, found.empty) == (3, 0, 1)
    assert decided(ledger) == {("p0", "ann"): "rude", ("p1", "ann"): UNSURE, ("p2", "cem"): "kind"}
    expected = {
        4: "repeats line 2",
        5: "contradicts line 3",
        6: "reviewed by 'ann': one more would be spent over the budget",
        7: "was not drawn",
        8: "no post of this ledger",
        9: "label 'mean'",
        10: "names no reviewer",
        11: "is of batch 'round 1', the file says 'round 9'",
    }
    assert [one.line for one in found.refused] == list(expected)
    for one in found.refused:
        assert expected[one.line] in one.reason, one
    progress = ledger.progress()
    assert (progress.reviewed, progress.budget, progress.entered) == (3, 4, 4)


def test_the_same_file_again_changes_nothing(tmp_path):
    folder, ledger = make(tmp_path)
    file = table(tmp_path, ("p0", "", "rude", "ann"), ("p1", "", "kind", "ann"))
    assert import_reviews(folder, file).taken == 2
    before = list(ledger._connection.iterdump())
    again = import_reviews(folder, file)
    assert (again.taken, again.known, again.refused) == (0, 2, ())
    assert list(ledger._connection.iterdump()) == before


def test_another_decision_of_the_same_reviewer_is_refused_in_a_later_file_too(tmp_path):
    folder, ledger = make(tmp_path)
    import_reviews(folder, table(tmp_path, ("p0", "", "rude", "ann")))
    found = import_reviews(folder, table(tmp_path, ("p0", "", "kind", "ann"), ("p0", "", "rude", "ann")))
    assert (found.taken, found.known) == (0, 1)
    (refused,) = found.refused
    assert refused.line == 2
    assert "has decided 'rude' before, now 'kind'" in refused.reason
    assert decided(ledger) == {("p0", "ann"): "rude"}


@pytest.mark.parametrize("bad", [("zz", "", "kind", "ann"), ("p1", "", "mean", "ann")])
def test_all_or_nothing_takes_nothing_where_a_line_is_refused(tmp_path, bad):
    folder, ledger = make(tmp_path)
    file = table(tmp_path, ("p0", "", "rude", "ann"), bad)
    found = import_reviews(folder, file, all_or_nothing=True)
    assert (found.taken, found.nothing, len(found.refused)) == (0, True, 1)
    assert decided(ledger) == {}
    assert ledger.next_post("bob").item.post_id == "p0"
    fine = import_reviews(folder, table(tmp_path, ("p1", "", "rude", "ann")), all_or_nothing=True)
    assert (fine.taken, fine.nothing) == (1, False)


def test_a_doubled_post_takes_two_reviewers_and_no_third(tmp_path):
    folder, ledger = make(tmp_path, double_annotation_rate=1.0)
    file = table(tmp_path, *(("p0", "", label, who) for who, label in zip("abc", CLASSES * 2, strict=False)))
    found = import_reviews(folder, file)
    assert found.taken == 2
    assert "reviewed by 'a' and 'b': a third review" in found.refused[0].reason
    (decision,) = ledger.decisions()
    assert (decision.label, decision.contested) == ("rude", True)
    assert ledger.progress().second == 1
    assert ledger.waiting() == ["p0", "p1", "p2", "p3"][1:]


def test_a_post_in_somebodys_hands_is_left_to_them_until_the_lease_runs_out(tmp_path):
    folder, ledger = make(tmp_path, drawn=1)
    ledger.next_post("ann")
    file = table(tmp_path, ("p0", "", "kind", "bob"))
    assert "is with 'ann' now" in import_reviews(folder, file).refused[0].reason
    # who holds it may decide on it elsewhere
    found = import_reviews(folder, table(tmp_path, ("p0", "", "kind", "ann")))
    assert found.taken == 1
    assert ledger.next_post("ann") is None
    assert ledger.next_post("bob") is None
    assert ledger.progress().held == 0


def test_a_lease_that_ran_out_holds_nothing(tmp_path):
    folder, _ = make(tmp_path, drawn=1)
    late = ReviewLedger(folder.path / LEDGER, clock=lambda: 0.0)  # long ago
    late.next_post("ann")
    found = import_reviews(folder, table(tmp_path, ("p0", "", "kind", "bob")))
    assert found.taken == 1


def test_open_reviews_are_counted_right_after_an_import(tmp_path):
    folder, ledger = make(tmp_path, double_annotation_rate=1.0)
    import_reviews(folder, table(tmp_path, ("p0", "", "kind", "ann")))
    seen = []
    while (post := ledger.next_post("ann")) is not None:
        ledger.decide("ann", post.item.post_id, "kind")
        seen.append(post.item.post_id)
    assert seen == ["p1", "p2", "p3"]
    assert ledger.next_post("bob").second
    assert ledger.waiting() == ["p0", "p1", "p2", "p3"]


def test_a_decision_from_outside_can_be_undone_and_is_logged(tmp_path):
    folder, ledger = make(tmp_path)
    import_reviews(folder, table(tmp_path, ("p2", "", "kind", "ann")))
    assert ledger.latest("ann").post_id == "p2", "of decisions of one moment the last"
    assert ledger.undo("ann").item.post_id == "p2"
    rows = ledger._connection.execute("SELECT reviewer, post_id, action, label FROM log").fetchall()
    assert ("ann", "p2", "import", "kind") in rows


def test_the_reviewer_of_the_command_line_is_for_lines_that_name_none(tmp_path):
    folder, ledger = make(tmp_path)
    file = table(tmp_path, ("p0", "", "rude", ""), ("p1", "", "rude", "bob"))
    import_reviews(folder, file, reviewer="ann")
    assert decided(ledger) == {("p0", "ann"): "rude", ("p1", "bob"): "rude"}


# ---------------------------------------------------------------- Label Studio


def item(post_id="p0", *annotations, batch="round 1"):
    return {"id": 1, "data": {"post_id": post_id, "batch": batch, "text": "t"}, "annotations": annotations}


def annotation(label, by=7, **more):
    results = [{"from_name": "label", "to_name": "text", "type": "choices", "value": {"choices": [label]}}]
    return {"id": 3, "completed_by": by, "result": results, **more}


def write(tmp_path, value):
    file = tmp_path / "export.json"
    file.write_text(json.dumps(value))
    return file


def test_reviews_of_an_export_with_everything_in_it(tmp_path):
    mail = {"id": 4, "email": "ann@example.org", "first_name": "Ann"}
    items = [
        item("p0", annotation("rude", mail), annotation("kind")),
        item("p1"),  # nobody yet
        item("p2", annotation("kind", was_cancelled=True)),  # skipped
        {"id": 9, "data": {"text": "of another project"}, "annotations": []},
        item("p3", {"completed_by": 7, "result": []}),
        item("p3", annotation("kind") | {"result": annotation("a")["result"] * 2}),
        "no task",
        item("p3", annotation("kind", None)),
    ]
    found = read_reviews(write(tmp_path, items), "cem")
    assert found.decisions == (
        OutsideDecision(1, "p0", "rude", "ann@example.org", "round 1"),
        OutsideDecision(1, "p0", "kind", "label-studio 7", "round 1"),
        OutsideDecision(8, "p3", "kind", "cem", "round 1"),
    )
    assert found.empty == 2
    assert [(one.line, one.post_id) for one in found.refused] == [(4, ""), (5, "p3"), (6, "p3"), (7, "")]
    assert "0 results" in found.refused[1].reason
    assert "2 results" in found.refused[2].reason


def test_reviews_of_a_minimal_export(tmp_path):
    items = [
        {"id": 1, "post_id": "p0", "batch": "round 1", "text": "t", "label": "rude", "annotator": 7},
        {"id": 1, "post_id": "p0", "label": {"choices": ["kind"]}, "annotator": "ann@example.org"},
        {"id": 2, "post_id": "p1", "text": "t", "annotator": 7},
        {"id": 3, "post_id": "p2", "label": {"choices": ["kind", "rude"]}, "annotator": 7},
        {"id": 4, "text": "of another project", "label": "rude", "annotator": 7},
    ]
    found = read_reviews(write(tmp_path, items))
    assert found.decisions == (
        OutsideDecision(1, "p0", "rude", "label-studio 7", "round 1"),
        OutsideDecision(2, "p0", "kind", "ann@example.org", ""),
    )
    assert found.empty == 1
    assert [one.line for one in found.refused] == [4, 5]


def test_json_lines_are_counted_as_lines_and_null_is_no_review(tmp_path):
    file = tmp_path / "lines.jsonl"
    file.write_text(
        '{"post_id": "p0", "label": null}\n\n{"post_id": "p1", "label": "rude"}\n{"label": "rude"}\n'
    )
    found = read_reviews(file)
    assert [(one.line, one.post_id) for one in found.decisions] == [(3, "p1")]
    assert (found.empty, [one.line for one in found.refused]) == (1, [4])


@pytest.mark.parametrize("text", ['{"a": 1}', "[1, 2", "\x00", "a,b\n1,2\n", ""])
def test_a_file_that_is_none_of_these_is_refused_as_a_whole(tmp_path, text):
    file = tmp_path / "file"
    file.write_text(text)
    with pytest.raises(ExchangeError):
        read_reviews(file)


def test_the_configuration_names_every_class_and_unsure_as_data():
    tricky = ('a"<b>&', "kind")
    root = ElementTree.fromstring(review_export.labelling_config(tricky, pictures=True, opinions=True))
    choices = root.find("Choices")
    assert choices.attrib["toName"] == root.find("Text").attrib["name"] == "text"
    assert [one.attrib["value"] for one in choices] == [*tricky, UNSURE]
    assert root.find("Image").attrib["valueList"] == "$images"
    plain = ElementTree.fromstring(review_export.labelling_config(tricky, pictures=False, opinions=False))
    assert plain.find("Image") is None
    assert len(plain.findall("Text")) == 1
    with pytest.raises(ExchangeError, match="variable"):
        review_export.labelling_config(("$text", "kind"), pictures=False, opinions=False)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "pictures" / "a b.png"
    path.parent.mkdir()
    Image.new("RGB", (3000, 200), (200, 10, 10)).save(path)
    return path


def task(*opinions, images=(), text="hello"):
    names = tuple(path.name for path in images)
    return ReviewTask("p0", "round 1", 0, text, tuple(images), names, opinions)


def test_tasks_carry_post_batch_predictions_and_pictures(picture):
    said = (
        Opinion("classifier", (Statement("label", "rude", 0.93, ""),)),
        Opinion("user", (Statement("abstain", None, None, "cannot tell"),)),
    )
    (one,) = review_export.to_tasks([task(*said, images=[picture])])
    assert one["meta"] == {"post_id": "p0", "batch": "round 1", "place": 0}
    assert one["data"]["opinions"] == "classifier: rude (0.93)\nuser: no label: cannot tell"
    (prediction,) = one["predictions"]  # who has no label predicts nothing
    assert (prediction["model_version"], prediction["score"]) == ("classifier", 0.93)
    (result,) = prediction["result"]
    assert result["value"] == {"choices": ["rude"]}
    (url,) = one["data"]["images"]
    image = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/webp;base64,"))))
    assert max(image.size) == 1024
    (hidden,) = review_export.to_tasks([task(images=[picture])])
    assert hidden["predictions"] == []
    assert "opinions" not in hidden["data"]


def test_a_posterior_says_what_each_party_added(picture):
    learned = Statement("label", "rude", 0.81, "learned: the threshold is 0.50")
    said = Opinion("posterior", (learned,), {"classifier": 1.2, "user": -0.25})
    (one,) = review_export.to_tasks([task(said)])
    line = "posterior: rude (0.81): learned: the threshold is 0.50: log-odds: classifier +1.20, user -0.25"
    assert one["data"]["opinions"] == line
    assert [each["model_version"] for each in one["predictions"]] == ["posterior"]


def test_local_files_are_addressed_below_the_root_and_refused_outside(picture, tmp_path):
    (one,) = review_export.to_tasks([task(images=[picture])], pictures="local-files", root=tmp_path)
    assert one["data"]["images"] == ["/data/local-files/?d=pictures/a%20b.png"]
    for root in (tmp_path / "elsewhere", None):
        with pytest.raises(ExchangeError, match="does not lie below"):
            list(review_export.to_tasks([task(images=[picture])], pictures="local-files", root=root))


# ---------------------------------------------------------------- tables


def read_csv(tmp_path, text):
    file = tmp_path / "filled.csv"
    file.write_bytes(text.encode())
    return read_reviews(file).decisions


def test_a_table_disarms_formulas_and_ids_come_back_as_they_were(tmp_path):
    posts = ['=HYPERLINK("http://x")', "-1", "'quoted", "plain, with comma", "two\nlines", "@me", "'=x"]
    tasks = [task(text=text)._replace(post_id=text) for text in posts]
    written = to_csv(tasks)
    cells = list(csv.reader(io.StringIO(written.removeprefix("\ufeff"))))
    begun = [cell for row in cells for cell in row if cell.startswith(("=", "+", "-", "@"))]
    assert begun == ["-1"]  # a text that is a number, which no spreadsheet runs
    filled = written.replace("round 1,,", "round 1,kind,ann")
    assert [row.post_id for row in read_csv(tmp_path, filled)][:6] == posts[:6]
    told = {(row.label, row.reviewer, row.batch) for row in read_csv(tmp_path, filled)}
    assert told == {("kind", "ann", "round 1")}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_is_read_with_the_delimiter_that_the_spreadsheet_wrote(tmp_path, delimiter):
    text = "\ufeffpost_id|batch|label|reviewer\r\np0|round 1|kind|ann\r\n".replace("|", delimiter)
    assert [tuple(row) for row in read_csv(tmp_path, text)] == [(2, "p0", "kind", "ann", "round 1")]


def test_no_two_ids_are_written_alike(tmp_path):
    posts = ["7", "'7", "''7", "'x"]
    written = to_csv([task(text="t")._replace(post_id=one) for one in posts])
    filled = written.replace("round 1,,", "round 1,kind,ann")
    assert [row.post_id for row in read_csv(tmp_path, filled)] == posts


def test_of_columns_that_could_both_be_meant_none_is_read(tmp_path):
    with pytest.raises(ExchangeError, match="the columns 'Label' and 'LABEL' could both be label: keep one"):
        read_csv(tmp_path, "post_id,Label,LABEL,reviewer\np0,kind,rude,ann\n")
    told = read_csv(tmp_path, "Post_ID,Label,label,reviewer\np0,rude,,ann\np1,rude,kind,ann\n")
    assert [(row.post_id, row.label) for row in told] == [("p1", "kind")]
    lines = '{"Post_ID": "p0", "Label": "kind", "reviewer": " ann "}\n'
    lines += '{"post_id": "p1", "Label": "kind", "LABEL": "rude"}\n'
    (tmp_path / "lines.jsonl").write_text(lines)
    read = read_reviews(tmp_path / "lines.jsonl")
    assert [(row.post_id, row.label, row.reviewer) for row in read.decisions] == [("p0", "kind", "ann")]
    assert [(row.line, "could both be label" in row.reason) for row in read.refused] == [(2, True)]


def test_a_label_that_cannot_be_read_is_no_missing_review(tmp_path):
    columns = {"post_id": ["p0", "p1"], "label": pa.array([b"\xff", b"kind"], pa.binary())}
    pq.write_table(pa.table(columns), tmp_path / "reviews.parquet")
    read = read_reviews(tmp_path / "reviews.parquet", "ann")
    assert [(row.line, row.reason.split(":")[0]) for row in read.refused] == [(1, "label cannot be read")]
    assert (read.empty, [row.post_id for row in read.decisions]) == (0, ["p1"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--to", "csv", "--pictures", "data-uri"], "--pictures is about Label Studio tasks"),
        (["--to", "csv", "--local-root", "."], "--local-root is about Label Studio tasks"),
        (["--to", "label-studio", "--local-root", "."], "add --pictures local-files"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(tmp_path, capsys, options, told):
    assert main(["review", "export", str(tmp_path), *options, "--out", str(tmp_path / "out")]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over_what_the_review_is_about(tmp_path, capsys):
    folder = labelling_of(tmp_path, CLASSES)
    (tmp_path / "link.json").hardlink_to(tmp_path / "manifest.jsonl")
    (tmp_path / "task.xml").symlink_to("task.toml")
    before = {name: (tmp_path / name).read_bytes() for name in ("manifest.jsonl", "task.toml")}
    lost = "is a file that is read, and would be lost"
    for words, told in (
        (["review", "export", folder.path, "--to", "csv", "--out", tmp_path / "manifest.jsonl"], lost),
        (["review", "export", folder.path, "--to", "csv", "--out", tmp_path / "link.json"], lost),
        (["review", "export", folder.path, "--to", "label-studio", "--out", tmp_path / "task.json"], lost),
        (["review", "export", folder.path, "--to", "label-studio", "--out", tmp_path / "a.xml"], ".json"),
        (["act", "export", folder.path, "--out", tmp_path / "manifest.jsonl"], lost),
        (["act", "export", folder.path, "--out", tmp_path / "task.toml"], lost),
    ):
        assert main([*map(str, words)]) == 2
        assert told in capsys.readouterr().err
    assert before == {name: (tmp_path / name).read_bytes() for name in before}
    assert not (tmp_path / "a.xml").exists()


# ---------------------------------------------------------------- a real run


@pytest.fixture
def run(small_run, tmp_path):
    shutil.copytree(small_run, tmp_path / "run", symlinks=True)
    folder = RunFolder(tmp_path / "run")
    divergent = len(verdicts_among(folder, "divergent"))
    assert divergent >= 2
    request_reviews(folder, budget=min(5, divergent), batch="divergent", seed=1)
    return folder


def test_what_a_run_exports_comes_back_reviewed(run, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert main(["review", "export", str(run.path), "--to", "label-studio", "--out", str(out)]) == 0
    tasks = json.loads(out.read_text())
    ledger = ReviewLedger(run.path / LEDGER)
    assert [one["data"]["post_id"] for one in tasks] == ledger.drawn("divergent")
    assert {one["model_version"] for one in tasks[0]["predictions"]} >= {"classifier"}
    assert ElementTree.parse(out.with_suffix(".xml")).getroot().tag == "View"
    label = ledger.classes[0]
    for one in tasks:
        one["annotations"] = [annotation(label)]
    out.write_text(json.dumps(tasks))
    assert main(["review", "import", str(run.path), str(out)]) == 0
    told = capsys.readouterr().out
    assert f"{len(tasks)} taken" in told
    assert f"next: {next_command(run)}\nor: selftrain act train {run.path} " in told
    assert ledger.progress().finished
    assert gather_tasks(run).tasks == ()
    assert len(gather_tasks(run, everything=True).tasks) == len(tasks)
    tasks[0]["annotations"] = [annotation("mean")]
    out.write_text(json.dumps(tasks))
    assert main(["review", "import", str(run.path), str(out), "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert (record["known"], [one["line"] for one in record["refused"]]) == (len(tasks) - 1, [1])


def test_of_many_refused_lines_the_first_are_told(run, tmp_path, capsys):
    (tmp_path / "foreign.json").write_text(json.dumps([{"id": 1, "post_id": "x", "text": "t"}, *[{}] * 50]))
    assert main(["review", "import", str(run.path), str(tmp_path / "foreign.json")]) == 1
    told = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("line ") for line in told) == 20
    assert "  and 30 more" in told


def test_hidden_opinions_are_nowhere_in_the_files(run, tmp_path):
    for kind in ("csv", "label-studio"):
        out = tmp_path / f"hidden.{kind}"
        command = ["review", "export", str(run.path), "--to", kind, "--out", str(out), "--hide-opinions"]
        assert main(command) == 0
        assert "classifier" not in out.read_text()
        shown = tmp_path / f"shown.{kind}"
        assert main(["review", "export", str(run.path), "--to", kind, "--out", str(shown)]) == 0
        assert "classifier" in shown.read_text()


def test_a_run_without_a_review_has_nothing_to_export(small_run):
    with pytest.raises(LedgerError, match="is not there"):
        gather_tasks(RunFolder(small_run))


def test_a_post_that_left_the_manifest_is_named(run, tmp_path):
    recipe = by_hand(run).recipe_path.read_text()
    run.recipe_path.write_text(recipe.replace("manifest.jsonl", "gone.jsonl"))
    with pytest.raises(ExchangeError, match="no row of that id"):
        gather_tasks(run)
