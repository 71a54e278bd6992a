"""`run` on a run that is there, the closing table's figures, and why a run stops."""

from __future__ import annotations

import shutil

import pytest
from report_helpers import PLAIN, by_hand, figures

from selftrain.cli import main
from selftrain.cli.printing import console
from selftrain.cli.runs import quickstart_recipe
from selftrain.cli.tables import summary_table
from selftrain.config import load_recipe, stored_recipe
from selftrain.data.preparation import prepare
from selftrain.errors import RunStateError
from selftrain.loop import open_positions
from selftrain.report.status import run_status, summarise, why_stopped
from selftrain.rounds import RoundResult, finished_rounds, replay
from selftrain.state import RoundLimits
from selftrain.store.run_dir import RunFolder


def finished(number, *, kept, validation, test=None, precision=None, simulated=False):
    """A round of 10 + 5 n posts in the grown dataset, 4 n candidates, 3 n of them consistent."""
    record = figures(number, PLAIN, kept=kept, macro_f1=validation, simulated=simulated, seconds=1.5)
    record["test"]["macro_f1"] = test
    record["candidates"]["precision"] = precision and precision - 0.1
    record["pseudo_labels"]["precision"] = precision
    if test is None:
        del record["test"]
    return RoundResult.from_json(record)


def test_the_summary_of_rounds_written_by_hand():
    told = summarise(
        [
            finished(0, kept=True, validation=0.5, test=0.4),
            finished(1, kept=True, validation=0.6, test=0.7, precision=0.9),
            finished(2, kept=False, validation=0.55, test=0.9, precision=0.5),
            finished(3, kept=True, validation=0.7, test=0.65, precision=0.7),
        ]
    )
    assert told.labels_alone == (0.5, 0.4, 0.8125, 0.8125)
    assert (told.best, told.best_round) == ((0.7, 0.65, 0.8125, 0.8125), 3)
    assert (told.rounds, told.kept, told.rolled_back) == (3, 2, 1)
    assert (told.candidates, told.consistent, told.divergent) == (24, 18, 6)
    assert told.pseudo_label_precision == 0.7  # of grown.jsonl after the last round
    assert told.candidate_precision == pytest.approx((4 * 0.8 + 8 * 0.4 + 12 * 0.6) / 24)
    assert (told.labelled, told.grown, told.seconds) == (10, 13, 6.0)


def test_a_summary_without_truth_or_test_or_rounds():
    told = summarise([finished(0, kept=True, validation=0.5)])
    assert told.best == told.labels_alone == (0.5, None, 0.8125, None)
    assert (told.best_round, told.pseudo_label_precision, told.candidate_precision) == (0, None, None)


@pytest.fixture(scope="module")
def corpus(small_run):
    from backbones import load_backbone

    return prepare(stored_recipe(RunFolder(small_run)), load_backbone("minilm_efficientnet")).corpus


@pytest.mark.parametrize(("most", "patience"), [(2, 3), (3, 1), (5, 5), (1, 1)])
@pytest.mark.parametrize("kept", [(True, True), (True, False), (False, False), (False, True)])
@pytest.mark.parametrize("again", [True, False])
def test_the_files_tell_what_the_loop_decides(small_run, corpus, tmp_path, *, most, patience, kept, again):
    copied = by_hand(RunFolder(shutil.copytree(small_run, tmp_path / "run", symlinks=True)))
    text = copied.recipe_path.read_text().replace("max = 2", f"max = {most}")
    text = text.replace("patience = 3", f"patience = {patience}")
    copied.recipe_path.write_text(text.replace("divergent = true", f"divergent = {str(again).lower()}"))
    for number, value in enumerate(kept, 1):
        changed = copied.round_records()[number] | {"kept": value}
        copied.close_round(number, changed)
    state, _ = replay(copied)
    limits = RoundLimits(most, patience, reselect_divergent=again)
    assert why_stopped(copied) == state.why_stop(limits, len(corpus.pool))
    still_open = len(open_positions(state, corpus, limits))
    assert still_open == copied.environment().pool - len(state.closed(limits)) < len(corpus.pool)


def test_a_spent_budget_is_a_reason(small_run, tmp_path):
    copied = by_hand(RunFolder(shutil.copytree(small_run, tmp_path / "run", symlinks=True)))
    judged = sum(one.sets.candidates.posts for one in finished_rounds(copied))
    text = copied.recipe_path.read_text().replace("max = 2", "max = 9")
    copied.recipe_path.write_text(text.replace("max = 9", f"max = 9\nbudget = {judged + 1}"))
    assert why_stopped(copied) is None
    copied.recipe_path.write_text(text.replace("max = 9", f"max = 9\nbudget = {judged}"))
    assert why_stopped(copied) == f"the budget of {judged} candidates is spent"


def test_an_exhausted_pool_is_a_reason(small_run, tmp_path):
    copied = by_hand(RunFolder(shutil.copytree(small_run, tmp_path / "run", symlinks=True)))
    copied.recipe_path.write_text(copied.recipe_path.read_text().replace("max = 2", "max = 9"))
    assert run_status(copied).stopped is None
    environment = copied.path / "environment.json"
    closed = len(replay(copied)[0].closed(RoundLimits()))
    pool = copied.environment().pool
    environment.write_text(environment.read_text().replace(f'"pool": {pool}', f'"pool": {closed}'))
    assert why_stopped(copied) == "no pool post is left to choose from"


def test_a_finished_run_is_shown_again_and_nothing_is_redone(small_run, capsys):
    files = {path: path.stat().st_mtime_ns for path in small_run.glob("rounds/*/*")}
    assert main(["run", str(small_run.parent / "small.toml"), "--out", str(small_run)]) == 0
    out = capsys.readouterr().out
    assert out.count("(finished earlier)") == 3
    assert f"going on with the run {small_run}" in out
    assert "all 2 rounds are done" in out
    assert f"selftrain show {small_run}" in out
    assert {path: path.stat().st_mtime_ns for path in small_run.glob("rounds/*/*")} == files


def test_another_recipe_in_the_same_folder_is_refused(small_run, capsys):
    words = ["run", str(small_run.parent / "small.toml"), "--out", str(small_run), "--set", "selection.k=11"]
    assert main(words) == 2
    assert "selection.k: 10 in the folder, 11 now" in capsys.readouterr().err


def test_a_set_that_means_nothing_is_refused(small_run, tmp_path, capsys):
    recipe = str(small_run.parent / "small.toml")
    for override in ("selection.k", "selection.q=3", "selection.k=few"):
        assert main(["run", recipe, "--out", str(tmp_path / "new"), "--set", override]) == 2
        assert override.partition("=")[0] in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_simulated_agents_are_named_in_the_table():
    for simulated in (False, True):
        shown = console()
        with shown.capture() as captured:
            shown.print(
                summary_table(
                    summarise([finished(0, kept=True, validation=0.5, simulated=simulated)]), "all done"
                )
            )
        assert ("SIMULATED" in captured.get()) == simulated


def test_the_quickstart_recipe_is_sound(tmp_path):
    recipe = load_recipe(quickstart_recipe())
    assert recipe.data.manifest.name == "manifest.jsonl"
    assert recipe.agents.kind == "offline"


def test_a_folder_that_holds_no_run_is_said_so(tmp_path):
    with pytest.raises(RunStateError, match="not a run folder"):
        stored_recipe(RunFolder(tmp_path))
