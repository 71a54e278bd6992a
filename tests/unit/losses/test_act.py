"""The ACT loss against that of human labels alone, a naive reading of the formula, and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from losses import BatchError, SettingError, act_cross_entropy, act_loss, act_variance
from losses.act import act_weights, non_negative

NAN = float("nan")


def floats(*values):
    return torch.tensor(values, dtype=torch.float64)


def some_posts(n=40, classes=3, seed=0):
    """Logits, machine labels of which about a third are wrong, human labels, inclusion probabilities."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    human = torch.randint(classes, (n,), generator=generator)
    wrong = torch.rand(n, generator=generator) < 0.35
    machine = torch.where(wrong, (human + 1) % classes, human)
    inclusion = 0.15 + 0.8 * torch.rand(n, generator=generator, dtype=torch.float64)
    return logits, machine, human, inclusion


def naive(machine, human, reviewed, inclusion, power):
    total = 0.0
    for l_m, l_h, delta, pi in zip(machine, human, reviewed, inclusion, strict=True):
        total += power * l_m + ((l_h - power * l_m) / pi if delta else 0.0)
    return total / len(machine)


# ---------------------------------------------------------------- the formula


def test_a_worked_example():
    """(1 + 2 + (3 + (5 - 3)/.25)) / 3 = 14/3."""
    output = act_loss(
        floats(1, 2, 3), floats(NAN, NAN, 5), torch.tensor([False, False, True]), floats(0.5, 0, 0.25)
    )
    assert float(output.loss) == pytest.approx(14 / 3)
    assert float(output.parts["machine"]) == pytest.approx(2)
    assert float(output.parts["correction"]) == pytest.approx(8 / 3)
    assert int(output.parts["reviewed"]) == 1


@given(
    st.lists(
        st.tuples(st.floats(0, 50), st.floats(0, 50), st.booleans(), st.floats(0.01, 1)),
        min_size=1, max_size=30,
    ),
    st.floats(0, 2),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_the_loss_is_the_naive_sum(rows, power):
    machine, human, reviewed, inclusion = map(list, zip(*rows, strict=True))
    found = act_loss(
        floats(*machine), floats(*human), torch.tensor(reviewed), floats(*inclusion), power=power
    )
    assert float(found.loss) == pytest.approx(
        naive(machine, human, reviewed, inclusion, power), rel=1e-9, abs=1e-9
    )


def test_the_weights_make_the_same_loss():
    logits, machine, human, inclusion = some_posts()
    reviewed = torch.arange(len(machine)) % 3 == 0
    l_m, l_h = (F.cross_entropy(logits, labels, reduction="none") for labels in (machine, human))
    weights = act_weights(reviewed, inclusion, power=0.7)
    expected = act_loss(l_m, l_h, reviewed, inclusion, power=0.7).loss
    assert float((weights.machine * l_m + weights.human * l_h).mean()) == pytest.approx(float(expected))


@pytest.mark.parametrize("power", [1.0, 0.4])
def test_the_mean_over_many_draws_is_the_loss_of_human_labels_and_its_variance_the_formulas(power):
    logits, machine, human, inclusion = some_posts()
    l_m, l_h = (F.cross_entropy(logits, labels, reduction="none") for labels in (machine, human))
    generator = torch.Generator().manual_seed(1)
    draws = torch.rand(4000, len(l_m), generator=generator, dtype=torch.float64) < inclusion
    losses = torch.stack([act_loss(l_m, l_h, drawn, inclusion, power=power).loss for drawn in draws])
    expected = act_variance(l_m, l_h, inclusion, power=power)
    error = math.sqrt(float(expected) / len(losses))
    assert float(losses.mean()) == pytest.approx(float(l_h.mean()), abs=3.5 * error)
    assert float(losses.var()) == pytest.approx(float(expected), rel=0.1)
    if power == 1.0:  # the machine's own loss is another one, so the test above can fail
        assert abs(float(l_m.mean() - l_h.mean())) > 10 * error


def test_means_over_the_batches_of_a_shuffled_epoch_are_the_whole_loss():
    logits, machine, human, inclusion = some_posts(n=42)
    reviewed = torch.rand(42, generator=torch.Generator().manual_seed(2)) < 0.5
    whole = act_cross_entropy(logits, machine, human, reviewed, inclusion).loss
    order = torch.randperm(42, generator=torch.Generator().manual_seed(3))
    batches = [
        act_cross_entropy(*(t[part] for t in (logits, machine, human, reviewed, inclusion)), size=42 / 5).loss
        for part in order.split(10)  # the last one is smaller, which the stated size puts right
    ]
    assert len(batches) == 5
    assert float(torch.stack(batches).mean()) == pytest.approx(float(whole))


def test_pi_of_one_is_the_cross_entropy_of_mixed_labels():
    logits, machine, human, _ = some_posts()
    reviewed = torch.arange(len(machine)) % 4 == 0
    inclusion = reviewed.double()  # the threshold rule: 1 or 0
    mixed = torch.where(reviewed, human, machine)
    found = act_cross_entropy(logits, machine, human, reviewed, inclusion).loss
    assert float(found) == pytest.approx(float(F.cross_entropy(logits, mixed)), rel=1e-12)


# ---------------------------------------------------------------- gradients


def test_gradients_are_those_of_the_value():
    logits, machine, human, inclusion = some_posts(n=8)
    reviewed = torch.arange(8) % 2 == 0
    torch.autograd.gradcheck(
        lambda z: act_cross_entropy(z, machine, human, reviewed, inclusion, power=0.8).loss,
        logits.clone().requires_grad_(),
    )


def test_no_gradient_and_no_nan_comes_from_where_nobody_looked():
    machine = floats(1, 2, 3).requires_grad_()
    human = floats(NAN, 4, float("inf")).requires_grad_()
    output = act_loss(machine, human, torch.tensor([False, True, False]), floats(0.0, 0.5, 0.9))
    slope_machine, slope_human = torch.autograd.grad(output.loss, (machine, human))
    assert slope_machine.tolist() == pytest.approx([1 / 3, -1 / 3, 1 / 3])
    assert slope_human.tolist() == pytest.approx([0, 2 / 3, 0])


def test_absent_human_losses_and_labels_are_not_read():
    logits, machine, _, inclusion = some_posts(n=5)
    nobody = torch.zeros(5, dtype=torch.bool)
    l_m = F.cross_entropy(logits, machine, reduction="none")
    without = act_loss(l_m, None, nobody, inclusion).loss
    absent = act_cross_entropy(logits, machine, torch.full((5,), -1), nobody, inclusion).loss
    assert float(without) == pytest.approx(float(l_m.mean()))
    assert float(absent) == pytest.approx(float(l_m.mean()))


def test_half_precision_is_widened():
    logits, machine, human, inclusion = some_posts()
    reviewed = torch.arange(len(machine)) % 2 == 0
    half = act_cross_entropy(logits.half(), machine, human, reviewed, inclusion.half())
    assert half.loss.dtype == torch.float32
    whole = act_cross_entropy(logits, machine, human, reviewed, inclusion)
    assert float(half.loss) == pytest.approx(float(whole.loss), rel=0.02)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("inclusion", "said"),
    [(0.0, "cannot be drawn"), (1.2, "1.2"), (-0.1, "-0.1"), (NAN, "nan"), (math.inf, "inf")],
)
def test_a_pi_that_cannot_be_is_refused(inclusion, said):
    with pytest.raises(BatchError, match=said):
        act_loss(floats(1, 2), floats(1, 2), torch.tensor([True, False]), floats(inclusion, 0.5))


def test_a_pi_outside_its_range_is_refused_where_nobody_looked_too():
    with pytest.raises(BatchError, match=r"1\.5"):
        act_loss(floats(1, 2), floats(1, 2), torch.tensor([True, False]), floats(0.5, 1.5))


@pytest.mark.parametrize(
    ("machine", "human", "reviewed", "inclusion"),
    [
        (floats(1, NAN), floats(1, 1), torch.tensor([True, False]), floats(1, 1)),
        (floats(1, 1), floats(NAN, 1), torch.tensor([True, False]), floats(1, 1)),
        (floats(1, 1), None, torch.tensor([True, False]), floats(1, 1)),
        (floats(1, 1, 1), floats(1, 1), torch.tensor([True, False]), floats(1, 1)),
        (floats(1, 1), floats(1, 1, 1), torch.tensor([True, False]), floats(1, 1)),
        (floats(1, 1), floats(1, 1), torch.tensor([True, False]), floats(1)),
        (floats(1, 1), floats(1, 1), torch.tensor([1, 0]), floats(1, 1)),
        (floats(), floats(), torch.tensor([], dtype=torch.bool), floats()),
    ],
)
def test_batches_that_do_not_fit_are_refused(machine, human, reviewed, inclusion):
    with pytest.raises(BatchError):
        act_loss(machine, human, reviewed, inclusion)


@pytest.mark.parametrize(
    ("logits", "machine", "human"),
    [
        (torch.zeros(2), [0, 1], [0, 1]),
        (torch.zeros(2, 1), [0, 0], [0, 0]),
        (torch.zeros(2, 3), [0, 3], [0, 1]),
        (torch.zeros(2, 3), [0, 1], [-1, 1]),
        (torch.zeros(2, 3), [0, 1, 2], [0, 1]),
        (torch.zeros(2, 3), [0.0, 1.0], [0, 1]),
    ],
)
def test_logits_and_labels_that_do_not_fit_are_refused(logits, machine, human):
    with pytest.raises(BatchError):
        act_cross_entropy(
            logits, torch.tensor(machine), torch.tensor(human), torch.tensor([True, False]),
            torch.tensor([0.5, 0.5]),
        )  # fmt: skip


@pytest.mark.parametrize("setting", [{"power": -1}, {"power": NAN}, {"size": 0}, {"size": math.inf}])
def test_settings_outside_their_range_are_refused(setting):
    with pytest.raises(SettingError):
        act_loss(floats(1), None, torch.tensor([False]), floats(0.5), **setting)


def test_the_variance_refuses_a_pi_of_zero():
    with pytest.raises(BatchError):
        act_variance(floats(1, 1), floats(1, 2), floats(0.5, 0.0))


# ---- the bound of a loss with signed targets --------------------------------------------------------------


def test_the_signed_target_of_one_post_has_no_lower_bound_and_its_non_negative_form_has():
    """pi = 1/4, machine and human differ: target (-3, 4); at a logit gap of 40 the loss is -120."""
    logits = torch.tensor([[-40.0, 0.0]], requires_grad=True)
    losses = -(torch.tensor([[-3.0, 4.0]]) * torch.log_softmax(logits, 1)).sum(0)
    assert losses.sum().item() == pytest.approx(-120, abs=1e-3)
    assert non_negative(losses, losses.detach()).sum().item() == pytest.approx(0, abs=1e-3)


def test_value_and_gradient_of_the_non_negative_form_are_those_of_nnpu():
    """As in nnPU: a negative sum counts 0, and is unlearned with gamma times its gradient turned round."""
    parts = torch.tensor([2.0, -3.0, 0.0], requires_grad=True)
    for gamma, expected in ((1.0, [1.0, -1.0, 1.0]), (0.25, [1.0, -0.25, 1.0]), (0.0, [1.0, 0.0, 1.0])):
        parts.grad = None
        found = non_negative(parts, torch.tensor([5.0, -1.0, 0.0]), gamma=gamma)
        assert found.tolist() == [2.0, 0.0, 0.0]
        found.sum().backward()
        assert parts.grad.tolist() == expected


def test_it_is_the_loss_itself_where_no_sum_is_negative():
    parts = torch.rand(4, requires_grad=True)
    assert torch.equal(non_negative(parts, torch.ones(4)), parts)


@pytest.mark.parametrize("wrong", ["1", None, True, torch.tensor(1.0)])
def test_a_setting_that_is_no_number_is_refused(wrong):
    given = floats(1, 2), floats(1, 2), torch.tensor([True, False]), floats(0.5, 1)
    with pytest.raises(SettingError, match=r"power is .*: expected a finite number >= 0"):
        act_loss(*given, power=wrong)
    with pytest.raises(SettingError, match="power is"):
        act_weights(*given[2:], power=wrong)
    if wrong is not None:  # of the size: that of the batch
        with pytest.raises(SettingError, match=r"size is .*: expected a number > 0"):
            act_loss(*given, size=wrong)


def test_losses_of_half_precision_are_added_up_in_float32():
    machine = torch.full((2000,), 60.0, dtype=torch.float16)
    nobody = torch.zeros(2000, dtype=torch.bool)
    found = act_loss(machine, None, nobody, torch.ones(2000))
    assert float(found.loss) == float(found.parts["machine"]) == 60  # 120,000 is no float16
    assert found.loss.dtype == found.parts["reviewed"].dtype == torch.float32
