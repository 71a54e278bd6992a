"""What passes the filter, what is set aside, where thresholds come from; kills are in tests/integration."""

from __future__ import annotations

import json
import re
from io import BytesIO, TextIOWrapper

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from serving_helpers import TextPredictor, validation_of

from selftrain.cli import main
from selftrain.errors import ManifestError, RunBusyError, ServingError
from selftrain.serving.row_stream import Sink
from selftrain.serving.streams import ModelAtWork, filter_posts, validation_scores


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(source, sink, **options):
    settings = {"threshold": 0.5, "text_limit": 50} | options
    names = ("columns", "tolerance", "max_pixels")
    own = {"max_pixels": 1000} | {name: settings.pop(name) for name in names if name in settings}
    work = ModelAtWork(predictor=TextPredictor(), **own)
    return filter_posts(work, str(source), sink, **settings)


def test_a_post_passes_with_all_its_fields_from_the_threshold_on(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    rows = [
        {
            "id": "at",
            "text": "0.5",
            "images": ["p.png"],
            "label": "no",
            "process": {"q": "a"},
            "author": {"x": [1]},
        },
        {"id": "under", "text": "0.4999999"},
        {"id": "over", "text": "0.9", "selftrain": "of an earlier filter"},
    ]
    tally = run(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out" / "sink.jsonl")
    kept = records(tmp_path / "out" / "sink.jsonl")
    assert kept[0] == rows[0] | {
        "selftrain": {
            "label": "no", "probability": 0.5, "probabilities": {"yes": 0.5, "no": 0.5},
            "process": {"many": {"a": 0.25, "b": 0.75}}, "threshold": 0.5,
        }
    }  # fmt: skip
    assert [row["id"] for row in kept] == ["at", "over"]
    assert kept[1]["selftrain"]["probability"] == 0.9
    assert (tally.rows, tally.kept, tally.failed) == (3, 2, 0)


def test_what_cannot_be_read_or_scored_is_set_aside_with_its_line_and_reason(tmp_path):
    (tmp_path / "large.png").write_bytes(b"")
    Image.new("RGB", (40, 30)).save(tmp_path / "large.png")
    rows = [
        {"id": "long", "text": "x" * 51},
        {"id": "large", "images": ["large.png"]},
        {"id": "outside", "images": ["../x.png"]},
        {"id": "unscored", "text": "fail"},
        {"text": "0.9"},
        {"id": "good", "text": "0.9"},
    ]
    tally = run(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "sink.jsonl")
    failed = records(tmp_path / "sink.jsonl.quarantine.jsonl")
    assert [(one["line"], one["id"]) for one in failed] == [
        (1, "long"), (2, "large"), (3, "outside"), (4, "unscored"), (5, None),
    ]  # fmt: skip
    words = ["51 characters, at most 50", "1,200 pixels", "leads out of", "cannot read it", "no id"]
    assert all(word in one["reason"] for word, one in zip(words, failed, strict=True))
    assert [one["kind"] for one in failed] == ["row", "row", "row", "post", "row"]
    assert [row["id"] for row in records(tmp_path / "sink.jsonl")] == ["good"]
    assert (tally.rows, tally.kept, tally.failed) == (6, 1, 5)


def test_a_line_that_is_still_written_is_left_until_it_is_whole(tmp_path):
    source, sink, told = tmp_path / "in.jsonl", tmp_path / "sink.jsonl", []
    whole, half = '{"id": "a", "text": "0.9"}\n', '{"id": "b", "te'
    source.write_text(whole + half)
    assert run(source, sink, tell=told.append)[:3] == (1, 1, 0)
    assert told == ["line 2 is no JSON yet and has no end: it is left until it is written"]
    source.write_text(whole + half + 'xt": "0.8"}\n{"id": "c", "text": "0.7"}')
    assert run(source, sink)[:3] == (3, 3, 0)
    assert [row["id"] for row in records(sink)] == ["a", "b", "c"]
    assert not (tmp_path / "sink.jsonl.quarantine.jsonl").read_text()


def test_csv_parquet_and_standard_input_give_what_json_lines_give(tmp_path, monkeypatch):
    rows = [{"id": "a", "text": "0.9"}, {"id": "b", "text": "0.1"}, {"id": "c", "text": "0.7"}]
    (tmp_path / "in.csv").write_text("id,text\na,0.9\nb,0.1\nc,0.7\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(lines)))
    for source in (tmp_path / "in.csv", tmp_path / "in.parquet", "-"):
        sink = tmp_path / "sink.jsonl"
        run(source, sink)
        assert [row["id"] for row in records(sink)] == ["a", "c"], source
        for file in tmp_path.glob("*sink.jsonl*"):
            file.unlink()


def test_parquet_values_that_json_does_not_have_are_written_as_text_or_set_aside(tmp_path):
    import datetime

    rows = [
        {"id": "date", "text": "0.9", "when": datetime.date(2024, 5, 1), "x": [1.0]},
        {"id": "nan", "text": "0.9", "when": None, "x": [float("nan")]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    tally = run(tmp_path / "in.parquet", tmp_path / "sink.jsonl")
    assert [row["when"] for row in records(tmp_path / "sink.jsonl")] == ["2024-05-01"]
    assert (tally.kept, tally.failed) == (1, 1)


def test_a_source_that_is_not_there_leaves_a_sink_that_can_be_begun(tmp_path):
    with pytest.raises(ManifestError):
        run(tmp_path / "none.jsonl", tmp_path / "sink.jsonl")
    run(write_rows(tmp_path / "in.jsonl", [{"id": "a", "text": "0.9"}]), tmp_path / "sink.jsonl")
    assert len(records(tmp_path / "sink.jsonl")) == 1


def test_two_filters_do_not_write_one_sink(tmp_path):
    with Sink(tmp_path / "sink.jsonl", {}).opened(), pytest.raises(RunBusyError):
        run(write_rows(tmp_path / "in.jsonl", [{"id": "a", "text": "0.9"}]), tmp_path / "sink.jsonl")


def test_thresholds_come_from_stored_scores_or_from_a_manifest(tmp_path):
    stored = validation_of([1, 0], [0.9, 0.1])
    assert validation_scores(TextPredictor(stored), None) == (stored, 0)
    with pytest.raises(ServingError, match="--validation"):
        validation_scores(TextPredictor(), None)
    rows = [
        {"id": "a", "text": "0.9", "label": "yes"},
        {"id": "b", "text": "0.3"},
        {"id": "c", "text": "0.2", "label": "no"},
        {"id": "d", "text": "fail", "label": "no"},
        {"id": "e"},
    ]
    scores, left_out = validation_scores(TextPredictor(), write_rows(tmp_path / "v.jsonl", rows))
    assert scores.labels.tolist() == [1, 0]
    assert scores.probs.tolist() == [0.9, 0.2]
    assert left_out == 2
    with pytest.raises(ServingError, match="label 'maybe'"):
        validation_scores(TextPredictor(), write_rows(tmp_path / "v.jsonl", [rows[0] | {"label": "maybe"}]))
    with pytest.raises(ServingError, match="no labelled post"):
        validation_scores(TextPredictor(), write_rows(tmp_path / "v.jsonl", [rows[1]]))


def test_a_threshold_is_chosen_on_posts_that_the_filter_takes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("selftrain.serving.load_predictor.load_predictor", lambda path: TextPredictor())
    Image.new("RGB", (40, 40)).save(tmp_path / "p.png")
    rows = [{"id": "a", "text": "0.9", "label": "yes"}, {"id": "b", "text": "0.80000000", "label": "yes"}]
    rows.append({"id": "c", "text": "0.7", "images": ["p.png"], "label": "yes"})
    source = str(write_rows(tmp_path / "v.jsonl", rows))
    command = ["filter", "m", "--source", source, "--validation", source, "--recall", "1"]
    assert main([*command, "--sink", f"{tmp_path}/s", "--text-limit", "5", "--max-pixels", "1000"]) == 0
    told = capsys.readouterr().out
    assert "from probability 0.899999 " in told
    assert "read 3, kept 1 " in told
    assert "2 rows of the validation posts could not be read or scored" in told


@pytest.mark.parametrize(("kind", "left_out"), [("classifier", 1), ("agentps", 0)])
def test_long_albums_validate_the_models_that_sample_them(tmp_path, kind, left_out):
    names = []
    for n in range(20):
        Image.new("RGB", (8, 8), (n, 0, 0)).save(tmp_path / f"{n}.png")
        names.append(f"{n}.png")
    rows = [{"id": "a", "text": "0.9", "label": "yes"}, {"id": "b", "text": "0.2", "label": "no"}]
    rows.append({"id": "album", "text": "0.8", "images": names, "label": "yes"})
    model = TextPredictor()
    model.kind = kind
    scores, found = validation_scores(model, write_rows(tmp_path / "v.jsonl", rows))
    assert (len(scores.labels), found) == (3 - left_out, left_out)


@pytest.fixture
def faked(monkeypatch):
    """Any path is a model of ten validation posts."""
    probs = [0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
    scores = validation_of([1, 1, 0, 1, 1, 0, 0, 1, 0, 0], probs)
    monkeypatch.setattr("selftrain.serving.load_predictor.load_predictor", lambda path: TextPredictor(scores))


def test_the_command_says_what_the_threshold_does_and_what_came_of_it(faked, tmp_path, capsys):
    source = write_rows(
        tmp_path / "in.jsonl", [{"id": "a", "text": "0.75"}, {"id": "b", "text": "0.65"}, {"id": "c"}]
    )
    sink = tmp_path / "sink.jsonl"
    command = ["filter", "model", "--source", str(source), "--sink", str(sink), "--precision", ".8"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "from probability 0.699999 of 'yes' on" in told
    # 4 of 5: the Clopper-Pearson interval as tables have it
    assert "10 validation posts, 5 of them positive" in told
    assert "precision 0.800 (0.284 to 0.995), recall 0.800 (0.284 to 0.995)" in told
    assert f"read 3, kept 1 in {sink}, failed 1" in told
    assert f"{sink}.quarantine.jsonl" in told
    before = sink.read_bytes()
    assert main(command) == 0
    assert "read 3, kept 1" in capsys.readouterr().out
    assert sink.read_bytes() == before
    assert main([*command[:-1], ".9"]) == 2
    said = capsys.readouterr().err
    assert re.search(r"threshold: 0\.69999\d+ until now, 0\.8999\d+ asked for", said)


def test_a_precision_out_of_reach_writes_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        "selftrain.serving.load_predictor.load_predictor",
        lambda path: TextPredictor(validation_of([1, 0], [0.5, 0.5])),
    )
    source = write_rows(tmp_path / "in.jsonl", [{"id": "a", "text": "0.75"}])
    command = ["filter", "m", "--source", str(source), "--sink", str(tmp_path / "s"), "--precision", ".9"]
    assert main(command) == 2
    assert "the best is 0.500 at recall 1.000" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("share", ["0", "1.1", "x"])
def test_a_precision_is_a_share(share, tmp_path):
    assert main(["filter", "m", "--source", "s", "--sink", "t", "--precision", share]) == 2
