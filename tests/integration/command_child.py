"""Runs commands in processes of their own, and interrupts them: by a signal, or a limit on files or memory.

It imports once and forks for every request, one JSON line {"argv": [...]} with at most one of: "after"
seconds and the "signal" to send then; "disk", the bytes that a file may have; "memory", the bytes that may
be taken beyond what there is at the beginning. A server ends by SIGTERM once there is the file "until". The
answer is the exit status, and in words what was printed, with the seconds that it took, those of a
processor, and the bytes of memory beyond those at its beginning.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

PRELOADED = (
    "backbones.minilm_efficientnet", "sklearn.metrics", "scipy.optimize", "safetensors.torch",
    "matplotlib.figure", "jinja2", "aiohttp", "msgspec", "agents.offline.offline_agent", "selftrain.loop",
    "selftrain.runs", "selftrain.cli", "selftrain.agentps.train", "selftrain.report.run_page", "peft",
    "accelerate", "transformers", "torch.utils.tensorboard", "selftrain.review.act_training",
    "selftrain.review.page.review_server", "uvicorn",
)  # fmt: skip

# without memory a thread can end before whoever started it hears of it: CPython waits for ever, people do not
STUCK = 8.0


def limit(request):
    """Take files or memory from this process, as a full disk or a full machine would."""
    if "disk" in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["disk"],) * 2)
    if "memory" in request:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + request["memory"]
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def command(request, output):
    """What the forked process does; it never returns."""
    from loop_child import light_backbone

    from agents.client import client
    from selftrain.cli import main
    from selftrain.models import pretrained
    from selftrain.review import act_training

    client.LONGEST_BACKOFF = 0.05  # seconds; a call is tried as often as ever
    pretrained.load_backbone = act_training.load_backbone = light_backbone
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        limit(request)
        code = main(request["argv"])
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
        finally:
            os._exit(code)


def ended(child, request):
    """Wait for a process, and send it its signal when the time has come.

    Its status, its seconds by the clock and of a processor, and the most bytes of memory that it had.
    """
    begun, longest = time.monotonic(), STUCK if "memory" in request else 600.0
    until = Path(request.get("until", "/nowhere"))
    request = {"signal": signal.SIGKILL, "after": longest} | request
    while True:
        pid, status, used = os.wait4(child, os.WNOHANG)
        seconds = time.monotonic() - begun
        if pid:
            processor = used.ru_utime + used.ru_stime
            return os.waitstatus_to_exitcode(status), seconds, processor, used.ru_maxrss * 1024
        if until.exists():
            until.unlink()
            os.kill(child, signal.SIGTERM)
        if seconds >= request["after"]:
            os.kill(child, request["signal"])
            request = request | {"signal": signal.SIGKILL, "after": longest}
        time.sleep(0.002)


def serve():
    for module in PRELOADED:
        importlib.import_module(module)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as output:
            child = os.fork()
            if child == 0:
                command(request, output.fileno())
            before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
            code, seconds, processor, most = ended(child, request)
            output.seek(0)
            words = {
                "said": output.read().decode(errors="replace"),
                "seconds": seconds,
                "processor": processor,
                "grown": most - before,
            }
        print(json.dumps({"code": code, "words": json.dumps(words)}), flush=True)


if __name__ == "__main__":
    serve()
