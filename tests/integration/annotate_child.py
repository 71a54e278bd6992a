"""An annotation whose model is in memory and whose process kills itself after so many answers.

Arguments: a folder as `make_home` makes it, and after how many answers to die (0: never). Every question that
reaches the model is a line of ``asked.txt``.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from annotation_helpers import MemoryBackend, command, model, wording

from selftrain import panels
from selftrain.cli import main

home, last = Path(sys.argv[1]), int(sys.argv[2])
answers = itertools.count()


def answer(request):
    """What the model says; the question after the last answer is the end of the process."""
    if next(answers) == last and last:
        os.kill(os.getpid(), signal.SIGKILL)
    with (home / "asked.txt").open("a") as file:
        file.write(f"{request.affinity} {wording(request)}\n")
    return model(request)


panels.build_backend = lambda model_: MemoryBackend(answer)
# one post at a time: what is under way when the process dies was never answered
recipe = home / "recipe.toml"
recipe.write_text('[data]\nmanifest = "posts.jsonl"\ntask = "task.toml"\n[vlm]\nconcurrency = 1\n')
sys.exit(main(command(home, "--direct", "--recipe", str(recipe))))
