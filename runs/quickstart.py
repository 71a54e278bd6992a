"""The quickstart from Python: ``python runs/quickstart.py``, from any folder."""

from pathlib import Path

from selftrain.data.drawn import draw_posts
from selftrain.runs import start

HERE = Path(__file__).resolve().parent

data = HERE / "quickstart-data"  # where quickstart.toml looks for it
if not (data / "task.toml").exists():
    draw_posts(data)

run = start(HERE / "quickstart.toml", out="runs/quickstart")
for round in run.rounds():  # noqa: A001
    print(round)
print(f"next: selftrain show {run.folder.path}")
