"""Process labels from a real vLLM server: every kind of question, and nothing paid twice.

The model is far too small to see anything: what is tested is that every answer is one of those offered.
"""

from __future__ import annotations

import json

import pytest

from selftrain.cli import main

pytestmark = [pytest.mark.integration, pytest.mark.vllm]

QUESTIONS = """
[[questions]]
name = "fits"
wording = "Do the words fit the pictures?"
answers = ["yes", "no"]
[[questions]]
name = "theme"
wording = "What is the post about?"
answers = ["people", "places", "something else"]
[[questions]]
name = "bright"
wording = "Are most of the pictures bright?"
answers = ["yes", "no"]
counting = "most"
"""


def test_every_kind_of_question_is_answered_and_paid_for_once(tmp_path, small_vlm_server, capsys):
    from selftrain.data.drawn import draw_posts

    draw_posts(tmp_path, 12)
    with (tmp_path / "task.toml").open("a") as task:
        task.write(QUESTIONS)
    (tmp_path / "recipe.toml").write_text(
        '[data]\nmanifest = "manifest.jsonl"\ntask = "task.toml"\n'
        "[vlm]\nrationale_chars = 40\nimage_side = 112\nattempts = 2\ntimeout = 300\n"
    )
    command = [
        "annotate", str(tmp_path / "manifest.jsonl"), "--task", str(tmp_path / "task.toml"),
        "--server", small_vlm_server.endpoint, "--recipe", str(tmp_path / "recipe.toml"),
        "--out", str(tmp_path / "annotated.jsonl"), "--direct", "--max-failed", "1",
    ]  # fmt: skip
    assert main([*command, "--estimate"]) == 0
    assert "prompts measured" in capsys.readouterr().out

    assert main(command) == 0
    rows = [json.loads(line) for line in (tmp_path / "annotated.jsonl").read_text().splitlines()]
    report = json.loads((tmp_path / "annotated.jsonl.report.json").read_text())
    assert len(rows) == 12
    assert report["usage"]["image"] > 0
    for row in rows:
        images, missing = len(row.get("images", [])), row.get("process_missing", {})
        assert set(row.get("process", {})) | set(missing) >= {"fits", "theme", "bright"}
        assert images or "bright" in missing
        for name, entry in row.get("process_provenance", {}).items():
            assert entry["answer"] == row["process"][name]
            assert 0.0 <= entry["probability"] <= 1.0
            assert entry["rationale"]
        if "bright" in row.get("process", {}):
            count = row["process_provenance"]["bright"]["count"]
            assert 0 <= count <= images
            assert row["process"]["bright"] == ("yes" if 2 * count > images else "no")

    first = (tmp_path / "annotated.jsonl").read_bytes()
    assert main(command) == 0
    again = json.loads((tmp_path / "annotated.jsonl.report.json").read_text())
    assert again["usage"]["calls"] == 0
    assert (tmp_path / "annotated.jsonl").read_bytes() == first
