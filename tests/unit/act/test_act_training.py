"""The head for K classes: it learns, mixed labels are what the threshold rule says, ACT unlearns a bias."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backbones.base import FeatureLayout
from losses import BatchError
from selftrain.act.training import ACTSet, labelled_set, load_classes_model, train_classes
from selftrain.errors import NonFiniteLossError, RunStateError, TrainingError
from selftrain.models.calibration import fit_calibration
from selftrain.models.head import HeadSettings, fit_scaling
from selftrain.models.metrics import macro_f1

CLASSES = ("a", "b", "c")
LAYOUT = FeatureLayout(6, 0)
LINEAR = HeadSettings(kind="linear", epochs=60, learning_rate=0.05)


def some_rows(n, seed=0, spread=1.0):
    """Three overlapping clouds of six numbers, and which of them each row comes from."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    centres = np.eye(3, 6) * 2.5
    rows = np.concatenate([centres[labels] + spread * rng.standard_normal((n, 6)), np.ones((n, 2))], axis=1)
    return rows.astype(np.float32), labels.astype(np.int64)


ROWS, TRUTH = some_rows(600)
CHECK, CHECK_TRUTH = some_rows(300, seed=1)
TEST, TEST_TRUTH = some_rows(600, seed=2)


def train(labels, **changed):
    options = {
        "classes": CLASSES,
        "scaling": fit_scaling(ROWS, LAYOUT),
        "settings": LINEAR,
        "seed": 0,
    } | changed
    return train_classes(ROWS, labels, CHECK, CHECK_TRUTH, **options)


def score(model):
    return macro_f1(TEST_TRUTH, model.predict(TEST))


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_it_learns_three_classes(kind):
    model = train(labelled_set(TRUTH), settings=LINEAR._replace(kind=kind))
    assert score(model) > 0.9
    assert model.probabilities(TEST).sum(1) == pytest.approx(1, abs=1e-5)
    assert model.curve[-1].epoch == 60
    assert max(p.macro_f1 for p in model.curve) == next(
        p.macro_f1 for p in model.curve if p.epoch == model.best_epoch
    )


def test_the_same_seed_gives_the_same_model_and_leaves_the_generator_alone():
    state = torch.random.get_rng_state()
    first, second = (train(labelled_set(TRUTH), settings=LINEAR._replace(kind="mlp")) for _ in range(2))
    assert np.array_equal(first.probabilities(TEST), second.probabilities(TEST))
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_threshold_rule_trains_on_mixed_labels():
    machine = np.where(np.arange(600) % 3 == 0, (TRUTH + 1) % 3, TRUTH)
    reviewed = np.arange(600) % 6 == 0
    act = train(ACTSet(machine, TRUTH, reviewed, reviewed.astype(float)))
    mixed = train(labelled_set(np.where(reviewed, TRUTH, machine)))
    assert act.probabilities(TEST) == pytest.approx(mixed.probabilities(TEST), abs=1e-4)


def test_a_few_human_labels_undo_a_systematic_error_of_the_machine():
    """The machine calls most of class c an a. A third of all is reviewed at random: the loss is unbiased."""
    rng = np.random.default_rng(3)
    machine = np.where((TRUTH == 2) & (rng.random(600) < 0.8), 0, TRUTH)
    inclusion = np.full(600, 1 / 3)
    reviewed = rng.random(600) < inclusion
    human = np.where(reviewed, TRUTH, -1)  # nobody's label is read where nobody looked
    biased, corrected = train(labelled_set(machine)), train(ACTSet(machine, human, reviewed, inclusion))
    mixed = train(labelled_set(np.where(reviewed, TRUTH, machine)))
    assert score(corrected) > 0.85
    assert score(corrected) > score(mixed) + 0.05
    assert score(corrected) > score(biased) + 0.1


def test_a_model_is_saved_and_loaded(tmp_path):
    model = train(labelled_set(TRUTH))
    model.save(tmp_path / "model.safetensors", {"task": "clouds"})
    loaded, header = load_classes_model(tmp_path / "model.safetensors")
    assert header == {"task": "clouds"}
    assert loaded.classes == CLASSES
    assert np.array_equal(loaded.probabilities(TEST), model.probabilities(TEST))


def test_files_that_are_no_model_are_refused(tmp_path):
    from safetensors.numpy import save_file

    file = tmp_path / "model.safetensors"
    with pytest.raises(RunStateError):
        load_classes_model(file)
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(RunStateError):
        load_classes_model(file)
    save_file({"x": np.zeros(1)}, file, {"selftrain": '{"format": "selftrain-head-1"}'})
    with pytest.raises(RunStateError, match="selftrain-head-1"):
        load_classes_model(file)
    save_file({"x": np.zeros(1)}, file, {"selftrain": '{"format": "selftrain-classes-2"}'})
    with pytest.raises(RunStateError, match="incomplete"):
        load_classes_model(file)


def test_the_temperature_is_the_one_that_was_put_on():
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(4000, 3, generator=generator, dtype=torch.float64) * 2
    labels = torch.multinomial(torch.softmax(true, 1), 1, generator=generator).squeeze(1)
    logits, truth = true.numpy(), labels.numpy()
    assert 1 / fit_calibration(logits * 3, truth).slope == pytest.approx(3, rel=0.08)
    assert 1 / fit_calibration(logits / 3, truth).slope == pytest.approx(1 / 3, rel=0.08)
    few = fit_calibration(logits[:4] * 3, truth[:4])
    assert abs(np.log(few.slope)) < np.log(3)  # four posts change little
    assert few.offset == 0


def test_what_cannot_be_trained_on_is_refused():
    nothing = np.zeros((0, 8), np.float32)
    with pytest.raises(TrainingError, match="0 posts to train on"):
        train_classes(
            nothing, labelled_set(TRUTH[:0]), CHECK, CHECK_TRUTH, classes=CLASSES,
            scaling=fit_scaling(ROWS, LAYOUT), settings=LINEAR, seed=0,
        )  # fmt: skip
    with pytest.raises(TrainingError, match="two classes"):
        train(labelled_set(TRUTH), classes=("a",))
    with pytest.raises(BatchError):
        train(labelled_set(TRUTH + 1))
    with pytest.raises(NonFiniteLossError):
        train_classes(
            np.where(np.arange(600)[:, None] == 5, np.nan, ROWS).astype(np.float32), labelled_set(TRUTH),
            CHECK, CHECK_TRUTH, classes=CLASSES, scaling=fit_scaling(ROWS, LAYOUT), settings=LINEAR, seed=0,
        )  # fmt: skip
