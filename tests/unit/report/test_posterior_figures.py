"""A run that decides by a posterior, on its page, in its status and beside another run."""

from __future__ import annotations

import json

import pytest
from page_helpers import ParsedPage
from report_helpers import HOSTILE, PLAIN, made, weigh

from selftrain.cli import main
from selftrain.report.compare import compare
from selftrain.report.posterior_figures import RevisedRound
from selftrain.report.run_page import gather, render
from selftrain.report.status import run_status
from selftrain.review.opinions import Opinions
from selftrain.review.sampling import MachineLabel, error_estimates, verdicts_among

# round -> q of the positive class for its own post, then for those of the rounds before it
JUDGED = {1: [0.9], 2: [0.2, 0.6], 3: [0.75, 0.3, 0.35]}


@pytest.fixture
def weighed(tmp_path):
    """Rounds 1 and 2 are kept, round 3 is rolled back."""
    folder = made(tmp_path, PLAIN, scores=(0.5, 0.6, 0.7, 0.65), kept=(True, True, True, False))
    return weigh(folder, PLAIN, JUDGED)


def test_what_stands_is_what_the_kept_rounds_said(weighed):
    found = gather(weighed).posterior
    # post 1 was revised to .6 in round 2; what round 3 revised does not count, its own verdict does
    assert (found.posts, found.learned, found.threshold) == (3, 2, 0.7)
    assert [(row.at, row.posts) for row in found.thresholds[:4]] == [(0.5, 3), (0.6, 3), (0.7, 2), (0.8, 1)]
    assert [row.right for row in found.thresholds[:4]] == [pytest.approx(1 / 3), pytest.approx(1 / 3), 0.5, 1]
    assert found.overruled == 1
    assert found.known == 3
    assert found.calibration.ece == pytest.approx((0.6 + 2 * (0.775 - 0.5)) / 3)  # .8 and .75 share a bin
    assert {row.party: (row.mean, row.against) for row in found.parties} == {
        "classifier": (0.5, 1), "agent": (1.5, 0), "base rate": (0.25, 0),
    }  # fmt: skip


def test_what_a_round_revised_is_counted_against_the_verdicts_before_it(weighed):
    found = gather(weighed).posterior.revisions
    assert found[0] == RevisedRound(2, True, 1, pytest.approx(0.3), 0, 0, 0, gained=0, lost=1)
    # .6 -> .3 and .2 -> .35: the first takes the true label, and is sure enough of it
    assert found[1] == RevisedRound(3, False, 2, pytest.approx(0.225), 1, 1, 0, gained=1, lost=1)


def test_the_browser_has_label_probability_parties_and_every_round(weighed):
    page = gather(weighed)
    table = page.verdicts.table
    listing = json.loads(str(table.listing))
    assert listing["id"] == ["3", "2", "1"]
    assert listing["decided"] == [0, 1, 0]
    assert listing["sure"] == [0.75, 0.8, 0.9]
    assert {"f-sure", "f-decided"} <= {one.id for one in table.controls}
    threshold, probs, added, history = json.loads(str(table.chunks[0]))[2][4]
    assert (threshold, probs) == (0.7, [[1, 0.1], [0, 0.9]])
    assert added == [["classifier", -0.5], ["agent", 1.5], ["base rate", 0.25]]
    assert history == [[1, 0, 0.9], [2, 0, 0.6], [3, 1, 0.7]]
    said = ParsedPage(render(page)).words()
    assert "Judged posts learned 2 of 3, from 0.70 on" in said
    assert "AUC 0.812" in said


def test_a_hostile_party_is_text(tmp_path):
    pages = []
    for said in (HOSTILE, PLAIN):
        place = tmp_path / str(len(pages))
        folder = made(place, said, scores=(0.5, 0.6, 0.7, 0.65), kept=(True, True, True, False))
        pages.append(ParsedPage(render(gather(weigh(folder, said, JUDGED)))))
    assert [tag for tag, _ in pages[0].tags] == [tag for tag, _ in pages[1].tags]


def test_status_and_comparison_tell_it_in_a_line(weighed, tmp_path, capsys):
    assert str(run_status(weighed).posterior) == "2 of 3 judged posts learned, from 0.70 on; weight 0.62"
    plain = made(tmp_path / "plain", PLAIN)
    assert run_status(plain).posterior is None
    first, second = compare([plain, weighed]).runs
    assert first.posterior is None
    assert second.posterior.calibration is not None
    for command in ("status", "show"):
        assert main([command, str(weighed.path)]) == 0
        assert "AUC" in capsys.readouterr().out
    assert main(["status", str(weighed.path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["posterior"]
    assert told == {
        "posts": 3, "learned": 2, "threshold": 0.7, "weight": 0.625, "overruled": 1, "ece": None,
    }  # fmt: skip
    assert main(["compare", str(plain.path), str(weighed.path)]) == 0
    assert "posterior" in capsys.readouterr().out


def test_reviewers_see_it_and_are_asked_where_it_doubts(weighed):
    last = Opinions(weighed).of("2")[-1]
    assert (last.who, last.last.label, last.last.probability) == ("posterior", PLAIN["negative"], 0.8)
    assert last.log_odds == {"classifier": -0.5, "agent": 1.5, "base rate": 0.25}
    assert "classifier" in Opinions(weighed).of("2")[0].who
    verdicts = [one.verdict for one in verdicts_among(weighed, "divergent").values()]
    # the first is divergent; the second is learned, with a label that is not sure; the third's round was
    # rolled back
    labels = error_estimates(verdicts, (PLAIN["positive"], PLAIN["negative"]))
    assert labels == [
        MachineLabel("1", PLAIN["positive"], pytest.approx(0.4)),
        MachineLabel("2", PLAIN["negative"], pytest.approx(0.2)),
        MachineLabel("3", PLAIN["positive"], pytest.approx(0.25)),
    ]
