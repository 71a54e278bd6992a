"""PNU losses: labelled, agreed and divergent posts in one formula.

L = w_pn L_pn + w_soft L_soft + w_u L_u. P and N are the labelled posts, AP and AN those that the agents and
the classifier agree on, D the divergent ones, kept without a label. L_u is a PU risk if the balance is
positive, an NU risk if it is negative, and absent if it is 0 or if D is empty.

========  =======================  ==============  =================================  ====================
form      w_pn, w_soft, w_u        prior in L_pn   L_u                                balance
========  =======================  ==============  =================================  ====================
article   1, l_soft, l_u           labelled_prior  non-negative, P or N and D         sign alone
paper     1-|b|, 1-|b|, |b|        1/2             leaky, with AP or AN among P or N  b, in [-1, 1]
sakai     1-|b|, l_soft, |b|       theta           unbiased, P or N and D             b, in [-1, 1]
nnpu      0, l_soft, l_u           --              non-negative, P or N and D         sign alone, not 0
upu       0, l_soft, l_u           --              unbiased, P or N and D             sign alone, not 0
pn        1, l_soft, 0             labelled_prior  none                               not read
========  =======================  ==============  =================================  ====================

(l_soft, l_u, b: `lambda_soft`, `lambda_u`, `balance`.) Published forms other than the paper's know no agreed
posts; with lambda_soft = 0 they are exactly what was published.

Sources: "Multi-Agent VLMs Guided Self-Training with PNU Loss" (arXiv 2511.13759): article and paper; Sakai,
du Plessis, Niu, Sugiyama (ICML 2017); Kiryo, Niu, du Plessis, Sugiyama (NeurIPS 2017).

Shape legend: ``B`` posts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from torch import Tensor

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

Form = Literal["article", "paper", "sakai", "nnpu", "upu", "pn"]


class PNUWeights(NamedTuple):
    """The three weights of the one form."""

    pn: float
    soft: float
    unlabelled: float


class PNUOutput(NamedTuple):
    """A loss [] with its graph, and every part of the formula by name, detached scalars [].

    parts: "positive" mean_P l+, "negative" mean_N l-, "soft_positive" mean_AP BCE(z, t), "soft_negative"
    mean_AN BCE(z, t), "pn" L_pn, "soft" L_soft, "unlabelled" L_u, "bracket" of L_u before correction,
    "clipped" 1 where that was corrected, else 0. All keys are always there; loss = weights . (pn, soft,
    unlabelled).
    """

    loss: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class PNULoss:
    """A PNU loss: called with logits and groups, it gives the loss and its parts.

    A mean over an empty group is 0. What is half precision is computed in float32, also under autocast.
    Under "article" the magnitude of `balance` scales nothing: the formula has lambda_u for that, and the
    sign says which labelled class D is learned with. To weigh L_u by |balance|, set lambda_u to it.

    Attributes:
        form: One of the table in the module's docstring.
        balance: P of the article, gamma of the paper, eta of Sakai, in [-1, 1]. Published ranges: -.1 to
            .2 (article), best 0 to .1 (paper).
        theta: Share of positives in D, in (0, 1): D is a selected set, so rather estimated
            (`estimate_prior`) than the population's. NU risks use 1 - theta, but for the paper's, which
            writes theta in both and sets it to .5.
        labelled_prior: Weight of the positives in L_pn ("article", "pn") and in L_soft (all forms but the
            paper's), in (0, 1); .5 balances the classes.
        lambda_soft: Weight of L_soft, >= 0; the paper's form fixes it, so there it must stay 1.
        lambda_u: Weight of L_u, >= 0; the paper's and Sakai's forms fix it, so there it must stay 1.
        soft_positive: Target of agreed positives where none are given, in [0, 1].
        soft_negative: Target of agreed negatives where none are given, in [0, 1].
        surrogate: "logistic" or "sigmoid", for every l+ and l- of the formula.
        beta: Of the non-negative risk: how far below 0 the bracket may go, >= 0.
        gamma: Of the non-negative risk: length of the step back when clipped, in [0, 1]. (Not the
            paper's gamma, which is `balance`.)

    Raises:
        SettingError: A setting outside its range, or one that the form does not let be chosen.
    """

    form: Form = "article"
    balance: float = 0.1
    theta: float = 0.5
    labelled_prior: float = 0.5
    lambda_soft: float = 1.0
    lambda_u: float = 1.0
    soft_positive: float = 0.67
    soft_negative: float = 0.33
    surrogate: Literal["logistic", "sigmoid"] = "logistic"
    beta: float = 0.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        _choice("form", self.form, get_args(Form))
        _choice("surrogate", self.surrogate, tuple(SURROGATES))
        _between("balance", self.balance, -1.0, 1.0)
        _between("theta", self.theta, 0.0, 1.0, open_ends=True)
        _between("labelled_prior", self.labelled_prior, 0.0, 1.0, open_ends=True)
        _between("lambda_soft", self.lambda_soft, 0.0, math.inf)
        _between("lambda_u", self.lambda_u, 0.0, math.inf)
        _between("soft_positive", self.soft_positive, 0.0, 1.0)
        _between("soft_negative", self.soft_negative, 0.0, 1.0)
        _between("beta", self.beta, 0.0, math.inf)
        _between("gamma", self.gamma, 0.0, 1.0)
        self._check_form()

    @property
    def weights(self) -> PNUWeights:
        """(w_pn, w_soft, w_u) as the form and the balance set them."""
        size = abs(self.balance)
        match self.form:
            case "article":
                return PNUWeights(1.0, self.lambda_soft, self.lambda_u if size else 0.0)
            case "paper":
                return PNUWeights(1.0 - size, 1.0 - size, size)
            case "sakai":
                return PNUWeights(1.0 - size, self.lambda_soft, size)
            case "nnpu" | "upu":
                return PNUWeights(0.0, self.lambda_soft, self.lambda_u)
            case "pn":
                return PNUWeights(1.0, self.lambda_soft, 0.0)

    def __call__(
        self, logits: Tensor, groups: Tensor, targets: Tensor | None = None, weights: Tensor | None = None
    ) -> PNUOutput:
        """The loss of a batch.

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
        return PNUOutput(
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
    def _class_weights(self) -> tuple[float, float]:
        """Weight of the positives in L_pn and in L_soft."""
        match self.form:
            case "paper":
                return 0.5, 0.5
            case "sakai":
                return self.theta, self.labelled_prior
            case _:
                return self.labelled_prior, self.labelled_prior

    def _unlabelled(self, batch: GroupedBatch) -> UnlabelledRisk:
        """L_u as the form writes it; zeros where the form or the balance leaves it out."""
        if self.weights.unlabelled == 0:
            zero = batch.plus.detach().new_zeros(())
            return UnlabelledRisk(zero, zero, zero)
        positive = self.balance > 0
        if self.form == "paper":
            return one_sided_risk(labelled_and_agreed_means(batch, positive=positive), self.theta, leaky)
        unbiased = self.form in {"sakai", "upu"}
        return one_sided_risk(
            labelled_means(batch, positive=positive),
            self.theta if positive else 1.0 - self.theta,
            uncorrected if unbiased else non_negative(self.beta, self.gamma),
        )

    def _check_form(self) -> None:
        """Refuse what the form would not read, so that no setting is silently without effect."""
        if self.form in {"nnpu", "upu"} and self.balance == 0:
            raise SettingError(
                f"balance is 0 under form {self.form!r}: expected > 0 for the PU risk or < 0 for the NU "
                "risk; use form 'pn' to leave D out"
            )
        fixed = {"paper": ("lambda_soft", "lambda_u"), "sakai": ("lambda_u",)}.get(self.form, ())
        for name in fixed:
            if getattr(self, name) != 1.0:
                raise SettingError(
                    f"{name} is {getattr(self, name)} under form {self.form!r}, which takes that weight from "
                    f"the balance: expected 1; leave it out, or use form 'article'"
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
