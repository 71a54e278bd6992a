"""`selftrain annotate` from manifest to manifest; the model is in memory."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from dataclasses import replace
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from annotation_helpers import (
    MemoryBackend,
    answered,
    command,
    film,
    make_home,
    model,
    offered,
    paint,
    rows,
    wording,
)
from model_server import ModelServer
from PIL import Image
from ray_helpers import across_processes
from vlm_helpers import pictures_of, words

from agents.ask.questioner import QuestionAnswer
from agents.client.base import Completion, Usage
from agents.errors import ServerLostError, ServerRefusedError
from agents.judgment import State
from selftrain.agentps.frames import chosen, read_frames
from selftrain.annotation.annotate import annotation_settings, plan_questions, prepare_annotation
from selftrain.annotation.answers import known_answers, read_given
from selftrain.cli import main
from selftrain.cli.options import Workers
from selftrain.data.manifest import read_manifest
from selftrain.data.posts import Post
from selftrain.data.task import Question, load_task
from selftrain.panels import cache_beside


@pytest.fixture
def home(tmp_path):
    return make_home(tmp_path / "home")


@pytest.fixture
def serve(monkeypatch):
    """Puts a model in memory behind every address."""

    def put(answer=model):
        backend = MemoryBackend(answer)
        monkeypatch.setattr("selftrain.panels.build_backend", lambda model: backend)
        return backend

    return put


def asked(backend):
    """What was asked about whom, sorted."""
    return sorted((request.affinity, wording(request).split()[1]) for request in backend.requests)


def test_every_kind_of_question_is_asked_and_written(home, serve, capsys):
    backend = serve()
    assert main(command(home, "--direct")) == 0
    written = rows(home / "annotated.jsonl")
    assert list(written) == ["a", "b", "c", "d"]
    a, b, c, d = written.values()
    # two of three is most of them
    assert a["process"] == {"relevant": "yes", "theme": "sports", "marks": "yes"}
    marks = a["process_provenance"]["marks"]
    assert (marks["count"], marks["pictures"]) == (2, 3)
    assert marks["rationale"] == "seen in a"
    assert marks["source"] == "vlm:model-a@rev1"
    assert a["process_provenance"]["relevant"]["probability"] == pytest.approx(0.8)
    assert a["label_model"]["answer"] == "copied"
    assert "label" not in a
    # no picture and no idea: missing, each with its reason
    assert b["process"] == {"relevant": "no"}
    assert b["process_missing"] == {
        "theme": "the model cannot tell",
        "marks": "the post has no pictures to count",
    }
    # what a person said stays
    assert c["process"] == {"relevant": "no", "theme": "food", "marks": "yes"}
    assert {name: entry["answer"] for name, entry in c["process_model"].items()} == {
        "relevant": "no", "theme": "sports", "marks": "no",
    }  # fmt: skip
    assert "process_provenance" not in c
    # two of four is not most; the model counted three
    assert d["process"] == {"marks": "no", "relevant": "yes", "theme": "food"}
    assert d["process_model"]["marks"]["answer"] == "yes"
    assert (d["label"], d["label_model"]["answer"], d["likes"]) == ("own", "copied", 7)
    assert len(backend.requests) == 4 * 4 - 1
    assert "15 calls" in capsys.readouterr().out


def test_a_counts_probability_is_that_of_all_counts_with_its_answer(home):
    question = Question("q", "w", ("yes", "no"), "most")
    shares = {"0": 0.1, "1": 0.2, "2": 0.3, "3": 0.25, "4": 0.15}
    given = QuestionAnswer("q", State.LABEL, "3", shares, "r", "", "s")
    answer = read_given(given, question, 4)
    assert (answer.answer, answer.count) == ("yes", 3)
    assert answer.probability == pytest.approx(0.4)
    low = read_given(replace(given, answer="2"), question, 4)
    assert (low.answer, low.probability) == ("no", pytest.approx(0.6))


@pytest.mark.parametrize("rule", ["any", "most", 0.25, 0.5, 1.0])
def test_counting_rules_at_their_edges(rule):
    question = Question("q", "w", ("yes", "no"), rule)
    for total in range(1, 17):
        for count in range(total + 1):
            share = Fraction(count, total)
            met = {"any": share > 0, "most": share > Fraction(1, 2)}.get(rule)
            if met is None:
                met = share >= Fraction(rule)
            given = QuestionAnswer("q", State.LABEL, str(count), None, "", "", "s")
            answer = read_given(given, question, total)
            assert answer.answer == ("yes" if met else "no"), (rule, count, total)
            assert answer.probability is None


def test_known_answers_and_labels_are_not_told_to_the_model(home, serve):
    backend = serve()
    assert main(command(home, "--direct")) == 0
    first = home / "bare"
    bare = make_home(first)
    lines = [json.loads(line) for line in (bare / "posts.jsonl").read_text().splitlines()]
    stripped = [{k: v for k, v in row.items() if k not in ("process", "label")} for row in lines]
    (bare / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in stripped))
    blind = serve()
    assert main(command(bare, "--direct")) == 0

    def sent(one):
        return sorted(json.dumps(request.to_json()) for request in one.requests)

    assert sent(blind) == sent(backend)


def test_the_same_command_again_asks_nothing_and_writes_the_same(home, serve):
    serve()
    assert main(command(home, "--direct")) == 0
    before = (home / "annotated.jsonl").read_bytes()
    again = serve()
    assert main(command(home, "--direct")) == 0
    assert again.requests == []
    assert (home / "annotated.jsonl").read_bytes() == before


def test_what_a_model_has_answered_is_not_asked_again_unless_told(home, serve):
    serve()
    assert main(command(home, "--questions", "relevant,marks")) == 0
    backend = serve()
    assert main(command(home, out="more.jsonl", source="annotated.jsonl")) == 0
    assert asked(backend) == [(post, "is") for post in "abcd"]
    assert rows(home / "more.jsonl")["a"]["process"] == {"relevant": "yes", "marks": "yes", "theme": "sports"}

    def other(request):
        return answered(offered(request)[0], rationale="looked again")

    changed = serve(other)
    changed.identity = changed.identity._replace(revision="rev2")
    assert main(command(home, "--again", out="again.jsonl", source="more.jsonl")) == 0
    assert len(changed.requests) == 11
    again = rows(home / "again.jsonl")
    assert again["b"]["process"] == {"relevant": "yes", "theme": "sports"}
    assert again["b"]["process_missing"] == {"marks": "the post has no pictures to count"}
    report = json.loads((home / "again.jsonl.report.json").read_text())["questions"]["marks"]
    assert (report["answered"], report["missing"]) == (3, {"the post has no pictures to count": 1})
    assert again["a"]["process_provenance"]["marks"]["answer"] == again["a"]["process"]["marks"] == "no"
    assert again["c"]["process"] == {"relevant": "no", "theme": "food", "marks": "yes"}
    assert again["c"]["process_model"]["relevant"]["source"] == "vlm:model-a@rev2"


def test_an_earlier_answer_stays_where_no_new_one_comes(home, serve):
    serve()
    assert main(command(home)) == 0
    forgetful = serve(lambda request: answered("unsure"))
    forgetful.identity = forgetful.identity._replace(revision="rev2")
    assert main(command(home, "--again", out="again.jsonl", source="annotated.jsonl")) == 0
    a = rows(home / "again.jsonl")["a"]
    assert a["process"] == {"relevant": "yes", "theme": "sports", "marks": "yes"}
    assert set(a["process_missing"]) == {"relevant", "theme", "marks"}
    report = json.loads((home / "again.jsonl.report.json").read_text())["questions"]["relevant"]
    assert (report["answered"], report["missing"]) == (4, {})


def test_a_models_answer_that_the_task_no_longer_offers_is_asked_for_again(home, serve):
    serve()
    assert main(command(home)) == 0
    task = (home / "task.toml").read_text()
    (home / "task.toml").write_text(task.replace('["sports", "food",', '["motor sports", "food",'))
    text = (home / "annotated.jsonl").read_text()
    # what a model said of `a` stands in `process`, where the reader would refuse it; that of `c` does not
    (home / "some.jsonl").write_text("".join(line + "\n" for line in text.splitlines()[1:]))
    backend = serve(lambda request: answered("motor sports"))
    assert main(command(home, out="new.jsonl", source="some.jsonl")) == 0
    assert asked(backend) == [("b", "is"), ("c", "is")]
    assert rows(home / "new.jsonl")["c"]["process_model"]["theme"]["answer"] == "motor sports"


def test_an_answer_that_a_person_has_corrected_is_a_persons(home, serve):
    serve()
    assert main(command(home)) == 0
    written = rows(home / "annotated.jsonl")
    written["a"]["process"]["theme"] = "food"
    (home / "mended.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written.values()))
    report = read_manifest(home / "mended.jsonl", load_task(home / "task.toml"))
    said = known_answers(report.posts[0])
    assert (said.known, set(said.model)) == ({"theme": "food"}, {"relevant", "marks"})


def test_pseudo_labels_are_nobodys_word(home):
    lines = [
        {"id": "p", "text": "x", "label": "own", "provenance": {"source": "pseudo-label"}},
        {"id": "l", "text": "y", "label": "own", "provenance": {"source": "label"}},
        {"id": "h", "text": "y", "label": "own", "provenance": {"source": "human", "round": 2}},
        {"id": "o", "text": "z", "label": "own", "provenance": "the old forum"},
    ]
    (home / "grown.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    posts = read_manifest(home / "grown.jsonl").posts
    assert [bool(known_answers(post).known) for post in posts] == [False, True, True, True]


@pytest.mark.parametrize("after", [0, 4, 9])
def test_stopped_in_the_middle_it_goes_on_without_asking_twice(home, serve, after, capsys):
    paid = []

    def dies(request):
        if len(paid) == after:
            raise ServerLostError("no address has answered for 120 s")
        paid.append(request)
        return model(request)

    serve(dies)
    assert main(command(home)) == 2
    assert "no address has answered" in capsys.readouterr().err
    assert not (home / "annotated.jsonl").exists()
    second = serve()
    assert main(command(home)) == 0
    assert len(second.requests) == 11 - after
    sent = [json.dumps(request.to_json(), sort_keys=True) for request in (*paid, *second.requests)]
    assert len(set(sent)) == len(sent) == 11
    whole = serve()
    other = make_home(home / "other")
    assert main(command(other)) == 0
    assert (other / "annotated.jsonl").read_bytes() == (home / "annotated.jsonl").read_bytes()
    assert len(whole.requests) == 11


def test_the_token_cap_stops_and_says_how_to_go_on(home, serve, capsys):
    backend = serve()
    assert main(command(home, "--token-cap", "500")) == 2
    assert "raise the token cap to go on" in capsys.readouterr().err
    assert 0 < len(backend.requests) * 120 <= 500
    bought = len(backend.requests)
    second = serve()
    assert main(command(home, "--token-cap", "100000")) == 0
    assert len(second.requests) == 11 - bought


def test_failures_past_the_tolerance_stop_with_advice(home, serve, capsys):
    def broken(request):
        return Completion("?", "stop", Usage(9, 0, 0, 1))

    serve(broken)
    assert main(command(home, "--max-failed", "0.5")) == 2
    shown = capsys.readouterr().err
    assert "at most 50.0% tolerated" in shown
    assert "not JSON" in shown
    assert not (home / "annotated.jsonl").exists()
    assert main(command(home, "--max-failed", "1")) == 0
    row = rows(home / "annotated.jsonl")["a"]
    assert "process" not in row
    assert set(row["process_missing"]) == {"relevant", "theme", "marks"}
    assert "not JSON" in row["process_missing"]["theme"]


def test_a_limit_leaves_the_other_posts_as_they_are(home, serve):
    backend = serve()
    assert main(command(home, "--limit", "1")) == 0
    assert {request.affinity for request in backend.requests} == {"a"}
    written, read = rows(home / "annotated.jsonl"), rows(home / "posts.jsonl")
    assert (written["b"], written["c"]) == (read["b"], read["c"])
    report = json.loads((home / "annotated.jsonl.report.json").read_text())
    assert report["questions"]["relevant"]["known"] is None
    # of the two posts whose marks are known one is beyond this limit: it says nothing of the model
    assert main(command(home, "--limit", "3")) == 0
    report = json.loads((home / "annotated.jsonl.report.json").read_text())
    assert (report["questions"]["marks"]["known"]["posts"], report["asked"]["posts"]) == (1, 3)


def test_pictures_beyond_those_sent_cannot_be_counted(home, serve):
    (home / "recipe.toml").write_text(
        '[data]\nmanifest = "posts.jsonl"\ntask = "task.toml"\n[vlm]\nmax_images = 3\n'
    )
    backend = serve()
    assert main(command(home, "--recipe", str(home / "recipe.toml"))) == 0
    assert ("d", "most") not in asked(backend)
    assert ("a", "most") in asked(backend)
    assert "only 3 of 4 pictures" in rows(home / "annotated.jsonl")["d"]["process_missing"]["marks"]


# ---- long albums and videos -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("available", "most", "shown"),
    [
        (0, 16, []),
        (16, 16, range(16)),
        (16, 4, [2, 6, 10, 14]),
        (10, 0, []),
        (17, 16, chosen(17, 16, repeat=False)),
        (40, 16, [1, 3, 6, 8, 11, 13, 16, 18, 21, 23, 26, 28, 31, 33, 36, 38]),
        (256, 1, [128]),
        (20, 0, []),
    ],
)
def test_which_pictures_of_an_album_are_shown(home, tmp_path, available, most, shown):
    task = load_task(home / "task.toml")
    pictures = tuple(tmp_path / f"{i}.png" for i in range(available))
    post = Post("a", "words", pictures, "own")
    (planned,) = plan_questions([post], task, task.questions[:1], max_images=most)
    assert planned.asking.post.images == tuple(pictures[i] for i in shown)
    assert (planned.post, planned.asking.video) == (post, None)


@pytest.mark.parametrize(
    ("images", "video", "most", "expected"),
    [
        (0, False, 16, {"marks": "the post has no pictures to count"}),
        (16, False, 16, {}),
        (16, False, 3, {"marks": "only 3 of 16 pictures are sent, and the rule is about all: raise vlm.max"}),
        (17, False, 16, {"marks": "only 16 of 17 pictures are sent, and the rule is about all: ask without"}),
        (0, True, 16, {"marks": "the rule is about all pictures, and of a video only a sample is sent: ask"}),
        # it is not asked blind about a video
        (0, True, 0, dict.fromkeys(("relevant", "theme", "marks"), "the post has a video, of which vlm.max")),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_told(home, tmp_path, *, images, video, most, expected):
    task = load_task(home / "task.toml")
    pictures = tuple(tmp_path / f"{i}.png" for i in range(images))
    post = Post("a", "words", pictures, video=tmp_path / "a.mp4" if video else None)
    (planned,) = plan_questions([post], task, task.questions, max_images=most)
    assert planned.unasked.keys() == expected.keys()
    assert all(planned.unasked[name].startswith(reason) for name, reason in expected.items())
    asked = {one.name for one in planned.asks}
    assert asked == {"relevant", "theme", "marks"} - expected.keys()


@pytest.fixture
def long_home(home):
    """A manifest of a long album `l`, a video `v` and a picture `p`."""
    film(home / "clip.mp4")
    lines = [
        {"id": "l", "text": "long", "images": paint(home, "l", 20)},
        {"id": "v", "text": "moving", "video": "clip.mp4"},
        {"id": "p", "text": "still", "images": paint(home, "p", 1)},
    ]
    (home / "long.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    (home / "recipe.toml").write_text('[data]\nmanifest = "long.jsonl"\ntask = "task.toml"\n')
    return home


def levels(picture):
    return np.asarray(Image.open(io.BytesIO(picture.data))).mean()


def test_the_command_shows_long_albums_and_videos_as_agentps_samples_them(long_home, serve):
    backend = serve(lambda request: answered(offered(request)[0]))
    assert main(command(long_home, source="long.jsonl")) == 0
    seen = {request.affinity: request for request in backend.requests}
    assert asked(backend) == [("l", "is"), ("l", "words"), ("p", "is"), ("p", "most"), ("p", "words"),
                              ("v", "is"), ("v", "words")]  # fmt: skip
    shown = [round(levels(one) / 10) for one in pictures_of(seen["l"])]
    assert shown == chosen(20, 16, repeat=False)
    frames = read_frames(long_home / "clip.mp4", 16, max_pixels=10_000)
    means = [np.asarray(one).mean() for one in frames]
    assert [levels(one) for one in pictures_of(seen["v"])] == pytest.approx(means, abs=2)
    assert means == sorted(means)
    assert "words and 16 pictures from a video" in words(seen["v"], 1)
    assert "words and 16 pictures." in words(seen["l"], 1)
    written = rows(long_home / "annotated.jsonl")
    assert (len(written["l"]["images"]), written["v"]["video"]) == (20, "clip.mp4")
    assert written["v"]["process"] == {"relevant": "yes", "theme": "sports"}
    assert "only 16 of 20 pictures" in written["l"]["process_missing"]["marks"]
    assert "of a video only a sample" in written["v"]["process_missing"]["marks"]
    again = serve()
    assert main(command(long_home, source="long.jsonl", out="again.jsonl")) == 0
    assert again.requests == []
    film(long_home / "clip.mp4", 30)
    other = serve(lambda request: answered(offered(request)[0]))
    assert main(command(long_home, source="long.jsonl", out="other.jsonl")) == 0
    assert asked(other) == [("v", "is"), ("v", "words")], "another video is another question"


def test_fewer_frames_are_shown_where_the_recipe_says_so(long_home, serve):
    backend = serve(lambda request: answered(offered(request)[0]))
    recipe = ("--recipe", str(long_home / "recipe.toml"), "--set", "vlm.max_images=3")
    assert main(command(long_home, *recipe, source="long.jsonl", out="three.jsonl")) == 0
    seen = {request.affinity: request for request in backend.requests}
    assert [round(levels(one) / 10) for one in pictures_of(seen["l"])] == [3, 10, 16]
    assert len(pictures_of(seen["v"])) == 3


def test_a_video_and_a_long_album_reach_a_server(long_home):
    server = ModelServer()
    try:
        arguments = command(long_home, "--direct", source="long.jsonl")
        url = f"http://127.0.0.1:{server.stub.port}"
        arguments = [url if one == "http://127.0.0.1:9" else one for one in arguments]
        assert main(arguments) == 0
        bodies = [json.loads(one) for one in server.bodies]
    finally:
        server.stop()
    counts = sorted(json.dumps(one).count("data:image/jpeg;base64,") for one in bodies)
    assert counts == [1] * 4 + [16] * 6
    written = rows(long_home / "annotated.jsonl")
    assert all(set(row["process"]) >= {"relevant", "theme"} for row in written.values())
    assert all("label_model" in row for row in written.values())


def test_a_video_of_rubbish_is_told_by_its_post_and_fails_no_other(long_home, serve, capsys):
    (long_home / "clip.mp4").write_bytes(b"this is no film" * 50)
    backend = serve(lambda request: answered(offered(request)[0]))
    assert main(command(long_home, source="long.jsonl")) == 2
    told = capsys.readouterr().err
    assert "post 'v', relevant: The video of this post could not be read: " in told
    assert "clip.mp4: cannot be read as a video" in told
    assert main(command(long_home, "--max-failed", "0.5", source="long.jsonl")) == 0
    written = rows(long_home / "annotated.jsonl")
    assert "cannot be read as a video" in written["v"]["process_missing"]["theme"]
    assert written["l"]["process"] == {"relevant": "yes", "theme": "sports"}
    assert "v" not in {request.affinity for request in backend.requests}
    assert main(command(long_home, "--estimate", source="long.jsonl", out="estimate.jsonl")) == 0
    shown = capsys.readouterr().out
    assert "calls          7\nnot asked      2 " in shown
    assert "(by 5 prompts measured)" in shown, "the video cannot be measured"


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"images": 257}, "257 images"),
        ({"video": "gone.mp4"}, "video 'gone.mp4': no such file"),
        ({"video": "moving.gif"}, "video 'moving.gif' is none of .avi, .m4v"),
        ({"images": 2, "video": "clip.mp4"}, "images and a video"),
    ],
)
def test_rows_that_no_sampling_helps_are_set_aside(long_home, serve, capsys, row, complaint):
    row = {"id": "bad", "text": "x"} | row
    if "images" in row:
        row["images"] = paint(long_home, "bad", row["images"])
    (long_home / "moving.gif").write_bytes(b"GIF89a")
    with (long_home / "long.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    serve(lambda request: answered(offered(request)[0]))
    assert main(command(long_home, "--max-bad-share", "0.5", source="long.jsonl")) == 0
    assert complaint in capsys.readouterr().out
    assert set(rows(long_home / "annotated.jsonl")) == {"l", "v", "p"}


# ---- estimate ---------------------------------------------------------------------------------------


def test_an_estimate_asks_for_no_answer(home, serve, capsys):
    backend = serve()
    assert main(command(home, "--direct", "--estimate", "--token-cap", "10")) == 0
    shown = capsys.readouterr().out
    assert "posts          4\ncalls          15\nnot asked      1 " in shown
    assert "of which pictures 2,304 (by 15 prompts measured)" in shown  # 9 pictures, 4 questions, 64 each
    assert "answer tokens  at most 2,700" in shown  # 15 answers of 60 + 240 / 2
    assert "The token cap of 10 may end the work early." in shown
    assert backend.requests == []
    assert not list(home.glob("annotated*"))
    # the sample holds all four posts, so that what is told is what is sent
    sent = serve()
    assert main(command(home, "--direct")) == 0
    sizes = [asyncio.run(sent.measure(request)) for request in sent.requests]
    assert f"prompt tokens  {sum(size.prompt for size in sizes):,}, of" in shown


def test_a_server_that_does_not_measure_is_told_as_such(home, serve, capsys):
    backend = serve()

    async def no_tokenizer(request):
        raise ServerRefusedError("404 at /tokenize")

    backend.measure = no_tokenizer
    assert main(command(home, "--estimate")) == 0
    shown = capsys.readouterr().out
    assert "calls          11\n" in shown
    assert "prompt tokens  not known: 404 at /tokenize" in shown


# ---- round trips ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_what_is_written_reads_back_and_can_be_annotated_further(home, serve, suffix):
    serve()
    assert main(command(home, "--direct", "--questions", "relevant,marks", out=f"one.{suffix}")) == 0
    assert main(command(home, "--direct", "--questions", "relevant,marks", out="one-as.jsonl")) == 0
    task = load_task(home / "task.toml")
    read, expected = (read_manifest(home / name, task) for name in (f"one.{suffix}", "one-as.jsonl"))
    assert read.problems == ()
    assert [known_answers(post) for post in read.posts] == [known_answers(post) for post in expected.posts]
    assert [(p.id, p.text, p.images, p.label, p.process) for p in read.posts] == [
        (p.id, p.text, p.images, p.label, p.process) for p in expected.posts
    ]
    backend = serve()
    assert main(command(home, "--direct", out=f"two.{suffix}", source=f"one.{suffix}")) == 0
    assert asked(backend) == [(post, "is") for post in "abcd"]
    assert main(command(home, "--direct", out="whole.jsonl")) == 0
    read, expected = (read_manifest(home / name, task) for name in (f"two.{suffix}", "whole.jsonl"))
    assert [known_answers(post) for post in read.posts] == [known_answers(post) for post in expected.posts]
    assert [dict(post.process) for post in read.posts] == [dict(post.process) for post in expected.posts]


# ---- the report -------------------------------------------------------------------------------------


def test_the_report_says_how_good_the_answers_are_where_they_are_known(home, serve, capsys):
    serve()
    assert main(command(home, "--direct")) == 0
    report = json.loads((home / "annotated.jsonl.report.json").read_text())
    # marks: c yes, said no; d no, said yes. relevant: c no, said no. theme: c food, said sports
    marks = report["questions"]["marks"]
    assert marks["answered"] == 3
    assert marks["answers"] == {"yes": 2, "no": 1}
    assert marks["missing"] == {"the post has no pictures to count": 1}
    assert marks["known"]["confusion"] == {
        "yes": {"yes": 0, "no": 1, "(none)": 0},
        "no": {"yes": 1, "no": 0, "(none)": 0},
    }
    assert marks["known"]["accuracy"]["value"] == 0.0
    assert report["questions"]["relevant"]["known"]["accuracy"]["value"] == 1.0
    assert report["questions"]["theme"]["known"]["posts"] == 1
    # c copied, said copied; d own, said copied
    final = report["final"]["known"]
    assert (final["posts"], final["accuracy"]["value"], final["balanced_accuracy"]) == (2, 0.5, 0.5)
    assert final["macro_f1"] == pytest.approx((2 / 3 + 0) / 2, abs=1e-6)
    assert report["comparison"]["process"]["accuracy"] == pytest.approx(1 / 3, abs=1e-6)
    assert report["comparison"]["final"]["accuracy"] == 0.5
    # b lacks two answers
    assert report["complete"] == {"posts": 3, "share": 0.75}
    assert report["model"]["model"] == "model-a"
    assert report["usage"]["calls"] == 15
    shown = capsys.readouterr().out
    assert "3 of 4 posts (75.0%) have an answer to all 3 questions" in shown
    assert "process questions, mean" in shown


def test_missing_answers_count_as_missing_and_not_as_wrong(home, serve):
    lines = [
        {"id": str(i), "text": f"words {i}", "process": {"relevant": "yes" if i < 6 else "no"}}
        for i in range(10)
    ]
    (home / "known.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))

    def says(request):
        return answered("unsure" if int(request.affinity) % 5 == 0 else "yes")

    serve(says)
    assert main(command(home, "--questions", "relevant", source="known.jsonl")) == 0
    known = json.loads((home / "annotated.jsonl.report.json").read_text())["questions"]["relevant"]["known"]
    assert (known["posts"], known["answered"], known["missing"]) == (10, 8, 0.2)
    # yes: 1-4 right, 0 and 5 missing; no: 6-9 all taken for yes
    assert known["accuracy"]["value"] == 0.5
    assert known["confusion"]["yes"] == {"yes": 4, "no": 0, "(none)": 2}
    assert known["majority"] == 0.5


def test_rows_set_aside_are_told_and_not_written(home, serve, capsys):
    with (home / "posts.jsonl").open("a") as file:
        file.writelines(json.dumps({"id": f"n{i}", "text": f"no {i}"}) + "\n" for i in range(20))
        file.write(json.dumps({"id": "bad", "text": "x", "process": {"relevant": "maybe"}}) + "\n")
    serve(lambda request: answered(offered(request)[0]))
    assert main(command(home)) == 0
    shown = capsys.readouterr().out
    assert "1 rows are set aside and will not be written:" in shown
    assert "answer 'maybe' to 'relevant' is none of ['yes', 'no']" in shown
    assert "bad" not in rows(home / "annotated.jsonl")
    report = json.loads((home / "annotated.jsonl.report.json").read_text())
    assert [problem["post_id"] for problem in report["set_aside"]] == ["bad"]


# ---- refused ----------------------------------------------------------------------------------------


def bad_task(home):
    text = (home / "task.toml").read_text()
    (home / "task.toml").write_text(text[: text.index("[[questions]]")])


def bad_answers(home):
    with (home / "posts.jsonl").open("a") as file:
        file.write(json.dumps({"id": "z", "text": "x", "process": {"theme": "weather"}}) + "\n")


def reserved_name(home):
    text = (home / "task.toml").read_text()
    (home / "task.toml").write_text(text.replace('"theme"', '"final question"'))


def other_table(home):
    with (home / "posts.jsonl").open("a") as file:
        file.write(json.dumps({"id": "z", "text": "x", "process_model": "gpt"}) + "\n")


def nothing(home):
    pass


@pytest.mark.parametrize(
    ("change", "more", "complaint"),
    [
        (bad_task, [], "has no questions"),
        (nothing, ["--questions", "relevant,colour"], "no questions ['colour']; it has"),
        (nothing, ["--questions", ","], "no questions of no name"),
        (bad_answers, [], "answer 'weather' to 'theme' is none of"),
        (reserved_name, [], "the name of the final question"),
        (other_table, [], "the field 'process_model' holds 'gpt'"),
        (nothing, ["--out", "posts.jsonl"], "is a file that is read, and would be lost"),
        (nothing, ["--out", "task.toml"], "is a file that is read, and would be lost"),
        (nothing, ["--out", "out.txt"], "ends in '.txt'"),
        (nothing, ["--out", "elsewhere/out.jsonl"], "lies outside the manifest's folder"),
        (nothing, ["--set", "vlm.image_side=99"], "add --recipe"),
        (nothing, ["--prompts", "/nowhere"], "no prompt files can be read"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_asked(
    home, serve, capsys, monkeypatch, *, change, more, complaint
):
    backend = serve()
    change(home)
    monkeypatch.chdir(home)
    before = (home / "posts.jsonl").read_bytes()
    assert main(command(home, *more)) == 2
    assert complaint in capsys.readouterr().err
    assert backend.opened == 0
    assert (home / "posts.jsonl").read_bytes() == before


def test_the_columns_of_a_recipe_count_and_the_option_goes_before(home):
    given = [dict(row) for row in rows(home / "posts.jsonl").values()]
    renamed = [{"tweet": one.pop("id"), **one} for one in given]
    (home / "posts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in renamed))
    recipe = home / "recipe.toml"
    for column, more in (("tweet", None), ("nothing", {"id": "tweet"})):
        recipe.write_text(
            f'data = {{ manifest = "posts.jsonl", task = "task.toml", columns = {{ id = "{column}" }} }}\n'
        )
        settings = annotation_settings(recipe, ["http://127.0.0.1:9"])
        found = prepare_annotation(
            home / "posts.jsonl", home / "task.toml", home / "out.jsonl", settings, columns=more
        )
        assert [post.id for post in found.manifest.posts] == [one["tweet"] for one in renamed]


def test_a_link_to_the_manifest_is_the_manifest(home, serve, capsys):
    serve()
    (home / "link.jsonl").hardlink_to(home / "posts.jsonl")
    assert main(command(home, out="link.jsonl")) == 2
    assert "is a file that is read, and would be lost" in capsys.readouterr().err


def test_no_server_is_told_with_what_to_do(home, capsys):
    arguments = [one for one in command(home) if one not in ("--server", "http://127.0.0.1:9")]
    assert main(arguments) == 2
    assert "selftrain agents serve MODEL" in capsys.readouterr().err


def impatient(home):
    """A recipe that does not wait for servers."""
    (home / "recipe.toml").write_text(
        '[data]\nmanifest = "posts.jsonl"\ntask = "task.toml"\n[vlm]\npatience = 0\n'
    )
    return ["--recipe", str(home / "recipe.toml")]


def test_a_server_that_is_down_is_told(home, capsys):
    assert main(command(home, *impatient(home))) == 2
    assert "http://127.0.0.1:9" in capsys.readouterr().err


@pytest.fixture(params=[200, 404])
def web_server(request):
    """The address of a server that shows pages, or none, whatever is asked of it."""

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(request.param)
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("more", [[], ["--estimate"]])
def test_a_server_that_is_no_chat_server_is_told(home, web_server, capsys, more):
    arguments = [web_server if one == "http://127.0.0.1:9" else one for one in command(home)]
    assert main([*arguments, *impatient(home), *more]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert web_server in shown.err
    assert "calls" not in shown.out


def test_ctrl_c_says_how_to_go_on(home, serve, capsys):
    serve()

    def pressed(*_):
        raise KeyboardInterrupt

    backend = serve()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.ask.questioner.Questioner.ask", pressed)
        assert main(command(home)) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert backend.requests == []


# ---- by workers -----------------------------------------------------------------------------------------


class Across:
    """Workers of a cluster, without one: everything is pickled on its way."""

    def map(self, source, stage):
        return across_processes(self, source, stage)


@pytest.fixture
def by_workers(home, monkeypatch):
    """A function: what a command returns where workers ask, about so many posts at once."""
    (home / "shared").mkdir()
    monkeypatch.setattr("selftrain.panels.PostgresCache", lambda url: cache_beside(home / "shared" / "db"))
    monkeypatch.setattr(Workers, "engine", lambda _: Across())
    recipe = home / "recipe.toml"
    recipe.write_text('[data]\nmanifest = "posts.jsonl"\ntask = "task.toml"\n')
    words = ("--recipe", str(recipe), "--set", "vlm.database=postgresql:///none", "--ray", "local")

    def annotate(*more, block=1):
        monkeypatch.setattr("selftrain.annotation.annotate._BLOCK", block)
        return main(command(home, *more, *words))

    return annotate


@pytest.mark.parametrize("block", [1, 2, 256])
def test_workers_give_the_manifest_of_one_process(home, serve, capsys, by_workers, block):
    backend = serve()
    with pytest.MonkeyPatch.context() as here:
        here.setattr(Workers, "engine", lambda _: None)
        assert main(command(home, "--direct", out="alone.jsonl")) == 0
    once, told = asked(backend), capsys.readouterr().out
    assert by_workers("--direct", block=block) == 0
    assert (home / "annotated.jsonl").read_bytes() == (home / "alone.jsonl").read_bytes()
    assert asked(backend) == sorted(once * 2)
    assert capsys.readouterr().out == told.replace("alone", "annotated")
    reports = [
        json.loads((home / f"{name}.jsonl.report.json").read_text()) for name in ("alone", "annotated")
    ]
    for report in reports:
        del report["written"], report["usage"]["seconds"]
    assert reports[0] == reports[1]


def test_workers_are_sent_videos_and_long_albums(long_home, serve, by_workers):
    backend = serve(lambda request: answered(offered(request)[0]))
    (long_home / "posts.jsonl").write_text((long_home / "long.jsonl").read_text())
    assert by_workers() == 0
    counts = {request.affinity: len(pictures_of(request)) for request in backend.requests}
    assert counts == {"l": 16, "v": 16, "p": 1}


def test_workers_fail_together_as_one_process_does(home, serve, capsys, by_workers):
    """Eleven questions about four posts: of any one post too few to say so."""
    serve(lambda request: Completion("no answer", "stop", Usage(1, 0, 0, 1)))
    assert by_workers() == 2
    told = capsys.readouterr().err
    assert "11 of 11 questions (100.0%) have no usable answer, at most 10.0% tolerated" in told
    assert not (home / "annotated.jsonl").exists()
    assert by_workers("--max-failed", "1") == 0


def test_workers_without_a_database_are_refused(home, serve, capsys):
    serve()
    assert main(command(home, "--ray", "local")) == 2
    assert "--set vlm.database=" in capsys.readouterr().err
