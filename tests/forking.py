"""Forks Python programs from a process that has imported the large third-party packages once.

A program so started is a process like any other: its own pid, environment, folder, arguments and standard
streams, and it begins with its own `__main__` and imports all of this project itself. Only what others wrote
is there already, which is most of the seconds that a start takes. processes.py asks for them.
"""

from __future__ import annotations

import array
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import sys
import tempfile
import types
from pathlib import Path

# none of them leaves a thread behind, which a fork would lose, as onnxruntime does
THIRD_PARTY = (
    "torch", "torch._dynamo", "torch.distributed", "torch.utils.data", "torch.utils.tensorboard",
    "scipy.optimize", "scipy.sparse", "sklearn.linear_model", "sklearn.metrics", "safetensors.torch",
    "matplotlib.figure", "matplotlib.backends.backend_svg", "jinja2", "pydantic", "typer", "rich.console",
    "aiohttp", "anyio", "msgspec", "psutil", "uvicorn", "starlette.applications",
    "prometheus_client", "filelock", "tqdm", "tomli_w", "imagehash", "PIL.PngImagePlugin", "gguf",
)  # fmt: skip
# these import torchvision, which needs its operators declared
BESIDE_TORCHVISION = (
    "accelerate", "peft", "timm", "torchvision.transforms.v2", "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.processing_auto",
)  # fmt: skip
_KEPT = []


def preload():
    for name in THIRD_PARTY:
        importlib.import_module(name)
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from backbones import torchvision_compat

    torchvision_compat.ensure_torchvision()
    for name in BESIDE_TORCHVISION:
        importlib.import_module(name)
    # programs import the project themselves; the declared operators live as long as their module
    _KEPT.append(torchvision_compat)
    for name in [name for name in sys.modules if name.partition(".")[0] == "backbones"]:
        del sys.modules[name]
    del sys.path[0]
    sys.modules["PIL.Image"].init()
    gc.collect()
    gc.freeze()  # pages of what is there already stay shared


def requests(place):
    """In a forked process the request that it is to carry out; in this one, nothing, when the asking ends."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)
        line, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return keep(line)
        line.close()


def keep(line):
    """Fork the program, tell its pid, wait for it, tell how it ended; only the program returns from this."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, files = array.array("i", [0]), array.array("i")
    _, told, _, _ = line.recvmsg_into([size], socket.CMSG_SPACE(3 * files.itemsize))
    files.frombytes(told[0][2])
    request = json.loads(line.recv(size[0], socket.MSG_WAITALL))
    program = os.fork()
    if program == 0:
        line.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        return request
    for file in files:
        os.close(file)
    line.sendall(array.array("i", [program]).tobytes())
    _, status = os.waitpid(program, 0)
    line.sendall(array.array("i", [os.waitstatus_to_exitcode(status)]).tobytes())
    os._exit(0)


def become(request, paths):
    """Make this process what a fresh interpreter would be that was given the request's words."""
    import numpy as np

    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    np.random.seed()  # a fresh process has a state of its own,
    tempfile.tempdir = None  # and asks its own environment for the folder of temporary files
    if os.environ.get("PYTHONUNBUFFERED"):
        kinds = {"encoding": sys.stdout.encoding, "errors": sys.stdout.errors, "write_through": True}
        sys.stdout = sys.__stdout__ = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), **kinds)
    sys.path[:] = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *paths]


def carry_out(words):
    """Run what stands behind `python` on a command line: -m MODULE, -c CODE or FILE, and arguments."""
    kind, *rest = words
    if kind == "-m":
        sys.argv = rest
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(kind).parent))
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    del sys.path[0]  # this file's folder
    preload()
    found = list(sys.path)
    # of pyarrow's allocator, which starts it again in whatever is forked
    others = {file.read_text() for file in Path("/proc/self/task").glob("*/comm")} - {"jemalloc_bg_thd\n"}
    if len(others) > 1:
        sys.exit(f"threads after the imports, of which a fork keeps one: {others}")
    asked = requests(sys.argv[1])
    become(asked, found)
    carry_out(asked["words"])
