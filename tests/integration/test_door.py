"""The face of the package, used as its design wrote it down: this program runs as it stands."""

from __future__ import annotations

import json

import pytest
from loop_child import LightBackbone, light_backbone

import selftrain as st
from agents import SimulatedAgent, symmetric
from selftrain.errors import RunMismatchError
from selftrain.models import pretrained

pytestmark = pytest.mark.integration

PROGRAM = """
import selftrain as st

task = st.load_task("task.toml")
data = st.split(st.read_manifest("posts.jsonl", task), task, labelled=100, seed=0)
trainer = st.SelfTrainer(
    backbone=st.backbones.CLIP("ViT-L-14", "openai"),   # Backbone
    classifier=st.HeadTrainer(),                        # Trainer; st.FineTuner(mode="lora")
    selector=st.TopK(500),                              # Selector
    panel=st.CrossReview(reviewer, user),               # Panel; st.VLMPanel(servers=[...]), st.OfflinePanel()
    loss=st.losses.PNULoss(),                           # RoundLoss
    reviewers=None,                                     # people: st.HumanReview(budget=200)
)
for r in trainer.fit(data, out="runs/mine"):
    print(r.number, r.kept, r.validation.macro_f1, r.consistent, r.divergent)

run = st.Run("runs/mine")
run.grown()                 # posts with their provenance
run.verdicts(round=3)       # typed, with every rationale
st.load_predictor("runs/mine").predict(posts)
"""
RECIPE = '[data]\nmanifest = "posts.jsonl"\ntask = "task.toml"\nlabelled = 100\n[rounds]\nmax = 1\n'


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Posts of words alone, where the program is run; recipes take a backbone that costs little."""
    monkeypatch.setattr(pretrained, "load_backbone", light_backbone)
    st.draw_posts(tmp_path / "drawn", 2000)
    rows = map(json.loads, (tmp_path / "drawn/manifest.jsonl").read_text().splitlines())
    words = ({**row, "images": []} for row in rows if row["text"].strip())
    (tmp_path / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in words))
    (tmp_path / "drawn/task.toml").rename(tmp_path / "task.toml")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SELFTRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path


def agents_of(task, posts, accuracy=0.9):
    truth = {post.id: post.label for post in posts if post.label}
    confusion = symmetric(task.names, accuracy)
    # that err apart: more posts stay divergent, so that there are rounds enough to look at
    return [SimulatedAgent(role, truth, confusion, shared=0.0) for role in ("reviewer", "user")]


def test_the_program_runs_as_it_stands(home, monkeypatch, capsys):
    task = st.load_task("task.toml")
    posts = st.read_manifest("posts.jsonl", task).posts
    reviewer, user = agents_of(task, posts)
    named = []
    # nothing is fetched: a hub that cannot be reached is asked five times, with pauses
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if not clip_is_here():
        # without the published weights, another backbone takes their place
        encoder = LightBackbone()
        monkeypatch.setattr(st.backbones, "CLIP", lambda *given: named.append(given) or encoder)
    scope = {"reviewer": reviewer, "user": user, "posts": posts[:5]}
    exec(compile(PROGRAM, "the door", "exec"), scope)
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [int(line[0]) for line in shown] == list(range(len(shown)))
    assert named in ([], [("ViT-L-14", "openai")])

    run = scope["run"]
    sources = [post.extra["provenance"]["source"] for post in run.grown()]
    assert sources.count("label") == 100
    assert "pseudo-label" in sources
    verdicts = run.verdicts(round=3)
    assert {one.agents for one in verdicts} == {("reviewer", "user")}
    assert all(judgment.rationale for one in verdicts for judgment in one.judgments)
    predicted = st.load_predictor("runs/mine").predict(posts[:5])
    assert {one.label for one in predicted} <= set(task.names)

    # the recipe's way, and the same folder with another part
    (home / "other").mkdir()
    recipe_run = st.run("recipe.toml", out="other/mine")
    assert recipe_run.folder.finished() == 2
    other = st.SelfTrainer(
        selector=st.TopK(400), panel=st.CrossReview(reviewer, user), loss=st.losses.PNULoss()
    )
    with pytest.raises(RunMismatchError, match=r"selection\.k: 500 in the folder, 400 now"):
        next(other.fit(scope["data"], out="runs/mine"))


def test_agents_that_cost_nothing_are_asked_before_a_run_and_those_that_hardly_answer_named(home, caplog):
    silent = ["agents.kind=simulated", "agents.accuracy=0.8", "agents.abstention=0.99", "rounds.max=0"]
    lines = list(st.start("recipe.toml", "silent", silent).estimate().lines())
    assert lines[0].startswith("reviewer gave a label to ")
    assert "abstained on most of them, and is useless so: lower agents.abstention" in lines[0]
    assert any(line.startswith("user adds ") for line in lines)
    assert not caplog.messages
    list(st.start("recipe.toml", "silent", silent).rounds())
    assert caplog.messages == lines[:2]
    list(st.start("recipe.toml", "silent", silent).rounds())
    assert caplog.messages == lines[:2]  # a run that goes on has heard it
    assert not list(st.start("recipe.toml", "offline", ["rounds.max=0"]).estimate().warnings())


def clip_is_here():
    try:
        return st.backbones.CLIP("ViT-L-14", "openai").layout.width > 0
    except Exception:
        return False


def test_what_the_comments_name_is_made_of_its_settings_alone():
    assert st.backbones.CLIP("ViT-L-14", "openai").name == "clip:ViT-L-14"
    assert st.FineTuner(mode="lora").architecture.mode == "lora"
    assert st.VLMPanel(servers=["http://127.0.0.1:8000"]).protocol == "cross_review"
    assert st.HumanReview(budget=200).per_round == 50
    assert st.OfflinePanel() == st.OfflinePanel()
