"""The head for K classes: it learns, mixed labels are what the threshold rule says, ACT unlearns a bias."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from backbones.base import Encoded, EncodeFailure, FeatureLayout
from losses import BatchError
from selftrain.act.training import ACTTrainer
from selftrain.data.posts import Post
from selftrain.errors import NonFiniteLossError, RunMismatchError, RunStateError, TrainingError
from selftrain.models.act_model import ACTModel
from selftrain.models.calibration import fit_temperature
from selftrain.models.head import CLASSES_FORMAT, Head, HeadSettings, fit_scaling, load_head
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


def names(labels, given=None):
    """Class names of indices; None where no label is given."""
    given = np.ones(len(labels), dtype=bool) if given is None else given
    return [CLASSES[one] if known else None for one, known in zip(labels, given, strict=True)]


def train(machine, human=None, reviewed=None, inclusion=None, *, rows=ROWS, classes=CLASSES, settings=LINEAR):
    """Train on people's labels where they reviewed, else on the machine's; by default nobody did."""
    human = machine if human is None else human
    reviewed = np.zeros(len(machine), dtype=bool) if reviewed is None else reviewed
    inclusion = np.ones(len(machine)) if inclusion is None else inclusion
    return ACTTrainer(classes, settings=settings, seed=0).fit(
        rows, names(machine), names(human, reviewed), inclusion,
        validation=(CHECK, names(CHECK_TRUTH)), layout=LAYOUT,
    ).classifier  # fmt: skip


def score(model):
    return macro_f1(TEST_TRUTH, model.predict(TEST))


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_it_learns_three_classes(kind):
    model = train(TRUTH, settings=LINEAR._replace(kind=kind))
    assert score(model) > 0.9
    assert model.probabilities(TEST).sum(1) == pytest.approx(1, abs=1e-5)
    assert model.curve[-1].epoch == 60
    assert max(p.macro_f1 for p in model.curve) == next(
        p.macro_f1 for p in model.curve if p.epoch == model.best_epoch
    )


def test_the_same_seed_gives_the_same_model_and_leaves_the_generator_alone():
    state = torch.random.get_rng_state()
    first, second = (train(TRUTH, settings=LINEAR._replace(kind="mlp")) for _ in range(2))
    assert np.array_equal(first.probabilities(TEST), second.probabilities(TEST))
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_threshold_rule_trains_on_mixed_labels():
    machine = np.where(np.arange(600) % 3 == 0, (TRUTH + 1) % 3, TRUTH)
    reviewed = np.arange(600) % 6 == 0
    act = train(machine, TRUTH, reviewed, reviewed.astype(float))
    mixed = train(np.where(reviewed, TRUTH, machine))
    assert act.probabilities(TEST) == pytest.approx(mixed.probabilities(TEST), abs=1e-4)


def test_a_few_human_labels_undo_a_systematic_error_of_the_machine():
    """The machine calls most of class c an a. A third of all is reviewed at random: the loss is unbiased."""
    rng = np.random.default_rng(3)
    machine = np.where((TRUTH == 2) & (rng.random(600) < 0.8), 0, TRUTH)
    inclusion = np.full(600, 1 / 3)
    reviewed = rng.random(600) < inclusion
    human = np.where(reviewed, TRUTH, -1)  # nobody's label is read where nobody looked
    biased, corrected = train(machine), train(machine, human, reviewed, inclusion)
    mixed = train(np.where(reviewed, TRUTH, machine))
    assert score(corrected) > 0.85
    assert score(corrected) > score(mixed) + 0.05
    assert score(corrected) > score(biased) + 0.1


def test_a_model_is_saved_and_loaded(tmp_path):
    model = train(TRUTH)
    model.save(tmp_path / "model.safetensors", {"task": "clouds"})
    loaded, header = load_head(tmp_path / "model.safetensors", CLASSES_FORMAT)
    assert header == {"task": "clouds"}
    assert loaded.classes == CLASSES
    assert np.array_equal(loaded.probabilities(TEST), model.probabilities(TEST))


def test_files_that_are_no_model_are_refused(tmp_path):
    from safetensors.numpy import save_file

    file = tmp_path / "model.safetensors"
    with pytest.raises(RunStateError):
        load_head(file, CLASSES_FORMAT)
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(RunStateError):
        load_head(file, CLASSES_FORMAT)
    save_file({"x": np.zeros(1)}, file, {"selftrain": '{"format": "selftrain-head-2"}'})
    with pytest.raises(RunStateError, match="selftrain-head-2"):
        load_head(file, CLASSES_FORMAT)
    save_file({"x": np.zeros(1)}, file, {"selftrain": '{"format": "selftrain-classes-3"}'})
    with pytest.raises(RunStateError, match="incomplete"):
        load_head(file, CLASSES_FORMAT)


def test_the_temperature_is_the_one_that_was_put_on():
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(4000, 3, generator=generator, dtype=torch.float64) * 2
    labels = torch.multinomial(torch.softmax(true, 1), 1, generator=generator).squeeze(1)
    logits, truth = true.numpy(), labels.numpy()
    assert 1 / fit_temperature(logits * 3, truth).slope == pytest.approx(3, rel=0.08)
    assert 1 / fit_temperature(logits / 3, truth).slope == pytest.approx(1 / 3, rel=0.08)
    few = fit_temperature(logits[:4] * 3, truth[:4])
    assert abs(np.log(few.slope)) < np.log(3)  # four posts change little
    assert few.offsets == ()


def test_what_cannot_be_trained_on_is_refused():
    with pytest.raises(TrainingError, match=r"rows of shape \(0, 8\) to train on"):
        train(TRUTH[:0], rows=np.zeros((0, 8), np.float32))
    with pytest.raises(TrainingError, match="two or more different names"):
        train(TRUTH, classes=("a",))
    with pytest.raises(TrainingError, match="'c' is no class"):
        train(TRUTH, classes=("a", "b"))
    with pytest.raises(BatchError):
        train(TRUTH, inclusion=np.full(600, 1.5))
    with pytest.raises(NonFiniteLossError):
        train(TRUTH, settings=LINEAR._replace(learning_rate=1e30))


@pytest.mark.filterwarnings("error")
def test_probabilities_that_torch_does_not_read_in_place_are_read():
    inclusion = np.full(600, 0.5)
    expected = train(TRUTH, inclusion=inclusion).probabilities(TEST[:5])
    inclusion.setflags(write=False)
    for given in (inclusion, inclusion[::-1], inclusion.tolist()):
        assert np.array_equal(train(TRUTH, inclusion=given).probabilities(TEST[:5]), expected)


def test_rows_that_are_not_finite_are_refused_and_have_no_label(tmp_path):
    broken = ROWS.copy()
    broken[3] = np.nan
    with pytest.raises(TrainingError, match="1 of 600 feature rows are not finite, row 3 first"):
        train(TRUTH, rows=broken)
    model = ACTModel(train(TRUTH), "a")
    with pytest.raises(TrainingError, match="row 3 first"):
        model.predict_labels(broken)
    model.save(str(tmp_path / "model"))
    loaded = ACTModel.load(str(tmp_path / "model"))
    assert loaded.predict_labels(ROWS[:5]) == model.predict_labels(ROWS[:5])


def test_classes_come_as_an_array_too():
    assert ACTTrainer(np.array(["a", "b"])).positive == "a"


# ---- the door -----------------------------------------------------------------------------------------


class Sums:
    """A backbone whose rows follow from the text; posts that say so cannot be encoded."""

    name, layout = "sums", FeatureLayout(4, 0)

    def fingerprint(self):
        return "5" * 64

    def encode(self, posts, *, batch_size=64, workers=0, progress=False):
        rows, failures = np.zeros((len(posts), 6), np.float32), []
        for place, post in enumerate(posts):
            if "broken" in post.text:
                rows[place] = np.nan
                failures.append(EncodeFailure(place, "it is broken"))
            else:
                rows[place, : len(post.text.split())] = [float(word) for word in post.text.split()]
        return Encoded(rows, tuple(failures))


def worded(rows):
    return [Post(f"p{i}", " ".join(f"{value:.6f}" for value in row)) for i, row in enumerate(rows)]


def drawn_set(classes, n=240, seed=0):
    """Rows of K clouds, names of their classes, and what a machine and a few people say of them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    rows = (np.eye(classes, 4)[labels] * 3 + rng.standard_normal((n, 4))).astype(np.float32)
    names = [f"class {label}" for label in labels]
    machine = [f"class {(label + (rng.random() < 0.3)) % classes}" for label in labels]
    inclusion = np.full(n, 0.4)
    human = [name if rng.random() < 0.4 else None for name in names]
    return rows, names, machine, human, inclusion


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_the_loss_that_is_trained_on_is_the_formula(classes):
    rows, names, machine, human, pi = drawn_set(classes)
    every = tuple(f"class {k}" for k in range(classes))
    settings = HeadSettings(dropout=0.0, epochs=1, evaluate_every=1)
    model = ACTTrainer(every, settings=settings, seed=4, power=0.7).fit(
        rows, machine, human, pi, validation=(rows, names)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        scaling = fit_scaling(rows, None)
        head = Head(scaling, settings.kind, settings.hidden, 0.0, classes)
    log_probs = torch.log_softmax(head(torch.from_numpy(rows)).reshape(len(rows), -1), 1).detach().numpy()
    at = np.arange(len(rows))
    l_m = -log_probs[at, [every.index(one) for one in machine]]
    l_h = -log_probs[at, [every.index(one or "class 0") for one in human]]
    delta = np.array([one is not None for one in human])
    expected = np.mean(0.7 * l_m + np.where(delta, (l_h - 0.7 * l_m) / pi, 0.0))
    assert model.classifier.curve[0].parts["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_a_model_of_posts_is_found_again_by_a_fresh_process(classes, tmp_path):
    rows, names, machine, human, pi = drawn_set(classes)
    trainer = ACTTrainer(sorted(set(names)), backbone=Sums(), positive="class 1", settings=LINEAR)
    model = trainer.fit(worded(rows), machine, human, pi, validation=(worded(rows), names))
    assert np.mean([a == b for a, b in zip(model.predict_labels(worded(rows)), names, strict=True)]) > 0.8
    assert model.probabilities(worded(rows)).sum(1) == pytest.approx(1, abs=1e-5)
    saved = model.save(tmp_path / "model", record={"task": "sums"})
    assert json.loads((tmp_path / "model" / "act.json").read_text())["task"] == "sums"
    np.save(tmp_path / "rows.npy", np.concatenate([rows, np.zeros((len(rows), 2), np.float32)], 1))
    code = (
        "import sys, numpy as np; from pathlib import Path; from selftrain.models.act_model import ACTModel;"
        "m = ACTModel.load(Path(sys.argv[1]) / 'model'); print(m.positive, m.classes);"
        "np.save(Path(sys.argv[1]) / 'found.npy', m.probabilities(np.load(Path(sys.argv[1]) / 'rows.npy')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert done.stdout == f"class 1 {model.classes}\n"
    assert np.array_equal(
        np.load(tmp_path / "found.npy"), model.probabilities(np.load(tmp_path / "rows.npy"))
    )
    again = ACTModel.load(tmp_path / "model", backbone=Sums())
    assert again.fingerprint == saved.fingerprint == model.fingerprint
    scored = again.predict([*worded(rows[:3]), Post("b", "broken")])
    assert [one.label for one in scored[:3]] == model.predict_labels(worded(rows[:3]))
    assert scored[3].reason == "it is broken"


def test_what_does_not_fit_is_refused_by_name(tmp_path):
    rows, names, machine, human, pi = drawn_set(2)
    with pytest.raises(TrainingError, match="two or more different names"):
        ACTTrainer(("a", "a"))
    for unnamed in ("ab", (1, 2)):
        with pytest.raises(TrainingError, match="different names in a list"):
            ACTTrainer(unnamed)
    with pytest.raises(TrainingError, match="one of them"):
        ACTTrainer(("a", "b"), positive="c")
    trainer = ACTTrainer(("class 0", "class 1"), settings=LINEAR)
    with pytest.raises(TrainingError, match="240 posts, 1 machine labels"):
        trainer.fit(rows, machine[:1], human, pi, validation=(rows, names))
    with pytest.raises(TrainingError, match="'kind' is no class"):
        trainer.fit(rows, ["kind", *machine[1:]], human, pi, validation=(rows, names))
    with pytest.raises(BatchError, match="inclusion probability 0"):
        trainer.fit(rows, machine, human, np.zeros(240), validation=(rows, names))
    with pytest.raises(TrainingError, match="no backbone"):
        trainer.fit(worded(rows), machine, human, pi, validation=(rows, names))
    with pytest.raises(TrainingError, match="1 of 240 posts cannot be encoded, the first is 'p0'"):
        ACTTrainer(("class 0", "class 1"), backbone=Sums()).fit(
            [Post("p0", "broken"), *worded(rows)[1:]], machine, human, pi, validation=(worded(rows), names)
        )
    with pytest.raises(TrainingError, match=r"\(240, 4\) to train on and \(240, 3\)"):
        trainer.fit(rows, machine, human, pi, validation=(rows[:, :3], names))
    with pytest.raises(TrainingError, match=r"\(240, 3\): expected \[B, 6\], as the backbone 'sums'"):
        ACTTrainer(("class 0", "class 1"), backbone=Sums()).fit(
            rows[:, :3], machine, human, pi, validation=(rows, names)
        )
    model = trainer.fit(rows, machine, human, pi, validation=(rows, names)).save(tmp_path / "m")
    with pytest.raises(TrainingError, match="no backbone"):
        model.predict(worded(rows[:1]))
    other = ACTTrainer(("class 0", "class 1"), backbone=Sums(), settings=LINEAR).fit(
        worded(rows), machine, human, pi, validation=(worded(rows), names)
    )
    other.save(tmp_path / "o")

    class Changed(Sums):
        def fingerprint(self):
            return "6" * 64

    with pytest.raises(RunMismatchError, match=r"555555555555, here 'sums' is 666666666666"):
        ACTModel.load(tmp_path / "o", backbone=Changed())


def test_a_device_without_memory_is_said_so(tmp_path):
    rows, names, machine, human, pi = drawn_set(2)
    trainer = ACTTrainer(("class 0", "class 1"), backbone=Sums(), settings=LINEAR)
    trainer.fit(worded(rows), machine, human, pi, validation=(worded(rows), names)).save(tmp_path)

    class Full(Sums):
        def encode(self, posts, **how):
            raise torch.OutOfMemoryError

    with pytest.raises(TrainingError, match="out of memory over 1 posts"):
        ACTModel.load(tmp_path, backbone=Full()).predict(worded(rows[:1]))
