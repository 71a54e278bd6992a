"""The PNU losses against published numbers and against a second reading of the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pnu_reference import reference_loss

from losses import Group, PNULoss
from losses.pnu import LAMBDA_U

FORMS = ("weighted", "convex", "sakai", "nnpu", "upu", "pn")
P, N, AP, AN, D = Group
GROUPS = torch.tensor([P, P, N, N, AP, AN, D, D])
LOGITS = [1.2, -0.3, 0.8, -1.1, 0.4, -0.6, 0.1, 2.0]


def value(logits, groups, **settings):
    return float(PNULoss(**settings)(torch.tensor(logits, dtype=torch.float64), torch.tensor(groups)).loss)


def gradient(loss, logits, groups, **kwargs):
    z = torch.as_tensor(logits, dtype=torch.float64).clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(z, torch.as_tensor(groups), **kwargs).loss, z)
    return slope


# ---------------------------------------------------------------- golden values


@pytest.mark.parametrize(
    ("balance", "expected"),
    [(-1, 0.341617), (-0.1, 1.190005), (0, 1.284270), (0.1, 1.284759), (0.2, 1.285248), (1, 1.289162)],
)
def test_convex_form_gives_the_golden_values(balance, expected):
    assert value(
        LOGITS, GROUPS.tolist(), form="convex", balance=balance, soft_positive=0.67
    ) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("balance", "expected"), [(0.1, 1.267142), (1, 0.358412)])
def test_convex_form_gives_the_golden_values_when_clipped(balance, expected):
    logits = torch.tensor([4, 3, 0.8, -1.1, 4, -0.6, -5, -6])
    output = PNULoss(form="convex", balance=balance, soft_positive=0.67)(logits, GROUPS)
    assert float(output.loss) == pytest.approx(expected, abs=1e-6)
    assert output.parts["clipped"] == 1
    assert output.parts["bracket"] < 0


@pytest.mark.parametrize(
    ("balance", "expected"),
    [(-1, 0.295662), (-0.5, 0.478360), (0, 0.661058), (0.5, 0.958360), (1, 1.255662)],
)
def test_sakai_form_gives_the_golden_values(balance, expected):
    found = value(
        [1.2, -0.3, 0.8, -1.1, 0.1, 2.0], [P, P, N, N, D, D], form="sakai", balance=balance, theta=0.4
    )
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("form", "surrogate", "expected"),
    [
        ("upu", "sigmoid", -0.369252),
        ("nnpu", "sigmoid", 0.013082),
        ("upu", "logistic", -1.395404),
        ("nnpu", "logistic", 0.013347),
    ],
)
def test_kiryo_forms_give_the_golden_values(form, surrogate, expected):
    found = value([4.0, 3, -5, -6], [P, P, D, D], form=form, surrogate=surrogate, theta=0.4, lambda_u=1.0)
    assert found == pytest.approx(expected, abs=1e-6)


def test_convex_pn_part_is_twice_sakais_where_the_agreed_posts_repeat_the_labelled_ones():
    """The agreed posts carry hard targets here, so that R+ is mean_P l+ and not half of it."""
    logits = [1.2, -0.3, 0.8, -1.1] * 2
    groups = [P, P, N, N, AP, AP, AN, AN]
    convex = value(logits, groups, form="convex", balance=0, soft_positive=1.0)
    sakai = value(logits, groups, form="sakai", balance=0, lambda_soft=0.0)
    assert convex == pytest.approx(2 * sakai, rel=1e-12)


def test_weighted_and_convex_agree_at_balance_zero():
    weighted = value(LOGITS, GROUPS.tolist(), form="weighted", balance=0)
    convex = value(LOGITS, GROUPS.tolist(), form="convex", balance=0)
    assert weighted == pytest.approx(convex, rel=1e-12)


def test_weighted_reads_the_sign_of_the_balance_alone():
    small, large, mirrored = (
        value(LOGITS, GROUPS.tolist(), form="weighted", balance=b, lambda_u=0.3, theta=0.4)
        for b in (0.01, 0.2, -0.1)
    )
    without = value(LOGITS, GROUPS.tolist(), form="weighted", balance=0, lambda_u=0.3, theta=0.4)
    assert small == large
    assert len({small, mirrored, without}) == 3


# ---------------------------------------------------------------- reference, gradients


@st.composite
def batches(draw):
    size = draw(st.integers(1, 9))
    logit = st.one_of(st.floats(-5, 5), st.sampled_from([-1e4, 1e4, 0.0]))
    rows = [
        (
            draw(logit),
            draw(st.sampled_from([int(g) for g in Group])),
            draw(st.floats(0, 1)),
            draw(st.one_of(st.just(0.0), st.floats(0.1, 10))),
        )
        for _ in range(size)
    ]
    form = draw(st.sampled_from(FORMS))
    signed = st.sampled_from([-1.0, -0.3, 0.1, 1.0]) if form in {"nnpu", "upu"} else st.floats(-1, 1)
    configuration = {
        "form": form,
        "balance": draw(signed),
        "theta": draw(st.floats(0.05, 0.95)),
        "labelled_prior": draw(st.floats(0.1, 0.9)),
        "lambda_soft": None if form == "convex" else draw(st.floats(0, 2)),
        "lambda_u": LAMBDA_U if form in {"convex", "sakai"} else draw(st.floats(0, 2)),
        "surrogate": draw(st.sampled_from(["logistic", "sigmoid"])),
        "beta": draw(st.sampled_from([0.0, 0.1])),
    }
    return rows, configuration


@settings(max_examples=300, deadline=None)
@given(batches())
@example(
    (
        [(10000.0, 2, 0.99999, 1.0)],
        {
            "form": "weighted",
            "balance": 0.0,
            "theta": 0.5,
            "labelled_prior": 0.5,
            "lambda_soft": 1.0,
            "lambda_u": 1.0,
            "surrogate": "logistic",
            "beta": 0.0,
        },
    )
)
def test_value_is_the_reference_and_everything_is_finite(case):
    rows, configuration = case
    z, groups, targets, weights = (
        torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)
    )
    logits = z.float().requires_grad_()
    # what 1 - target is worth at a logit of 10,000 hangs on the last bits of either
    targets = targets.float()
    given = zip(logits.tolist(), groups.tolist(), targets.tolist(), weights.tolist(), strict=True)
    expected = reference_loss([(z, int(group), t, w) for z, group, t, w in given], **configuration)
    output = PNULoss(**configuration)(logits, groups.long(), targets, weights)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert torch.isfinite(logits.grad).all()
    assert all(torch.isfinite(part) and not part.requires_grad for part in output.parts.values())
    pn, soft, unlabelled = (float(output.parts[name]) for name in ("pn", "soft", "unlabelled"))
    weight = PNULoss(**configuration).weights
    recomposed = weight.pn * pn + weight.soft * soft + weight.unlabelled * unlabelled
    assert output.loss.item() == pytest.approx(recomposed, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("surrogate", ["logistic", "sigmoid"])
@pytest.mark.parametrize("balance", [-0.4, 0.4])
@pytest.mark.parametrize("form", FORMS)
def test_gradient_is_that_of_the_value_where_nothing_is_clipped(form, balance, surrogate):
    loss = PNULoss(form=form, balance=balance, theta=0.3, surrogate=surrogate, beta=5.0)
    z = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda logits: loss(logits, GROUPS).loss, (z,))


def test_gradient_of_the_clipped_convex_form_is_that_of_its_value():
    loss = PNULoss(form="convex", balance=0.7)
    z = torch.tensor([4, 3, 0.8, -1.1, 4, -0.6, -5, -6], dtype=torch.float64, requires_grad=True)
    assert loss(z, GROUPS).parts["clipped"] == 1
    assert torch.autograd.gradcheck(lambda logits: loss(logits, GROUPS).loss, (z,))


@pytest.mark.parametrize("beta", [0.0, 0.2])
@pytest.mark.parametrize("gamma", [1.0, 0.25])
@pytest.mark.parametrize("surrogate", ["logistic", "sigmoid"])
def test_clipped_nnpu_reports_one_thing_and_descends_another(surrogate, gamma, beta):
    """Worked out by hand: value theta E_P l+ - beta, gradient of -gamma (E_U l- - theta E_P l-)."""
    theta, logits, groups = 0.4, [4.0, 3.0, -5.0, -6.0], [P, P, D, D]
    loss = PNULoss(form="nnpu", lambda_u=1.0, theta=theta, surrogate=surrogate, beta=beta, gamma=gamma)

    def function(x):
        return 1 / (1 + math.exp(-x))

    def minus_slope(x):
        return function(x) if surrogate == "logistic" else function(x) * (1 - function(x))

    def plus_value(x):
        return math.log1p(math.exp(-x)) if surrogate == "logistic" else function(-x)

    reported = theta * (plus_value(4) + plus_value(3)) / 2 - beta
    expected = [gamma * theta * minus_slope(x) / 2 for x in (4, 3)]
    expected += [-gamma * minus_slope(x) / 2 for x in (-5, -6)]
    output = loss(torch.tensor(logits, dtype=torch.float64), torch.tensor(groups))
    assert output.parts["clipped"] == 1
    assert float(output.loss) == pytest.approx(reported, rel=1e-12)
    assert gradient(loss, logits, groups).tolist() == pytest.approx(expected, rel=1e-9)


def test_a_bracket_between_zero_and_minus_beta_is_left_alone():
    logits, groups = [4.0, 3.0, -5.0, -6.0], [P, P, D, D]
    free = PNULoss(form="nnpu", lambda_u=1.0, theta=0.4, beta=10.0)
    unbiased = PNULoss(form="upu", lambda_u=1.0, theta=0.4)
    z = torch.tensor(logits, dtype=torch.float64)
    assert free(z, torch.tensor(groups)).parts["clipped"] == 0
    assert torch.equal(gradient(free, logits, groups), gradient(unbiased, logits, groups))


def test_nu_risk_mirrors_the_pu_risk():
    """Turning every sign and swapping the labelled classes must give the same number with prior 1 - theta."""
    forward = value([4.0, 3.0, -5.0, 0.3], [P, P, D, D], form="nnpu", balance=0.1, theta=0.3)
    mirrored = value([-4.0, -3.0, 5.0, -0.3], [N, N, D, D], form="nnpu", balance=-0.1, theta=0.7)
    assert forward == pytest.approx(mirrored, rel=1e-12)
