"""The page of a model as text and data: figures against naive values, hostile strings, gaps; no browser."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from agentps_page_helpers import FOUR, TWO, drawn_posts, made, picture_files
from page_helpers import ParsedPage
from report_helpers import CONTROLS, MARKUP, TEMPLATE

from selftrain.agentps.dataset import example, question_set
from selftrain.agentps.evaluate import ScoredPost
from selftrain.agentps.predict import PICTURES, TEXT, answers_row
from selftrain.cli.agentps import _print_metrics as print_metrics
from selftrain.data.posts import Post
from selftrain.data.task import Question, Task, TaskClass
from selftrain.errors import ModelError, StorageError
from selftrain.models.metrics import curve
from selftrain.report import case_table
from selftrain.report.model_page import MOST_LOSSES, gather, precision_at, write_report
from selftrain.web import table


def page_of(place):
    write_report(place, place / "report.html")
    return (place / "report.html").read_text(encoding="utf-8")


def rows_of(place):
    return [json.loads(line) for line in (place / "validation.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model with three questions, 90 posts of which two could not be read, 4 epochs of 60 steps."""
    place = tmp_path_factory.mktemp("models") / "memes"
    pictures = picture_files(place.parent / "pictures", 4)
    posts = drawn_posts(TWO, 90, pictures=pictures)
    made(place, TWO, posts, epochs=4, steps=240, unread=("post-00003", "post-00011"))
    return place


@pytest.fixture(scope="module")
def seen(trained):
    return ParsedPage(page_of(trained))


# ---- records ----------------------------------------------------------------------------------------


def test_a_record_keeps_the_post_within_bounds(tmp_path):
    asked = question_set(TWO, "agentps")
    album = tuple(tmp_path / f"{n}.png" for n in range(40))
    one = example(Post("x", "long " * 1000, album, "harmless", {"insult": "no"}), asked)
    odds = tuple(np.full(len(q.answers), 1 / len(q.answers), np.float32) for q in asked.all)
    row = answers_row(asked, ScoredPost(one, odds))
    assert row["text"] == ("long " * 1000)[:TEXT]
    assert row["pictures"] == [str(path) for path in album[:PICTURES]]
    assert row["picture_count"] == 40
    assert row["truth"] == {"insult": "no", "target": None, "faces": None, "final": "harmless"}
    broken = answers_row(asked, ScoredPost(one, (), "too large"))
    assert set(broken) == {"id", "reason", "text", "pictures", "picture_count", "truth"}
    assert max(case_table.LENGTHS)[0] < TEXT  # so that the page's own cut, which leaves a mark, comes first


# ---- figures ----------------------------------------------------------------------------------------


def test_every_question_has_its_figures_with_intervals_the_final_one_first(trained, seen):
    page = gather(trained)
    assert [one.name for one in page.questions] == ["final", "insult", "target", "faces"]
    questions = json.loads((trained / "metrics.json").read_text())["questions"]
    told = seen.words()
    places = []
    for name in ("final", "insult", "target", "faces"):
        cells = " ".join(
            f"{label} {one['value']:.3f} {one['low']:.3f} to {one['high']:.3f}"
            for label, one in zip(
                ("F1", "macro-F1", "AUC", *(f"recall at precision 0.{p}" for p in (60, 65, 70, 75, 80)),
                 "precision at recall 0.50"),
                questions[name]["metrics"].values(),
                strict=True,
            )
        )  # fmt: skip
        assert cells in told, name
        places.append(told.index(cells))
    assert places == sorted(places)
    three = questions["target"]["all_answers"]
    assert f"macro-F1 {three['macro_f1']:.3f}, accuracy {three['accuracy']:.3f}" in told
    assert "Is this post offensive: insults, threatens or demeans somebody?" in told


def naive_precision_at(truth, scores, recall):
    best = 0.0
    for threshold in scores:
        chosen = scores >= threshold
        if (truth & chosen).sum() >= recall * truth.sum() - 1e-9:
            best = max(best, (truth & chosen).sum() / chosen.sum())
    return best


def test_the_curves_are_those_of_the_records(trained, seen):
    from sklearn.metrics import average_precision_score

    rows = [row for row in rows_of(trained) if "reason" not in row]
    told = seen.words()
    for one in gather(trained).questions:
        name, answer = one.name, one.measured.looked_for
        known = [row for row in rows if row["truth"][name] is not None]
        assert one.measured.posts == len(known)
        truth = np.array([row["truth"][name] == answer for row in known])
        odds = [row["probabilities"] if name == "final" else row["process"][name] for row in known]
        scores = np.array([share[answer] for share in odds])
        naive = [naive_precision_at(truth, scores, step / 10) for step in range(1, 11)]
        assert precision_at(one.curve, [step / 10 for step in range(1, 11)]) == pytest.approx(naive)
        assert one.measured.base_rate == pytest.approx(truth.mean())
        assert f"average precision {average_precision_score(truth, scores):.3f}" in told
        assert f"base rate {truth.mean():.3f}" in told


def test_recall_of_a_tenth_is_met_whatever_the_last_bit():
    found = curve(np.array([True, False] * 10), np.linspace(1, 0, 20))
    for step in range(1, 11):
        assert precision_at(found, [step / 10]) == [pytest.approx(step / (2 * step - 1))]


def test_the_charts_say_what_they_show_and_mark_base_rate_and_kept_epoch(trained, seen):
    page = page_of(trained)
    labels = [a["aria-label"] for tag, a in seen.tags if tag == "svg"]
    assert len(labels) == 4 + 4 + 3
    assert sum("expected calibration error" in label for label in labels) == 4
    assert sum("base rate" in label for label in labels) == 4
    assert sum("epoch 3 is kept" in label for label in labels) == 2
    assert page.count('class="mark-base-rate"') == 4
    assert page.count('class="mark-kept"') == 2


# ---- training ---------------------------------------------------------------------------------------


def test_losses_are_thinned_to_means_and_every_epoch_is_told(trained, seen):
    training = gather(trained).training
    steps = [json.loads(line) for line in (trained / "losses.jsonl").read_text().splitlines()]
    drawn = training.steps
    assert training.together == 2  # 240 steps, at most 200 points
    assert len(drawn) == 120 <= MOST_LOSSES
    assert [one.step for one in drawn[:2]] == [1, 3]
    assert drawn[1].loss == pytest.approx((steps[2]["loss"] + steps[3]["loss"]) / 2)
    for q in range(4):
        assert drawn[0].parts[q] == pytest.approx((steps[0]["parts"][q] + steps[1]["parts"][q]) / 2)
    assert (training.kept, training.best.epoch, training.within) == ("epoch 3", 3, False)
    told, found = seen.words(), json.loads((trained / "metrics.json").read_text())["validations"]
    for number, one in enumerate(row["metrics"] for row in found):
        mean = np.mean([row["loss"] for row in steps[60 * number : 60 * number + 60]])
        word = "kept" if number == 2 else "not kept"
        assert f"{number + 1} {word} {mean:.3f} {one['f1']:.3f} {one['macro_f1']:.3f}" in told
        assert f"{one['faces/macro_f1']:.3f}" in told


def test_an_evaluation_tells_whose_figures_it_has_and_draws_no_training(tmp_path):
    made(tmp_path, TWO, drawn_posts(TWO, 30))
    told = ParsedPage(page_of(tmp_path)).words()
    assert "by the model abc123abc123" in told
    assert "Loss by step" not in told


def test_a_training_without_its_losses_says_so(tmp_path):
    made(tmp_path, TWO, drawn_posts(TWO, 30), epochs=2)
    told = ParsedPage(page_of(tmp_path)).words()
    assert "The losses are not there (losses.jsonl)" in told
    assert "Final question by epoch" in told


def test_validations_within_epochs_are_told_by_their_steps(tmp_path):
    made(tmp_path, TWO, drawn_posts(TWO, 30), epochs=2, steps=40)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    first, second = metrics["validations"]
    within = first | {"epoch": 2, "step": 30}
    metrics |= {"validations": [first, within, second], "best": 1}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    told = ParsedPage(page_of(tmp_path)).words()
    assert "Trained for 2 epochs; step 30 is kept" in told
    assert "Final question by step" in told
    losses = [json.loads(line)["loss"] for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    for row, start, end in ((first, 0, 20), (within, 20, 30), (second, 30, 40)):
        word = "kept" if end == 30 else "not kept"
        assert f"{row['step']} {row['epoch']} {word} {np.mean(losses[start:end]):.3f}" in told


# ---- decisions and calibration --------------------------------------------------------------------------


def test_every_question_has_its_rule_and_how_well_it_is_calibrated(tmp_path):
    rules = {"final": "precision 0.7", "insult": "precision 1", "target": "macro_f1"}
    made(tmp_path, TWO, drawn_posts(TWO, 90), skill=0.4, rules=rules)
    told, page = ParsedPage(page_of(tmp_path)).words(), gather(tmp_path)
    figures = json.loads((tmp_path / "metrics.json").read_text())["questions"]
    for one in page.questions:
        found, calibrated = figures[one.name]["decision"], figures[one.name]["calibration"]
        assert found["goal"] == rules.get(one.name, "likeliest")
        threshold = "\N{EN DASH}" if found["threshold"] is None else f"{found['threshold']:.3f}"
        precision = found["figures"]["precision"]
        assert (
            f"{threshold} {precision['value']:.3f} {precision['low']:.3f} to {precision['high']:.3f}" in told
        )
        for name in ("calibrated", "raw"):
            assert f"error {calibrated[name]['ece']:.3f}" in told
            bins = calibrated[name]["bins"]
            gaps = sum(part["posts"] * abs(part["confidence"] - part["accuracy"]) for part in bins)
            assert gaps / sum(part["posts"] for part in bins) == pytest.approx(calibrated[name]["ece"])
    if note := figures["insult"]["decision"]["note"]:
        assert f"{note}; the likeliest answer is given" in told
    rows, listing = rows_of(tmp_path), json.loads(str(page.cases.listing))
    threshold = figures["final"]["decision"]["threshold"]
    said = [int(row["probabilities"]["offensive"] < threshold) for row in rows]
    assert listing["said"][0] == said, "the table shows the answer that is given, not the likeliest"
    assert said != [int(row["probabilities"]["offensive"] < 0.5) for row in rows]


# ---- gaps -------------------------------------------------------------------------------------------


def test_a_question_with_one_answer_alone_has_a_note_and_no_curve(tmp_path):
    posts = [
        Post(one.id, one.text, (), one.label, {**one.process, "insult": "yes"})
        for one in drawn_posts(TWO, 40)
    ]
    made(tmp_path, TWO, posts)
    seen = ParsedPage(page_of(tmp_path))
    assert "No figures: only one answer occurs among these posts" in seen.words()
    assert sum(tag == "svg" for tag, _ in seen.tags) == 3 + 4  # its calibration can be drawn


def test_answers_that_nobody_gave_are_not_wrong(tmp_path):
    posts = [replace(one, process={}) for one in drawn_posts(TWO, 30)]
    made(tmp_path, TWO, posts)
    page = gather(tmp_path)
    listing = json.loads(str(page.cases.listing))
    assert listing["truth"][1:] == [[-1] * 30] * 3
    assert [one.measured.posts for one in page.questions] == [30, 0, 0, 0]
    assert ParsedPage(page_of(tmp_path)).words().count("No figures:") == 3


def test_posts_without_a_class_have_a_table_without_truth(tmp_path):
    posts = [replace(one, label=None) for one in drawn_posts(TWO, 30)]
    made(tmp_path, TWO, posts)
    seen = ParsedPage(page_of(tmp_path))
    assert json.loads(seen.raw["listing"])["believed"] == [-1] * 30
    assert {a["id"] for _, a in seen.tags if "id" in a} & {"f-outcome", "f-truth"} == set()


def test_four_classes_and_no_questions(tmp_path, capsys):
    """Macro-F1 is of all classes in large and after the table, where it is of one against the others."""
    made(tmp_path, FOUR, drawn_posts(FOUR, 60), epochs=3, steps=30)
    seen = ParsedPage(page_of(tmp_path))
    every = json.loads((tmp_path / "metrics.json").read_text())["questions"]["final"]["all_answers"]
    assert f"Macro-F1 {every['macro_f1']:.3f} over all 4 answers" in seen.words()
    print_metrics(tmp_path / "metrics.json")
    told = capsys.readouterr().out
    assert "metrics of the answer looked for" in told
    assert f"final: over all 4 answers: macro-F1 {every['macro_f1']:.3f}, accuracy" in told
    assert "Which is it: sexual, violent, hateful, none?" in seen.words()
    assert "over all 4 answers" in seen.words()
    listing, post = json.loads(seen.raw["listing"]), json.loads(seen.raw["cases-0"])[0]
    assert [one["name"] for one in listing["questions"]] == ["final"]
    row = rows_of(tmp_path)[0]
    assert post[3] == [[row["probabilities"][name] for name in FOUR.names]]
    assert listing["questions"][0]["looked"] == FOUR.names.index("violent")
    assert listing["score"][0][0] == row["probabilities"]["violent"]
    assert not [a for _, a in seen.tags if a.get("id") == "f-question"]


# ---- cases ------------------------------------------------------------------------------------------


def test_the_index_holds_what_the_records_say(trained):
    rows = [row for row in rows_of(trained) if "reason" not in row]
    found = gather(trained).cases
    listing = json.loads(str(found.listing))
    assert listing["id"] == [row["id"] for row in rows]
    assert (found.shown, found.total) == (88, 88)
    for q, one in enumerate(listing["questions"]):
        for i, row in enumerate(rows):
            odds = row["probabilities"] if q == 0 else row["process"][one["name"]]
            truth = row["truth"][one["name"]]
            assert listing["truth"][q][i] == (-1 if truth is None else one["answers"].index(truth))
            assert odds[one["answers"][listing["said"][q][i]]] == max(odds.values())
            assert listing["score"][q][i] == odds[one["answers"][one["looked"]]]
    assert listing["believed"] == [row["probabilities"][row["truth"]["final"]] for row in rows]
    texts = [post[0] for chunk in found.chunks for post in json.loads(str(chunk))]
    assert texts == [row["text"] for row in rows]


def test_why_a_post_could_not_be_read_is_told_without_its_folder(tmp_path):
    posts = [replace(one, images=(tmp_path / "private" / "a.png",)) for one in drawn_posts(TWO, 12)]
    made(tmp_path / "m", TWO, posts, unread=(posts[3].id,))
    rows = rows_of(tmp_path / "m")
    rows[3]["reason"] = f"{posts[3].images[0]}: not an image"
    (tmp_path / "m" / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = page_of(tmp_path / "m")
    assert f"{posts[3].id} a.png: not an image" in ParsedPage(page).words()
    assert "private" not in page


def test_posts_that_could_not_be_read_are_named_apart(seen):
    assert "post-00003" not in json.loads(seen.raw["listing"])["id"]
    assert "2 rows and posts were set aside: 2 pictures that could not be read" in seen.words()
    assert "post-00003 broken picture" in seen.words()


def test_the_first_pictures_of_the_worst_posts_are_embedded_first(tmp_path):
    pictures = picture_files(tmp_path / "pictures", 8)
    labels = (None, "offensive", "harmless", "offensive")
    posts = [Post(f"p{n}", "x", tuple(pictures[2 * n : 2 * n + 2]), labels[n]) for n in range(4)]
    made(tmp_path / "m", TWO, posts)
    urls = [url for chunk in gather(tmp_path / "m").cases.pictures for url in json.loads(str(chunk))]
    found = gather(tmp_path / "m", picture_budget=sum(map(len, urls[:5]))).cases
    believed = json.loads(str(found.listing))["believed"]
    order = sorted((1, 2, 3), key=lambda i: believed[i])
    rows = json.loads(str(found.chunks[0]))
    places = {place: (i, k) for i, row in enumerate(rows) for k, (place, _) in enumerate(row[1])}
    # of the post whose class is not known nobody can say how wrong the model is: it comes last
    firsts = [(order[0], 0), (order[1], 0), (order[2], 0), (0, 0)]
    assert [places[n] for n in range(5)] == [*firsts, (order[0], 1)]
    assert (found.embedded, found.left_out) == (5, 3)


def test_of_where_a_picture_lies_the_page_tells_its_name_alone_and_videos_are_named(tmp_path):
    (picture,) = picture_files(tmp_path / "secret-folder", 1)
    clip = picture.with_name("clip.mp4")
    posts = [
        Post("p", "x", (picture, picture.with_name("gone.png")), "offensive"),
        Post("v", "", (), "harmless", video=clip),
    ]
    made(tmp_path / "m", TWO, posts)
    page = page_of(tmp_path / "m")
    assert "secret-folder" not in page
    first, second = json.loads(ParsedPage(page).raw["cases-0"])
    assert first[1][0] == [0, "0.png"]
    assert first[1][1][0] == -1
    assert first[1][1][1].startswith("gone.png (no such file")
    assert second[1] == [[-1, "clip.mp4 (video)"]]


def test_texts_are_cut_with_a_mark_and_harder_when_there_is_little_room(tmp_path, monkeypatch):
    made(tmp_path, TWO, [Post(f"p{n}", "long " * 1000, (), TWO.names[n % 2]) for n in range(4)])
    assert gather(tmp_path).cases.cut == 1200
    monkeypatch.setattr(table, "TEXT_BUDGET", 1000)
    found = gather(tmp_path).cases
    assert found.cut == 240
    text = json.loads(str(found.chunks[0]))[0][0]
    assert text.endswith(" […]")
    assert len(text) <= 244


def test_of_more_posts_than_a_page_takes_the_first_are_there(tmp_path, monkeypatch):
    made(tmp_path, TWO, drawn_posts(TWO, 30))
    monkeypatch.setattr(case_table, "MOST_RECORDS", 20)
    monkeypatch.setattr(table, "CHUNK", 8)
    seen = ParsedPage(page_of(tmp_path))
    assert "The first 20 of 30 posts are here" in seen.words()
    assert [len(json.loads(seen.raw[f"cases-{n}"])) for n in range(3)] == [8, 8, 4]
    assert json.loads(seen.raw["listing"])["chunk"] == 8


def test_records_of_a_process_that_began_before_texts_were_kept_can_be_drawn(tmp_path):
    made(tmp_path, TWO, drawn_posts(TWO, 30))
    gone = ("text", "pictures", "picture_count")
    bare = [{key: value for key, value in row.items() if key not in gone} for row in rows_of(tmp_path)]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
    assert json.loads(ParsedPage(page_of(tmp_path)).raw["cases-0"])[0][:3] == [None, [], 0]


# ---- what comes from outside ------------------------------------------------------------------------

BAD = f"x\"'{MARKUP}{TEMPLATE}</option></select>{CONTROLS}"


def hostile(place, bad):
    """Everything that can be named is named badly; `bad` makes a name out of a word."""
    task = Task(
        name=bad("task"),
        classes=(TaskClass(bad("one"), bad("meaning")), TaskClass(bad("two"), bad("other meaning"))),
        positive=bad("one"), policy=bad("policy"),
        questions=(Question(bad("question"), bad("wording"), (bad("yes"), bad("no"), bad("maybe"))),),
    )  # fmt: skip
    (picture,) = picture_files(place / "pictures", 1)
    posts = [
        Post(bad(f"id{n}"), bad("text"), (picture,), task.names[n % 2],
             {bad("question"): task.questions[0].answers[n % 3]})
        for n in range(12)
    ]  # fmt: skip
    made(place / "model", task, posts, epochs=2, steps=4, unread=(posts[-1].id,))
    return page_of(place / "model")


def test_hostile_strings_are_shown_and_change_nothing_of_the_page(tmp_path):
    page = hostile(tmp_path / "bad", lambda word: word + BAD)
    seen, plain = ParsedPage(page), ParsedPage(hostile(tmp_path / "good", lambda word: word))
    assert [tag for tag, _ in seen.tags] == [tag for tag, _ in plain.tags]
    assert [set(attributes) for _, attributes in seen.tags] == [set(a) for _, a in plain.tags]
    assert (seen.raw["style"], seen.raw["script"]) == (plain.raw["style"], plain.raw["script"])
    outside = page.replace(seen.raw["script"], "").replace(seen.raw["style"], "")
    assert not [mark for mark in outside if mark != "\n" and not mark.isprintable()]
    for word in ("task", "one", "meaning", "policy", "question", "wording", "yes"):
        assert f"{word}x\"'</script></style></title><script>document.title='owned'" in seen.text, word
    assert "\\x1b[31m\\x07\\u202e" in seen.text
    for key, raw in seen.raw.items():
        if key not in ("style", "script"):
            assert raw.isascii()
            assert not set(raw) & set("<>&")
    listing = json.loads(seen.raw["listing"])
    assert listing["id"][0].startswith("id0x\"'</script>")
    assert "\u202e" not in json.dumps([listing["id"], listing["questions"]], ensure_ascii=False)


def test_the_policy_of_the_page_allows_this_script_and_this_style_and_nothing_else(seen):
    seen.rules_of_file()


def test_no_two_elements_share_an_id(seen):
    names = seen.ids()
    assert len(names) > 30
    assert len(set(names)) == len(names)


# ---- folders that are none --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["metrics.json", "validation.jsonl"])
def test_a_missing_or_damaged_file_is_named(tmp_path, name):
    made(tmp_path, TWO, drawn_posts(TWO, 12))
    (tmp_path / name).write_text("{]\n")
    with pytest.raises(ModelError, match=name):
        write_report(tmp_path, tmp_path / "report.html")
    (tmp_path / name).unlink()
    with pytest.raises(ModelError, match=f"there is no .*{name}"):
        write_report(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_record_without_an_answer_is_damage(tmp_path):
    made(tmp_path, TWO, drawn_posts(TWO, 12))
    rows = rows_of(tmp_path)
    del rows[5]["process"]["faces"]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ModelError, match=r"KeyError\('faces'\)"):
        write_report(tmp_path, tmp_path / "report.html")


def test_where_nothing_can_be_written_the_older_page_stays(tmp_path):
    made(tmp_path, TWO, drawn_posts(TWO, 12))
    (tmp_path / "old.html").mkdir()
    with pytest.raises(StorageError):
        write_report(tmp_path, tmp_path / "old.html")
