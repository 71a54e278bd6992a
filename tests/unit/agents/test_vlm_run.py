"""Runs with vision-language agents: recipe, loop, trust, cost, cap, estimate; the model is in memory."""

from __future__ import annotations

import json
import zlib

import pytest
from vlm_helpers import IDENTITY, MemoryBackend, raw

from agents.client.base import Completion, Token, Usage
from agents.errors import NearChanceError, ReviewError, ServerRefusedError
from selftrain.build import build_panel
from selftrain.cli import main
from selftrain.config import load_recipe
from selftrain.errors import RecipeError, RunMismatchError
from selftrain.runs import start

RECIPE = """
seed = 1
[data]
manifest = "data/manifest.jsonl"
task = "data/task.toml"
train_share = 0.6
validation_share = 0.2
test_share = 0.2
labelled = 20
[backbone]
cache = "cache"
[classifier]
epochs = 20
[selection]
k = 8
[agents]
kind = "vlm"
[vlm]
servers = ["http://127.0.0.1:9"]
concurrency = 4
[rounds]
max = 2
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Drawn posts and a recipe; runs go beside them."""
    from selftrain.data.drawn import draw_posts

    folder = tmp_path_factory.mktemp("vlm")
    draw_posts(folder / "data", 120)
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


class Judge:
    """Knows the truth about every post, and errs on a fixed share of them."""

    def __init__(self, home, right):
        rows = map(json.loads, (home / "data" / "manifest.jsonl").read_text().splitlines())
        self.truth = {row["id"]: row["label"] for row in rows}
        self.names = sorted(set(self.truth.values()))
        self.right = right

    def __call__(self, request):
        label = self.truth[request.affinity]
        if zlib.crc32(request.affinity.encode()) % 100 >= 100 * self.right:
            label = next(name for name in self.names if name != label)
        record = json.dumps({"rationale": f"it reads like an {label}", "label": label})
        return Completion(record, "stop", Usage(100, 60, 30, 15), (Token(record, 0.0, ()),), seconds=0.25)


@pytest.fixture
def serve(monkeypatch):
    """Puts a backend in memory behind every recipe."""

    def put(backend):
        monkeypatch.setattr("selftrain.panels.build_backend", lambda model: backend)
        return backend

    return put


def test_a_run_asks_learns_and_tells_what_it_cost(home, serve, tmp_path, capsys):
    backend = serve(MemoryBackend(Judge(home, 0.9)))
    assert main(["run", str(home / "recipe.toml"), "--out", str(tmp_path / "a")]) == 0
    shown = capsys.readouterr().out
    metrics = json.loads((tmp_path / "a" / "rounds" / "0001" / "metrics.json").read_text())
    assert metrics["consistent"]["posts"] + metrics["divergent"]["posts"] == 8
    cost = metrics["cost"]
    assert cost["calls"] > 16
    assert (cost["prompt"], cost["image"], cost["completion"]) == (
        100 * cost["calls"], 30 * cost["calls"], 15 * cost["calls"],
    )  # fmt: skip
    assert cost["seconds"] == pytest.approx(0.25 * cost["calls"])
    second = json.loads((tmp_path / "a" / "rounds" / "0002" / "metrics.json").read_text())["cost"]
    assert cost["calls"] + second["calls"] == len(backend.requests)
    assert "(60% cached)" in shown
    trust = json.loads((tmp_path / "a" / "trust.json").read_text())
    assert set(trust["agents"]) == {"reviewer", "user"}
    assert trust["kappa"]["reviewer/user"] == 1.0
    assert "reviewer on the labelled posts: balanced accuracy" in shown
    assert (tmp_path / "responses.sqlite").exists()


def test_the_same_command_again_asks_nothing_and_another_run_of_the_folder_nothing_twice(
    home, serve, tmp_path
):
    first = serve(MemoryBackend(Judge(home, 0.9)))
    list(start(home / "recipe.toml", tmp_path / "a").rounds())
    again = serve(MemoryBackend(Judge(home, 0.9)))
    rounds = list(start(home / "recipe.toml", tmp_path / "a").rounds())
    assert len(rounds) == 3
    assert (again.requests, again.opened) == ([], 0)
    other = serve(MemoryBackend(Judge(home, 0.9)))
    list(start(home / "recipe.toml", tmp_path / "b", ["rounds.max=1"]).rounds())
    assert first.requests
    assert other.requests == []
    a, b = ((tmp_path / name / "rounds" / "0001" / "verdicts.jsonl").read_bytes() for name in "ab")
    assert a == b


def test_an_agent_near_chance_stops_the_run_before_the_pool(home, serve, tmp_path):
    backend = serve(MemoryBackend(Judge(home, 0.5)))
    with pytest.raises(NearChanceError, match=r"near chance(.|\n)*continue"):
        list(start(home / "recipe.toml", tmp_path / "a").rounds())
    assert len(backend.requests) == 40  # the labelled posts, twice
    rounds = list(start(home / "recipe.toml", tmp_path / "a", ['agents.on_near_chance="continue"']).rounds())
    assert len(rounds) == 3
    assert len({request.affinity for request in backend.requests}) > 20


def test_a_guard_that_is_asked_as_a_chat_model_ends_the_run_with_how_to_ask_it(home, serve, tmp_path):
    backend = serve(MemoryBackend(lambda request: raw("safe")))
    with pytest.raises(NearChanceError) as told:
        list(start(home / "recipe.toml", tmp_path / "a").rounds())
    assert "on 20 labelled posts, 0 of them answered" in str(told.value)
    assert "20 answers could not be used, 20 of them: no usable answer in 3 attempt(s)" in str(told.value)
    assert 'not JSON. A guard model answers in words of its own: give it a role with kind = "guard"' in str(
        told.value
    )
    assert len(backend.requests) == 3 * 40


def test_words_that_map_to_no_class_are_told_and_can_be_put_right_in_the_same_folder(home, serve, tmp_path):
    backend = serve(MemoryBackend(Judge(home, 0.9)))
    wrong = ["rounds.max=0", 'vlm.reviewer={kind="guard", words={safe="nice"}}']
    with pytest.raises(ReviewError, match=r"map to \['nice'\]: expected classes of the task"):
        list(start(home / "recipe.toml", tmp_path / "a", wrong).rounds())
    right = ["rounds.max=0", f'vlm.reviewer={{kind="guard", words={{safe="{Judge(home, 1).names[0]}"}}}}']
    (first,) = start(home / "recipe.toml", tmp_path / "a", right).rounds()
    assert first.number == 0
    assert backend.requests == []


def test_the_token_cap_ends_the_run_in_good_order(home, serve, tmp_path, capsys):
    backend = serve(MemoryBackend(Judge(home, 0.9)))
    command = ["run", str(home / "recipe.toml"), "--out", str(tmp_path / "a")]
    assert main([*command, "--set", "vlm.token_cap=6500"]) == 0
    shown = capsys.readouterr().out
    assert "\nstopped: " in shown
    assert "6,500" in shown
    assert len(backend.requests) * 115 <= 6500
    assert (tmp_path / "a" / "report.html").exists()
    assert main([*command, "--set", "vlm.token_cap=1000000"]) == 0
    assert len(start(home / "recipe.toml", tmp_path / "a").folder.round_records()) == 3
    asked = [request.to_json() for request in backend.requests]
    assert len({json.dumps(one, sort_keys=True) for one in asked}) == len(asked)


def test_where_the_model_is_served_may_change_on_the_way_and_what_it_is_asked_may_not(home, serve, tmp_path):
    serve(MemoryBackend(Judge(home, 0.9)))
    list(start(home / "recipe.toml", tmp_path / "a", ["rounds.max=1"]).rounds())
    moved = ['vlm.servers=["http://127.0.0.1:1", "http://127.0.0.1:2"]', "vlm.concurrency=2"]
    assert len(list(start(home / "recipe.toml", tmp_path / "a", moved).rounds())) == 3
    with pytest.raises(RunMismatchError, match=r"vlm\.protocol"):
        list(start(home / "recipe.toml", tmp_path / "a", ['vlm.protocol="cot"']).rounds())


@pytest.mark.parametrize("protocol", ["sequential", "zero_shot", "cot"])
def test_the_ablation_is_one_word_of_the_recipe(home, serve, tmp_path, protocol):
    backend = serve(MemoryBackend(Judge(home, 0.9)))
    rounds = list(
        start(
            home / "recipe.toml",
            tmp_path / "a",
            [f"vlm.protocol={protocol}", "vlm.form=reason_first", "selection.reselect_divergent=false"],
        ).rounds()
    )
    calls = {"sequential": 2}.get(protocol, 1)
    assert len(backend.requests) == calls * (20 + 16)
    assert rounds[1].consistent > 0


def test_an_estimate_tells_the_cost_and_pays_for_its_probe_only(home, serve, tmp_path, capsys):
    backend = serve(MemoryBackend(Judge(home, 0.9)))
    command = ["run", str(home / "recipe.toml"), "--out", str(tmp_path / "a"), "--estimate"]
    assert main([*command, "--set", "vlm.token_cap=100"]) == 0
    shown = capsys.readouterr().out
    # 20 labelled posts and 16 candidates: two calls each, at most two more for each candidate
    assert "calls          72 to 104" in shown
    assert "answer tokens  1,080 to 1,560" in shown
    assert "calls a second" in shown
    assert "The token cap of 100 is too low." in shown
    assert len(backend.requests) == 16
    assert not (tmp_path / "a" / "recipe.toml").exists()
    assert main(command) == 0
    assert "not known" in capsys.readouterr().out
    assert len(backend.requests) == 16
    # and the run that follows finds the probe's answers
    list(start(home / "recipe.toml", tmp_path / "a", ["rounds.max=0"]).rounds())
    list(start(home / "recipe.toml", tmp_path / "a").rounds())
    asked = [json.dumps(request.to_json(), sort_keys=True) for request in backend.requests]
    assert len(set(asked)) == len(asked)


def test_agents_that_cost_nothing_are_estimated_by_how_they_answer(home, tmp_path, capsys):
    command = ["run", str(home / "recipe.toml"), "--out", str(tmp_path / "a"), "--estimate"]
    assert main([*command, "--set", "agents.kind=offline"]) == 0
    shown = capsys.readouterr().out
    assert "reviewer" in shown
    assert "user" in shown
    assert main([*command, "--set", "agents.kind=none"]) == 2
    assert "nothing is known of what these cost" in capsys.readouterr().err


def test_prompts_are_shown_as_they_are_sent(home, capsys):
    recipe = str(home / "recipe.toml")
    assert main(["agents", "prompts", recipe, "--only", "user.again", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [m["role"] for m in record["messages"]] == ["system", "user"]
    assert main(["agents", "prompts", recipe, "--set", "vlm.protocol=sequential"]) == 0
    shown = capsys.readouterr().out
    assert [line for line in shown.split("\n") if line.startswith("===")] == [
        "=== reviewer.first ===", "=== user.sequential ===",
    ]  # fmt: skip
    assert main(["agents", "prompts", recipe, "--post", "nobody"]) == 2
    assert "no post 'nobody'" in capsys.readouterr().err
    assert main(["agents", "prompts", recipe, "--only", "judge.cot"]) == 2


def test_a_recipe_sends_no_variable_but_its_own_to_its_server(home):
    text = (home / "recipe.toml").read_text()
    for place in ("[vlm]", "[vlm.user]\nservers = ['http://127.0.0.1:8']"):
        recipe = home / "stranger.toml"
        lines = f'{place}\nkey_variable = "AWS_SECRET_ACCESS_KEY"'
        recipe.write_text(text.replace("[vlm]", lines) if place == "[vlm]" else f"{text}\n{lines}\n")
        key = "vlm.key_variable" if place == "[vlm]" else "vlm.user.key_variable"
        with pytest.raises(RecipeError, match=f"{key} is 'AWS_SECRET_ACCESS_KEY'.*command line"):
            load_recipe(recipe)
        load_recipe(recipe, [f"{key}=SELFTRAIN_OTHER_KEY"])
        load_recipe(recipe, [f"{key}=OPENAI_API_KEY"])


def test_a_recipe_names_no_database_and_nobody_a_password(home):
    url = "postgresql://me@db/answers"
    recipe = home / "shared.toml"
    recipe.write_text((home / "recipe.toml").read_text().replace("[vlm]", f'[vlm]\ndatabase = "{url}"'))
    with pytest.raises(
        RecipeError, match=r"a stranger's(.|\n)*--set vlm\.database=postgresql://me@db/answers"
    ):
        load_recipe(recipe)
    assert load_recipe(recipe, [f"vlm.database={url}"]).vlm.database == url
    for secret in ("postgresql://me:hunter2@db/answers", "postgresql://me@db/answers?password=hunter2"):
        with pytest.raises(RecipeError, match="pgpass") as told:
            load_recipe(home / "recipe.toml", [f"vlm.database={secret}"])
        assert "hunter2" not in str(told.value)
    with pytest.raises(RecipeError, match="expected postgresql://"):
        load_recipe(home / "recipe.toml", ["vlm.database=answers.sqlite"])


def test_a_role_may_have_a_model_of_its_own(home):
    roles = ['vlm.reviewer={kind="guard", servers=["http://127.0.0.1:8"], words={safe="a"}}', "vlm.model=one"]
    recipe = load_recipe(home / "recipe.toml", [*roles, "vlm.user.thinking_tokens=500"])
    panel = build_panel(recipe)
    reviewer, user = panel.others()["reviewer"], panel.others()["user"]
    assert (reviewer.servers, reviewer.model, reviewer.thinking_tokens) == (("http://127.0.0.1:8",), "", 0)
    assert (user.servers, user.model, user.thinking_tokens) == (("http://127.0.0.1:9",), "one", 500)
    assert user.concurrency == 4


def test_a_role_may_be_given_less_than_the_others(home):
    thinking = ["vlm.thinking_tokens=500", "vlm.user.thinking_tokens=0"]
    assert build_panel(load_recipe(home / "recipe.toml", thinking)).others()["user"].thinking_tokens == 0


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("vlm.servers=[]", "names no endpoint"),
        ("vlm.protocol=vote", "protocol"),
        ("vlm.attempts=0", "attempts"),
    ],
)
def test_a_recipe_that_cannot_be_asked_is_refused(home, override, complaint):
    with pytest.raises(RecipeError, match=complaint):
        load_recipe(home / "recipe.toml", [override])


def test_answers_in_a_file_that_changed_between_two_starts_are_refused(home, tmp_path):
    rows = [json.loads(line) for line in (home / "data" / "manifest.jsonl").read_text().splitlines()]
    file = tmp_path / "llama.jsonl"
    answers = [{"id": row["id"], "label": row["label"]} for row in rows]
    file.write_text("".join(map("{}\n".format, map(json.dumps, answers))))
    given = ["agents.kind=replayed", f'agents.files=["{file}"]', "rounds.max=1"]
    assert len(list(start(home / "recipe.toml", tmp_path / "a", given).rounds())) == 2
    before = file.read_bytes()
    answers[0]["label"] = None
    file.write_text("".join(map("{}\n".format, map(json.dumps, answers))))
    more = [*given[:2], "rounds.max=2"]
    with pytest.raises(RunMismatchError, match=r"  answers: the files of agents.file or agents.files do not"):
        list(start(home / "recipe.toml", tmp_path / "a", more).rounds())
    file.write_bytes(before)
    assert len(list(start(home / "recipe.toml", tmp_path / "a", more).rounds())) == 3


def test_prompt_files_that_changed_between_two_starts_are_refused(home, serve, tmp_path):
    serve(MemoryBackend(Judge(home, 0.9)))
    (tmp_path / "prompts").mkdir()
    file = tmp_path / "prompts" / "reviewer.role.txt"
    file.write_text("You are strict.")
    given = [f"vlm.prompts={tmp_path / 'prompts'}", "rounds.max=1"]
    assert len(list(start(home / "recipe.toml", tmp_path / "a", given).rounds())) == 2
    file.write_text("You are lenient.")
    with pytest.raises(RunMismatchError, match=r"  prompts: the files of vlm.prompts do not hold what they"):
        list(start(home / "recipe.toml", tmp_path / "a", given).rounds())


def test_a_run_does_not_go_on_with_another_model(home, serve, tmp_path):
    """`vlm.model` left out means the only model that is served, which another start may find changed."""
    serve(MemoryBackend(Judge(home, 0.9)))
    assert len(list(start(home / "recipe.toml", tmp_path / "a", ["rounds.max=1"]).rounds())) == 2
    other = serve(MemoryBackend(Judge(home, 0.9), IDENTITY._replace(model="model-b")))
    told = "judged by 'vlm:model-a@rev1' as reviewer, and now 'vlm:model-b@rev1' is served"
    with pytest.raises(ServerRefusedError, match=told):
        list(start(home / "recipe.toml", tmp_path / "a", ["rounds.max=2"]).rounds())
    assert other.requests == []
    serve(MemoryBackend(Judge(home, 0.9)))
    assert len(list(start(home / "recipe.toml", tmp_path / "a", ["rounds.max=2"]).rounds())) == 3


@pytest.mark.parametrize("key", ["vlm.servers", "vlm.user.servers", "human.servers"])
def test_a_password_in_an_endpoint_reaches_no_run_folder(home, tmp_path, capsys, key):
    """Also where the run goes on, and its other endpoints were checked when it began."""
    begun = ["run", str(home / "recipe.toml"), "--out", str(tmp_path / "a"), "--set"]
    assert main([*begun, "rounds.max=0"]) == 0
    assert main([*begun, "rounds.max=0", "--set", f'{key}=["http://me:hunter2@h:8000"]']) == 2
    told = capsys.readouterr()
    assert "a server's URL holds a user" in told.err
    assert "hunter2" not in told.err + told.out
    assert all(b"hunter2" not in file.read_bytes() for file in (tmp_path / "a").rglob("*") if file.is_file())
