"""The AgentPS study: what is measured in which order, and gains seed by seed."""

from __future__ import annotations

from runs.bench.agentps import PARTS, _cells, paired
from runs.bench.study import Figure, Figures


def figure(method: str, seed: int, value: float, n: int = 1000) -> Figure:
    return Figure("agentps", "fhm_text", method, n, seed, "auc", value)


def test_pairs_are_those_of_the_same_seed_and_size() -> None:
    figures = Figures(None)
    figures.add([figure("vanilla", 0, 0.5), figure("vanilla", 1, 0.6), figure("vanilla", 0, 0.1, n=250)])
    figures.add([figure("agentps", 1, 0.7), figure("agentps", 0, 0.58), figure("agentps", 2, 0.9)])
    (line,) = paired(figures, 1000, "vanilla", ("multitask", "agentps"))
    # +.08 and +.10; seed 2 has no partner
    assert " ".join(line.split()) == "agentps - vanilla auc +0.0900 ± 0.0141 n=1000 (2 seeds)"
    assert not list(paired(figures, 250, "vanilla", ("agentps",)))


def test_a_study_that_stops_has_whole_seeds() -> None:
    text = list(_cells("text", 2))
    assert [seed for *_, seed in text] == [0, 0, 0, 1, 1, 1]
    assert {n for _, _, n, _ in text} == {1000}
    sizes = list(_cells("sizes", 3))
    assert [(n, seed) for _, _, n, seed in sizes] == [(250, s) for s in (0, 1, 2) for _ in range(3)] + [
        (4000, 0)
    ] * 3
    noise = [method for _, method, _, _ in _cells("noise", 1)]
    assert noise == ["agentps, 20 % flipped", "agentps, 40 % flipped"]
    every = [cell for part in PARTS for cell in _cells(part, 3)]
    assert len(set(every)) == len(every)
