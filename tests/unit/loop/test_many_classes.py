"""A task of four classes through the loop: both rules, people, kills, figures, pages, predictions."""

import numpy as np
import pytest
from loop_helpers import corpus_of, turns, written
from sklearn.metrics import f1_score, roc_auc_score

from agents.panel import CrossReview
from agents.simulated import SimulatedAgent, symmetric
from losses.base import Group
from losses.pnu import PNULoss
from selftrain import loop
from selftrain._util.numeric import decide
from selftrain.errors import SplitError
from selftrain.models.head import load_head
from selftrain.models.metrics import against_rest, evaluate, reliability
from selftrain.models.trainer import HeadTrainer
from selftrain.report.run_page import gather, render
from selftrain.rounds import replay
from selftrain.selection import Mixed, RandomPosts, TopK, Uncertain, quotas
from selftrain.state import LoopState, RoundLimits
from selftrain.store.run_dir import RunFolder
from selftrain.store.scores import Scored, read_scores
from selftrain.verification.rules import PosteriorRule, Unanimous

CLASSES = ("joy", "optimism", "sadness", "anger")  # the positive one last


def make_corpus(*, labelled=24, validation=40, pool=160, test=80):
    sizes = (labelled, validation, pool, test)
    truth = turns(sizes, CLASSES)
    rows = np.random.default_rng(3).normal(size=(len(truth), 10)).astype(np.float32)
    rows[np.arange(len(truth)), truth] += 3.0
    return corpus_of(sizes, CLASSES, rows)


def agents(corpus, accuracy=0.85):
    truth = {post.id: CLASSES[value] for post, value in zip(corpus.posts, corpus.truth, strict=True)}
    confusion = symmetric(corpus.shown, accuracy)
    return CrossReview(*(SimulatedAgent(role, truth, confusion) for role in ("reviewer", "user")))


def rounds_of(folder, corpus, rule, *, rounds=2, trainer=None, selector=None):
    return loop.self_train(
        corpus, trainer or HeadTrainer(epochs=10), agents(corpus),
        selector=selector or TopK(40), loss=PNULoss(), folder=RunFolder(folder), rule=rule,
        settings=loop.LoopSettings(root=folder, limits=RoundLimits(rounds, 9), folds=3),
    )  # fmt: skip


# ---- the loop -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "validation"), [(Unanimous(), 40), (PosteriorRule(), 0)])
def test_four_classes_are_learned_and_a_run_goes_on_where_it_stopped(tmp_path, rule, validation):
    corpus = make_corpus(validation=validation)
    rounds = list(rounds_of(tmp_path / "whole", corpus, rule))
    assert [one.number for one in rounds] == [0, 1, 2]
    assert any(one.kept for one in rounds[1:])
    for one in rounds:
        assert np.array(one.test.confusion).shape == (4, 4)
        assert np.sum(one.test.confusion) == len(corpus.test)
        assert one.test.macro_f1 > 0.6
        assert set(one.training.labelled) == set(CLASSES)
    assert rounds[1].sets.candidates.posts == 40
    assert set(rounds[1].theta) == set(CLASSES)
    assert sum(rounds[1].theta.values()) == pytest.approx(1, abs=1e-4)
    assert rounds[1].pseudo_label_precision > 0.75  # agents right on .85, which err together
    # the same, stopped after round 1 and begun again
    part = rounds_of(tmp_path / "part", corpus, rule)
    for _ in range(2):
        next(part)
    part.close()
    list(rounds_of(tmp_path / "part", corpus, rule))
    assert written(tmp_path / "part") == written(tmp_path / "whole")


def test_a_saved_head_gives_a_logit_a_class(tmp_path):
    corpus = make_corpus()
    list(rounds_of(tmp_path, corpus, Unanimous(), rounds=0))
    head, header = load_head(tmp_path / "best" / "model.safetensors")
    assert head.classes == CLASSES
    assert header["round"] == 0
    scored = read_scores(tmp_path / "best", CLASSES)["test"]
    np.testing.assert_allclose(head.logits(corpus.rows(corpus.test)), scored.logits, atol=2e-6)


def test_the_posterior_is_over_all_classes_and_targets_are_its_evidence(tmp_path):
    corpus = make_corpus()
    list(rounds_of(tmp_path, corpus, PosteriorRule(), selector=Uncertain(40)))
    verdicts = RunFolder(tmp_path).verdicts(1)
    for one in verdicts:
        assert tuple(one.posterior.probs) == CLASSES
        assert sum(one.posterior.probs.values()) == pytest.approx(1, abs=1e-5)
        best, second = sorted(one.posterior.probs.values())[:-3:-1]
        assert sum(one.posterior.log_odds.values()) == pytest.approx(np.log(best / second), abs=0.01)
    right = [CLASSES[corpus.truth[corpus.position_of[one.post_id]]] == one.label for one in verdicts]
    assert np.mean(right) > 0.75
    state, _ = replay(RunFolder(tmp_path))
    training = state.training_set(corpus, soft_positive=0.8)
    agreed = np.isin(training.groups[:, 0], (Group.AGREED_POSITIVE, Group.AGREED_NEGATIVE))
    posteriors = [
        state.accepted[corpus.posts[position].id].verdict.posterior
        for position in training.positions[agreed].tolist()
    ]
    told = [[one.evidence_for(name) for name in CLASSES] for one in posteriors]
    np.testing.assert_allclose(training.targets[agreed], told, atol=1e-5)


def test_without_a_posterior_the_other_classes_share_what_the_target_leaves():
    corpus = make_corpus(validation=0)
    first, second = (corpus.posts[i].id for i in corpus.pool[:2])
    state = LoopState(divergent=frozenset({second}))
    training = state.training_set(corpus, soft_positive=0.7)
    assert training.labels.tolist() == corpus.labels[corpus.labelled].tolist()
    assert training.groups[-1].tolist() == [Group.DIVERGENT] * 4
    assert corpus.groups(np.array([1]), Group.POSITIVE, Group.NEGATIVE).tolist() == [
        [Group.NEGATIVE, Group.POSITIVE, Group.NEGATIVE, Group.NEGATIVE]
    ]
    assert first not in state.divergent


def test_the_page_shows_all_classes(tmp_path):
    corpus = make_corpus()
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        classes = {"positive": corpus.positive, "all": list(corpus.shown)}
        limits = {"rounds": {"max": 1, "patience": 3}, "selection": {"reselect_divergent": True}}
        folder.begin(
            {"seed": 0, "data": {}, **limits},
            {"classes": classes, "identity": {"task": "emotion"}, "splits": {"pool": 160}},
        )
        list(rounds_of(folder.path, corpus, Unanimous(), rounds=1))
    page = gather(folder)
    html = render(page)
    assert [html.count(f'<th scope="col"><bdi>{name}</bdi></th>') >= 2 for name in CLASSES] == [True] * 4
    # the positive class's row is the first, its hits the first of it
    first_row = html.split("the model's by column", 1)[1].split("<tbody>", 1)[1].split("</tr>", 1)[0]
    shown = [int(cell.split("</b>", 1)[0]) for cell in first_row.split("<b>")[1:]]
    last = list(page.final[0].metrics.confusion[3])
    assert shown == [last[3], *last[:3]]


# ---- choosing -------------------------------------------------------------------------------------------


def pool_logits(posts=400, seed=0):
    return np.random.default_rng(seed).normal(0, 2, (posts, 4)).astype(np.float32)


def picked(selector, logits, size=37):
    positions = np.arange(len(logits))
    chunks = [(positions[i : i + size], logits[i : i + size]) for i in range(0, len(logits), size)]
    found = selector.select(chunks, most=None, classes=CLASSES, seed=1)
    np.testing.assert_array_equal(found.logits, logits[found.positions])
    assert len(set(found.positions.tolist())) == len(found.positions)
    return found.positions


def surest_first(logits):
    exp = np.exp(logits.astype(float))
    return np.argsort(-(exp / exp.sum(1, keepdims=True)).max(1), kind="stable")


def test_top_k_takes_the_surest_of_each_class():
    logits = pool_logits()
    found = picked(TopK(40), logits)
    order, given = surest_first(logits), decide(logits)
    expected = np.concatenate([order[given[order] == k][:10] for k in range(4)])
    assert sorted(found) == sorted(expected)
    assert found.tolist() == [i for i in order if i in set(found.tolist())]
    assert np.bincount(decide(logits[picked(RandomPosts(40, "equal"), logits)])).tolist() == [10] * 4


def test_uncertain_takes_those_whose_likeliest_class_is_least_likely():
    logits = pool_logits()
    assert picked(Uncertain(25), logits).tolist() == surest_first(logits)[::-1][:25].tolist()
    assert len(picked(Mixed(30), logits)) == 30


def test_quotas_of_four_classes_add_up_and_name_every_class():
    assert quotas(10, "equal", classes=CLASSES) == [2, 3, 2, 3]
    assert quotas(9, "natural", classes=CLASSES, found=np.array([1, 1, 1, 0])) == [3, 3, 3, 0]
    shares = dict(zip(CLASSES, (0.1, 0.2, 0.3, 0.4), strict=True))
    assert quotas(10, shares, classes=CLASSES) == [1, 2, 3, 4]
    with pytest.raises(SplitError, match="expected 'joy', 'optimism', 'sadness' and 'anger' adding up to 1"):
        quotas(10, {"joy": 0.5, "anger": 0.5}, classes=CLASSES)


# ---- figures --------------------------------------------------------------------------------------------


def test_figures_of_four_classes_are_scikit_learns():
    logits = pool_logits(300, 5)
    labels = np.random.default_rng(6).integers(0, 4, 300).astype(np.int16)
    labels[:150] = decide(logits)[:150]
    found, predicted = evaluate(labels, logits), logits.argmax(1)
    probs = np.exp(logits.astype(float))
    probs /= probs.sum(1, keepdims=True)
    assert found.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert found.auc == pytest.approx(
        np.mean([roc_auc_score(labels == k, probs[:, k] / (1 - probs[:, k])) for k in range(4)])
    )
    assert found.brier == pytest.approx(np.mean((probs - np.eye(4)[labels]) ** 2))
    truth, odds = against_rest(labels, logits)
    assert truth.shape == odds.shape == (300, 4)
    diagram = reliability(Scored([f"p{i}" for i in range(300)], labels, logits))
    assert sum(one.posts for one in diagram.bins) == 1200
