"""What the loop and the report are held against does the same work: as many rounds, the same words."""

from __future__ import annotations

import html

from runs.bench import bare_loop, bare_report
from runs.bench.synthetic_run import synthetic_run


def test_both_loops_go_as_many_rounds_over_the_same_posts(tmp_path, monkeypatch):
    seen = {}

    def ours(place, prepared, settings):
        seen[settings[-1]] = (settings[1], len(prepared.corpus.pool))
        return bare_loop._Looped(8.0, 0.25)

    monkeypatch.setattr(bare_loop, "_ours", ours)
    monkeypatch.setattr(bare_loop, "LABELLED", 20)
    floors = iter((1.0, 4.0, 2.0))
    bare = bare_loop._bare
    # scikit-learn's says itself if it took another number of rounds
    monkeypatch.setattr(bare_loop, "_bare", lambda *given: (bare(*given), next(floors))[1])
    found = bare_loop.looped(tmp_path, 300, 1)
    ((chosen, pool),) = set(seen.values())
    assert list(seen) == ["agents.kind=simulated", "agents.kind=offline"]
    assert chosen == "selection.k=50"
    assert 200 <= pool <= 300
    assert found == {
        "cpu_seconds": 8.0, "cpu_seconds, bare": 2.0, "time ratio": 4.0,
        "time ratio, offline agents": 4.0, "time ratio, offline agents left out": 3.0,
    }  # fmt: skip


def test_the_share_of_the_agents_is_that_of_a_run(tmp_path):
    found = bare_loop.looped(tmp_path, 200, 0)
    assert 0 < found["time ratio, offline agents left out"] < found["time ratio, offline agents"]
    assert found["time ratio"] == found["cpu_seconds"] / found["cpu_seconds, bare"]


def test_the_table_of_pandas_has_the_words_of_every_verdict(tmp_path):
    folder = synthetic_run(tmp_path, 40, rounds=2, pictures=0)
    page = bare_report._table(tmp_path).read_text(encoding="utf-8")
    verdicts = [*folder.verdicts(1), *folder.verdicts(2)]
    assert len(verdicts) == 40
    for verdict in verdicts:
        assert f"<td>{verdict.post_id}</td>" in page
        assert all(html.escape(said.rationale) in page for said in verdict.judgments)
    assert page.count("<tr") == 41  # and the names of the columns
