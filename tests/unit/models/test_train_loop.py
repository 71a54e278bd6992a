"""The one training loop, on a model of one number: order, means, the best epoch, going on after a kill."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import fields

import pytest
import torch
from torch import nn

from selftrain.errors import NonFiniteLossError
from selftrain.models.train_loop import (
    LOSSES,
    LossMeans,
    Pace,
    StepLoss,
    TrainingLog,
    TrainingState,
    best_epoch,
    train_epochs,
    warm_up_schedule,
)

STEPS, EPOCHS = 4, 3


class OneNumber:
    """Moves a weight towards a target that differs from batch to batch; `scores` are what it is worth."""

    def __init__(self, scores=(0.2, 0.9, 0.9)):
        self.model = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            self.model.weight.fill_(1.0)
        self.scores, self.kept, self.taken, self.closed = dict(enumerate(scores, 1)), [], [], 0

    def batches(self, epoch, skip):
        self.epoch = epoch
        try:
            yield from [(epoch, step) for step in range(STEPS)][skip:]
        finally:
            self.closed += 1

    def gradients(self, batch):
        assert self.model.training
        self.taken.append(batch)
        loss = ((self.model.weight - math.sin(batch[0] + 10 * batch[1])) ** 2).sum()
        loss.backward()
        return StepLoss(loss.item(), {"epoch": float(batch[0])}, norm=1.0)

    def evaluate(self):
        self.model.eval()
        return {"macro_f1": self.scores[self.epoch]}

    def keep_best(self):
        self.kept.append((self.epoch, self.model.weight.item()))

    def advice(self, batch):
        return f"Look at {batch}"


def run(stepper, *, optimizer=None, state=None, **options):
    optimizer = optimizer or torch.optim.AdamW(stepper.model.parameters(), lr=0.1)
    schedule = warm_up_schedule(optimizer, STEPS * EPOCHS, step=0 if state is None else state.step)
    paced = {one.name: options.pop(one.name) for one in fields(Pace) if one.name in options}
    pace = Pace(epochs=EPOCHS, steps_per_epoch=STEPS, **paced)
    return train_epochs(stepper, optimizer, schedule, pace, state=state, **options)


def test_the_first_of_equally_good_epochs_is_kept():
    stepper = OneNumber()
    results = run(stepper)
    assert [one.epoch for one in results] == [1, 2, 3]
    assert [epoch for epoch, _ in stepper.kept] == [1, 2]
    assert best_epoch(results).epoch == 2
    assert [one.parts["epoch"] for one in results] == [1, 2, 3]
    assert stepper.closed == EPOCHS


def test_it_is_evaluated_every_so_often_and_at_the_end():
    results = run(OneNumber(), evaluate_every=2)
    assert [one.epoch for one in results] == [2, 3]
    assert results[0].parts["epoch"] == 1.5


@pytest.mark.parametrize("cut", range(STEPS * EPOCHS))
def test_cut_off_it_goes_on_to_the_same_weight(cut):
    """Saved every three steps; cut off after `cut`."""
    whole = OneNumber()
    expected = run(whole)
    saved = []

    class CutOffError(Exception):
        pass

    class Broken(OneNumber):
        def gradients(self, batch):
            if len(self.taken) == cut:
                raise CutOffError
            return super().gradients(batch)

    broken = Broken()
    optimizer = torch.optim.AdamW(broken.model.parameters(), lr=0.1)

    def save(state):
        saved.append((state, broken.model.weight.item(), optimizer.state_dict()["state"]))
        saved[-1] = torch.utils._pytree.tree_map(lambda x: x.clone() if torch.is_tensor(x) else x, saved[-1])

    with pytest.raises(CutOffError):
        run(broken, optimizer=optimizer, save=save, save_every=3)
    assert broken.closed == cut // STEPS + 1
    again = OneNumber()
    optimizer = torch.optim.AdamW(again.model.parameters(), lr=0.1)
    state = TrainingState()
    if saved:
        state, weight, moments = saved[-1]
        with torch.no_grad():
            again.model.weight.fill_(weight)
        optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    results = run(again, optimizer=optimizer, state=state)
    assert again.model.weight.item() == whole.model.weight.item()
    assert [one.metrics for one in results] == [one.metrics for one in expected]
    assert broken.taken[: state.step] + again.taken == whole.taken


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, None), (math.inf, 1.0), (1.0, math.nan)])
def test_what_is_no_number_stops_before_the_weights_move(loss, norm):
    stepper = OneNumber()
    stepper.gradients = lambda _: StepLoss(loss, {"pn": 2.0}, norm)
    with pytest.raises(
        NonFiniteLossError, match=r"round 3, epoch 1, step 1: the loss .*pn 2.*Look at \(1, 0\)"
    ):
        run(stepper, where="round 3")
    assert stepper.model.weight.item() == 1.0


def test_means_are_of_the_steps_since_they_were_last_taken():
    means = LossMeans()
    for value in (1.0, 3.0):
        means.add(StepLoss(value, {"pn": 2 * value}))
    assert means.take() == {"loss": 2.0, "pn": 4.0}
    means.add(StepLoss(5.0, {}))
    assert means.take() == {"loss": 5.0}


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_rate_rises_then_falls_and_goes_on_where_it_was(decay):
    def rates(first):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
        schedule = warm_up_schedule(optimizer, 20, warm_up=0.2, decay=decay, step=first)
        for _ in range(first, 20):
            yield schedule.get_last_lr()[0]
            optimizer.step()
            schedule.step()

    whole = list(rates(0))
    assert whole[:4] == [0.5, 1.0, 1.5, 2.0]
    assert whole[4] == 2.0
    assert all(a > b > 0 for a, b in itertools.pairwise(whole[4:]))
    assert list(rates(7)) == whole[7:]


def test_the_log_keeps_the_lines_of_saved_steps_alone(tmp_path):
    with TrainingLog(8, folder=tmp_path, bar=False) as log:
        for step in range(5):
            log.step(step, 0.5, {"a": 1.0, "b": 2.0}, 1.0)
    with (tmp_path / LOSSES).open("a") as file:
        file.write('{"step": 5, "lo')
    with TrainingLog(8, folder=tmp_path, step=3, bar=False) as log:
        log.step(3, 0.25, {"a": 3.0, "b": 4.0}, 1.0)
        log.evaluation(1, 4, {"auc": 0.5, "posts": 3, "name": "x"}, "auc")
    lines = [json.loads(line) for line in (tmp_path / LOSSES).read_text().splitlines()]
    assert [one["step"] for one in lines] == [0, 1, 2, 3]
    assert lines[-1] == {"step": 3, "loss": 0.25, "parts": [3.0, 4.0]}


# ---- within an epoch, and the end before the last one ---------------------------------------------------


class Scripted(OneNumber):
    """Its evaluations come one after another from a list."""

    def __init__(self, values, evaluated=0):
        super().__init__()
        self.values, self.evaluated, self.epoch = values, evaluated, 0

    def evaluate(self):
        self.model.eval()
        self.evaluated += 1
        return {"macro_f1": self.values[self.evaluated - 1]}


def test_it_is_evaluated_within_epochs_too_and_once_where_the_two_meet():
    results = run(Scripted([0.1] * 9), evaluate_steps=2)
    assert [(one.epoch, one.step) for one in results] == [(1, 2), (1, 4), (2, 6), (2, 8), (3, 10), (3, 12)]
    assert results[0].parts["epoch"] == results[1].parts["epoch"] == 1
    results = run(Scripted([0.1] * 9), evaluate_steps=3)
    assert [one.step for one in results] == [3, 4, 6, 8, 9, 12]


def test_it_ends_after_so_many_evaluations_without_a_better_one():
    stepper = Scripted([0.5, 0.7, 0.7, 0.6, 0.9, 0.9])
    results = run(stepper, evaluate_steps=2, patience=2)
    assert [one.step for one in results] == [2, 4, 6, 8]  # as good is not better
    assert len(stepper.taken) == 8
    assert best_epoch(results).step == 4
    assert [one.step for one in run(Scripted([0.5, 0.4, 0.6]), patience=1)] == [4, 8]
    assert len(run(Scripted([0.5, 0.4, 0.6]), patience=2)) == 3
    within = Scripted([0.9, 0.1])
    assert [one.step for one in run(within, evaluate_steps=3, patience=1)] == [3, 4]


@pytest.mark.parametrize(("save_every", "patience"), [(1, 2), (2, 2), (3, 3), (5, None)])
def test_from_every_saved_state_it_goes_on_to_the_same_end(save_every, patience):
    """Kept weights too: whoever goes on keeps what the whole training kept after that state."""
    scores = [0.2, 0.5, 0.3, 0.6, 0.6, 0.4]
    options = {"evaluate_steps": 3, "patience": patience, "save_every": save_every}
    saved, whole = [], Scripted(scores)
    optimizer = torch.optim.AdamW(whole.model.parameters(), lr=0.1)

    def save(state):
        kept = (state, whole.model.weight.item(), optimizer.state_dict()["state"], len(whole.kept))
        saved.append(torch.utils._pytree.tree_map(lambda x: x.clone() if torch.is_tensor(x) else x, kept))

    expected = run(whole, optimizer=optimizer, save=save, **options)
    assert len(saved) > 6
    for state, weight, moments, kept in saved:
        again = Scripted(scores, evaluated=len(state.results))
        optimizer = torch.optim.AdamW(again.model.parameters(), lr=0.1)
        with torch.no_grad():
            again.model.weight.fill_(weight)
        optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
        results = run(again, optimizer=optimizer, state=state, **options)
        assert [one[2:] for one in results] == [one[2:] for one in expected]
        assert again.model.weight.item() == whole.model.weight.item()
        assert [one for _, one in again.kept] == [one for _, one in whole.kept[kept:]]
        assert again.taken == whole.taken[state.step :]
