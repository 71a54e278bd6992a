"""The head: it learns, it is deterministic, it says where it failed, and it comes back from its file."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from class_helpers import column
from loop_helpers import corpus_of
from safetensors.torch import save_file

from backbones.base import FeatureLayout
from losses.against_rest import AgainstRest
from losses.base import Group
from losses.pnu import PNULoss
from selftrain._util.numeric import decide
from selftrain.data.corpus import TrainingSet
from selftrain.errors import NonFiniteLossError, RunStateError, TrainingError
from selftrain.models.calibration import fit_cut
from selftrain.models.head import HeadSettings, fit_scaling, load_head, train_head
from selftrain.models.metrics import macro_f1
from selftrain.models.trainer import HeadTrainer
from selftrain.state import LoopState

CHECKOUT = Path(__file__).parents[3]
LAYOUT = FeatureLayout(4, 2)
# spelled out: these tests are of the head, not of the defaults
SETTINGS = HeadSettings(
    kind="linear", hidden=16, dropout=0.3, epochs=40, learning_rate=0.05, weight_decay=1e-3, evaluate_every=10
)


def toy(count, seed, gap=1.5):
    """Two clouds of rows [count, 8] with the labels alternating; image flags vary, text flags do not."""
    random = np.random.default_rng(seed)
    labels = (np.arange(count) % 2).astype(np.int8)
    rows = random.normal(size=(count, LAYOUT.width)).astype(np.float32)
    rows[:, 0] += gap * np.where(labels == 1, 1, -1)
    rows[:, LAYOUT.has_text] = 1
    rows[:, LAYOUT.has_image] = random.integers(0, 2, count)
    return rows, labels


def training_set(labels):
    """A fifth labelled, some agreed, the rest divergent."""
    groups = np.full(len(labels), Group.DIVERGENT, np.int64)
    fifth = len(labels) // 5
    groups[:fifth] = np.where(labels[:fifth] == 1, Group.POSITIVE, Group.NEGATIVE)
    groups[fifth : 3 * fifth] = np.where(
        labels[fifth : 3 * fifth] == 1, Group.AGREED_POSITIVE, Group.AGREED_NEGATIVE
    )
    targets = np.where(labels == 1, 0.67, 0.33).astype(np.float32)
    return TrainingSet(np.arange(len(labels)), column(groups), column(targets))


def fit(rows=None, labels=None, **kwargs):
    train, truth = toy(100, seed=1)
    rows, labels = train if rows is None else rows, truth if labels is None else labels
    validation, validation_labels = toy(60, seed=2)
    options = {"loss": AgainstRest((PNULoss(),)), "settings": SETTINGS, "seed": 0} | kwargs
    scaling = fit_scaling(toy(100, seed=1)[0], LAYOUT)
    return train_head(rows, training_set(labels), validation, validation_labels, scaling=scaling, **options)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("form", ["weighted", "convex", "sakai", "nnpu"])
def test_a_head_separates_two_clouds_with_every_loss(kind, form):
    loss = PNULoss(form=form, balance=0.1)
    head = fit(loss=AgainstRest((loss,)), settings=SETTINGS._replace(kind=kind, hidden=16))
    rows, labels = toy(200, seed=3)
    assert macro_f1(labels, head.predict(rows)) > 0.82


def test_the_groups_decide_what_is_learned():
    """Agreed posts with the wrong label in place of all labelled ones turn the head round."""
    rows, labels = toy(100, seed=1)
    validation, validation_labels = toy(60, seed=2)
    groups = np.where(labels == 1, Group.AGREED_NEGATIVE, Group.AGREED_POSITIVE).astype(np.int64)
    targets = np.where(labels == 1, 0.05, 0.95).astype(np.float32)
    training = TrainingSet(np.arange(100), column(groups), column(targets))
    head = train_head(
        rows, training, validation, 1 - validation_labels,
        scaling=fit_scaling(rows, LAYOUT), loss=AgainstRest((PNULoss(),)), settings=SETTINGS, seed=0,
    )  # fmt: skip
    assert macro_f1(labels, head.predict(rows)) < 0.15


def test_the_best_epoch_by_validation_counts():
    head = fit()
    best = max(progress.macro_f1 for progress in head.curve)
    first = next(progress.epoch for progress in head.curve if progress.macro_f1 == best)
    assert head.best_epoch == first
    validation, labels = toy(60, seed=2)
    raw = (head.logits(validation)[:, 1] - head.calibration.offsets[1]) / head.calibration.slope
    assert macro_f1(labels, (raw > 0).astype(np.int8)) == best
    assert [progress.epoch for progress in head.curve] == [10, 20, 30, 40]


def test_of_equally_good_epochs_the_first_counts_and_gives_the_weights():
    (rows, labels), (validation, truth) = toy(100, seed=1, gap=8), toy(60, seed=2, gap=8)
    weights = {}
    for every in (10, 40):
        head = train_head(
            rows, training_set(labels), validation, truth,
            scaling=fit_scaling(rows, LAYOUT), loss=AgainstRest((PNULoss(),)),
            settings=SETTINGS._replace(evaluate_every=every), seed=0,
        )  # fmt: skip
        assert {progress.macro_f1 for progress in head.curve} == {1.0}
        assert head.best_epoch == every
        weights[every] = head.head.layers.weight.detach()
    assert not torch.equal(weights[10], weights[40])


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_the_same_seed_gives_the_same_weights_to_the_bit(kind):
    settings = SETTINGS._replace(kind=kind)
    rows, _ = toy(50, seed=4)
    first = fit(settings=settings).logits(rows)
    torch.manual_seed(99)  # whatever was drawn before
    np.testing.assert_array_equal(first, fit(settings=settings).logits(rows))
    if kind == "mlp":
        assert (first != fit(settings=settings, seed=1).logits(rows)).any()


def test_training_leaves_the_global_generator_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(settings=SETTINGS._replace(kind="mlp"))
    assert torch.equal(torch.rand(3), expected)


def test_training_can_start_from_the_best_head():
    best = fit()
    before = {name: value.clone() for name, value in best.head.state_dict().items()}
    settings = SETTINGS._replace(epochs=1, learning_rate=1e-9, weight_decay=0.0)
    again = fit(start=best, settings=settings)
    for name, value in again.head.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=1e-6, rtol=0)
    fit(start=best, settings=SETTINGS._replace(learning_rate=1.0))
    for name, value in best.head.state_dict().items():
        assert torch.equal(value, before[name]), "training changed the head it started from"


def test_nan_in_the_features_stops_training_and_names_the_step():
    rows, labels = toy(100, seed=1)
    rows[7, 0] = np.nan
    with pytest.raises(NonFiniteLossError, match=r"round 7, epoch 1, step 1: the loss is nan \(.*pn"):
        fit(rows, labels, where="round 7")


def test_a_huge_learning_rate_stops_training_and_names_the_step():
    with pytest.raises(
        NonFiniteLossError, match=r"round 3, epoch 2, step 1: the loss is (nan|inf) .*learning_rate"
    ):
        fit(settings=SETTINGS._replace(learning_rate=1e37), where="round 3")


def test_a_last_step_that_spoils_the_weights_is_an_error_too():
    settings = SETTINGS._replace(learning_rate=1e37, epochs=1)
    with pytest.raises(
        NonFiniteLossError, match="round 3: the trained head gives logits that are not finite"
    ):
        fit(settings=settings, where="round 3")


def test_scaling_makes_both_blocks_equally_loud_and_skips_what_never_varies():
    rows, _ = toy(400, seed=0)
    rows[:, LAYOUT.image] *= 1000
    scaling = fit_scaling(rows, LAYOUT)
    assert LAYOUT.has_text not in scaling.columns
    assert LAYOUT.has_image in scaling.columns
    prepared = (rows[:, scaling.columns] - scaling.mean) * scaling.scale
    np.testing.assert_allclose(prepared.mean(0), 0, atol=1e-2)
    lengths = [np.sqrt((prepared[:, part] ** 2).sum(1).mean()) for part in (slice(0, 4), slice(4, 6))]
    np.testing.assert_allclose(lengths, 10, rtol=1e-4)


def test_posts_that_all_look_the_same_are_refused():
    with pytest.raises(TrainingError, match="the features of 5 posts are all the same"):
        fit_scaling(np.ones((5, LAYOUT.width), np.float32), LAYOUT)


PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from selftrain.models.head import load_head
head, metadata = load_head(Path(sys.argv[1]))
print(metadata["round"], head.logits(np.load(sys.argv[2])).tobytes().hex())
"""


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_saved_head_gives_identical_logits_in_a_fresh_process(tmp_path, kind):
    head = fit(settings=SETTINGS._replace(kind=kind, hidden=16))
    rows, _ = toy(50, seed=5)
    file, inputs = tmp_path / "model.safetensors", tmp_path / "rows.npy"
    head.save(file, {"round": 4})
    np.save(inputs, rows)
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(file), str(inputs)],
        cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    number, found = result.stdout.split()
    assert number == "4"
    assert found == head.logits(rows).tobytes().hex()


def test_a_loaded_head_can_be_saved_again_to_the_same_bytes(tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    fit().save(first, {"round": 1})
    loaded, metadata = load_head(first)
    assert metadata == {"round": 1}
    loaded.save(second, metadata)
    assert first.read_bytes() == second.read_bytes()


def _header(file, change):
    """The saved head with its JSON header changed."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["selftrain"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    change(header, tensors)
    save_file(tensors, file, {"selftrain": json.dumps(header)})


DAMAGES = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "text": lambda file: file.write_text("no model at all" * 50),
    "foreign": lambda file: save_file({"weight": torch.zeros(3)}, file),
    "foreign metadata": lambda file: save_file({"weight": torch.zeros(3)}, file, {"selftrain": "[1]"}),
    "broken metadata": lambda file: save_file({"weight": torch.zeros(3)}, file, {"selftrain": "{"}),
    "another format": lambda file: _header(file, lambda h, _: h.update(format="selftrain-head-9")),
    "unknown setting": lambda file: _header(file, lambda h, _: h["settings"].update(colour="red")),
    "no calibration": lambda file: _header(file, lambda h, _: h.pop("calibration")),
    "no settings": lambda file: _header(file, lambda h, _: h.pop("settings")),
    "a tensor short": lambda file: _header(file, lambda _, t: t.pop("layers.bias")),
    "no scaling": lambda file: _header(file, lambda _, t: t.pop("mean")),
    "another shape": lambda file: _header(file, lambda _, t: t.update({"layers.weight": torch.zeros(1, 3)})),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_file_is_named(tmp_path, damage):
    file = tmp_path / "model.safetensors"
    fit(settings=SETTINGS._replace(epochs=1)).save(file, {})
    DAMAGES[damage](file)
    with pytest.raises(RunStateError, match=r"model\.safetensors"):
        load_head(file)


def test_soft_targets_are_read_from_the_training_set():
    """With hard targets for the agreed posts the head grows more certain than with soft ones."""
    rows, labels = toy(100, seed=1)
    training = training_set(labels)
    hard = training._replace(targets=column(labels == 1).astype(np.float32))
    validation, validation_labels = toy(60, seed=2)
    size = {}
    for name, one in (("soft", training), ("hard", hard)):
        head = train_head(
            rows, one, validation, validation_labels,
            scaling=fit_scaling(rows, LAYOUT), loss=AgainstRest((PNULoss(balance=0.0),)),
            settings=SETTINGS._replace(evaluate_every=40), seed=0,
        )  # fmt: skip
        size[name] = float(head.head.layers.weight.detach().norm())
    assert size["hard"] > 1.05 * size["soft"]


def test_a_cut_has_the_highest_expected_macro_f1_and_helps_a_rare_class():
    draws = np.random.RandomState(0)
    odds = draws.normal(-2.5, 1.2, 4000)
    truth = draws.random_sample(4000) < 1 / (1 + np.exp(-odds))
    logits = np.stack([np.zeros(4000), odds], axis=1).astype(np.float32)
    cut = fit_cut(logits)
    assert cut[0] == 0
    assert cut[1] > 0.5
    tried = {step: macro_f1(truth, odds + step > 0) for step in np.linspace(-4, 4, 81)}
    assert macro_f1(truth, decide(logits, cut)) > max(tried.values()) - 0.02
    assert macro_f1(truth, decide(logits, cut)) > tried[0.0] + 0.02
    even = np.concatenate([logits, logits[:, ::-1]])
    assert np.abs(fit_cut(even)).max() < 0.3
    assert fit_cut(np.concatenate([logits, np.full((3, 2), np.nan, np.float32)])) == cut


def test_a_cut_of_four_classes_beats_the_likeliest_where_they_are_uneven():
    draws = np.random.RandomState(1)
    logits = draws.normal(0, 1.5, (5000, 4)) + np.array([2.0, 0.5, -1.0, -1.0])
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = (probs.cumsum(1) > draws.random_sample((5000, 1))).argmax(1)
    cut = fit_cut(logits.astype(np.float32))
    assert macro_f1(truth, decide(logits, cut), range(4)) > macro_f1(truth, decide(logits), range(4)) + 0.01


def test_a_trainer_serves_one_run_after_another_as_if_each_were_its_first():
    """The scale of the first run's features stayed: another run of the same trainer began from it."""
    random = np.random.default_rng(0)
    shared = HeadTrainer(epochs=5)
    for scale, width in ((1.0, 8), (30.0, 8)):
        rows = (scale * random.normal(size=(60, 10))).astype(np.float32)
        rows[:, width:] = 0
        corpus = corpus_of((20, 20, 20, 0), ("ham", "spam"), rows)
        learned = LoopState().training_set(corpus, soft_positive=0.8)
        given = {"loss": AgainstRest((PNULoss(),)), "seed": 0, "where": "round 0", "start": None}
        found = [trainer.fit(corpus, learned, **given) for trainer in (shared, HeadTrainer(epochs=5))]
        logits = [one.logits(rows) for one in found]
        assert np.array_equal(*logits)


def test_loading_a_head_leaves_the_random_state_as_it_was(tmp_path):
    fit(settings=SETTINGS._replace(kind="mlp")).save(tmp_path / "head.safetensors", {})
    before = torch.random.get_rng_state()
    load_head(tmp_path / "head.safetensors")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_settings_of_numpy_are_kept_in_the_file(tmp_path):
    fit(settings=SETTINGS._replace(epochs=np.int64(3), learning_rate=np.float32(0.25))).save(
        tmp_path / "a", {}
    )
    assert load_head(tmp_path / "a")[0].settings[3:5] == (3, 0.25)
