"""vLLM itself, started as users start it: what it answers, how it ends, what it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from agents.client.base import ChatRequest, Message, Sampling
from agents.client.messages import ChatAnswer, chat_body, read_body
from agents.errors import ServerLaunchError
from agents.vllm.check import SCHEMA, ask, drawn_picture, fetch
from agents.vllm.command import ServeOptions, serve_command
from agents.vllm.interpreter import Interpreter
from agents.vllm.launch import serving
from selftrain.cli import main

pytestmark = pytest.mark.vllm

CHECKOUT = Path(__file__).parents[2]
LONG = "A post is unacceptable when it insults somebody. " * 15  # more than a block of the prefix cache


def answer(ready, request, key=""):
    reply = fetch(f"{ready.endpoint}/v1/chat/completions", key, chat_body(request, ready.model), seconds=120)
    assert reply.status == 200, reply.words
    return read_body(reply.body, ChatAnswer).completion(seconds=0)


def about(*parts, schema=None, **sampling):
    schema = schema or SCHEMA.to_json()
    return ChatRequest((Message("user", parts),), schema, Sampling(**{"max_tokens": 128, **sampling}))


def test_a_vision_language_model_is_ready_with_images(small_vlm_server, interpreter):
    ready = small_vlm_server
    assert (ready.model, ready.context, ready.images) == ("small-vlm", 4096, 16)
    assert ready.server == f"vllm {interpreter.version}"
    made = answer(ready, about(*map(drawn_picture, range(16)), "Which is nice?"))
    assert made.usage.image > 16 * 64
    assert made.finish == "stop"


def test_a_seventeenth_image_is_refused(small_vlm_server):
    body = chat_body(about(*map(drawn_picture, range(17)), "Which?"), small_vlm_server.model)
    reply = fetch(f"{small_vlm_server.endpoint}/v1/chat/completions", body=body, seconds=120)
    assert reply.status == 400
    assert "At most 16 image" in reply.words


def test_the_second_question_about_an_image_finds_the_first_in_the_cache(small_vlm_server):
    picture = drawn_picture(99)
    first = answer(small_vlm_server, about(LONG, picture, "Is it nice?"))
    second = answer(small_vlm_server, about(LONG, picture, "Is it rude?"))
    other = answer(small_vlm_server, about(LONG, drawn_picture(98), "Is it nice?"))
    assert second.usage.image == first.usage.image > 64
    # all but the last, unfinished block
    assert second.usage.prompt - 160 < second.usage.cached < second.usage.prompt
    assert other.usage.cached < second.usage.cached


def test_an_image_changes_what_follows_it_only_after_its_place(small_vlm_server):
    """Texts before a picture stay shared, which is why policies come first."""
    answer(small_vlm_server, about(LONG, drawn_picture(1), "?"))
    other = answer(small_vlm_server, about(LONG, drawn_picture(2), "?"))
    assert other.usage.cached >= 128


@pytest.mark.parametrize("seed", range(4))
def test_constrained_answers_hold_no_white_space_between_keys(smollm2_server, seed):
    schema = {
        "type": "object",
        "properties": {"rationale": {"type": "string", "maxLength": 60}, "label": {"enum": ["good", "bad"]}},
        "required": ["rationale", "label"],
        "additionalProperties": False,
    }
    made = answer(
        smollm2_server,
        about("Explain, then judge: I like cats.", schema=schema, temperature=1.0, seed=seed, max_tokens=200),
    )
    assert made.finish == "stop"
    found = json.loads(made.text)
    assert list(found) == ["rationale", "label"]
    assert made.text.replace(json.dumps(found["rationale"], ensure_ascii=False), '""') == (
        '{"rationale":"","label":"' + found["label"] + '"}'
    )


def test_the_tokenizer_is_described(smollm2_server):
    told = fetch(f"{smollm2_server.endpoint}/tokenizer_info")
    assert told.status == 200
    assert json.loads(told.body)["tokenizer_class"]


def test_check_tells_what_a_server_can(smollm2_server, capsys):
    assert main(["agents", "check", smollm2_server.endpoint, "--text-only"]) == 0
    assert main(["agents", "check", smollm2_server.endpoint]) == 1
    shown = capsys.readouterr().out
    assert "answer  FAILED" in shown
    assert "smollm2 is not a multimodal model" in shown
    assert "white space" not in shown


def test_check_asks_about_an_image(small_vlm_server, capsys):
    assert main(["agents", "check", small_vlm_server.endpoint, "--model", "small-vlm"]) == 0
    assert "of them of images" in capsys.readouterr().out


def test_a_port_that_is_taken(smollm2_server, smollm2, capsys):
    port = smollm2_server.endpoint.rpartition(":")[2]
    assert main(["agents", "serve", str(smollm2), "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err


def test_a_missing_folder_is_told_before_anything_starts(interpreter, tmp_path, capsys):
    log = tmp_path / "log"
    argv = ["agents", "serve", str(tmp_path / "none"), "--port", "0", "--log", str(log)]
    assert main([*argv, "--python", str(interpreter.python)]) == 2
    assert f"there is no model folder {tmp_path / 'none'}" in capsys.readouterr().err
    assert not log.exists()


def test_what_vllm_itself_refuses_is_told_in_its_words(interpreter, smollm2, tmp_path):
    command = serve_command(interpreter, smollm2, ServeOptions(max_model_len=100_000))
    with pytest.raises(ServerLaunchError) as caught, serving(command, log=tmp_path / "log"):
        pytest.fail("it cannot be ready")
    assert "max_model_len (100000) is greater than the derived max_model_len" in str(caught.value)
    assert "advice: ask for fewer tokens" in str(caught.value)


def test_vllm_knows_every_flag_that_we_may_use(interpreter, smollm2, tmp_path):
    """Parsed by its own parser, adapters and GPUs too, without loading anything."""
    (tmp_path / "adapter_config.json").write_text('{"r": 32}')
    gpu = Interpreter(interpreter.python, "vllm", interpreter.version, interpreter.torch, "cuda")
    options = ServeOptions(
        images=4, max_model_len=2048, gpu_memory=0.5, tensor_parallel=2, data_parallel=2, max_num_seqs=8,
        api_servers=2, adapters={"tuned": tmp_path},
    )  # fmt: skip
    command = serve_command(gpu, smollm2, options)
    program = (
        "import json, sys\n"
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "args = make_arg_parser(FlexibleArgumentParser()).parse_args(sys.argv[1:])\n"
        "validate_parsed_serve_args(args)\n"
        "print(json.dumps([args.lora_modules[0].name, args.max_lora_rank, args.tensor_parallel_size,"
        " args.limit_mm_per_prompt]))\n"
    )
    on_cpu = serve_command(interpreter, smollm2)
    done = subprocess.run(
        [str(interpreter.python), "-c", program, *command.argv[4:], "--enforce-eager"],
        env=os.environ | dict(on_cpu.environment), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [
        "tuned", 32, 2, {"image": 4, "video": 0, "audio": 0},
    ]  # fmt: skip


def tree(pid):
    """Everything below a process, by pid; the engine and its worker must be there."""
    below = {process.pid: process.name() for process in psutil.Process(pid).children(recursive=True)}
    names = " ".join(below.values())
    assert "EngineCor" in names
    assert "Worker" in names
    return [*below, pid]


def cli(model, **environment):
    """`selftrain agents serve` up to its last line, and its endpoint."""
    process = subprocess.Popen(
        [sys.executable, "-m", "selftrain", "agents", "serve", str(model), "--port", "0",
         "--max-model-len", "1024", "--name", "judge", "--", "--max-num-batched-tokens", "1024"],
        env=os.environ | environment, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("servers ="):
            return process, json.loads(line.partition("=")[2])[0]
    raise AssertionError(f"it ended with {process.wait()}")


@pytest.mark.usefixtures("alone")
def test_the_command_asks_for_the_key_and_ctrl_c_leaves_nothing(smollm2, gone):
    process, endpoint = cli(smollm2, SELFTRAIN_API_KEY="a-secret")
    try:
        assert fetch(f"{endpoint}/v1/models").status == 401
        assert ask(endpoint, "judge", "wrong", image=False, seconds=60).status == 401
        assert ask(endpoint, "judge", "a-secret", image=False, seconds=60).fault == ""
        pids = tree(process.pid)
        lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids]
        assert not any(b"a-secret" in line for line in lines)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert (process.returncode, output.splitlines()[-1]) == (0, "stopped")
        assert all(gone(pid) for pid in pids)
    finally:
        process.kill()


@pytest.mark.usefixtures("alone")
def test_when_the_command_is_killed_nothing_is_left(smollm2, gone):
    process, _ = cli(smollm2)
    pids = tree(process.pid)
    process.kill()
    process.wait()
    assert all(gone(pid) for pid in pids)


@pytest.mark.usefixtures("alone")
def test_when_the_api_server_is_killed_nothing_is_left(interpreter, small_vlm, gone):
    """Left to itself vLLM's engine would live on, and hold its memory."""
    command = serve_command(interpreter, small_vlm, ServeOptions(max_model_len=1024, images=1))
    with serving(command, report=print) as (server, _):
        pids = tree(server.pid)
        (api_server,) = psutil.Process(server.pid).children()
        api_server.kill()
        with pytest.raises(ServerLaunchError, match="ended by itself with exit status 137"):
            server.wait()
        assert all(gone(pid) for pid in pids)
