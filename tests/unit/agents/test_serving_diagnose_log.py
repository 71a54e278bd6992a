"""What is told of a server's log after its end. The lines are those of vLLM 0.32."""

from __future__ import annotations

import pytest

from agents.vllm.diagnose_log import advise, diagnose_log, meaningful

TRACE = """\
(APIServer pid=1) INFO 11-22 06:19:58 [api_utils.py:347]  version 0.32.0
Traceback (most recent call last):
  File "launcher.py", line 348, in create_server_socket
    sock.bind(addr)
"""


@pytest.mark.parametrize(
    ("fault", "advice"),
    [
        ("OSError: [Errno 98] Address already in use", "the port is taken"),
        (
            "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name': '/tmp/none'",
            "the model cannot be had",
        ),
        (
            "OSError: We couldn't connect to 'https://huggingface.co' to load the files",
            "the model cannot be had",
        ),
        ("api_server.py: error: unrecognized arguments: --nonsense", "does not know one of the flags"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "memory is short"),
        (
            "ValueError: Free memory on device cuda:0 (3.1/139.8 GiB) on startup is less than desired GPU"
            " memory utilization (0.92, 128.6 GiB)",
            "memory is short",
        ),
        (
            "safetensors._safetensors_rust.SafetensorError: Error while deserializing header",
            "weights are missing or damaged",
        ),
        ("RuntimeError: operator torchvision::nms does not exist", "install the two together"),
        ("RuntimeError: Failed to infer device type", "no GPU can be used here"),
        (
            "ValueError: Total number of attention heads (28) must be divisible by tensor parallel size (8).",
            "take a smaller --tensor-parallel",
        ),
        (
            "ValueError: The output_size of gate's and up's weight = 192 is not divisible by weight"
            " quantization block_n = 128.",
            "--enable-expert-parallel",
        ),
        (
            "ValueError: The input size is not aligned with the quantized weight shape. This can be caused by"
            " too large tensor parallel size.",
            "--data-parallel for the GPUs that are left",
        ),
        ("KeyError: 'something new'", ""),
    ],
)
def test_a_fault_is_found_and_advised_upon(tmp_path, fault, advice):
    log = tmp_path / "log"
    log.write_text(TRACE + fault + "\n")
    said, _, advised = diagnose_log(log, 0, 1).partition("\nadvice: ")
    assert said == f"its log says, in {log}:\n  {fault}"
    assert advice in advised
    assert bool(advice) == bool(advised)


def test_prefixes_colours_and_repetitions_are_taken_away():
    fault = "ValueError: too many tokens"
    text = (
        f"\x1b[1;36m(EngineCore pid=4026)\x1b[0;0m ERROR 11-22 06:23:57 [core.py:1510] {fault}\n"
        f"(APIServer pid=3934) {fault}\n"
        "RuntimeError: Engine core initialization failed. See root cause above.\n"
    )
    assert meaningful(text) == [fault]


def test_an_echo_is_told_where_the_cause_is_not():
    echo = "Exception: WorkerProc initialization failed due to an exception in a background process."
    assert meaningful(f"(EngineCore pid=1) ERROR 11-22 06:23:57 [core.py:1510] {echo}\n") == [echo]


def test_a_fault_that_only_announces_itself_keeps_its_next_line():
    text = (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "  Value error, User-specified max_model_len (100000) is greater than the derived max_model_len\n"
    )
    [line] = meaningful(text)
    assert line.endswith("ModelConfig: Value error, User-specified max_model_len (100000) is greater than the"
                         " derived max_model_len")  # fmt: skip
    assert advise(line).startswith("ask for fewer tokens")


def test_without_a_fault_the_last_lines_are_told_and_of_a_bar_its_last_state(tmp_path):
    text = "".join(f"line {number}\n" for number in range(20)) + "Loading:   0%\rLoading:  50%\r\n\n"
    assert meaningful(text) == ["line 15", "line 16", "line 17", "line 18", "line 19", "Loading:  50%"]


def test_long_lines_are_cut():
    [line] = meaningful("ValueError: " + "x" * 1000)
    assert len(line) == 400
    assert line.endswith("...")


def test_only_what_this_server_wrote_is_read(tmp_path):
    log = tmp_path / "log"
    log.write_text("ValueError: earlier\n")
    start = log.stat().st_size
    assert "its log is empty" in diagnose_log(log, start, None)
    log.write_bytes(log.read_bytes() + b"KeyError: \xff now\n")
    assert "  KeyError: \N{REPLACEMENT CHARACTER} now" in diagnose_log(log, start, None)
    assert "earlier" not in diagnose_log(log, start, None)


def test_a_log_that_was_taken_away_hides_no_error(tmp_path):
    assert "(its log cannot be read: No such file or directory)" in diagnose_log(tmp_path / "log", 0, 1)


def test_a_process_that_was_killed_without_a_word_was_short_of_memory(tmp_path):
    log = tmp_path / "log"
    log.write_text("Loading weights\n")
    assert "advice: memory is short" in diagnose_log(log, 0, 137)
    assert "advice" not in diagnose_log(log, 0, 1)
