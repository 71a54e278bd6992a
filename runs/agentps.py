"""From a finished run to a trained model: `python runs/agentps.py runs/mine models/mine`.

Its task has to have questions; without any, as the quickstart's, add `model.variant=vanilla`.
"""

import sys

import selftrain as st

run, out, *changes = sys.argv[1:]
small = ("model.rank=16", "model.alpha=32", "frames.count=1", "frames.repeat=false", "training.epochs=2")

model = st.train_agentps(run, out, overrides=[*small, *changes])
print(f"best epoch {model.best_epoch}, metrics in {model.folder / 'metrics.json'}")

new = [st.Post("n1", "Claim your prize before midnight"), st.Post("n2", "The library is closed on Monday")]
for post, found in zip(new, st.load_predictor(out).predict(new), strict=True):
    print(post.text, dict(found.probs))
