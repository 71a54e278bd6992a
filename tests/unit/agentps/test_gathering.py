"""Which posts a recipe names: of a run, of a manifest, with answers from elsewhere."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from agentps_helpers import TASK, drawn_posts

from selftrain.agentps.dataset import (
    answer_of,
    example,
    load_posts,
    make_target,
    of_split,
    question_set,
    read_posts,
    run_test_posts,
)
from selftrain.agentps.recipe import SourceSettings, load_agentps_recipe
from selftrain.data.manifest_writing import write_manifest
from selftrain.data.posts import Post
from selftrain.data.task import Task, TaskClass, dump_task, load_task
from selftrain.errors import DataError, RecipeError, RunStateError, SplitError, TaskError
from selftrain.store import checksums
from selftrain.store.run_dir import RunFolder, read_jsonl


@pytest.fixture
def place(tmp_path):
    dump_task(TASK, tmp_path / "task.toml")
    write_manifest(drawn_posts(40), tmp_path / "posts.jsonl")
    return tmp_path


def section(place, **kinds):
    return SourceSettings(manifest=place / "posts.jsonl", task=place / "task.toml", **kinds)


def test_a_share_of_each_class_validates(place):
    found = load_posts(section(place, validation_share=0.25), 3)
    assert len(found.train) + len(found.validation) == 40
    for label in ("rude", "kind"):
        whole = sum(p.label == label for p in drawn_posts(40))
        assert sum(p.label == label for p in found.validation) == round(0.25 * whole)
    assert [p.id for p in found.validation] == [
        p.id for p in load_posts(section(place, validation_share=0.25), 3).validation
    ]
    assert [p.id for p in found.validation] != [
        p.id for p in load_posts(section(place, validation_share=0.25), 4).validation
    ]


def with_splits(place, names):
    rows = [json.loads(line) for line in (place / "posts.jsonl").read_text().splitlines()]
    rows = [row | {"split": name} for row, name in zip(rows, names, strict=True)]
    (place / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_splits_of_the_manifest_come_first(place):
    with_splits(place, ["train"] * 25 + ["validation"] * 10 + ["test"] * 5)
    found = load_posts(section(place), 0)
    assert [p.id for p in found.train] == [f"p{i}" for i in range(25)]
    assert [p.id for p in found.validation] == [f"p{i}" for i in range(25, 35)]


def test_splits_without_validation_draw_it_from_training_posts_never_from_the_test(place):
    with_splits(place, ["train"] * 30 + ["pool"] * 4 + ["test"] * 6)
    found = load_posts(section(place, validation_share=0.2), 0)
    both = [p.id for p in (*found.train, *found.validation)]
    assert sorted(both) == sorted(f"p{i}" for i in range(30))
    assert 4 <= len(found.validation) <= 8


def test_test_posts_stay_out_beside_a_validation_manifest_too(place):
    write_manifest(drawn_posts(40)[:5], place / "check.jsonl")
    with_splits(place, ["train"] * 30 + ["test"] * 10)
    found = load_posts(section(place, validation=place / "check.jsonl"), 0)
    assert [p.id for p in found.train] == [f"p{i}" for i in range(5, 30)]


def test_a_split_of_another_name_is_refused_not_left_out(place):
    with_splits(place, ["train"] * 30 + ["apart"] * 10)
    with pytest.raises(SplitError, match="10 of 40 posts have no known 'split', 'p30' with 'apart' first"):
        load_posts(section(place), 0)


def test_what_is_measured_is_said_where_there_are_splits():
    def post(number, split=None):
        return Post(f"p{number}", "x", extra={} if split is None else {"split": split})

    plain = [post(0), post(1)]
    assert of_split(plain, None) == of_split(plain, "all") == plain
    with pytest.raises(SplitError, match="no field `split`"):
        of_split(plain, "test")
    parts = [post(0, "train"), post(1, "test"), post(2, "labelled"), post(3, "test")]
    assert of_split(parts, "test") == [parts[1], parts[3]]
    assert of_split(parts, "train") == [parts[0], parts[2]]
    assert of_split(parts, "all") == parts
    with pytest.raises(SplitError, match="says 2 test, 2 train; say which to measure, --split test"):
        of_split(parts, None)
    with pytest.raises(SplitError, match="no post of split pool: there are 2 test"):
        of_split(parts, "pool")


def test_a_validation_manifest_is_kept_out_of_training(place):
    write_manifest(drawn_posts(40)[30:], place / "check.jsonl")
    found = load_posts(section(place, validation=place / "check.jsonl"), 0)
    assert [p.id for p in found.validation] == [f"p{i}" for i in range(30, 40)]
    assert not {p.id for p in found.train} & {p.id for p in found.validation}


def test_answers_of_another_manifest_are_laid_over(place):
    rows = [
        {"id": "p0", "text": "x", "process": {"insult": "no", "tone": "merry"}},
        {"id": "other", "text": "y"},
    ]
    (place / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_posts(section(place, process=place / "answers.jsonl"), 0)
    posts = {p.id: p for p in (*found.train, *found.validation)}
    assert posts["p0"].process == {"insult": "no", "tone": "merry"}
    assert posts["p1"].process == drawn_posts(2)[1].process
    assert "other" not in posts


def test_answers_laid_over_have_the_usual_fields_whatever_the_manifests_columns_are_called(place):
    """As `selftrain annotate` writes them, of a manifest with names of its own too."""
    rows = [json.loads(line) for line in (place / "posts.jsonl").read_text().splitlines()]
    named = [{("words" if name == "text" else name): value for name, value in row.items()} for row in rows]
    (place / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    answered = {"id": "p0", "text": "x", "process": {"insult": "no", "tone": "merry"}}
    (place / "answers.jsonl").write_text(json.dumps(answered) + "\n")
    found = load_posts(section(place, process=place / "answers.jsonl", columns={"text": "words"}), 0)
    [first] = [one for one in (*found.train, *found.validation) if one.id == "p0"]
    assert (first.text, first.process) == (rows[0]["text"], answered["process"])


def test_a_run_gives_its_grown_data_and_its_own_validation_posts(small_run):
    found = load_posts(SourceSettings(run=small_run, soft_target=0.7), 0)
    grown = {row["id"]: row for row in read_jsonl(small_run / "grown.jsonl")}
    assert {p.id: p.label for p in found.train} == {i: row["label"] for i, row in grown.items()}
    pseudo = {i for i, row in grown.items() if row["provenance"]["source"] == "pseudo-label"}
    assert pseudo
    assert {i: round(float(target.max()), 6) for i, target in found.final_targets.items()} == dict.fromkeys(
        pseudo, 0.7
    )
    folder = RunFolder(small_run)
    scores = read_jsonl(folder.round_path(folder.best_round()) / "scores.jsonl")
    assert {p.id: p.label for p in found.validation} == {
        r["id"]: r["label"] for r in scores if r["split"] == "validation"
    }
    assert not {p.id for p in found.validation} & grown.keys()
    assert any(p.images for p in found.train)


def test_a_manifest_validates_in_the_place_of_a_runs_own_posts(small_run, tmp_path):
    grown = [row for row in read_jsonl(small_run / "grown.jsonl") if row["provenance"]["source"] == "label"]
    ids = [*(f"new{i}" for i in range(len(grown))), *(row["id"] for row in grown[:3])]
    rows = [
        {"id": i, "text": i, "label": row["label"]} for i, row in zip(ids, grown + grown[:3], strict=True)
    ]
    (tmp_path / "check.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_posts(SourceSettings(run=small_run, validation=tmp_path / "check.jsonl"), 0)
    assert [post.id for post in found.validation] == [row["id"] for row in rows]
    assert not {post.id for post in found.train} & {row["id"] for row in rows}
    assert [row["id"] for row in found.quarantine if row["kind"] == "copy"] == [
        row["id"] for row in grown[:3]
    ]


def test_of_a_run_without_validation_posts_a_share_of_the_labelled_ones_validates(small_run, tmp_path):
    """Its rounds leave every labelled post out once, and measure on all of them: these are learned from."""
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    grown = list(read_jsonl(run / "grown.jsonl"))
    labelled = {row["id"]: row["label"] for row in grown if row["provenance"]["source"] == "label"}
    folder = RunFolder(run)
    scores = folder.round_path(folder.best_round()) / "scores.jsonl"
    one = next(iter(read_jsonl(scores)))
    left_out = [one | {"id": i, "label": label, "split": "validation"} for i, label in labelled.items()]
    checksums.write_jsonl(scores, left_out)
    found = load_posts(SourceSettings(run=run, validation_share=0.25), 0)
    train, validation = ({post.id for post in posts} for posts in (found.train, found.validation))
    assert validation < labelled.keys()
    assert Counter(labelled[i] for i in validation) == {
        label: round(count / 4) for label, count in Counter(labelled.values()).items()
    }
    assert train | validation == {row["id"] for row in grown}
    assert not train & validation


def test_nothing_that_the_run_hid_is_learned_from(run_with_questions):
    """The manifest answers the question about every post; the run hid the pool's answers with its labels."""
    found = load_posts(SourceSettings(run=run_with_questions), 0)
    pseudo = [post for post in found.train if post.id in found.final_targets]
    assert pseudo
    assert not [post.id for post in pseudo if post.process]
    assert all(post.process for post in (*found.train, *found.validation) if post not in pseudo)


def test_test_posts_of_a_run_are_those_that_nothing_was_chosen_by(run_with_questions):
    found = load_posts(SourceSettings(run=run_with_questions), 0)
    tested = run_test_posts(run_with_questions, found.task, SourceSettings())
    assert len(tested) == 24
    assert not {p.id for p in tested} & {p.id for p in (*found.train, *found.validation)}
    assert all(post.label and post.process for post in tested)


def test_soft_targets_and_missing_answers():
    asked = question_set(TASK, "agentps")

    def found(label, process, final=None):
        return [
            one.tolist() for one in example(Post("a", "x", (), label, process), asked, final=final).targets
        ]

    soft = make_target(("rude", "kind"), "rude", 0.8)
    assert found("rude", {"tone": "calm"}, soft) == [[0, 0], [0, 1, 0], pytest.approx([0.8, 0.2])]
    assert found("rude", {"tone": "calm"}) == [[0, 0], [0, 1, 0], [1, 0]]
    assert found(None, {}) == [[0, 0], [0, 0, 0], [0, 0]]
    with pytest.raises(TaskError, match="none of"):
        found("rude", {"tone": "loud"})


def test_a_models_answer_is_worth_its_probability_and_a_persons_is_certain():
    asked = question_set(TASK, "agentps")
    model = {"insult": {"answer": "yes", "probability": 0.7}, "tone": {"answer": "calm", "probability": 0.9}}
    post = Post("a", "x", (), "rude", {"insult": "yes", "tone": "merry"}, {"process_provenance": model})
    insult, tone, _ = example(post, asked).targets
    assert insult.tolist() == pytest.approx([0.7, 0.3])
    assert tone.tolist() == [0, 0, 1], "a person put it right"


def told_by_a_model(question, answer, prob):
    return {"process_provenance": {question: {"answer": answer, "probability": prob}}}


@pytest.mark.parametrize(("question", "answer", "prob"), [("insult", "no", 0.5), ("tone", "merry", 0.1)])
def test_an_answer_its_model_hardly_believed_is_still_the_answer(question, answer, prob):
    """A target that is even would be read as the first answer, in thresholds and figures too."""
    asked = question_set(TASK, "agentps")
    found = example(
        Post("a", "x", (), "rude", {question: answer}, told_by_a_model(question, answer, prob)), asked
    )
    place = [one.name for one in asked.process].index(question)
    target, answers = found.targets[place], asked.process[place].answers
    assert answers[answer_of(target)] == answer
    assert target.tolist() == pytest.approx([1 / len(answers)] * len(answers), abs=1e-5)


@pytest.mark.parametrize("prob", [float("nan"), 1.5, -0.1, "often", [0.5], True])
def test_a_probability_that_is_none_is_refused_by_its_post(prob):
    post = Post("odd", "x", (), "rude", {"insult": "no"}, told_by_a_model("insult", "no", prob))
    with pytest.raises(
        DataError, match=r"post 'odd': .* 'insult' the probability .*expected a number in \[0"
    ):
        example(post, question_set(TASK, "agentps"))


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_models_answer_keeps_its_probability_in_every_form_of_manifest(place, suffix):
    file = place / f"told.{suffix}"
    write_manifest([Post("a", "x", (), "rude", {"insult": "no"}, told_by_a_model("insult", "no", 0.7))], file)
    [post] = read_posts(file, TASK, SourceSettings())[0]
    assert example(post, question_set(TASK, "agentps")).targets[0].tolist() == pytest.approx([0.3, 0.7])


def test_answers_laid_over_leave_what_is_said_of_the_others(place):
    """Of one question the manifest itself has a model's answer, of another one the manifest laid over it."""
    own = [replace(one, process={}, extra={}) for one in drawn_posts(40)]
    own[0] = replace(own[0], process={"insult": "yes"}, extra=told_by_a_model("insult", "yes", 0.6))
    write_manifest(own, place / "posts.jsonl")
    other = Post("p0", "x", (), None, {"tone": "calm"}, told_by_a_model("tone", "calm", 0.9))
    write_manifest([other], place / "more.jsonl")
    found = load_posts(section(place, process=place / "more.jsonl"), 0)
    [post] = [one for one in (*found.train, *found.validation) if one.id == "p0"]
    insult, tone, _ = example(post, question_set(TASK, "agentps")).targets
    assert insult.tolist() == pytest.approx([0.6, 0.4])
    assert tone.tolist() == pytest.approx([0.05, 0.9, 0.05])


def test_answers_about_other_posts_are_refused(place):
    write_manifest([replace(one, id=f"other-{one.id}") for one in drawn_posts(3)], place / "more.jsonl")
    with pytest.raises(DataError, match=r"none of the 3 posts of .*more\.jsonl \(ids \['other-p0', .*'p0'"):
        load_posts(section(place, process=place / "more.jsonl"), 0)


def test_posts_that_all_validate_leave_none_to_learn_from(place):
    with pytest.raises(SplitError, match=r"all 40 posts to learn from are among those that validate"):
        load_posts(section(place, validation=place / "posts.jsonl"), 0)


def test_a_pseudo_label_is_worth_its_posterior_where_the_run_has_one(small_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    rows = list(read_jsonl(run / "grown.jsonl"))
    pseudo = [row for row in rows if row["provenance"]["source"] == "pseudo-label"]
    label = pseudo[0]["label"]
    names = load_task(run / "task.toml").names
    probs = {name: 0.93 if name == label else 0.07 for name in names}
    pseudo[0]["provenance"]["posterior"] = {"probs": probs}
    checksums.write_jsonl(run / "grown.jsonl", rows)
    found = load_posts(SourceSettings(run=run, soft_target=0.7), 0)
    targets = [found.final_targets[str(row["id"])] for row in pseudo]
    assert targets[0] == pytest.approx([probs[name] for name in names])
    assert [target.max() for target in targets[1:]] == pytest.approx([0.7] * (len(pseudo) - 1))


FOUR = replace(TASK, classes=tuple(TaskClass(name, name) for name in ("rude", "kind", "odd", "dull")))


def grown_row(number, label, source, posterior=None):
    origin = {"source": source} | ({} if posterior is None else {"posterior": posterior})
    return {"id": f"p{number}", "text": f"day {number}", "label": label, "provenance": origin}


def test_a_grown_dataset_by_itself_is_worth_what_it_is_in_its_run(tmp_path):
    """The whole posterior, of more than two classes too; validated is on labels by people."""
    dump_task(FOUR, tmp_path / "task.toml")
    probs = {"rude": 0.5, "kind": 0.05, "odd": 0.4, "dull": 0.05}
    rows = [grown_row(n, name, "label") for n, name in enumerate(FOUR.names * 5)]
    rows += [grown_row(n, "rude", "pseudo-label", {"probs": probs}) for n in range(20, 40)]
    rows += [grown_row(40, "odd", "pseudo-label"), grown_row(41, "odd", "human")]
    rows += [grown_row(42, "odd", "machine"), grown_row(43, "dull", "another tool")]
    (tmp_path / "grown.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = SourceSettings(
        manifest=tmp_path / "grown.jsonl", task=tmp_path / "task.toml", validation_share=0.4, soft_target=0.7
    )
    found = load_posts(sources, 0)
    people = {f"p{n}" for n in (*range(20), 41, 43)}
    assert {post.id for post in found.validation} < people
    assert len(found.validation) == 8
    train, _ = found.examples(question_set(FOUR, "vanilla"))
    targets = {one.id: one.targets[-1].tolist() for one in train}
    assert targets["p20"] == pytest.approx([0.5, 0.05, 0.4, 0.05])
    assert targets["p40"] == targets["p42"] == pytest.approx([0.1, 0.1, 0.7, 0.1])
    assert all(sorted(targets[i]) == [0, 0, 0, 1] for i in people & targets.keys())


@pytest.mark.parametrize(
    "posterior",
    [
        {"probs": {"rude": 0.9}},
        {"probs": {"rude": 2, "kind": 0}},
        {"probs": [1, 0]},
        "sure",
        0.9,
        {"probs": {"rude": 0.5, "kind": 0.1}},
        {"probs": {"rude": 0, "kind": 0}},
    ],
)
def test_a_posterior_that_is_none_is_said_with_its_post(place, posterior):
    rows = [json.loads(line) for line in (place / "posts.jsonl").read_text().splitlines()]
    rows[3]["provenance"] = {"source": "pseudo-label", "posterior": posterior}
    (place / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"post 'p3': provenance\.posterior is .*; expected `probs`"):
        load_posts(section(place), 0)


def test_what_a_variant_asks():
    names = {v: [one.name for one in question_set(TASK, v).all] for v in ("vanilla", "multitask", "agentps")}
    assert names == {
        "vanilla": ["final"],
        "multitask": ["insult", "tone", "final"],
        "agentps": ["insult", "tone", "final"],
    }
    assert question_set(TASK, "multitask").wording.questions == ()
    assert [one.name for one in question_set(TASK, "vanilla_asked").all] == ["final"]
    assert len(question_set(TASK, "multitask_asked").all) == 3
    for asked in ("vanilla_asked", "multitask_asked", "agentps"):
        assert len(question_set(TASK, asked, rounds=True).wording.questions) == 2
    assert TASK.policy in question_set(TASK, "agentps", policy=True).wording.opening
    bare = Task("bare", TASK.classes, "rude", "p")
    with pytest.raises(TaskError, match="has no questions"):
        question_set(bare, "multitask")
    assert question_set(bare, "vanilla").process == ()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"run": "x", "manifest": "y"}, RecipeError, "expected one of the two"),
        ({}, RecipeError, "expected one of the two"),
        ({"manifest": "posts.jsonl"}, RecipeError, "name the task"),
    ],
)
def test_sections_that_cannot_be(change, error, words):
    with pytest.raises(error, match=words):
        load_posts(SourceSettings(**change), 0)


def test_no_labelled_post(place):
    (place / "posts.jsonl").write_text('{"id": "a", "text": "b"}\n')
    with pytest.raises(DataError, match=r"learned from has .*'rude': 0, 'kind': 0.*; expected at least 1"):
        load_posts(section(place), 0)


def test_a_class_whose_only_post_would_validate_is_refused(place):
    posts = [post for post in drawn_posts(40) if post.label == "kind"]
    rude = next(post for post in drawn_posts(40) if post.label == "rude")
    write_manifest([*posts, rude], place / "posts.jsonl")
    with pytest.raises(
        SplitError, match=r"learned from has \{'rude': 0, .*expected at least 1 of each class"
    ):
        load_posts(section(place), 0)
    write_manifest(posts[:5], place / "check.jsonl")
    with pytest.raises(SplitError, match=r"validated on has .'rude': 0, 'kind': 5"):
        load_posts(section(place, validation=place / "check.jsonl"), 0)


def test_albums_beyond_sixteen_and_videos_are_read(place):
    from PIL import Image

    names = []
    for i in range(40):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(place / f"{i}.png")
        names.append(f"{i}.png")
    (place / "film.mp4").write_bytes(b"not looked at yet")
    rows = [
        {"id": "a", "images": names, "label": "rude"},
        {"id": "b", "video": "film.mp4", "label": "kind"},
        {"id": "c", "text": "x", "video": "../film.mp4", "label": "kind"},
        {"id": "d", "text": "x", "video": "film.mp4", "images": ["1.png"], "label": "kind"},
    ]
    path = place / "albums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    posts, left_out = read_posts(path, load_task(place / "task.toml"), SourceSettings(max_bad_share=1))
    assert [len(p.images) for p in posts] == [40, 0]
    assert posts[1].video == (place / "film.mp4").resolve()
    assert [one["id"] for one in left_out] == ["c", "d"]
    assert "leads out of" in left_out[0]["reason"]


def test_recipes():
    recipe = load_agentps_recipe(None, ["model.rank=4", "training.weights={final=2.0}"])
    assert recipe.training.question_weights(["insult", "final"]) == (1.0, 2.0)
    assert recipe.model_settings().rank == 4
    assert recipe.model_settings().frames is not None
    assert load_agentps_recipe(None, ["frames.count=0"]).model_settings().frames is None
    with pytest.raises(RecipeError, match="names"):
        recipe.training.question_weights(["insult"])
    wrongs = ("model.variant=psy", "training.metric=accuracy", "model.ranks=3", "frames.repeat=maybe")
    for wrong in (*wrongs, f"seed={2**64}", "training.weight_decay=inf"):
        with pytest.raises(RecipeError, match="fault"):
            load_agentps_recipe(None, [wrong])
    last = 'training.metric="last"'
    assert load_agentps_recipe(None, [last]).training.metric == "last"
    with pytest.raises(RecipeError, match="patience waits for better ones"):
        load_agentps_recipe(None, [last, "training.patience=2"])
    with pytest.raises(RecipeError, match=r"training\.patience: it is true; expected a number"):
        load_agentps_recipe(None, ["training.patience=true"])
    for key, given in (("weights", "{final=true}"), ("class_weights", "{final={rude=true}}")):
        with pytest.raises(RecipeError, match=rf"training\.{key}: there is true; expected a number"):
            load_agentps_recipe(None, [f"training.{key}={given}"])
    for wrong in ("model.rounds=true", "model.fed=true"):
        with pytest.raises(RecipeError, match="the variant 'vanilla'"):
            load_agentps_recipe(None, ["model.variant=vanilla", wrong])
    with pytest.raises(RecipeError, match="equally long"):
        load_agentps_recipe(None, ["model.album=video", "frames.repeat=false"])
    for wrong, can in (("dtype=bfloat16", "'auto' or 'float32'"), ("album=video", "'images'")):
        with pytest.raises(RecipeError, match=f"model.{wrong[:5]}.* has only {can}: leave it out"):
            load_agentps_recipe(None, [f"model.{wrong}"])
        assert load_agentps_recipe(None, [f"model.{wrong}", "model.base=elsewhere"]).model.base == "elsewhere"
    assert load_agentps_recipe(None, ["model.dtype=float32"]).model.dtype == "float32"
    published = load_agentps_recipe(Path(__file__).parents[3] / "runs" / "agentps_hateful_memes.toml")
    assert (published.model.rank, published.model.alpha, published.model.max_tokens) == (128, 256, 384)


def test_a_run_or_manifest_at_the_prompt_takes_the_place_of_the_recipes(tmp_path):
    published = Path(__file__).parents[3] / "runs" / "agentps_hateful_memes.toml"
    run, manifest, task = tmp_path / "run", tmp_path / "posts.jsonl", tmp_path / "task.toml"
    run.mkdir(), manifest.touch()

    def data(source, *overrides, file=published):
        found = load_agentps_recipe(file, overrides, source=source).data
        return found.run, found.manifest, found.task

    assert data(run) == (run, None, None), "the recipe's task belongs to its manifest"
    assert data(run, f"data.task={task}") == (run, None, task)
    own = load_agentps_recipe(published).data.task
    assert data(manifest) == (None, manifest, own)
    assert data(manifest, f"data.task={task}") == (None, manifest, task)
    mine = tmp_path / "mine.toml"
    mine.write_text('[data]\nrun = "elsewhere"\ntask = "task.toml"\n')
    assert data(run, file=mine) == (run, None, task), "a task named for a run stays"
    assert data(manifest, file=mine) == (None, manifest, task)
    with pytest.raises(RecipeError, match="nothing is not there: expected the folder of a finished run"):
        data(tmp_path / "nothing")


def test_what_the_run_hid_of_a_reviewed_post_is_not_learned_from(run_with_questions, tmp_path):
    """People saw labelled posts of the pool that no round accepted: their process answers stay hidden."""
    import shutil

    from selftrain.review.ledger import ReviewLedger
    from selftrain.review.ledger_reader import LEDGER, ReviewItem

    run = tmp_path / "run"
    shutil.copytree(run_with_questions, run)
    before = load_posts(SourceSettings(run=run), 0)
    tested = run_test_posts(run, before.task, SourceSettings())
    known = {post.id for post in (*before.train, *before.validation, *tested)}
    rows = read_jsonl(run_with_questions.parent / "data" / "manifest.jsonl")
    pool = [row["id"] for row in rows if row["label"] and row["process"] and row["id"] not in known][:3]
    assert len(pool) == 3
    ledger = ReviewLedger.create(run / LEDGER, classes=before.task.names, budget=3)
    ledger.add("batch", [ReviewItem(one, before.task.names[0], 0.3, 1.0) for one in pool], pool)
    while (post := ledger.next_post("me")) is not None:
        ledger.decide("me", post.item.post_id, before.task.names[1])
    ledger.close()
    found = {post.id: post for post in load_posts(SourceSettings(run=run, reviews="batch"), 0).train}
    assert [found[one].process for one in pool] == [{}, {}, {}]
    assert [found[one].label for one in pool] == [before.task.names[1]] * 3


def test_where_a_reviewer_was_unsure_the_other_answers_count_for_more(small_run, tmp_path):
    """As in `act train`: of four that were drawn three have an answer, with chances of 3/4 pi."""
    import shutil

    from selftrain.review.ledger import UNSURE, ReviewLedger
    from selftrain.review.ledger_reader import LEDGER, ReviewItem

    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    ids = [row["id"] for row in read_jsonl(run / "grown.jsonl")][:8]
    names = load_posts(SourceSettings(run=run), 0).task.names
    ledger = ReviewLedger.create(run / LEDGER, classes=names, budget=4)
    ledger.add("batch", [ReviewItem(one, names[0], 0.3, 0.5) for one in ids], ids[:4])
    while (post := ledger.next_post("me")) is not None:
        ledger.decide("me", post.item.post_id, UNSURE if post.item.post_id == ids[0] else names[1])
    ledger.close()
    found = load_posts(SourceSettings(run=run, reviews="batch"), 0).final_targets
    assert found[ids[0]] == pytest.approx([1, 0])
    assert found[ids[1]] == pytest.approx([1 - 8 / 3, 8 / 3])


def test_a_reviewed_sample_gives_the_unbiased_targets(small_run, tmp_path):
    """Over many draws the mean target is the human's, for every post, though people saw a third of them."""
    import shutil

    import numpy as np

    from selftrain.act.budget import systematic_sample
    from selftrain.review.ledger import ReviewLedger
    from selftrain.review.ledger_reader import LEDGER, ReviewItem

    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    ids = [row["id"] for row in read_jsonl(run / "grown.jsonl")][:12]
    names = load_posts(SourceSettings(run=run), 0).task.names
    human = {post_id: names[i % 2] for i, post_id in enumerate(ids)}
    machine = {post_id: names[i % 3 == 0] for i, post_id in enumerate(ids)}
    inclusion = np.linspace(0.1, 0.55, 12)
    inclusion *= 4 / inclusion.sum()
    entries = [ReviewItem(p, machine[p], 0.3, float(pi)) for p, pi in zip(ids, inclusion, strict=True)]
    mean = np.zeros((12, 2))
    draws = 60
    for seed in range(draws):
        (run / LEDGER).unlink(missing_ok=True)
        ledger = ReviewLedger.create(run / LEDGER, classes=names, budget=4)
        ledger.add("batch", entries, [ids[i] for i in systematic_sample(inclusion, seed)])
        if seed == 0:
            with pytest.raises(DataError, match="4 of 4 posts drawn for review wait"):
                load_posts(SourceSettings(run=run, reviews="batch"), 0)
        while (post := ledger.next_post("me")) is not None:
            ledger.decide("me", post.item.post_id, human[post.item.post_id])
        ledger.close()
        found = load_posts(SourceSettings(run=run, reviews="batch"), 0)
        assert {p.id for p in found.train} >= set(ids)
        assert len({p.id for p in found.train}) == len(found.train)
        targets_now = np.stack([found.final_targets[p] for p in ids])
        assert targets_now.sum(1) == pytest.approx(np.ones(12), abs=1e-5)
        mean += targets_now / draws
    wanted = np.stack([[names[0] == human[p], names[1] == human[p]] for p in ids])
    error = np.sqrt((1 - inclusion) / inclusion / draws)  # of a mean of delta / pi
    assert (np.abs(mean - wanted).max(1) <= 4 * error + 1e-6).all()
    with pytest.raises(RecipeError, match="expected one of"):
        load_posts(SourceSettings(run=run, reviews="another"), 0)


@pytest.mark.parametrize("recipe", ["[model]\nrank = 4\n", 'data = "x"\n', '[data]\nmanifest = "x"\n'])
def test_a_folder_with_another_recipe_is_no_run(recipe, tmp_path):
    (tmp_path / "recipe.toml").write_text(recipe)
    with pytest.raises(RunStateError, match=r"names no manifest and task, so .* is not a run folder"):
        load_posts(SourceSettings(run=tmp_path), 0)
