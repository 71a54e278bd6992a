"""Run folders made by hand for the tests of pages: every string in them can be chosen."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from selftrain.rounds import AgentCounts
from selftrain.store import checksums
from selftrain.store.run_dir import RunFolder

# what each place of a run may hold at its worst; a file's name can have no slash
MARKUP = (
    "</script></style></title><script>document.title='owned'</script>"
    "<img src=x onerror=\"document.title='owned'\">"
)
CONTROLS = "\x1b[31m\x07\u202e\u2066\u2028\u2029\x9b"  # NUL too, where a manifest does not refuse it
TEMPLATE = "{{ 7*7 }}{% raw %}{#"
HOSTILE = {
    "text": f"{MARKUP}{CONTROLS}{TEMPLATE} &lt;b&gt; $\\frac{{1}}{{2}}$",
    "id": f"id\"'{MARKUP}{CONTROLS}",
    "rationale": f"<!-- --><svg onload=alert(1)>{MARKUP}{CONTROLS}{TEMPLATE}\x00\ud800",
    "agent": f"agent\"'><b onclick='x()'>{MARKUP}{CONTROLS}",
    "positive": f"<b onclick='x()'>invitation</b>{MARKUP}{TEMPLATE} $\\frac$",
    "negative": f"</option></select>{MARKUP}{CONTROLS}",
    "reason": f"<a href=javascript:alert(1)>'{MARKUP}{CONTROLS}",
    "picture": "<img src=x onerror=document.title='owned'>\u202e.png",
    "folder": "<b>run</b>'\"{{ 1 }}\u202e",
}
PLAIN = dict.fromkeys(HOSTILE, "plain") | {
    "agent": "agent", "positive": "positive", "negative": "negative", "picture": "plain.png", "folder": "run",
}  # fmt: skip


def chosen(posts, said, precision=None):
    half = posts // 2
    return {
        "posts": posts,
        "precision": precision,
        "by_class": {said["positive"]: half, said["negative"]: posts - half},
    }


def split(macro_f1):
    return {
        "posts": 20, "macro_f1": macro_f1, "accuracy": 0.75, "brier": 0.2, "precision": 0.8, "recall": 0.7,
        "confusion": [[7, 2], [3, 8]], "auc": 0.8125,
    }  # fmt: skip


def figures(number, said, *, kept, macro_f1, simulated=False, **more):
    counts = AgentCounts(3 * number, number, 0, reconsidered=2, changed_mind=1, truth_known=4, right=3)
    return {
        "round": number, "kept": kept, "score": macro_f1, "simulated": simulated,
        "seconds": 1.25, "grown": 10 + number,
        "validation": split(macro_f1), "test": split(macro_f1 - 0.1),
        "candidates": chosen(4 * number, said, 0.5 if number else None),
        "consistent": chosen(3 * number, said, 0.75 if number else None),
        "divergent": chosen(number, said, 0.25 if number else None),
        "theta": {said["positive"]: 0.4} if number else {},
        "agents": {said["agent"]: counts._asdict()} if number else {},
        "training": {
            "labelled": {said["positive"]: 5, said["negative"]: 5},
            "agreed": {said["positive"]: number, said["negative"]: 2 * number}, "divergent": number,
        },
        "flipped": [], "best_epoch": 2,
        "pseudo_labels": {"posts": number, "truth_known": number, "precision": 0.75 if number else None},
        "curve": [{"epoch": 1, "macro_f1": 0.1, "loss": {"loss": 9.0, "pn": 9.0}},
                  {"epoch": 2, "macro_f1": 0.2, "loss": {"loss": 0.7, "pn": 0.5, "soft": 0.25}}],
        **more,
    }  # fmt: skip


def judgment(said, agent, step, label, state=None):
    state = state or ("label" if label else "abstain")
    return {
        "agent": agent, "step": step, "state": state, "label": label, "probability": 0.75 if label else None,
        "rationale": said["rationale"], "source": "test", "details": {},
    }  # fmt: skip


def verdict(said, post_id):
    """Divergent: one agent changed its mind, the other failed."""
    one, other = said["agent"], f"other {said['agent']}"
    judgments = [
        judgment(said, one, 0, said["positive"]), judgment(said, other, 0, None, "failed"),
        judgment(said, one, 1, said["negative"]), judgment(said, other, 1, None),
    ]  # fmt: skip
    return {
        "post_id": post_id, "classifier_label": said["positive"], "classifier_probability": 0.875,
        "consistent": False, "judgments": judgments, "deciders": [], "posterior": None,
    }  # fmt: skip


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def trust(said):
    agent = {
        "confusion": {said["positive"]: {said["positive"]: 4, said["negative"]: 1, "(abstain)": 0}},
        "accuracy": {"value": 0.8, "low": 0.4, "high": 0.9},
        "balanced_accuracy": {"value": 0.7, "low": 0.3, "high": 0.8}, "near_chance": True, "answered": 5,
        "calibration": {"brier": 0.125, "ece": 0.0625, "bins": [
            {"low": 0.9, "high": 1.0, "count": 5, "confidence": 0.95, "accuracy": 0.8}]},
    }  # fmt: skip
    return {"simulated": False, "agents": {said["agent"]: agent}, "kappa": {f"{said['agent']}/x": 0.375}}


def by_hand(folder):
    """Let a test change the files of a run: nothing notes what they held."""
    (folder.path / checksums.FILE).unlink()
    return folder


def made(
    place, said, scores=(0.5, 0.625, 0.6), kept=(True, True, False), *, simulated=False, verdicts=1, **more
):
    """A run of as many rounds as scores, each but the first with a verdict."""
    place.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), "red").save(place / "red.png")
    (place / "red.png").rename(place / said["picture"])
    row = {"id": said["id"], "text": said["text"], "images": [said["picture"]], "label": said["negative"]}
    lines(place / "manifest.jsonl", [row])
    folder = RunFolder(place / said["folder"])
    recipe = {
        "seed": 0, "data": {"manifest": str(place / "manifest.jsonl")},
        "selection": {"reselect_divergent": True},
        "rounds": {"max": max(len(scores) - 1, 0), "patience": 3}, "note": {"text": said["text"]},
    }  # fmt: skip
    environment = {
        "identity": {"task": said["reason"], "posts": "0"}, "simulated": simulated,
        "splits": {"pool": 9}, "versions": {"x": said["reason"]}, "platform": said["reason"],
        "classes": {"positive": said["positive"], "all": [said["positive"], said["negative"]]},
        "agents": {"agents": [{"role": said["agent"], "source": said["reason"]}]},
    }  # fmt: skip
    with folder.locked():
        folder.begin(recipe, environment)
        for number, (score, keep) in enumerate(zip(scores, kept, strict=True)):
            path = folder.open_round(number)
            if number:
                lines(path / "verdicts.jsonl", [verdict(said, said["id"])])
            one = figures(number, said, kept=keep, macro_f1=score, simulated=simulated, **more)
            folder.close_round(number, one)
    quarantined = {"kind": said["reason"], "line": 1, "id": said["id"], "reason": said["reason"]}
    lines(folder.path / "quarantine.jsonl", [quarantined] * 201)
    return by_hand(folder)


def posterior(said, positive, threshold=0.7):
    """What classifier and agents say together, with so much of it for the positive class."""
    return {
        "probs": {said["negative"]: 1 - positive, said["positive"]: positive}, "threshold": threshold,
        "log_odds": {"classifier": -0.5, said["agent"]: 1.5, "base rate": 0.25}, "weight": 0.625,
        "evidence": {said["negative"]: 0.25, said["positive"]: 0.75},
    }  # fmt: skip


def weigh(folder, said, by_round):
    """Give the verdicts of a `made` run posteriors: round -> q of the positive class, then of revised ones.

    The post of round n is "n"; the manifest says that all are of the negative class.
    """
    rows = [{"id": str(n), "text": said["text"], "label": said["negative"]} for n in by_round]
    lines(Path(folder.recipe()["data"]["manifest"]), rows)
    for number, values in by_round.items():
        whole = [
            verdict(said, post_id) | {"posterior": posterior(said, q), "consistent": max(q, 1 - q) >= 0.7}
            for post_id, q in zip([str(number), *map(str, range(1, number))], values, strict=True)
        ]
        lines(folder.round_path(number) / "verdicts.jsonl", whole[:1])
        lines(folder.round_path(number) / "revised.jsonl", whole[1:])
    return folder
