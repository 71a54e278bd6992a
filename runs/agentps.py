"""From a finished run to a trained model: `python runs/agentps.py runs/mine models/mine`.

Its task has to have questions; without any, as the quickstart's, add `model.variant=vanilla`.
"""

import sys
from pathlib import Path

import selftrain as st
from selftrain.agentps.fitting import fit
from selftrain.agentps.recipe import load_agentps_recipe

run, out = Path(sys.argv[1]), Path(sys.argv[2])
small = ("model.rank=16", "model.alpha=32", "frames.count=1", "frames.repeat=false", "training.epochs=2")
recipe = load_agentps_recipe(None, [f'data.run="{run}"', *small, *sys.argv[3:]])

model = fit(recipe, out)
print(f"best epoch {model.about['best_epoch'] + 1}, figures in {out / 'metrics.json'}")

new = [st.Post("n1", "Claim your prize before midnight"), st.Post("n2", "The library is closed on Monday")]
for post, found in zip(new, st.load_predictor(out).predict(new), strict=True):
    print(post.text, dict(found.probs))
