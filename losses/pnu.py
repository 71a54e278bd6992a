"""PNU losses: labelled, agreed and divergent posts in one formula.

L = w_pn L_pn + w_soft L_soft + w_u L_u. P and N are the labelled posts, AP and AN those that the agents and
the classifier agree on, D the divergent ones, kept without a label. L_u is a PU risk if the balance is
positive, an NU risk if it is negative, and absent if it is 0 or if D is empty.

========  =======================  ==============  =================================  ====================
form      w_pn, w_soft, w_u        prior in L_pn   L_u                                balance
========  =======================  ==============  =================================  ====================
weighted  1, l_soft, l_u           labelled_prior  non-negative, P or N and D         sign alone
convex    1-|b|, 1-|b|, |b|        1/2             leaky, with AP or AN among P or N  b, in [-1, 1]
sakai     1-|b|, l_soft, |b|       theta           unbiased, P or N and D             b, in [-1, 1]
nnpu      0, l_soft, l_u           --              non-negative, P or N and D         sign alone, not 0
upu       0, l_soft, l_u           --              unbiased, P or N and D             sign alone, not 0
pn        1, l_soft, 0             labelled_prior  none                               not read
========  =======================  ==============  =================================  ====================

(l_soft, l_u, b: `lambda_soft`, `lambda_u`, `balance`.) "weighted" weighs its three parts one by one, "convex"
mixes them by one number. Published forms other than "convex" know no agreed posts; with lambda_soft = 0 they
are exactly what was published.

Sources: "Multi-Agent VLMs Guided Self-Training with PNU Loss" (arXiv 2511.13759): "convex" is its loss as
written, "weighted" the generalised one; Sakai, du Plessis, Niu, Sugiyama (ICML 2017); Kiryo, Niu, du Plessis,
Sugiyama (NeurIPS 2017).

Shape legend: ``B`` posts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from losses.base import LossOutput, SupportsArray
from losses.errors import SettingError
from losses.group import Group
from losses.groups import SURROGATES, GroupedBatch, group_batch
from losses.unlabelled import (
    UnlabelledRisk,
    labelled_and_agreed_means,
    labelled_means,
    leaky,
    non_negative,
    one_sided_risk,
    uncorrected,
)

LAMBDA_U = 0.1
AGREED_WEIGHT = 0.5
"""What an agreed post counts beside a labelled one where lambda_soft is left open."""

Form = Literal["weighted", "convex", "sakai", "nnpu", "upu", "pn"]


class PNUWeights(NamedTuple):
    """The three weights of the one form."""

    pn: float
    soft: float
    unlabelled: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PNULoss:
    """A PNU loss, a `losses.base.RoundLoss`: called with logits and groups, it gives the loss and its parts.

    A mean over an empty group is 0. What is half precision is computed in float32, also under autocast.
    Under "weighted" the magnitude of `balance` scales nothing: the formula has lambda_u for that, and the
    sign says which labelled class D is learned with. To weigh L_u by |balance|, set lambda_u to it.

    Attributes:
        form: One of the table in the module's docstring.
        balance: P of the article, gamma of the paper, eta of Sakai, in [-1, 1]. Published ranges: -.1 to
            .2 ("weighted"), best 0 to .1 ("convex").
        theta: Share of positives in D, in (0, 1). None: `for_round` fills in an estimate, since D is a
            selected set and not the population; until then .5. NU risks use 1 - theta, but for the convex
            form's, which writes theta in both (published: .5).
        labelled_prior: Weight of the positives in L_pn ("weighted", "pn") and in L_soft (all forms but
            "convex"), in (0, 1); .5 balances the classes.
        lambda_soft: Weight of L_soft, >= 0. None: `for_round` sets it by the number of agreed posts; until
            then 1. The convex form fixes it, so there it must stay None.
        lambda_u: Weight of L_u, >= 0; "convex" and "sakai" fix it, so there it must stay at its default.
        soft_positive: Target of agreed positives where none are given, in [0, 1]; agreed negatives get
            1 - soft_positive (published: .67).
        surrogate: "logistic" or "sigmoid", for every l+ and l- of the formula.
        beta: Of the non-negative risk: how far below 0 the bracket may go, >= 0.
        gamma: Of the non-negative risk: length of the step back when clipped, in [0, 1]. (Not the
            paper's gamma, which is `balance`.)

    Raises:
        SettingError: A setting outside its range, or one that the form does not let be chosen.
    """

    form: Form = "weighted"
    balance: float = 0.1
    theta: float | None = None
    labelled_prior: float = 0.5
    lambda_soft: float | None = None
    lambda_u: float = LAMBDA_U
    soft_positive: float = 0.8
    surrogate: Literal["logistic", "sigmoid"] = "logistic"
    beta: float = 0.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        _choice("form", self.form, get_args(Form))
        _choice("surrogate", self.surrogate, tuple(SURROGATES))
        _between("balance", self.balance, -1.0, 1.0)
        _between("theta", self._theta, 0.0, 1.0, open_ends=True)
        _between("labelled_prior", self.labelled_prior, 0.0, 1.0, open_ends=True)
        _between("lambda_soft", self._lambda_soft, 0.0, math.inf)
        _between("lambda_u", self.lambda_u, 0.0, math.inf)
        _between("soft_positive", self.soft_positive, 0.0, 1.0)
        _between("beta", self.beta, 0.0, math.inf)
        _between("gamma", self.gamma, 0.0, 1.0)
        self._check_form()

    @property
    def soft_negative(self) -> float:
        """Target of agreed negatives where none are given."""
        return 1 - self.soft_positive

    @property
    def weights(self) -> PNUWeights:
        """(w_pn, w_soft, w_u) as the form and the balance set them."""
        size = abs(self.balance)
        match self.form:
            case "weighted":
                return PNUWeights(1.0, self._lambda_soft, self.lambda_u if size else 0.0)
            case "convex":
                return PNUWeights(1.0 - size, 1.0 - size, size)
            case "sakai":
                return PNUWeights(1.0 - size, self._lambda_soft, size)
            case "nnpu" | "upu":
                return PNUWeights(0.0, self._lambda_soft, self.lambda_u)
            case "pn":
                return PNUWeights(1.0, self._lambda_soft, 0.0)

    def for_round(
        self, groups: SupportsArray, prior: Callable[[], float], agreed_weight: float | None = None
    ) -> PNULoss:
        """Return this loss with what was left open set by the posts of a round; see `RoundLoss`.

        L_pn and L_soft are means over their groups: at a fixed lambda_soft, 100 labels outweigh 5,000 agreed
        posts or are drowned by 50. Left open, lambda_soft = agreed_weight * agreed / labelled, so that one
        agreed post counts agreed_weight times as much as a labelled one, however many there are of each
        (AGREED_WEIGHT where no weight is given).
        """
        filled = self if self.theta is not None else replace(self, theta=prior())
        if self.lambda_soft is not None or self.form == "convex":
            return filled
        counts = torch.bincount(torch.as_tensor(groups), minlength=len(Group)).tolist()
        agreed = counts[Group.AGREED_POSITIVE] + counts[Group.AGREED_NEGATIVE]
        labelled = counts[Group.POSITIVE] + counts[Group.NEGATIVE]
        weight = AGREED_WEIGHT if agreed_weight is None else agreed_weight
        return replace(filled, lambda_soft=weight * agreed / labelled)

    def __call__(
        self, logits: Tensor, groups: Tensor, targets: Tensor | None = None, weights: Tensor | None = None
    ) -> LossOutput:
        """Return the loss of a batch, and every part of the formula by name.

        The parts are "positive" mean_P l+, "negative" mean_N l-, "soft_positive" mean_AP BCE(z, t),
        "soft_negative" mean_AN BCE(z, t), "pn" L_pn, "soft" L_soft, "unlabelled" L_u, "bracket" of L_u
        before correction, "clipped" 1 where that was corrected, else 0. All keys are always there;
        loss = weights . (pn, soft, unlabelled).

        Args:
            logits: z [B], the classifier's logits, any floating type.
            groups: `Group` values [B], integer.
            targets: Soft targets [B] in [0, 1], or None for the two constants; read for agreed posts only.
            weights: Finite weights [B] >= 0, or None; means within a group become weighted means.

        Raises:
            BatchError: Shapes or types that do not fit, an unknown group, a weight or target out of range.
        """
        batch = group_batch(
            logits, groups, targets, weights,
            surrogate=self.surrogate, soft_positive=self.soft_positive, soft_negative=self.soft_negative,
        )  # fmt: skip
        parts = self._labelled(batch)
        unlabelled = self._unlabelled(batch)
        parts |= {
            "unlabelled": unlabelled.risk,
            "bracket": unlabelled.bracket,
            "clipped": unlabelled.clipped,
        }
        weight = self.weights
        return LossOutput(
            loss=weight.pn * parts["pn"]
            + weight.soft * parts["soft"]
            + weight.unlabelled * parts["unlabelled"],
            parts={name: value.detach() for name, value in parts.items()},
        )

    def _labelled(self, batch: GroupedBatch) -> dict[str, Tensor]:
        """L_pn and L_soft, and the four means that they are made of."""
        positive = batch.mean(batch.plus, Group.POSITIVE)
        negative = batch.mean(batch.minus, Group.NEGATIVE)
        soft_positive = batch.mean(batch.soft, Group.AGREED_POSITIVE)
        soft_negative = batch.mean(batch.soft, Group.AGREED_NEGATIVE)
        prior, soft_prior = self._class_weights
        return {
            "positive": positive,
            "negative": negative,
            "soft_positive": soft_positive,
            "soft_negative": soft_negative,
            "pn": prior * positive + (1.0 - prior) * negative,
            "soft": soft_prior * soft_positive + (1.0 - soft_prior) * soft_negative,
        }

    @property
    def _theta(self) -> float:
        return 0.5 if self.theta is None else self.theta

    @property
    def _lambda_soft(self) -> float:
        return 1.0 if self.lambda_soft is None else self.lambda_soft

    @property
    def _class_weights(self) -> tuple[float, float]:
        """Weight of the positives in L_pn and in L_soft."""
        match self.form:
            case "convex":
                return 0.5, 0.5
            case "sakai":
                return self._theta, self.labelled_prior
            case _:
                return self.labelled_prior, self.labelled_prior

    def _unlabelled(self, batch: GroupedBatch) -> UnlabelledRisk:
        """L_u as the form writes it; zeros where the form or the balance leaves it out."""
        if self.weights.unlabelled == 0:
            zero = batch.plus.detach().new_zeros(())
            return UnlabelledRisk(zero, zero, zero)
        positive = self.balance > 0
        if self.form == "convex":
            return one_sided_risk(labelled_and_agreed_means(batch, positive=positive), self._theta, leaky)
        unbiased = self.form in {"sakai", "upu"}
        return one_sided_risk(
            labelled_means(batch, positive=positive),
            self._theta if positive else 1.0 - self._theta,
            uncorrected if unbiased else non_negative(self.beta, self.gamma),
        )

    def _check_form(self) -> None:
        """Refuse what the form would not read, so that no setting is silently without effect."""
        if self.form in {"nnpu", "upu"} and self.balance == 0:
            raise SettingError(
                f"balance is 0 under form {self.form!r}: expected > 0 for the PU risk or < 0 for the NU "
                "risk; use form 'pn' to leave D out"
            )
        fixed = {"convex": ("lambda_soft", "lambda_u"), "sakai": ("lambda_u",)}.get(self.form, ())
        for name in fixed:
            if getattr(self, name) != {"lambda_soft": None, "lambda_u": LAMBDA_U}[name]:
                raise SettingError(
                    f"{name} is {getattr(self, name)} under form {self.form!r}, which takes that weight from "
                    f"the balance: leave it out, or use form 'weighted'"
                )


def _choice(name: str, found: str, known: tuple[str, ...]) -> None:
    if found not in known:
        raise SettingError(f"{name} is {found!r}: expected one of {', '.join(known)}")


def _between(name: str, found: float, low: float, high: float, *, open_ends: bool = False) -> None:
    inside = low < found < high if open_ends else low <= found <= high
    if not (inside and math.isfinite(found)):
        written = f"a finite number >= {low:g}"
        if math.isfinite(high):
            written = (
                f"a number strictly between {low:g} and {high:g}"
                if open_ends
                else f"one in [{low:g}, {high:g}]"
            )
        raise SettingError(f"{name} is {found}: expected {written}")
