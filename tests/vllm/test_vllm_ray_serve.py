"""The application of docs/ray_serve_llm.yaml on this machine's CPU: two replicas of SmolLM2 behind one URL.

It needs Ray Serve and vLLM in one environment, which `make vllm` does not make: SELFTRAIN_RAY_SERVE_PYTHON
names the Python of one that has them (docs/scale.md). What each router leaves in the caches is shown:

    SELFTRAIN_RAY_SERVE_PYTHON=... pytest -m "vllm or slow" -s tests/vllm/test_vllm_ray_serve.py
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import yaml

from agents.vllm.command import free_port
from agents.vllm.torchvision_shim import python_path
from runs.bench.scale import WORDS
from selftrain.cli import main

pytestmark = [pytest.mark.integration, pytest.mark.vllm, pytest.mark.timeout(1800)]

VARIABLE = "SELFTRAIN_RAY_SERVE_PYTHON"
APPLICATION = Path(__file__).parents[2] / "docs" / "ray_serve_llm.yaml"
DIRECT = {"RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}
"""Replicas answer callers themselves, with vLLM's own words, behind an HAProxy that comes with ray[serve]."""
PREFIX = "ray.serve.llm.request_router.PrefixCacheAffinityRouter"
TOLD = {"match_rate_threshold": 0.9, "imbalanced_threshold": 8}


class Way(NamedTuple):
    """How Ray takes calls to replicas."""

    router: dict | None  # None: as the file has it; {}: Ray's default
    variables: dict


WAYS = {
    "by session, directly": Way(None, DIRECT),
    "by session": Way(None, {}),
    "prefix, as it comes": Way({"request_router_class": PREFIX}, {}),
    "prefix, told of shared beginnings": Way(
        {"request_router_class": PREFIX, "request_router_kwargs": TOLD}, {}
    ),
    "Ray's default": Way({}, {}),
}
QUESTIONS = {
    "prize": "Does the post promise a prize?", "meeting": "Is a meeting mentioned?",
    "tone": "Is the tone friendly?", "weather": "Is it about the weather?",
}  # fmt: skip
POSTS = int(os.environ.get("SELFTRAIN_RAY_SERVE_POSTS", "16"))


@pytest.fixture(scope="module")
def python():
    """The Python that has both; a skip with its reason where there is none."""
    named = os.environ.get(VARIABLE)
    if not named:
        pytest.skip(f"Ray Serve and vLLM have to be in one environment: name its python by {VARIABLE}")
    find = "import importlib.util as u; print([n for n in ('ray', 'vllm', 'fastapi') if not u.find_spec(n)])"
    found = subprocess.run([named, "-c", find], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]", f"{named} lacks {found.stdout}"
    return named


def application(model, port, router):
    """The file's, with what is of this machine: model, port, and a CPU in place of a GPU."""
    config = yaml.safe_load(APPLICATION.read_text())
    config["http_options"]["port"] = port
    (llm,) = config["applications"][0]["args"]["llm_configs"]
    llm["model_loading_config"] = {"model_id": "smollm2", "model_source": str(model)}
    llm["placement_group_config"] = {"bundles": [{"CPU": 1}]}
    llm["engine_kwargs"] |= {
        "max_model_len": 4096, "enforce_eager": True, "dtype": "float32", "block_size": 32,
    }  # fmt: skip
    if router is not None:
        del llm["deployment_config"]["request_router_config"]
        if router:
            llm["deployment_config"]["request_router_config"] = router
    return config


@contextmanager
def served(python, folder, config, variables):
    """(endpoint, process) of the application; all that it started is gone afterwards."""
    (folder / "application.json").write_text(json.dumps(config))
    environment = os.environ | {
        "PYTHONPATH": python_path(None), "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "RAY_USAGE_STATS_ENABLED": "0", "NO_COLOR": "1", **variables,
    }  # fmt: skip
    command = [python, str(Path(__file__).with_name("ray_serve_child.py")), str(folder / "application.json")]
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment)
    below = []
    try:
        lines = iter(child.stdout.readline, b"")
        assert any(line == b"ready\n" for line in lines), (folder / "log").read_text()[-3000:]
        process = psutil.Process(child.pid)
        below = process.children(recursive=True)
        yield f"http://127.0.0.1:{config['http_options']['port']}", process
    finally:
        child.terminate()
        child.communicate(timeout=120)
        for one in psutil.wait_procs(below, timeout=60)[1]:
            one.kill()


def write_posts(folder, salt):
    """Posts of drawn words that no other router has seen, and four questions about each."""
    draw, words = random.Random(salt), WORDS.split()
    with (folder / "posts.jsonl").open("w") as lines:
        for number in range(POSTS):
            row = {"id": f"p{number}", "text": " ".join(draw.choices(words, k=160))}
            lines.write(json.dumps(row) + "\n")
    asked = "".join(
        f'[[questions]]\nname = "{name}"\nwording = "{wording}"\nanswers = ["yes", "no"]\n'
        for name, wording in QUESTIONS.items()
    )
    (folder / "task.toml").write_text(
        'name = "drawn-words"\npositive = "spam"\npolicy = "Spam promises something for nothing."\n'
        f'[classes]\nspam = "promises something"\nham = "promises nothing"\n{asked}'
    )
    (folder / "recipe.toml").write_text(
        '[data]\nmanifest = "posts.jsonl"\ntask = "task.toml"\n'
        "[vlm]\nrationale_chars = 20\nattempts = 2\ntimeout = 600\nconcurrency = 8\n"
    )


def engine_seconds(process):
    """Seconds of a core that each replica's engine has taken."""
    found = {}
    for one in process.children(recursive=True):
        if one.name().startswith("VLLM::Worker"):
            times = one.cpu_times()
            found[one.pid] = times.user + times.system
    return found


FIRST, *OTHERS = WAYS


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_selftrain_asks_a_ray_serve_application(name, python, smollm2, tmp_path, capsys):
    write_posts(tmp_path, name)
    way, port = WAYS[name], free_port()
    directly = way.variables == DIRECT
    config = application(smollm2, port, way.router)
    with served(python, tmp_path, config, way.variables) as (endpoint, process):
        assert main(["agents", "check", endpoint, "--text-only"]) == 0
        served_as = (
            f"({smollm2}, 4096 tokens, vllm" if directly else "(smollm2, 4096 tokens, openai-compatible)"
        )
        assert f"smollm2 {served_as}" in capsys.readouterr().out

        command = [
            "annotate", str(tmp_path / "posts.jsonl"), "--task", str(tmp_path / "task.toml"), "--recipe",
            str(tmp_path / "recipe.toml"), "--server", endpoint, "--out", str(tmp_path / "annotated.jsonl"),
        ]  # fmt: skip
        assert main([*command, "--estimate"]) == 0
        found = f"by {4 * POSTS} prompts measured" if directly else "An estimate needs vLLM's /tokenize"
        assert found in capsys.readouterr().out

        before = engine_seconds(process)
        assert main(command) == 0
        taken = sorted(value - before[pid] for pid, value in engine_seconds(process).items())
    report = json.loads((tmp_path / "annotated.jsonl.report.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "annotated.jsonl").read_text().splitlines()]
    usage = report["usage"]
    for row in rows:  # so small a model is unsure at times
        assert {*row.get("process", {}), *row.get("process_missing", {})} == set(QUESTIONS)
        assert all(0 <= one["probability"] <= 1 for one in row.get("process_provenance", {}).values())
    assert sum(len(row.get("process", {})) for row in rows) > POSTS
    with capsys.disabled():
        print(
            f"\n{name}: {usage['calls']} calls, {usage['cached'] / usage['prompt']:.3f} of"
            f" {usage['prompt']} prompt tokens cached, {usage['seconds']:.0f} s waited in all calls, seconds"
            f" of a core of each engine {', '.join(f'{one:.0f}' for one in taken)}"
        )
    assert len(taken) == 2
    if name.startswith("by session"):
        # of four calls on a post three find it in the cache, and all but two the beginning of every prompt
        assert usage["cached"] / usage["prompt"] > 0.6
        assert min(taken) > 1  # both replicas are asked
