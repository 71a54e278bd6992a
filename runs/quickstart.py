"""The quickstart from Python: ``python runs/quickstart.py``, from any folder."""

from pathlib import Path

import selftrain as st

HERE = Path(__file__).resolve().parent

data = HERE / "quickstart-data"  # where quickstart.toml looks for it
if not (data / "task.toml").exists():
    st.draw_posts(data)

run = st.start(HERE / "quickstart.toml", out="runs/quickstart")
for round in run.rounds():  # noqa: A001
    print(round)
print(f"next: selftrain show {run.folder.path}")
