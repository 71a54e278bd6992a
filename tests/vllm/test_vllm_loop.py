"""Whole rounds against a real vLLM server: pictures, faults, and nothing paid twice.

The model is far too small to judge anything: the runs go on although it is near chance, and what is tested
is what happens around it.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import urllib.request

import psutil
import pytest

from agents.ask.sanitize import quoted, sanitize
from agents.errors import ServerLostError
from agents.judgment import State
from agents.vllm.command import ServeOptions, free_port, serve_command
from agents.vllm.launch import start as launch
from runs.bench.agents_injections import attempts
from selftrain.runs import start

pytestmark = [pytest.mark.integration, pytest.mark.vllm]

RECIPE = """
seed = 1
[data]
manifest = "data/manifest.jsonl"
task = "data/task.toml"
train_share = 0.6
validation_share = 0.2
test_share = 0.2
labelled = 4
[backbone]
cache = "cache"
[classifier]
epochs = 10
[selection]
k = 3
[agents]
kind = "vlm"
on_near_chance = "continue"
[vlm]
servers = {servers}
rationale_chars = 40
image_side = 112
attempts = 2
timeout = 300
[rounds]
max = 1
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Drawn posts with pictures."""
    from selftrain.data.drawn import draw_posts

    folder = tmp_path_factory.mktemp("vllm-loop")
    draw_posts(folder / "data", 60)
    return folder


def recipe(home, *servers, name="recipe.toml"):
    """The recipe's file, asking these servers."""
    (home / name).write_text(RECIPE.format(servers=json.dumps(list(servers))))
    return home / name


def answered(endpoint):
    """Chat completions that the server has finished, by its own metrics."""
    with urllib.request.urlopen(f"{endpoint}/metrics", timeout=30) as response:
        text = response.read().decode()
    return round(sum(map(float, re.findall(r"^vllm:request_success_total\{.*\} (\S+)$", text, re.MULTILINE))))


def requests_running(endpoint):
    """Requests that the server works on now."""
    with urllib.request.urlopen(f"{endpoint}/metrics", timeout=30) as response:
        text = response.read().decode()
    return sum(map(float, re.findall(r"^vllm:num_requests_running\{.*\} (\S+)$", text, re.MULTILINE)))


def tokens(endpoint, model, messages):
    """Token ids of a rendered prompt."""
    body = json.dumps({"model": model, "messages": messages}).encode()
    request = urllib.request.Request(f"{endpoint}/tokenize", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["tokens"]


def special_ids(endpoint):
    """Ids of the tokenizer's special strings."""
    with urllib.request.urlopen(f"{endpoint}/tokenizer_info", timeout=60) as response:
        return {int(number): text for number, text in json.load(response)["added_tokens_decoder"].items()}


def test_a_whole_round_with_pictures_and_the_same_command_again(home, tmp_path, small_vlm_server):
    endpoint = small_vlm_server.endpoint
    before = answered(endpoint)
    first, last = start(recipe(home, endpoint), tmp_path / "a").rounds()
    paid = answered(endpoint) - before
    cost = last.cost._asdict()
    assert first.number == 0
    # two labelled judgments each, two or more on each candidate; every call of ours is one of the server's
    assert cost["calls"] == paid
    assert cost["calls"] >= 2 * (4 + 3) - 2
    assert cost["image"] > 0
    assert 0 < cost["cached"] < cost["prompt"]
    verdicts = [
        json.loads(line) for line in (tmp_path / "a/rounds/0001/verdicts.jsonl").read_text().splitlines()
    ]
    assert len(verdicts) == 3
    judgments = [judgment for verdict in verdicts for judgment in verdict["judgments"]]
    assert {judgment["agent"] for judgment in judgments} == {"reviewer", "user"}
    for judgment in judgments:
        assert (judgment["label"] is not None) == (judgment["state"] == State.LABEL)
        if judgment["state"] == State.LABEL:
            assert 0.0 < judgment["probability"] < 1.0
            assert judgment["rationale"]
    trust = json.loads((tmp_path / "a/trust.json").read_text())
    assert set(trust["agents"]) == {"reviewer", "user"}

    list(start(recipe(home, endpoint), tmp_path / "a").rounds())
    list(start(recipe(home, endpoint), tmp_path / "b").rounds())
    assert answered(endpoint) - before == paid
    grown = [(tmp_path / run / "grown.jsonl").read_bytes() for run in "ab"]
    assert grown[0] == grown[1]


def test_hostile_words_become_no_special_token(small_vlm_server):
    endpoint, model = small_vlm_server.endpoint, small_vlm_server.model
    special = special_ids(endpoint)
    assert "<image>" in special.values()

    def counted(text):
        parts = [
            {"type": "text", "text": quoted(sanitize(text))},
            {"type": "text", "text": "\nWhich class?"},
        ]
        ids = tokens(endpoint, model, [{"role": "user", "content": parts}])
        return {number: ids.count(number) for number in special if number in ids}

    clean = counted("an ordinary post")
    for attempt in attempts():
        assert counted(attempt.text.format(target="kind")) == clean, attempt.name
    for text in special.values():
        assert counted(f"a{text}b {text} {text}") == clean, text
    # the check can fail: the same words as they came bring special tokens in
    raw = tokens(endpoint, model, [{"role": "user", "content": "a<|im_end|>b<image>"}])
    assert sum(number in special for number in raw) > sum(clean.values())


FORWARDER = """
import asyncio, os, sys
asked = 0
async def pipe(reader, writer, dies):
    global asked
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
            asked += dies and data.startswith(b"POST /v1/chat/completions")
            if asked == 2:
                os._exit(9)
    except OSError:
        pass
    writer.close()
async def serve(reader, writer):
    there = await asyncio.open_connection("127.0.0.1", int(sys.argv[1]))
    await asyncio.gather(pipe(reader, there[1], True), pipe(there[0], writer, False))
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""
"""Passes bytes on to a port, and dies when the second chat call has been passed on and nothing came back."""


def test_of_two_addresses_one_dies_in_the_middle(home, tmp_path, small_vlm_server):
    """The second endpoint is another process in front of the same server, which ends with calls under way."""
    port = small_vlm_server.endpoint.rsplit(":", 1)[1]
    forwarder = subprocess.Popen([sys.executable, "-c", FORWARDER, port], stdout=subprocess.PIPE, text=True)
    second = f"http://127.0.0.1:{forwarder.stdout.readline().strip()}"
    file = recipe(home, second, small_vlm_server.endpoint, name="two.toml")
    # other prompts than the other tests': nothing is in the store; and so many posts that each has its share
    overrides = ["vlm.rationale_chars=41", "selection.k=16"]
    try:
        rounds = list(start(file, tmp_path / "a", overrides).rounds())
        died = forwarder.poll() == 9
    finally:
        forwarder.kill()
        forwarder.wait()
        forwarder.stdout.close()
    assert died
    assert len(rounds) == 2
    verdicts = (tmp_path / "a/rounds/0001/verdicts.jsonl").read_text()
    assert "no answer in" not in verdicts  # no call was lost with the endpoint


class Restartable:
    """A server on one port that can be killed and started again."""

    def __init__(self, interpreter, model, log):
        options = ServeOptions(port=free_port(), max_model_len=4096)
        self.command = serve_command(interpreter, model, options)
        self.endpoint, self.log = self.command.endpoint, log
        self.begin()

    def begin(self):
        self.server = launch(self.command, self.log)
        self.server.wait_until_ready(600.0)

    def wait_until_busy(self, running):
        """Until it works on a request, or `running` says that none will come."""
        pause = threading.Event()
        while running() and requests_running(self.endpoint) < 2:
            pause.wait(0.2)

    def kill(self):
        """SIGKILL to all of it, as the machine's memory guard would."""
        for process in psutil.Process(self.server.pid).children(recursive=True):
            process.kill()
        self.server.stop()


@pytest.fixture
def restartable_server(alone, interpreter, small_vlm, tmp_path):
    server = Restartable(interpreter, small_vlm, tmp_path / "vllm.log")
    yield server
    server.server.stop()


def test_a_server_that_is_killed_and_started_again_is_survived(home, tmp_path, restartable_server):
    """The server is killed with calls under way; the run waits, finds it again and ends as it would have."""
    file = recipe(home, restartable_server.endpoint, name="restart.toml")
    killed = threading.Event()

    def kill_and_restart():
        restartable_server.wait_until_busy(main.is_alive)
        restartable_server.kill()
        killed.set()
        restartable_server.begin()

    main = threading.current_thread()
    thread = threading.Thread(target=kill_and_restart)
    thread.start()
    try:
        rounds = list(start(file, tmp_path / "a", ["vlm.patience=600", "vlm.rationale_chars=42"]).rounds())
    finally:
        thread.join()
    assert killed.is_set()
    assert len(rounds) == 2
    assert rounds[1].cost.calls >= 2 * (4 + 3) - 2
    assert "no answer in" not in (tmp_path / "a/rounds/0001/verdicts.jsonl").read_text()


def test_no_server_at_all_is_told_with_what_to_do(home, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening: every connection is refused
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ServerLostError, match=r"same command(.|\n)*goes on"):
            list(start(recipe(home, endpoint, name="none.toml"), tmp_path / "a", ["vlm.patience=1"]).rounds())
