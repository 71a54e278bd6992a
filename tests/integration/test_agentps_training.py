"""Real trainings in processes of their own: killed, two at once, loaded afresh, merged, fed with nonsense."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from agentps_helpers import RECIPE, training_folder
from cli_helpers import here
from processes import Process, selftrain

from selftrain.agentps.dataset import load_posts
from selftrain.agentps.recipe import SourceSettings

pytestmark = pytest.mark.integration
QUIET = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return training_folder(tmp_path_factory.mktemp("agentps"), frames=2)


def argv(place, out, *more):
    return [
        "agentps", "train", str(place / "posts.jsonl"), "--task", str(place / "task.toml"),
        "--recipe", str(place / "recipe.toml"), "--out", str(out), *more,
    ]  # fmt: skip


def losses(folder):
    return [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def model(place):
    done = selftrain(*argv(place, place / "model", "--merge", str(place / "merged")))
    assert done.returncode == 0, done.stderr
    assert "validation auc" in done.stdout
    assert done.stderr == ""
    return place / "model"


def test_what_lies_in_the_folder(model):
    names = {path.name for path in model.iterdir()} - {".lock"}
    assert names == {
        "agentps.json", "task.toml", "training.toml", "model.safetensors", "validation.jsonl", "metrics.json",
        "losses.jsonl", "tensorboard", "report.html", "checksums.json",
    }  # fmt: skip
    from safetensors import safe_open

    with safe_open(model / "model.safetensors", framework="pt") as file:
        kept = list(file.keys())
    assert all("lora_" in name or "token_adapter" in name or name.startswith("heads.") for name in kept)
    assert sum("token_adapter" in name for name in kept) == 1


def test_two_processes_give_the_losses_of_one(place, model):
    out = place / "two"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*launcher, "-m", "selftrain", *argv(place, out)]
    subprocess.run(command, env=QUIET, check=True, capture_output=True, timeout=400)
    one, two = losses(model), losses(out)
    assert len(one) == len(two) == 12
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
        assert a["parts"] == pytest.approx(b["parts"], abs=1e-4)
    # and two processes did work: sums in another order differ in the last digits
    assert (out / "model.safetensors").read_bytes() != (model / "model.safetensors").read_bytes()


def together(count, words, **environment):
    """So many processes of one training, as torch's launcher would start them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    told = QUIET | {name: str(value) for name, value in place.items()} | environment
    return [Process(words, env=told | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)]


def ended(processes):
    """What each said, once all are done."""
    said = [one.communicate(timeout=300) for one in processes]
    for one, (_, error) in zip(processes, said, strict=True):
        assert one.returncode == 0, error
    return said


def test_a_process_without_a_picture_trains_the_tower_with_the_others(place):
    """One post a part, one of three without pictures: the last part of a process often has none."""
    more = ("--set", "model.vision=true", "--set", "training.part=1", "--set", "training.epochs=1")
    done = selftrain(*argv(place, place / "tower-one", *more))
    assert done.returncode == 0, done.stderr
    ended(together(2, ("-m", "selftrain", *argv(place, place / "tower-two", *more))))
    said = ended(sharded(3, argv(place, place / "tower-three", *more)))
    assert all(error.startswith("3 units\n") for _, error in said)
    for others in ("tower-two", "tower-three"):
        for a, b in zip(losses(place / "tower-one"), losses(place / others), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)


def test_posts_that_two_processes_cannot_read_count_together(tmp_path):
    """Each meets about half of them, which alone would be tolerated; both end at the same step."""
    place = training_folder(tmp_path, frames=1)
    sources = SourceSettings(manifest=place / "posts.jsonl", task=place / "task.toml")
    broken = {post.id for post in load_posts(sources, 0).train[::6]}
    (place / "broken.png").write_bytes((place / "red.png").read_bytes()[:60])
    rows = [json.loads(line) for line in (place / "posts.jsonl").read_text().splitlines()]
    rows = [row | ({"images": ["broken.png"]} if row["id"] in broken else {}) for row in rows]
    (place / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    limit = ("--set", f"data.max_bad_rows={len(broken) - 1}", "--set", "data.max_bad_share=1.0")
    words = argv(place, place / "model", "--set", "training.epochs=1", *limit)
    for one in together(2, ("-m", "selftrain", *words)):
        _, error = one.communicate(timeout=300)
        assert one.returncode == 2, error
        assert f"{len(broken)} posts have pictures that cannot be read" in error
    noted = [
        json.loads(line)["id"] for line in (place / "model" / "quarantine.jsonl").read_text().splitlines()
    ]
    assert sorted(noted) == sorted(broken)


# accelerate shards on accelerators alone, though torch does so on CPUs too: here it takes these for some
SHARDED = """
import sys
import accelerate.accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule

begin, prepare = AcceleratorState.__init__, accelerate.accelerator.fsdp2_prepare_model

def begin_sharded(self, *args, fsdp_plugin=None, **kinds):
    begin(self, *args, fsdp_plugin=fsdp_plugin, **kinds)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin

def prepare_and_count(*args):
    model = prepare(*args)
    print(sum(isinstance(one, FSDPModule) for one in model.modules()), "units", file=sys.stderr, flush=True)
    return model

AcceleratorState.__init__ = begin_sharded
accelerate.accelerator.fsdp2_prepare_model = prepare_and_count
from selftrain.__main__ import main
raise SystemExit(main())
"""


def sharded(count, args):
    return together(count, ("-c", SHARDED, *args), ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")


def test_shards_killed_and_gone_on_with_by_other_numbers_of_processes(place, model):
    """Two processes with shards, killed; three, killed; one without: the losses and the model of one."""
    from safetensors.torch import load_file

    out = place / "shards"
    for count, lines in ((2, 3), (3, 7)):
        processes = sharded(count, argv(place, out))
        while all(one.poll() is None for one in processes) and not steps(out, lines)():
            time.sleep(0.005)
        for one in processes:
            one.send_signal(signal.SIGKILL)
        for one in processes:
            one.communicate(timeout=60)
        assert {one.returncode for one in processes} == {-signal.SIGKILL}
        assert not (out / "agentps.json").exists()
    again = selftrain(*argv(place, out))
    assert again.returncode == 0, again.stderr
    whole = place / "shards-whole"
    said = ended(sharded(2, argv(place, whole)))
    # two blocks of the language model, and what lies around them
    assert all(error.startswith("3 units\n") for _, error in said)
    assert sum("validation auc" in told for told, _ in said) == 1
    for folder in (out, whole):
        assert len(losses(folder)) == len(losses(model)) == 12
        for a, b in zip(losses(model), losses(folder), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
        one, other = (load_file(folder / "model.safetensors") for folder in (model, folder))
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert tensor.numpy() == pytest.approx(other[name].numpy(), abs=1e-4), name
        answers = [
            [row["probabilities"] for row in map(json.loads, here_scored(place, each))]
            for each in (model, folder)
        ]
        assert len(answers[0]) == 60
        assert answers[1] == [pytest.approx(one, abs=1e-3) for one in answers[0]]


def here_scored(place, folder):
    done = here("agentps", "predict", folder, place / "posts.jsonl", "--out", "-")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_shards_that_cannot_be_made_are_refused(place):
    """accelerate itself would go on without a word: on CPUs with whole copies, by version 1 into an error."""
    words = argv(place, place / "refused")
    on_cpus = together(2, ("-m", "selftrain", *words), ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    of_one = together(2, ("-c", SHARDED, *words), ACCELERATE_USE_FSDP="true")
    for processes, reason in ((on_cpus, "makes on GPUs"), (of_one, "give --fsdp_version 2")):
        for one in processes:
            _, error = one.communicate(timeout=120)
            assert (one.returncode, reason in error) == (2, True), error


def killed(args, once, start=("-m", "selftrain")):
    """Run a command, and SIGKILL it as soon as `once` says so."""
    process = Process((*start, *args), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not once():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def steps(out, lines):
    journal = out / "losses.jsonl"
    return lambda: journal.exists() and journal.read_text().count("\n") >= lines


@pytest.mark.parametrize("lines", [1, 4, 7])
def test_killed_and_restarted_it_ends_as_if_it_had_not_been(place, model, lines):
    """SIGKILL once so many steps are in the journal; then the same command."""
    out = place / f"killed-{lines}"
    killed(argv(place, out), steps(out, lines))
    assert not (out / "agentps.json").exists()
    unfinished = here("agentps", "predict", out, place / "posts.jsonl", "--out", "-")
    assert (unfinished.returncode, unfinished.stdout) == (2, "")
    again = selftrain(*argv(place, out))
    assert again.returncode == 0, again.stderr
    assert (out / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert losses(out) == losses(model)
    assert not (out / "training.safetensors").exists()


def test_killed_between_validations_it_ends_early_at_the_same_step(place):
    """Validated every two steps of six an epoch; weights of answers and rules go on as well."""
    more = [
        "training.validate_every=2", "training.patience=2", "training.class_weights.final=balanced",
        "training.epochs=4", "decisions.final=recall .9", "decisions.tone=macro_f1",
    ]  # fmt: skip
    more = [word for one in more for word in ("--set", one)]
    done = selftrain(*argv(place, place / "early", *more))
    assert done.returncode == 0, done.stderr
    taken = len(losses(place / "early"))
    assert taken < 24
    out = place / "early-killed"
    for lines in (3, 5):
        killed(argv(place, out, *more), steps(out, lines))
    again = selftrain(*argv(place, out, *more))
    assert again.returncode == 0, again.stderr
    assert losses(out) == losses(place / "early")
    for name in ("model.safetensors", "metrics.json", "validation.jsonl", "agentps.json"):
        assert (out / name).read_bytes() == (place / "early" / name).read_bytes(), name


EVERY_PART_COUNTS = """
from selftrain.__main__ import main
from selftrain.serving import row_stream
row_stream.pour.__kwdefaults__["commit_seconds"] = 0.0
raise SystemExit(main())
"""


def test_predictions_that_were_killed_go_on_to_the_same_bytes(place, model):
    source = place / "many.jsonl"
    rows = [
        "{" if n % 90 == 7 else json.dumps({"id": f"p{n}", "text": f"lovely day {n}"}) for n in range(1500)
    ]
    source.write_text("\n".join(rows) + "\n")
    args = ("agentps", "predict", model, source, "--out")
    done = selftrain(*args, place / "whole.jsonl")
    assert done.returncode == 0, done.stderr
    out, progress = place / "killed.jsonl", place / "killed.jsonl.part.progress.json"
    done_before = 0
    for _ in range(2):  # each start is killed at its first commit
        killed(
            (*args, out), lambda least=done_before: progress.exists() and tally(progress) > least,
            start=("-c", EVERY_PART_COUNTS),
        )  # fmt: skip
        assert not out.exists()
        done_before = tally(progress)
    again = selftrain(*args, out)
    assert again.returncode == 0, again.stderr
    assert "1,483 posts scored" in again.stdout
    for name in ("{}.jsonl", "{}.jsonl.quarantine.jsonl"):
        assert (place / name.format("killed")).read_bytes() == (place / name.format("whole")).read_bytes()
    assert not list(place.glob("killed.jsonl.part*"))


def tally(progress):
    return json.loads(progress.read_text())["tally"]["rows"]


def test_a_fresh_process_gives_identical_answers(place, model):
    """Twice through the command line, and the validation posts as the training process scored them."""
    command = ("agentps", "predict", model, place / "posts.jsonl", "--out", "-", "--batch", "16")
    first, second = selftrain(*command), selftrain(*command)
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    rows = {row["id"]: row for row in map(json.loads, first.stdout.splitlines())}
    assert len(rows) == 60
    stored = [json.loads(line) for line in (model / "validation.jsonl").read_text().splitlines()]
    for row in stored:
        now = rows[row["id"]]
        assert now["label"] == row["label"]
        assert now["probabilities"] == pytest.approx(row["probabilities"], abs=1e-5)
        for question, odds in row["process"].items():
            assert now["process"][question] == pytest.approx(odds, abs=1e-5)
            assert sum(odds.values()) == pytest.approx(1, abs=1e-5)


def test_any_batch_gives_the_same_answers_in_the_manifests_order(place, model):
    by_one = here("agentps", "predict", model, place / "posts.jsonl", "--out", "-", "--batch", "1")
    by_many = here("agentps", "predict", model, place / "posts.jsonl", "--out", "-", "--batch", "64")
    ids = [json.loads(line)["id"] for line in (place / "posts.jsonl").read_text().splitlines()]
    assert [json.loads(line)["id"] for line in by_one.stdout.splitlines()] == ids
    assert by_one.stdout == by_many.stdout


def test_the_merged_checkpoint_is_a_model_of_transformers_with_the_same_states(place, model):
    import torch
    from agentps_helpers import TASK, drawn_posts
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from backbones.mllm.hub import from_parts
    from selftrain.agentps.checkpoint import load
    from selftrain.agentps.dataset import example, question_set

    loaded = load(model)
    posts = [example(post, loaded.built.questions) for post in drawn_posts(4)]
    with torch.no_grad():
        expected = loaded.built.model(loaded.built.collator.read(posts).inputs)
    merged = place / "merged"
    processor = AutoProcessor.from_pretrained(merged)
    whole = AutoModelForImageTextToText.from_pretrained(merged, dtype="float32")
    base = from_parts("merged", whole, processor)
    fresh = load(model).built.model  # for its heads' shapes alone
    fresh.language = base.module
    fresh.heads.load_state_dict(load_file(merged / "answer_heads" / "model.safetensors"))
    reader = base.reader(question_set(TASK, "agentps").wording, "left", 96)
    from backbones.mllm.prompts import Prompt

    with torch.no_grad():
        found = fresh.eval()(reader.read([Prompt(one.text) for one in posts]))
    for a, b in zip(expected, found, strict=True):
        # `from_parts` sets the token's row anew where the tokenizer does not know it: it does
        assert torch.allclose(a, b, atol=1e-4)


def test_evaluate_writes_figures_and_a_page(place, model):
    out = place / "figures"
    done = here("agentps", "evaluate", model, place / "posts.jsonl", "--out", out)
    assert done.returncode == 0, done.stderr
    figures = json.loads((out / "metrics.json").read_text())["questions"]
    assert list(figures) == ["insult", "tone", "final"]
    final = figures["final"]["metrics"]
    assert final["auc"]["low"] <= final["auc"]["value"] <= final["auc"]["high"]
    assert figures["final"]["posts"] == 60
    assert "<html" in (out / "report.html").read_text()[:200].lower()
    assert "final" in done.stdout


# ---- what cannot be --------------------------------------------------------------------------------------


def refused(*args):
    done = here(*args)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stderr.startswith("error: ")
    return done.stderr


def test_what_to_measure_has_to_be_said_where_the_manifest_has_splits(place, model):
    manifest = place / "split.jsonl"
    rows = [json.loads(line) for line in (place / "posts.jsonl").read_text().splitlines()]
    rows = [row | {"split": "train" if i % 3 else "test"} for i, row in enumerate(rows)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = ("agentps", "evaluate", model, manifest, "--out", place / "split")
    assert "20 test, 40 train; say which to measure" in refused(*args)
    done = here(*args, "--split", "test")
    assert done.returncode == 0, done.stderr
    figures = json.loads((place / "split" / "metrics.json").read_text())["questions"]
    assert figures["final"]["posts"] == 20


def test_a_task_without_questions(place):
    task = place / "bare.toml"
    task.write_text((place / "task.toml").read_text().split("[[questions]]")[0])
    manifest = place / "bare.jsonl"
    rows = [json.loads(line) for line in (place / "posts.jsonl").read_text().splitlines()]
    manifest.write_text(
        "".join(json.dumps({k: v for k, v in row.items() if k != "process"}) + "\n" for row in rows)
    )
    recipe = place / "recipe.toml"
    args = ("agentps", "train", manifest, "--task", task, "--recipe", recipe, "--out", place / "bare")
    assert "has no questions" in refused(*args)
    done = here(*args, "--set", "model.variant=vanilla", "--set", "training.epochs=1")
    assert done.returncode == 0, done.stderr


def test_a_prompt_longer_than_its_budget(place):
    assert "leave none for the post" in refused(*argv(place, place / "long", "--set", "model.max_tokens=16"))


def test_a_model_of_another_base_or_another_task(place, model, tmp_path):
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    (copy / "checksums.json").unlink()  # changed by hand, not damaged
    (copy / "task.toml").write_text((copy / "task.toml").read_text().replace('"merry"', '"glad"'))
    predict = ("agentps", "predict", copy, place / "posts.jsonl", "--out", "-")
    assert "asks other questions" in refused(*predict)

    shutil.copy(model / "task.toml", copy / "task.toml")
    other = tmp_path / "base"
    shutil.copytree(place / "base", other)
    tensors = load_file(other / "model.safetensors")
    name = next(n for n in tensors if n.endswith("layers.0.mlp.up_proj.weight"))
    save_file(
        tensors | {name: torch.zeros_like(tensors[name])}, other / "model.safetensors", {"format": "pt"}
    )
    about = json.loads((copy / "agentps.json").read_text())
    about["architecture"]["base"] = str(other)
    (copy / "agentps.json").write_text(json.dumps(about))
    assert "was trained on another" in refused(*predict)

    (copy / "agentps.json").write_text("{")
    assert "cannot be read" in refused(*predict)


def test_a_folder_of_another_training(place, model):
    message = refused(*argv(place, model, "--set", "training.learning_rate=1e-5"))
    assert "holds a model of other posts or settings" in message


def test_a_recipe_with_faults(place, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(frames=2) + 'metrc = "auc"\n')
    message = refused(
        "agentps",
        "train",
        place / "posts.jsonl",
        "--task",
        place / "task.toml",
        "--recipe",
        recipe,
        "--out",
        tmp_path / "m",
    )
    assert "metrc" in message
    assert "expected one of the two" in refused("agentps", "train", "--out", tmp_path / "m")
    assert "name the task" in refused("agentps", "train", place / "posts.jsonl", "--out", tmp_path / "m")
    message = refused(*argv(place, tmp_path / "m", "--set", "training.weights={tune=2.0}"))
    assert "names ['tune']" in message


def test_a_base_model_that_is_none(place, tmp_path):
    message = refused(*argv(place, tmp_path / "m", "--set", f"model.base={tmp_path}"))
    assert "could not be loaded as an image-text-to-text model" in message
