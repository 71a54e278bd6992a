"""Fine-tuning the whole backbone, or adapters, on a backbone of a few hundred weights."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from finetune_helpers import VOCABULARY, WordsBackbone, words_corpus, words_training

from losses import AgainstRest, Group, PNULoss
from selftrain._util.numeric import decide
from selftrain.data.corpus import Corpus, TrainingSet
from selftrain.data.posts import Post
from selftrain.errors import NonFiniteLossError, RunStateError, TrainingError
from selftrain.models.finetune import FineTuner
from selftrain.models.finetune_network import load_finetuned
from selftrain.models.head import HeadSettings, fit_scaling, train_head
from selftrain.models.metrics import evaluate
from selftrain.models.model_file import read_format

LOSS = AgainstRest((PNULoss(form="convex", balance=0.1),))
MODES = pytest.mark.parametrize("mode", ["full", "lora"])


class Built:
    """A factory that remembers what it built."""

    def __init__(self, draw=7):
        self.draw = draw
        self.backbones = []

    def __call__(self):
        self.backbones.append(WordsBackbone(self.draw))
        return self.backbones[-1]


def trainer(mode, make=None, **changes):
    options = {
        "epochs": 6, "batch_size": 8, "learning_rate": 0.01, "head_learning_rate": 0.01, "lora_rank": 2,
        "probe": False, "progress": False, "head": "linear", "hidden": 128,
    }  # fmt: skip
    return FineTuner(make or WordsBackbone, mode=mode, **(options | changes))


def fit(one, corpus, training, *, seed=1, start=None):
    return one.fit(corpus, training, loss=LOSS, seed=seed, where="round 3", start=start)


def scored(one, model, corpus, positions=None):
    positions = np.arange(len(corpus.posts)) if positions is None else positions
    parts = list(one.logits(model, corpus, positions))
    np.testing.assert_array_equal(np.concatenate([part for part, _ in parts]), positions)
    return np.concatenate([logits for _, logits in parts])


@pytest.fixture
def corpus():
    return words_corpus()


@pytest.fixture
def training(corpus):
    return words_training(corpus)


def base_tensors(backbone):
    return {name.replace("base_layer.", ""): value for name, value in backbone.module.state_dict().items()}


@MODES
@pytest.mark.parametrize("probe", [True, False])
def test_training_lowers_the_loss_and_learns_the_toy(mode, probe):
    corpus = words_corpus(validation=40, pool=60)
    training = words_training(corpus)
    one = trainer(mode, probe=probe, epochs=20)
    model = fit(one, corpus, training)
    losses = [progress.parts["loss"] for progress in model.curve]
    assert [progress.epoch for progress in model.curve] == list(range(1, 21))
    assert losses[-1] < 0.9 * losses[0], losses
    right = decide(scored(one, model, corpus, corpus.pool)) == corpus.truth[corpus.pool]
    assert right.mean() > 0.75  # of 60; a guess is right in half of them


def test_full_training_moves_every_weight_and_no_buffer(corpus, training):
    model = fit(trainer("full"), corpus, training)
    for name, value in WordsBackbone().module.state_dict().items():
        same = torch.equal(model.weights[f"backbone.{name}"], value)
        assert same == (name == "offset"), name


def test_lora_moves_adapters_and_head_and_keeps_only_those(corpus, training):
    make = Built()
    model = fit(trainer("lora", make), corpus, training)
    found = base_tensors(make.backbones[-1])
    for name, value in WordsBackbone().module.state_dict().items():
        assert torch.equal(found[name], value), name
    adapters = {name for name in model.weights if not name.startswith("head.")}
    assert adapters == {f"backbone.hidden.lora_{side}.default.weight" for side in "AB"}
    assert model.weights["backbone.hidden.lora_B.default.weight"].any()  # it began at zero
    assert {"head.layers.weight", "head.mean"} < model.weights.keys()


def test_the_head_begins_as_a_probe_of_the_pretrained_features(corpus, training):
    options = {"learning_rate": 1e-12, "head_learning_rate": 1e-12, "weight_decay": 0.0}
    one = trainer("full", epochs=1, probe=True, **options)
    model = fit(one, corpus, training)
    posts = [corpus.posts[i] for i in np.concatenate([training.positions, corpus.validation])]
    rows, count = WordsBackbone().encode(posts).rows, len(training.positions)
    probe = train_head(
        rows[:count], training, rows[count:], corpus.labels[corpus.validation], loss=LOSS, seed=1,
        scaling=fit_scaling(rows, WordsBackbone.layout), settings=HeadSettings("linear"),
    )  # fmt: skip
    torch.testing.assert_close(model.weights["head.layers.weight"], probe.head.layers.weight.detach())
    assert probe.head.layers.weight.any()


@MODES
def test_the_best_epoch_is_what_remains(mode, corpus, training, monkeypatch):
    scores = iter([0.4, 0.9, 0.9, 0.2])
    monkeypatch.setattr(
        "selftrain.models.finetune.evaluate",
        lambda *given: evaluate(*given)._replace(macro_f1=next(scores)),
    )
    model = fit(trainer(mode, epochs=4), corpus, training)
    assert model.best_epoch == 2
    assert [progress.macro_f1 for progress in model.curve] == [0.4, 0.9, 0.9, 0.2]
    # the network that stops there, on the same schedule, has those weights; a later one has others
    kept = []
    for wanted in (2, 4):
        scores = iter([float(epoch == wanted) for epoch in range(1, 5)])
        kept.append(fit(trainer(mode, epochs=4), corpus, training).weights)
    assert all(torch.equal(value, kept[0][name]) for name, value in model.weights.items())
    assert not torch.equal(model.weights["head.layers.weight"], kept[1]["head.layers.weight"])


@MODES
def test_logits_are_calibrated_and_those_of_the_model_given(mode, corpus, training):
    one = trainer(mode, evaluation_batch=1)
    first, second = fit(one, corpus, training, seed=1), fit(one, corpus, training, seed=2)
    alone = [scored(trainer(mode), model, corpus) for model in (first, second)]
    assert abs(alone[0] - alone[1]).max() > 1e-3
    positions = np.arange(len(corpus.posts))
    # chunk by chunk in turn: each asks for its own weights in the one network
    pairs = zip(one.logits(first, corpus, positions), one.logits(second, corpus, positions), strict=True)
    for (part, of_first), (_, of_second) in pairs:
        np.testing.assert_allclose(of_first, alone[0][part], atol=1e-5)
        np.testing.assert_allclose(of_second, alone[1][part], atol=1e-5)
    raw = scored(trainer(mode), first.__class__(first.weights, first.architecture, first.pretrained,
                 first.calibration.__class__()), corpus)  # fmt: skip
    np.testing.assert_allclose(first.calibration(raw), alone[0], rtol=1e-5)
    assert first.calibration.slope != 1


@MODES
def test_start_goes_on_from_the_weights_given(mode, corpus, training, tmp_path):
    one = trainer(mode)
    first = fit(one, corpus, training)
    still = trainer(mode, epochs=1, learning_rate=1e-12, head_learning_rate=1e-12, weight_decay=0)
    went_on = fit(still, corpus, training, start=first)
    for name, value in first.weights.items():
        torch.testing.assert_close(went_on.weights[name], value, msg=name)
    before = {name: value.clone() for name, value in first.weights.items()}
    moved = fit(one, corpus, training, start=first)
    assert not torch.equal(moved.weights["head.layers.weight"], before["head.layers.weight"])
    assert all(torch.equal(value, before[name]) for name, value in first.weights.items())
    with pytest.raises(TrainingError, match="lora_rank=3"):
        fit(trainer(mode, lora_rank=3), corpus, training, start=first)


@MODES
def test_same_seed_same_weights_whatever_happened_before(mode, corpus, training):
    one = trainer(mode, head="mlp")
    state = torch.random.get_rng_state()
    first = fit(one, corpus, training)
    scored(one, first, corpus)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(5)
    again, other = fit(one, corpus, training), fit(trainer(mode, head="mlp"), corpus, training, seed=2)
    assert first.weights.keys() == again.weights.keys()
    assert all(torch.equal(value, again.weights[name]) for name, value in first.weights.items())
    assert not torch.equal(first.weights["head.layers.0.weight"], other.weights["head.layers.0.weight"])


def test_batches_collated_for_training_hold_every_group(corpus, training):
    make = Built()
    fit(trainer("full", make, epochs=2, augment=True), corpus, training)
    group = {corpus.posts[p].id: int(g) for p, (g,) in zip(training.positions, training.groups, strict=True)}
    batches = [ids for ids, train in make.backbones[0].collated if train]
    assert len(batches) > 2
    assert all({group[one] for one in ids} == set(range(5)) and len(ids) <= 8 for ids in batches)


def test_each_fit_begins_with_a_new_backbone_and_notices_an_old_one(corpus, training):
    make = Built()
    one = trainer("full", make)
    first, second = fit(one, corpus, training), fit(one, corpus, training)
    assert len(make.backbones) == 2
    assert all(torch.equal(value, second.weights[name]) for name, value in first.weights.items())
    old = WordsBackbone()
    stuck = trainer("full", lambda: old)
    fit(stuck, corpus, training)
    with pytest.raises(TrainingError, match="new pretrained backbone at each call"):
        fit(stuck, corpus, training)


def test_a_loss_that_is_not_finite_stops_with_epoch_and_step(corpus, training):
    positions = training.positions.copy()
    calls = []

    class Breaking(WordsBackbone):
        def collate(self, posts, *, train=False):
            inputs = super().collate(posts, train=train)
            calls.append(train)
            if train and sum(calls) == 5:
                inputs["counts"][:] = torch.nan
            return inputs

    with pytest.raises(NonFiniteLossError, match=r"round 3, epoch 2, step 2: the loss is nan"):
        fit(trainer("full", Breaking), corpus, TrainingSet(positions, training.groups, training.targets))
    assert sum(calls) == 5  # the second of the second epoch's three steps


def test_weights_lost_in_the_last_step_are_noticed(corpus, training):
    with pytest.raises(NonFiniteLossError, match=r"epoch 1, after step \d+: 8 of 8 validation logits"):
        fit(trainer("full", learning_rate=float("inf"), batch_size=32, epochs=1), corpus, training)


@pytest.mark.parametrize("during", ["fit", "logits"])
def test_out_of_memory_says_what_to_lower(during, corpus, training, monkeypatch):
    one = trainer("full")
    model = fit(one, corpus, training)

    def exhausted(*_args, **_named):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.0 GiB. GPU 0 has ...")

    monkeypatch.setattr(WordsBackbone, "collate", exhausted)
    with pytest.raises(TrainingError, match=r"out of memory.*batch_size \(now 8\).*batch.*lora") as caught:
        fit(one, corpus, training) if during == "fit" else scored(one, model, corpus)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_posts_that_cannot_be_encoded(corpus, training):
    posts = list(corpus.posts)
    one = trainer("full")
    model = fit(one, corpus, training)
    for position, text in ((corpus.pool[-1], "broken"), (corpus.validation[0], "broken")):
        posts[position] = type(posts[position])(posts[position].id, text)
    broken = replace(corpus, posts=tuple(posts))
    missing = np.flatnonzero(np.isnan(scored(one, model, broken)).any(1))
    assert missing.tolist() == [corpus.validation[0], corpus.pool[-1]]
    with pytest.raises(TrainingError, match=r"1 of 28 posts .* \(p12: no words\)"):
        fit(one, broken, training)


def test_a_backbone_without_adapters_or_checkpointing_is_refused(corpus, training):
    class Plain(WordsBackbone):
        lora_targets = None

    with pytest.raises(TrainingError, match="names no layers for adapters"):
        fit(trainer("lora", Plain), corpus, training)
    with pytest.raises(TrainingError, match="no gradient checkpointing"):
        fit(trainer("full", gradient_checkpointing=True), corpus, training)


@MODES
def test_saved_and_loaded(mode, corpus, training, tmp_path):
    one, file = trainer(mode), tmp_path / "model.safetensors"
    model = fit(one, corpus, training)
    model.save(file, {"round": 3})
    assert read_format(file) == f"selftrain-{mode}-2"
    found, metadata = load_finetuned(file)
    assert metadata == {"round": 3}
    assert (found.architecture, found.calibration) == (model.architecture, model.calibration)
    other = trainer(mode)
    np.testing.assert_array_equal(scored(other, other.load(file), corpus), scored(one, model, corpus))
    with pytest.raises(RunStateError, match="from a backbone with fingerprint"):
        trainer(mode, lambda: WordsBackbone(draw=8)).load(file)


def test_files_that_are_no_such_model(corpus, training, tmp_path):
    from safetensors.torch import load_file, save_file

    file = tmp_path / "model.safetensors"
    model = fit(trainer("lora"), corpus, training)
    model.save(file, {})
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    weights = dict(model.weights)
    cut = weights | {"head.layers.weight": torch.zeros(1, 3)}
    for tensors, message in [
        ({name: value for name, value in weights.items() if "lora_A" not in name}, "of rank \\[\\]"),
        ({name: value for name, value in weights.items() if "lora_B" not in name}, "1 tensors are missing"),
        ({name: value for name, value in weights.items() if name != "head.mean"}, "lacks mean"),
        (weights | {"more": torch.zeros(1)}, "unknown, more first"),
        (cut, "size mismatch"),
    ]:
        type(model)(tensors, model.architecture, model.pretrained, model.calibration).save(file, {})
        with pytest.raises(RunStateError, match=message):
            trainer("lora").load(file)
    save_file(load_file(file), file, {"selftrain": json.dumps({"format": "selftrain-lora-2"})})
    with pytest.raises(RunStateError, match=r"incomplete .*architecture"):
        load_finetuned(file)
    save_file(load_file(file), file)  # without a header of ours
    for read in (read_format, load_finetuned):
        with pytest.raises(RunStateError, match=r"no (such )?model of selftrain"):
            read(file)
    file.write_bytes(bytes.fromhex(digest))
    with pytest.raises(RunStateError, match="run folder is damaged"):
        read_format(file)


@MODES
def test_three_classes_are_trained_scored_saved_and_loaded(mode, tmp_path):
    words = (("rose", "lily"), ("iron",), ("zinc",))
    generator = np.random.default_rng(0)
    truth = (np.arange(60) % 3).astype(np.int16)
    posts = tuple(
        Post(f"p{i}", " ".join([generator.choice(words[k]), *generator.choice(VOCABULARY[4:], 2)]))
        for i, k in enumerate(truth)
    )
    shown = np.where(np.arange(60) < 42, truth, np.int16(-1))
    parts = np.split(np.arange(60), [24, 42])
    corpus = Corpus(posts, None, *parts, np.empty(0, np.int64), shown, truth, ("flower", "iron", "zinc"))
    positions = np.concatenate([corpus.labelled, corpus.pool[:4]])
    labelled = corpus.groups(truth[corpus.labelled], Group.POSITIVE, Group.NEGATIVE)
    groups = np.concatenate([labelled, np.full((4, 3), Group.DIVERGENT)])
    targets = np.concatenate([np.eye(3)[truth[corpus.labelled]], np.full((4, 3), 1 / 3)])
    training = TrainingSet(positions, groups, targets.astype(np.float32))
    loss = AgainstRest((PNULoss(),) * 3)
    one = trainer(mode, epochs=15, probe=True)
    model = one.fit(corpus, training, loss=loss, seed=1, where="round 1", start=None)
    found = scored(one, model, corpus)
    assert found.shape == (60, 3)
    assert np.mean(decide(found)[corpus.pool] == truth[corpus.pool]) > 0.6  # a guess is right in a third
    model.save(tmp_path / "model.safetensors", {"round": 1})
    other = trainer(mode)
    np.testing.assert_allclose(
        scored(other, other.load(tmp_path / "model.safetensors"), corpus), found, atol=1e-5
    )
