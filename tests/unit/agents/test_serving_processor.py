"""What a server is started with follows from the processor."""

from __future__ import annotations

import os

import pytest

from agents.vllm.command import FEW_CORES, cpu_dtype, thread_binding


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("processor : 0\nflags\t\t: fpu avx512f avx512_vnni\n", "float32"),
        ("processor : 0\nflags\t\t: fpu avx512f avx512_bf16\n", "bfloat16"),
        ("flags : fpu amx_bf16 amx_tile\n", "bfloat16"),
        ("Features\t: fp asimd bf16\n", "bfloat16"),
        ("model name : a bf16 processor\nflags : fpu\n", "float32"),
        ("", "float32"),
    ],
)
def test_bfloat16_only_where_the_processor_has_it(tmp_path, text, dtype):
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_dtype(tmp_path / "cpuinfo") == dtype


def test_a_machine_that_does_not_tell_gets_float32(tmp_path):
    assert cpu_dtype(tmp_path / "absent") == "float32"


@pytest.mark.parametrize(
    ("cores", "binding"), [({0}, "0"), ({3, 1}, "1,3"), (set(range(FEW_CORES + 1)), None)]
)
def test_few_cores_are_all_used(monkeypatch, cores, binding):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
    assert thread_binding() == binding
