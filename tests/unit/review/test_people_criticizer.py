"""A criticizer in the loop: its estimates decide who is reviewed, its reasons are kept and shown."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from loop_helpers import chance, lines, make_corpus
from test_people import go, review
from vlm_helpers import respelt

from agents.ask.annotator import AnnotationPrompts
from agents.ask.cache import ResponseCache
from agents.ask.criticizer import STRATEGIES, Criticizer
from agents.ask.prompt_files import Brief
from agents.ask.runner import Runner
from agents.client.base import ChatRequest, Completion, Identity, Token, Usage
from agents.errors import TokenCapError
from selftrain._util.plugins import choices
from selftrain.build import build
from selftrain.config import HumanSection, load_recipe
from selftrain.errors import BudgetError, RecipeError
from selftrain.review.criticism import CRITICISMS, LoopCriticizer
from selftrain.review.ledger import ReviewLedger
from selftrain.review.ledger_reader import LEDGER
from selftrain.review.page.session import Material
from selftrain.store.run_dir import RunFolder

BRIEF = Brief("mail", "Spam is unwanted.", {"spam": "unwanted", "ham": "wanted"})


def doubt(post_id):
    """What the model thinks of a post."""
    return round(chance("doubt", post_id), 3)


@dataclass
class Doubter:
    """Answers "is it wrong?" with a probability that follows from the post; or with nothing that helps."""

    tokens: bool = True
    asked: list[ChatRequest] = field(default_factory=list)
    closed: int = 0

    async def open(self):
        return Identity("doubter", "org/doubter", "", "rev", "vllm 0.32.0", 4096)

    async def complete(self, request):
        self.asked.append(request)
        asked = "".join(part for part in request.messages[-1].parts if isinstance(part, str))
        share = doubt("p" + asked.split("text ")[1].split()[0])
        head, answer, tail = '{"label": ', '"yes"', "}"
        alternatives = (('"yes"', math.log(share)), ('"no"', math.log(1 - share)))
        tokens = (Token(head, 0.0, ()), Token(answer, math.log(share), alternatives), Token(tail, 0.0, ()))
        found = Completion(head + answer + tail, "stop", Usage(50, 0, 0, 5), tokens if self.tokens else ())
        return respelt(found, request)

    def width(self) -> int:
        return 64

    async def measure(self, request):
        raise NotImplementedError

    async def close(self):
        self.closed += 1


def criticizer_of(folder, model, *, cap=None):
    store = ResponseCache(folder.parent / "answers.sqlite")
    runner = Runner(model, store, run=str(folder), opener=None, token_cap=cap)
    posts = {post.id: post for post in make_corpus(pool=60).posts}
    way = Criticizer(AnnotationPrompts(BRIEF), "log_probability")
    return LoopCriticizer(runner, way, posts, RunFolder(folder))


def run_with(folder, model, **options):
    criticizer = criticizer_of(folder, model, cap=options.pop("cap", None))
    try:
        return go(folder, criticizer=criticizer, **options)
    finally:
        criticizer.close()


def test_those_it_doubts_most_are_reviewed_and_what_it_said_is_kept(tmp_path):
    folder, model = tmp_path / "run", Doubter()
    assert run_with(folder, model, rule="threshold", floor=0.0) == [0, 1]
    divergent = {
        v["post_id"] for v in lines(folder / "rounds/0001/verdicts.jsonl") if v["consistent"] is False
    }
    ledger = ReviewLedger(folder / LEDGER)
    entries, drawn = ledger.population("round 1"), ledger.drawn("round 1")
    ledger.close()
    assert {entry.post_id: entry.error for entry in entries} == pytest.approx(
        {one: doubt(one) for one in divergent}
    )
    assert set(drawn) == set(sorted(divergent, key=doubt)[-4:])
    rows = lines(folder / CRITICISMS)
    assert {row["post_id"]: row["error"] for row in rows} == pytest.approx({o: doubt(o) for o in divergent})
    labels = {entry.post_id: entry.machine_label for entry in entries}
    assert all(row["label"] == labels[row["post_id"]] for row in rows)
    # the label that is criticized is the one that stands in the question
    for request in model.asked:
        asked = "".join(part for part in request.messages[-1].parts if isinstance(part, str))
        post_id = "p" + asked.split("text ")[1].split()[0]
        assert f'"{labels[post_id]}"' in asked
    assert model.closed == 1

    # ---- whoever was killed asks nobody again ----------------------------------------------------------
    before = (folder / CRITICISMS).read_bytes()
    (folder / LEDGER).unlink()
    again = Doubter()
    assert run_with(folder, again, rule="threshold", floor=0.0) == [0, 1]
    assert not again.asked
    assert (folder / CRITICISMS).read_bytes() == before

    # ---- the next round asks about the posts that nobody reviewed -------------------------------------
    reviewed = set(review(folder))
    assert run_with(folder, Doubter(), rule="threshold", floor=0.0) == [0, 1, 2]
    second = {row["post_id"] for row in lines(folder / CRITICISMS) if row["batch"] == "round 2"}
    assert second
    assert not second & reviewed


def test_what_it_costs_is_told(tmp_path, caplog):
    model = Doubter()
    with caplog.at_level("INFO", logger="selftrain.review.criticism"):
        run_with(tmp_path / "run", model)
    told = f"(log_probability): {len(model.asked)} calls, 0 answers stored, {55 * len(model.asked)} tokens"
    assert told in caplog.text


def test_a_model_that_can_say_nothing_ends_the_run_before_a_blind_draw(tmp_path):
    with pytest.raises(BudgetError, match=r"no estimate for any of .* human\.strategy"):
        run_with(tmp_path / "run", Doubter(tokens=False))
    assert not (tmp_path / "run" / LEDGER).exists()
    assert not (tmp_path / "run" / CRITICISMS).exists()


def test_the_token_cap_holds_for_it_too(tmp_path):
    with pytest.raises(TokenCapError):
        run_with(tmp_path / "run", Doubter(), cap=200)
    assert not (tmp_path / "run" / LEDGER).exists()


def test_the_reviewer_sees_it_beside_the_others(tmp_path):
    folder = tmp_path / "run"
    run_with(folder, Doubter())
    row = lines(folder / CRITICISMS)[0]
    (folder / "recipe.toml").write_text("[data]\nmanifest = 'gone.jsonl'\n")
    parties = Material(RunFolder(folder)).opinions(row["post_id"])
    assert parties[0]["who"] == "classifier"
    (step,) = parties[-1]["steps"]
    assert parties[-1]["who"] == "criticizer"
    assert step["label"] is None
    assert step["state"] == f"{row['label']}: {row['error']:.0%} likely wrong"


def recipe_of(folder, words):
    folder.mkdir(exist_ok=True)
    file = folder / "recipe.toml"
    file.write_text('[data]\nmanifest = "m.jsonl"\ntask = "t.toml"\n' + words)
    return load_recipe(file)


def test_a_recipe_names_where_the_criticizer_is_served(tmp_path):
    with pytest.raises(RecipeError, match=r"human\.servers nor vlm\.servers"):
        recipe_of(tmp_path, '[human]\nbudget = 5\nsource = "criticizer"\n')
    with pytest.raises(RecipeError, match="strategy"):
        recipe_of(tmp_path, '[human]\nbudget = 5\nstrategy = "guess"\n')
    for words in (
        '[human]\nbudget = 5\nsource = "criticizer"\nservers = ["http://127.0.0.1:9"]\nstrategy = "graded"\n',
        '[human]\nbudget = 5\nsource = "criticizer"\n[vlm]\nservers = ["http://127.0.0.1:9"]\n',
    ):
        recipe = recipe_of(tmp_path, words)
        classes = [SimpleNamespace(name=name, meaning=name) for name in ("spam", "ham")]
        task = SimpleNamespace(name="mail", policy="p", classes=classes, roles={})
        run = SimpleNamespace(
            folder=RunFolder(tmp_path / "run"),
            task=task,
            corpus=make_corpus(),
            seed=0,
            max_pixels=1,
            progress=False,
        )
        built = build(recipe).reviewers.for_run(run)
        assert built._criticizer._criticizer.strategy.name == recipe.human.strategy
        built.close()


def test_recipe_command_line_and_agents_name_the_same_ways_to_criticize():
    (checked,) = HumanSection.model_fields["strategy"].metadata
    assert tuple(choices(checked.registry)) == tuple(STRATEGIES)
