"""The PNU losses at their edges: empty groups, weights, half precision, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from losses import BatchError, Group, LossError, PNULoss, SettingError

FORMS = ("weighted", "convex", "sakai", "nnpu", "upu", "pn")
P, N, AP, AN, D = Group
GROUPS = torch.tensor([P, P, N, N, AP, AN, D, D])
LOGITS = [1.2, -0.3, 0.8, -1.1, 0.4, -0.6, 0.1, 2.0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("balance", [-0.5, 0.5])
def test_without_divergent_posts_only_the_labelled_ones_pull(form, balance):
    """The literal formula pushes labelled posts to the wrong side (nnpu) or sinks without bound (sakai)."""
    loss = PNULoss(form=form, balance=balance)
    groups = [P, P, N, N, AP, AN]
    logits = torch.tensor(LOGITS[:6], requires_grad=True)
    output = loss(logits, torch.tensor(groups))
    (slope,) = torch.autograd.grad(output.loss, logits)
    assert output.parts["unlabelled"] == output.parts["bracket"] == output.parts["clipped"] == 0
    assert (slope[:2] <= 0).all()
    assert (slope[2:4] >= 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_permuting_the_batch_changes_nothing(form):
    loss = PNULoss(form=form, theta=0.3)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(7))
    z = torch.tensor(LOGITS, dtype=torch.float64)
    weights = torch.arange(1, 9, dtype=torch.float64)
    straight, mixed = loss(z, GROUPS, weights=weights), loss(z[order], GROUPS[order], weights=weights[order])
    assert float(straight.loss) == pytest.approx(float(mixed.loss), rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_whole_weights_count_like_repeated_posts(form):
    loss = PNULoss(form=form, theta=0.3)
    z = torch.tensor(LOGITS, dtype=torch.float64)
    counts = torch.tensor([3, 1, 2, 1, 1, 2, 1, 4])
    weighted = loss(z, GROUPS, weights=counts)
    repeated = loss(z.repeat_interleave(counts), GROUPS.repeat_interleave(counts))
    assert float(weighted.loss) == pytest.approx(float(repeated.loss), rel=1e-12)


def test_only_ratios_of_weights_count_even_at_the_end_of_the_number_range():
    z = torch.tensor(LOGITS)
    plain = PNULoss()(z, GROUPS).loss
    assert float(PNULoss()(z, GROUPS, weights=torch.full((8,), 3e38)).loss) == pytest.approx(float(plain))


def test_a_target_of_a_post_that_is_not_agreed_is_not_read():
    z = torch.tensor(LOGITS)
    targets = torch.tensor([math.nan, 7, -1, math.inf, 0.75, 0.25, math.nan, 9])
    loss = PNULoss(soft_positive=0.75)
    assert torch.equal(loss(z, GROUPS, targets).loss, loss(z, GROUPS).loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_widened_and_under_autocast_too(dtype):
    logits = torch.tensor(LOGITS).to(dtype)
    wide = PNULoss(form="convex")(logits.double(), GROUPS).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = PNULoss(form="convex")(logits, GROUPS).loss
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(wide), rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_batch_is_zero_and_can_be_descended(form):
    logits = torch.zeros(0, requires_grad=True)
    loss = PNULoss(form=form)(logits, torch.zeros(0, dtype=torch.int8)).loss
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.shape == (0,)


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ({"theta": 0.0}, r"theta is 0.0: expected a number strictly between 0 and 1"),
        ({"theta": 1.0}, r"theta is 1.0"),
        ({"theta": math.nan}, r"theta is nan"),
        ({"balance": 1.2}, r"balance is 1.2: expected one in \[-1, 1\]"),
        ({"form": "puu"}, r"form is 'puu': expected one of weighted, convex"),
        ({"surrogate": "hinge"}, r"surrogate is 'hinge'"),
        ({"lambda_u": -1.0}, r"lambda_u is -1.0: expected a finite number >= 0"),
        ({"lambda_soft": math.inf}, r"lambda_soft is inf"),
        ({"labelled_prior": 0.0}, r"labelled_prior is 0.0"),
        ({"soft_positive": 1.1}, r"soft_positive is 1.1"),
        ({"soft_positive": -0.1}, r"soft_positive is -0.1"),
        ({"beta": -0.1}, r"beta is -0.1"),
        ({"gamma": 2.0}, r"gamma is 2.0"),
        ({"theta": "estimate"}, r"theta is estimate: expected a number strictly between 0 and 1"),
        ({"theta": torch.tensor(0.5)}, r"theta is .*: expected a number"),
        ({"balance": "1"}, r"balance is 1: expected one in"),
        ({"balance": True}, r"balance is True"),
        ({"lambda_u": None}, r"lambda_u is None: expected a finite number"),
        ({"form": "nnpu", "balance": 0.0}, r"balance is 0 under form 'nnpu'"),
        ({"form": "convex", "lambda_soft": 0.5}, r"lambda_soft is 0.5 under form 'convex'"),
        ({"form": "sakai", "lambda_u": 0.5}, r"lambda_u is 0.5 under form 'sakai'"),
    ],
)
def test_bad_settings_are_refused(configuration, message):
    with pytest.raises(SettingError, match=message):
        PNULoss(**configuration)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logits": torch.zeros(8, 1)}, r"logits have shape \(8, 1\)"),
        ({"logits": torch.zeros(8, dtype=torch.int64)}, r"expected floats \[B\]"),
        ({"groups": torch.zeros(7, dtype=torch.int64)}, r"groups have shape \(7,\), logits \(8,\)"),
        ({"groups": torch.zeros(8)}, r"groups have type torch.float32: expected integers"),
        ({"groups": torch.full((8,), 5)}, r"group 5 is unknown: expected one of 0 POSITIVE"),
        ({"groups": torch.full((8,), -1, dtype=torch.int8)}, r"group -1 is unknown"),
        ({"targets": torch.zeros(3)}, r"targets have shape \(3,\)"),
        ({"targets": torch.full((8,), 1.5)}, r"soft target 1.5: expected a number in \[0, 1\]"),
        ({"targets": torch.full((8,), math.nan)}, r"soft target nan"),
        ({"weights": torch.ones(2)}, r"weights have shape \(2,\)"),
        ({"weights": torch.full((8,), -2.0)}, r"weight -2.0 is negative"),
        ({"weights": torch.full((8,), math.nan)}, r"weight nan is not finite"),
        ({"weights": torch.full((8,), math.inf)}, r"weight inf is not finite"),
    ],
)
def test_bad_batches_are_refused(arguments, message):
    with pytest.raises(BatchError, match=message) as caught:
        PNULoss()(**{"logits": torch.tensor(LOGITS), "groups": GROUPS, **arguments})
    assert isinstance(caught.value, LossError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.uint16, torch.uint32, torch.uint64])
def test_groups_are_integers_of_any_kind(kind):
    expected = PNULoss()(torch.tensor(LOGITS), GROUPS).loss
    assert torch.equal(PNULoss()(torch.tensor(LOGITS), GROUPS.to(kind)).loss, expected)


# ---------------------------------------------------------------- what a round sets


def test_a_round_sets_what_was_left_open_and_nothing_else():
    asked = []

    def prior():
        asked.append(True)
        return 0.3

    groups = GROUPS.numpy()
    opened = PNULoss().for_round(groups, prior)
    assert (opened.theta, opened.lambda_soft) == (0.3, 0.5 * 2 / 4)
    assert len(asked) == 1
    fixed = PNULoss(theta=0.4, lambda_soft=2.0)
    assert fixed.for_round(groups, prior) == fixed
    assert len(asked) == 1, "a prior that nobody wants is not estimated: it costs a pass over the posts"
    assert PNULoss(form="convex").for_round(groups, prior).lambda_soft is None


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_agreed_posts_count_what_the_round_says(weight):
    groups = GROUPS.numpy()
    opened = PNULoss().for_round(groups, lambda: 0.3, weight)
    assert opened.lambda_soft == weight * 2 / 4
    assert PNULoss(lambda_soft=2.0).for_round(groups, lambda: 0.3, weight).lambda_soft == 2.0


def test_evidence_is_learned_by_its_likelihood():
    groups = GROUPS.numpy()
    assert PNULoss().for_round(groups, lambda: 0.3).agreed is None
    assert PNULoss().for_round(groups, lambda: 0.3, 0.5).agreed == "likelihood"
    assert PNULoss(agreed="cross_entropy").for_round(groups, lambda: 0.3, 0.5).agreed == "cross_entropy"


@pytest.mark.parametrize("form", ["weighted", "pn", "sakai"])
def test_the_likelihood_of_evidence_is_that_of_the_formula(form):
    z = [2.0, -1.5, 0.3, -40.0, 1.0]
    t = [0.9, 0.2, 0.5, 0.7, 0.0]
    groups = torch.tensor([Group.AGREED_POSITIVE] * 2 + [Group.AGREED_NEGATIVE] * 3)
    each = [
        -math.log(b / (1 + math.exp(-a)) + (1 - b) / (1 + math.exp(a))) for a, b in zip(z, t, strict=True)
    ]
    loss = PNULoss(form=form, agreed="likelihood")
    parts = loss(torch.tensor(z).double(), groups, torch.tensor(t).double()).parts
    assert parts["soft_positive"].item() == pytest.approx(sum(each[:2]) / 2, abs=1e-6)
    assert parts["soft_negative"].item() == pytest.approx(sum(each[2:]) / 3, abs=1e-6)


@pytest.mark.parametrize("target", [0.0, 0.1, 0.5, 0.8, 1.0])
def test_evidence_pulls_towards_what_it_says_and_an_even_one_nowhere(target):
    for logit in (-50.0, -2.0, 0.0, 3.0, 50.0):
        z = torch.tensor([logit, 0.0], dtype=torch.float64, requires_grad=True)
        groups = torch.tensor([Group.AGREED_POSITIVE, Group.POSITIVE])
        targets = torch.tensor([target, 1.0], dtype=torch.float64)
        loss = PNULoss(form="pn", agreed="likelihood")(z, groups, targets).loss
        (gradient,) = torch.autograd.grad(loss, z)
        assert torch.isfinite(gradient).all()
        assert float(gradient[0]) * (target - 0.5) <= 1e-12
        # the gradient is what the model says less what it says once it has heard the evidence
        own = 1 / (1 + math.exp(-logit))
        heard = own * target / (own * target + (1 - own) * (1 - target)) if 0 < target < 1 else target
        assert float(gradient[0]) == pytest.approx(0.5 * (own - heard), abs=1e-9)


def test_before_a_round_the_open_settings_are_one_half_and_one():
    z = torch.tensor(LOGITS)
    assert torch.equal(PNULoss()(z, GROUPS).loss, PNULoss(theta=0.5, lambda_soft=1.0)(z, GROUPS).loss)


@pytest.mark.filterwarnings("error")
def test_groups_of_a_round_are_any_array_of_integers():
    groups = np.array([0, 1, 2, 4, 2])
    expected = PNULoss().for_round(groups, lambda: 0.3)
    groups.setflags(write=False)
    for one in (
        groups,
        groups[::-1],
        groups.astype(np.uint8),
        groups.tolist(),
        torch.tensor([0, 1, 2, 4, 2]),
    ):
        assert PNULoss().for_round(one, lambda: 0.3) == expected
