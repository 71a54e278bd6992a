"""What this machine's processor is good at, where vLLM's own choice costs most of its speed.

Measured with SmolLM2 on two cores without bfloat16 instructions, 32 calls at once: bfloat16 on one core .55
calls a second, float32 on one core 1.75, float32 on both 2.7.
"""

from __future__ import annotations

import os
from pathlib import Path

FEW_CORES = 4
"""Up to so many, the core that vLLM keeps free for its other processes is missed more than it helps."""

_NATIVE = {"avx512_bf16", "amx_bf16", "bf16"}
_CPUINFO = Path("/proc/cpuinfo")


def has_bfloat16(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether the processor multiplies bfloat16 itself; where that cannot be told, False."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    words = {
        word for line in text.splitlines() if line.startswith(("flags", "Features")) for word in line.split()
    }
    return bool(_NATIVE & words)


def cpu_dtype(cpuinfo: Path = _CPUINFO) -> str:
    """The faster of two dtypes: without instructions for bfloat16 every product is emulated."""
    return "bfloat16" if has_bfloat16(cpuinfo) else "float32"


def thread_binding() -> str | None:
    """Cores for vLLM's threads, "0,1": all there are if they are few; None: vLLM's own choice."""
    cores = sorted(os.sched_getaffinity(0))
    return ",".join(map(str, cores)) if len(cores) <= FEW_CORES else None
