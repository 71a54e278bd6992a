"""Recipes: what is read, what is refused, and that a dumped one reads back equal."""

import re
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from agents.panel import CrossReview
from backbones.images import MAX_PIXELS
from losses import PNULoss
from selftrain.build import (
    build,
    build_named,
    build_panel,
    build_settings,
    default_rule_for,
    default_selector_for,
    describe,
)
from selftrain.config import load_recipe
from selftrain.errors import RecipeError
from selftrain.loop import LoopSettings
from selftrain.models.head import HeadSettings
from selftrain.models.trainer import HeadTrainer
from selftrain.panels import OfflinePanel, ReplayedPanel, SimulatedPanel, VLMPanel
from selftrain.selection import Mixed, RandomPosts, TopK, Uncertain
from selftrain.store.run_dir import RunFolder, without_none
from selftrain.verification.rules import PosteriorRule, Unanimous

LEAST = '[data]\nmanifest = "posts.jsonl"\ntask = "task.toml"\n'


@pytest.fixture
def write(tmp_path):
    def write_recipe(text):
        file = tmp_path / "recipe.toml"
        file.write_text(text, encoding="utf-8")
        return file

    return write_recipe


def test_the_least_recipe_has_defaults_for_all_else(write):
    recipe = load_recipe(write(LEAST))
    assert (recipe.seed, recipe.backbone.kind, recipe.agents.kind) == (0, "minilm_efficientnet", "offline")


def test_paths_are_relative_to_the_recipe_wherever_it_is_read_from(write, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    file = write(
        '[data]\nmanifest = "a/posts.jsonl"\ntask = "../task.toml"\npool = "/abs/pool.csv"\n'
        '[backbone]\ncache = "cache"\n[agents]\nkind = "replayed"\nfile = "old/verdicts.jsonl"\n'
    )
    recipe = load_recipe(Path("..") / file.name)
    root = tmp_path.resolve()
    assert recipe.data.manifest == root / "a/posts.jsonl"
    assert recipe.data.task == root / "../task.toml"
    assert recipe.data.pool == Path("/abs/pool.csv")
    assert recipe.backbone.cache == root / "cache"
    assert recipe.agents.file == root / "old/verdicts.jsonl"


def test_every_path_of_a_list_is_relative_to_the_recipe_or_to_where_it_is_typed(write, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    file = write(LEAST + '[agents]\nkind = "replayed"\nfiles = ["llama.jsonl", "/abs/gpt.jsonl"]\n')
    assert load_recipe(file).agents.files == (tmp_path / "llama.jsonl", Path("/abs/gpt.jsonl"))
    here = (tmp_path / "elsewhere").resolve()
    assert load_recipe(file, ['agents.files=["one.jsonl"]']).agents.files == (here / "one.jsonl",)


@pytest.mark.parametrize(
    ("lines", "selector"),
    [
        ("k = 7", TopK(7, "equal")),
        ("kind = 'top_k'\nshares = 'any'", TopK(500, "any")),
        ("kind = 'uncertain'\nk = 7", Uncertain(7, "any")),
        ("kind = 'random'\nshares = 'equal'", RandomPosts(500, "equal")),
        ("kind = 'mixed'\nmix = { uncertain = 1.0 }", Mixed(500, {"uncertain": 1.0}, "any")),
        ("kind = 'mixed'", Mixed()),
    ],
)
def test_a_selection_is_built_by_its_kind_with_quotas_only_where_they_are_its_default(write, lines, selector):
    assert build(load_recipe(write(f"{LEAST}[selection]\n{lines}\n"))).selector == selector


@pytest.mark.parametrize(
    ("kind", "more", "rule", "selector"),
    [
        ("offline", "", Unanimous(), TopK()),
        ("none", "", Unanimous(), TopK()),
        ("simulated", "", PosteriorRule(), Uncertain()),
        ("replayed", 'files = ["/a.jsonl"]', PosteriorRule(), Uncertain()),
        ("vlm", '[vlm]\nservers = ["http://x:1"]', PosteriorRule(), Uncertain()),
        ("agents_helpers:Anybody", "", PosteriorRule(), Uncertain()),
    ],
)
def test_rule_and_selection_follow_the_agents_in_a_recipe_as_in_python(write, kind, more, rule, selector):
    recipe = load_recipe(write(f'{LEAST}[agents]\nkind = "{kind}"\n{more}\n'))
    assert (build_named(recipe.verification), build_named(recipe.selection)) == (rule, selector)
    panel = object() if ":" in kind else build_panel(recipe)
    assert (default_rule_for(panel), default_selector_for(rule)) == (rule, selector)


ONE = 'reviewer = { kind = "agents_helpers:Scripted", options = { role = "reviewer", first = {} } }'


@pytest.mark.parametrize(
    ("lines", "panel"),
    [
        ('kind = "offline"', OfflinePanel(count=1)),
        ('kind = "simulated"\nshared = 0.25', SimulatedPanel(shared=0.25, count=1)),
        ('kind = "replayed"\nfiles = ["/a.jsonl"]', ReplayedPanel(files=(Path("/a.jsonl"),), count=1)),
        ('kind = "vlm"\n[vlm]\nservers = ["http://x:1"]', VLMPanel(servers=("http://x:1",), count=1)),
    ],
)
def test_a_recipe_may_ask_one_agent_alone(write, lines, panel):
    parts = build(load_recipe(write(f"{LEAST}[agents]\ncount = 1\n{lines}\n")))
    assert parts.panel == panel
    assert describe(parts)["agents"]["count"] == 1


def test_one_agent_of_ones_own_is_enough_where_one_is_asked(write):
    text = f'{LEAST}[agents]\nkind = "cross_review"\n{ONE}\n'
    with pytest.raises(RecipeError, match=r"agents\.user is missing.*agents\.count = 1"):
        load_recipe(write(text))
    parts = build(load_recipe(write(text + "count = 1\n")))
    assert isinstance(parts.panel, CrossReview)
    assert parts.panel.user is None
    again = describe(parts)["agents"]
    assert (again["count"], set(again)) == (1, {"kind", "count", "reviewer"})


def test_a_path_typed_at_the_prompt_is_relative_to_where_it_is_typed(write, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = load_recipe(write(LEAST), ["data.manifest=mine.jsonl", 'backbone.cache="store"'])
    here = (tmp_path / "elsewhere").resolve()
    assert (recipe.data.manifest, recipe.backbone.cache) == (here / "mine.jsonl", here / "store")


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("[rounds]\nmaximum = 3", "rounds.maximum: Extra inputs are not permitted"),
        ("[round]\nmax = 3", "round: Extra inputs are not permitted"),
        ("[rounds]\nmax = 'three'", "rounds.max: .*'three'"),
        ("[rounds]\nmax = -1", "rounds.max: .*-1"),
        ("[rounds]\nmax = true", "rounds.max: it is true; expected a number"),
        ("[selection]\nk = 0", "selection.k: .*0"),
        ("[classifier]\nlearning_rate = nan", "classifier.learning_rate: .*nan"),
        ("[loss]\ntheta = 1.0", "loss: .*theta is 1: expected a share between 0 and 1"),
        ("[loss]\nform = 'hinge'", "loss.form: .*'hinge'"),
        ("[agents]\nkind = 'replayed'", "agents: .*names no file to replay"),
        ("[agents]\nkind = 'replayed'\nfile = 'a'\nfiles = ['b']", "agents: .*expected one of them"),
        ("[selection]\nkind = 'best'", "selection.kind: .*'best'"),
        ("[backbone]\nkind = 'resnet'", "backbone.kind: .*'resnet'"),
        ("rounds = 3", "rounds: "),
    ],
)
def test_a_faulty_value_is_named_with_its_place(write, line, place):
    text = f"{line}\n{LEAST}" if line == "rounds = 3" else LEAST + line
    with pytest.raises(RecipeError, match=rf"(?s)has 1 fault\(s\):\n  {place}"):
        load_recipe(write(text))


def test_shares_that_do_not_add_up_are_refused(write):
    with pytest.raises(RecipeError, match=r"\n  data: train_share.*is 0\.9: expected 1"):
        load_recipe(write(LEAST + "train_share = 0.6\n"))


def test_every_fault_is_listed_at_once(write):
    text = LEAST + "labelled = 1\nfoo = 2\n[rounds]\nmax = -1\n[loss]\nsoft_positive = 0.2\n[other]\n"
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(text))
    message = str(caught.value)
    assert "has 5 fault(s)" in message
    for place in ("data.labelled", "data.foo", "rounds.max", "loss.soft_positive", "other"):
        assert f"\n  {place}: " in message


def test_missing_sections_are_named(write):
    with pytest.raises(RecipeError, match="\n  data: Field required"):
        load_recipe(write("seed = 1\n"))
    with pytest.raises(RecipeError, match=r"\n  data\.task: Field required"):
        load_recipe(write('[data]\nmanifest = "m.jsonl"\n'))


@pytest.mark.parametrize("content", ["[data\n", "a = b\n", b"\xff"])
def test_what_is_not_toml_is_refused(tmp_path, content):
    file = tmp_path / "recipe.toml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RecipeError, match=r"recipe\.toml is not TOML"):
        load_recipe(file)


def test_a_recipe_that_is_not_there_or_a_folder_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="No such file"):
        load_recipe(tmp_path / "nothing.toml")
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        load_recipe(tmp_path)


def test_overrides_are_toml_values_and_bare_words_are_strings(write):
    recipe = load_recipe(
        write(LEAST + "[rounds]\nmax = 9\n"),
        ["rounds.max=5", "classifier.head=mlp", "seed = 7", "loss.theta=0.25",
         "selection.reselect_divergent=false",
         "selection.shares={a = 0.25, b = 0.75}"],
    )  # fmt: skip
    assert (recipe.rounds.max, recipe.classifier.head, recipe.seed) == (5, "mlp", 7)
    assert (recipe.loss.theta, recipe.selection.reselect_divergent) == (0.25, False)
    assert recipe.selection.shares == {"a": 0.25, "b": 0.75}


@pytest.mark.parametrize("override", ["rounds.max", "=5", "rounds.=5", ".max=5", "a.b.c.d=5", ""])
def test_an_override_that_cannot_be_parsed_is_refused(write, override):
    with pytest.raises(RecipeError, match=r"expected section\.key=value"):
        load_recipe(write(LEAST), [override])


def test_an_override_below_a_value_is_refused(write):
    with pytest.raises(RecipeError, match="'seed' is not a section of the recipe"):
        load_recipe(write("seed = 1\n" + LEAST), ["seed.max=5"])


@pytest.mark.parametrize("override", ["rounds.maximum=5", "rounds.max=many", "rounds.max="])
def test_an_override_is_checked_like_the_file(write, override):
    with pytest.raises(RecipeError, match=r"\n  rounds\.max"):
        load_recipe(write(LEAST), [override])


@given(
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(1, 10**6),
    shares=st.sampled_from(["equal", "natural", {"a b": 0.25, 'q"uote': 0.75}]),
    theta=st.one_of(st.just("estimate"), st.floats(0.001, 0.999)),
    labelled=st.one_of(st.none(), st.integers(2, 500)),
    name=st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/~"), min_size=1).map(
        "x{}".format
    ),
    rate=st.one_of(st.none(), st.floats(1e-12, 1e6)),
)
def test_a_dumped_recipe_reads_back_equal(tmp_path_factory, **drawn):
    folder = tmp_path_factory.mktemp("recipe")
    first = folder / "first.toml"
    seed, k, shares, theta, labelled, name, rate = drawn.values()
    table = {
        "seed": seed,
        "data": {"manifest": name, "task": "task.toml"}
        | ({} if labelled is None else {"labelled": labelled}),
        "selection": {"k": k, "shares": shares},
        "loss": {"theta": theta},
        "classifier": {} if rate is None else {"learning_rate": rate},
    }
    first.write_text(tomli_w.dumps(table), encoding="utf-8")
    recipe = load_recipe(first)
    second = folder / "deeper.toml"
    second.write_text(tomli_w.dumps(without_none(recipe.model_dump(mode="json"))), encoding="utf-8")
    assert load_recipe(second) == recipe


@pytest.mark.parametrize("form", ["weighted", "convex", "sakai", "nnpu", "upu", "pn"])
def test_every_form_of_the_loss_is_built_from_its_defaults(write, form):
    recipe = load_recipe(write(LEAST + f'[loss]\nform = "{form}"\nsoft_positive = 0.75\n'))
    loss = build(recipe).loss
    assert (loss.form, loss.soft_positive, loss.soft_negative) == (form, 0.75, 0.25)


def test_the_loss_of_an_empty_recipe_is_that_of_python(write):
    assert build(load_recipe(write(LEAST))).loss == PNULoss()


@pytest.mark.parametrize(("theta", "expected"), [('"estimate"', None), ("0.25", 0.25)])
def test_the_loops_arguments_come_from_the_recipe(write, theta, expected):
    recipe = load_recipe(
        write(LEAST + f"[loss]\ntheta = {theta}\n[selection]\nk = 7\n[rounds]\nmax = 2\npatience = 4\n")
    )
    settings = build_settings(recipe)
    assert (build(recipe).selector.k, settings.limits) == (7, (2, 4, None, True))
    assert build(recipe).loss.theta == expected
    assert settings.root == recipe.data.manifest.parent


def test_a_human_budget_is_off_unless_asked_for_and_checked(write):
    human = load_recipe(write(LEAST)).human
    assert (human.budget, human.wait, human.source) == (0, "end", "disagreement")
    text = '[human]\nbudget = -1\nper_round = 0\nfloor = 2.0\nsource = "dice"\nwait = "never"\n'
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(LEAST + text))
    for key in ("budget", "per_round", "floor", "source", "wait"):
        assert f"\n  human.{key}: " in str(caught.value)


def test_a_run_may_be_given_a_human_budget_on_its_way(write, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin(load_recipe(write(LEAST)).model_dump(mode="json"), {"identity": {}})
    changed = load_recipe(write(LEAST), ["human.budget=50", "human.wait=poll"])
    folder.begin(changed.model_dump(mode="json"), {"identity": {}})
    assert folder.recipe()["human"]["budget"] == 50


def test_an_empty_recipe_and_python_give_the_same_parts(write):
    recipe = load_recipe(write(LEAST))
    settings, parts = build_settings(recipe), build(recipe)
    assert parts.selector == TopK()
    assert settings == LoopSettings(root=settings.root)
    assert parts.classifier.settings == HeadTrainer().settings == HeadSettings()


class Empty:
    """No part of anything."""


@pytest.mark.parametrize(
    ("key", "lacks"),
    [
        ("verification.rule", "as rule: it has no score, keeps, retracts, cut, decide;"),
        ("selection.kind", "as selector: it has no select;"),
        ("loss.kind", "as loss: it has no theta, soft_positive, for_round, __call__;"),
        ("classifier.kind", "as classifier: it has no fit, logits, calibrate, load;"),
        ("agents.kind", "as panel: it has no simulated, fit, verify, predict_out_of_fold"),
        ("human.kind", "as reviewers: it has no ready, answers, close;"),
    ],
)
def test_a_part_without_the_methods_of_one_is_refused_before_anything_is_loaded(tmp_path, key, lacks):
    file = tmp_path / "r.toml"
    file.write_text('[data]\nmanifest = "m.jsonl"\ntask = "t.toml"\n')
    recipe = load_recipe(file, [f'{key}="{__name__}:Empty"'])
    with pytest.raises(RecipeError, match=re.escape(f"{__name__}:Empty {lacks}")):
        build(recipe)


class MadeForRuns:
    """Becomes something that is no part."""

    def for_run(self, run):
        return Empty()


def test_what_a_part_becomes_in_a_run_must_have_the_methods_too(write):
    parts = build(load_recipe(write(LEAST), [f'classifier.kind="{__name__}:MadeForRuns"']))
    with pytest.raises(RecipeError, match=f"{__name__}:Empty as classifier: it has no fit, logits"):
        parts.in_run("classifier", None)
    assert parts.in_run("selector", None) is parts.selector


@pytest.mark.parametrize("key", ["verification.rule", "selection.kind", "loss.kind"])
def test_a_part_that_no_run_is_shown_to_needs_its_methods_at_once(write, key):
    with pytest.raises(RecipeError, match=f"{__name__}:MadeForRuns as .*: it has no"):
        build(load_recipe(write(LEAST), [f'{key}="{__name__}:MadeForRuns"']))


def test_no_picture_is_allowed_that_would_not_be_decoded(write):
    assert load_recipe(write(LEAST), ["data.max_image_pixels=50_000_000"]).data.max_image_pixels == MAX_PIXELS
    with pytest.raises(RecipeError, match=r"data\.max_image_pixels.* 50000000"):
        load_recipe(write(LEAST), ["data.max_image_pixels=50_000_001"])
