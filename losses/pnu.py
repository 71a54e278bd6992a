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

An agreed post adds its cross-entropy BCE(z, t) with a softened label t. Where t is the agents' evidence, it
adds how unlikely the model makes their answers, -log(t sigmoid(z) + (1-t) sigmoid(-z)) up to a constant
(Raykar et al., JMLR 2010): no post is pulled towards an undecided 1/2, and answers that tell nothing (their t
is 1/2) teach nothing.

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

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from losses.base import BatchError, Group, LossOutput, SettingError, SupportsArray, is_number
from losses.precision import widened

LAMBDA_U = 0.1
AGREED_WEIGHT = 0.5
"""What an agreed post counts beside a labelled one where lambda_soft is left open."""

Form = Literal["weighted", "convex", "sakai", "nnpu", "upu", "pn"]
AgreedTerm = Literal["cross_entropy", "likelihood"]


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
        agreed: What an agreed post adds: its "cross_entropy" with its target, or the "likelihood" of the
            evidence that its target is. None: `for_round` sets it by what the targets are; until then
            "cross_entropy".
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
    agreed: AgreedTerm | None = None
    lambda_u: float = LAMBDA_U
    soft_positive: float = 0.8
    surrogate: Literal["logistic", "sigmoid"] = "logistic"
    beta: float = 0.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        _choice("form", self.form, get_args(Form))
        _choice("surrogate", self.surrogate, tuple(SURROGATES))
        if self.agreed is not None:
            _choice("agreed", self.agreed, get_args(AgreedTerm))
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
        self, groups: SupportsArray, prior: Callable[[], float], evidence_weight: float | None = None
    ) -> PNULoss:
        """Return this loss with what was left open set by the posts of a round; see `RoundLoss`.

        L_pn and L_soft are means over their groups: at a fixed lambda_soft, 100 labels outweigh 5,000 agreed
        posts or are drowned by 50. Left open, lambda_soft = weight * agreed / labelled, so that one agreed
        post counts `weight` times as much as a labelled one, however many there are of each; a softened
        label counts AGREED_WEIGHT.
        """
        filled = self if self.theta is not None else replace(self, theta=prior())
        if self.agreed is None and evidence_weight is not None:
            filled = replace(filled, agreed="likelihood")
        if self.lambda_soft is not None or self.form == "convex":
            return filled
        counts = np.bincount(np.asarray(groups, np.int64), minlength=len(Group)).tolist()
        agreed = counts[Group.AGREED_POSITIVE] + counts[Group.AGREED_NEGATIVE]
        labelled = counts[Group.POSITIVE] + counts[Group.NEGATIVE]
        weight = AGREED_WEIGHT if evidence_weight is None else evidence_weight
        return replace(filled, lambda_soft=weight * agreed / labelled)

    def __call__(
        self, logits: Tensor, groups: Tensor, targets: Tensor | None = None, weights: Tensor | None = None
    ) -> LossOutput:
        """Return the loss of a batch, and every part of the formula by name.

        The parts are "positive" mean_P l+, "negative" mean_N l-, "soft_positive" and "soft_negative" the
        means over AP and AN of what an agreed post adds (see the module's docstring), "pn" L_pn, "soft"
        L_soft, "unlabelled" L_u, "bracket" of L_u before correction, "clipped" 1 where that was corrected,
        else 0. All keys are always there; loss = weights . (pn, soft, unlabelled).

        Arguments, and what is raised, are those of `RoundLoss`; under `weights`, finite ones [B] >= 0, means
        within a group become weighted means.
        """
        batch = self._grouped(logits, groups, targets, weights)
        parts = self._labelled(batch) | self._unlabelled(batch)._asdict()
        weight = self.weights
        loss = weight.pn * parts["pn"] + weight.soft * parts["soft"]
        loss = loss + weight.unlabelled * parts["unlabelled"]
        return LossOutput(loss, {name: value.detach() for name, value in parts.items()})

    def _grouped(
        self, logits: Tensor, groups: Tensor, targets: Tensor | None, weights: Tensor | None
    ) -> GroupedBatch:
        """Check a batch and compute its surrogate losses, in float32 at least."""
        _check_shapes(logits, groups, targets, weights)
        wide = widened(logits)
        groups = groups.to(wide.device).long()
        agreed = (groups == Group.AGREED_POSITIVE) | (groups == Group.AGREED_NEGATIVE)
        if targets is None:
            negative = groups == Group.AGREED_NEGATIVE
            filled = torch.where(negative, self.soft_negative, self.soft_positive).to(wide)
        else:
            filled = torch.where(agreed, targets.detach().to(wide), 0.0)
        used = torch.ones_like(wide) if weights is None else weights.detach().to(wide)
        _check_values(groups, filled, used)
        if weights is not None and used.numel() > 0:
            # only ratios count; the largest becomes 1, so that no sum of huge weights overflows
            used = used / used.max().clamp(min=torch.finfo(used.dtype).tiny)
        plus, minus = SURROGATES[self.surrogate](wide)
        return GroupedBatch(plus, minus, groups, filled, used, self.agreed == "likelihood")

    def _labelled(self, batch: GroupedBatch) -> dict[str, Tensor]:
        """L_pn and L_soft, and the four means that they are made of."""
        positive = batch.mean(batch.plus, Group.POSITIVE)
        negative = batch.mean(batch.minus, Group.NEGATIVE)
        soft_positive = batch.mean(batch.soft, Group.AGREED_POSITIVE)
        soft_negative = batch.mean(batch.soft, Group.AGREED_NEGATIVE)
        prior = {"convex": 0.5, "sakai": self._theta}.get(self.form, self.labelled_prior)
        soft_prior = 0.5 if self.form == "convex" else self.labelled_prior
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
    inside = is_number(found) and (low < found < high if open_ends else low <= found <= high)
    if not (inside and math.isfinite(found)):
        written = f"one in [{low:g}, {high:g}]" if math.isfinite(high) else f"a finite number >= {low:g}"
        if open_ends:
            written = f"a number strictly between {low:g} and {high:g}"
        raise SettingError(f"{name} is {found}: expected {written}")


# ---- a batch sorted into the five groups, and means over them -------------------------------------------


def logistic(logits: Tensor) -> tuple[Tensor, Tensor]:
    """l+(z) = softplus(-z), l-(z) = softplus(z); the cross-entropy of the sigmoid."""
    return F.softplus(-logits), F.softplus(logits)


def sigmoid(logits: Tensor) -> tuple[Tensor, Tensor]:
    """l+(z) = sigmoid(-z), l-(z) = sigmoid(z); bounded and symmetric, Kiryo et al. (2017), section 5."""
    return torch.sigmoid(-logits), torch.sigmoid(logits)


SURROGATES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {"logistic": logistic, "sigmoid": sigmoid}
"""Both surrogate losses of logits [B]: l+ and l-."""


@dataclass(frozen=True, slots=True)
class GroupedBatch:
    """The surrogate losses of a batch, and who belongs where."""

    plus: Tensor  # l+ of every post [B], float32 or float64
    minus: Tensor  # l- of every post [B], same type
    groups: Tensor  # group of every post [B], integer
    targets: Tensor  # soft target of every post [B] in [0, 1]; meaningful for agreed posts only
    weights: Tensor  # weight of every post [B], non-negative
    # whether the targets are evidence: what agreed posts add is -log(t e^-l+ + (1-t) e^-l-)
    likelihood: bool = False

    def mean(self, values: Tensor, group: Group) -> Tensor:
        """Weighted mean [] of `values` [B] over one group; exactly 0 where the group carries no weight."""
        mask = self.groups == group
        # `where` and not a product, so that an infinite value in another group cannot make a NaN here
        weights = torch.where(mask, self.weights, 0.0)
        total = weights.sum()
        shares = weights / torch.where(total > 0, total, 1.0)
        return torch.where(mask, shares * values, 0.0).sum()

    def occupied(self, group: Group) -> Tensor:
        """Whether the group carries any weight: bool []."""
        return torch.where(self.groups == group, self.weights, 0.0).sum() > 0

    @property
    def soft(self) -> Tensor:
        """What every post [B] adds as an agreed one."""
        return self._agreed(self.targets)

    @property
    def soft_flipped(self) -> Tensor:
        """The same of the opposite target 1-t [B]."""
        return self._agreed(1.0 - self.targets)

    def _agreed(self, targets: Tensor) -> Tensor:
        if self.likelihood:
            return -torch.logaddexp(targets.log() - self.plus, (1.0 - targets).log() - self.minus)
        return targets * self.plus + (1.0 - targets) * self.minus


def _check_shapes(logits: Tensor, groups: Tensor, targets: Tensor | None, weights: Tensor | None) -> None:
    if logits.ndim != 1 or not logits.is_floating_point():
        raise BatchError(
            f"logits have shape {tuple(logits.shape)} and type {logits.dtype}: expected floats [B], "
            "one logit a post; squeeze a trailing axis of width 1"
        )
    if groups.is_floating_point() or groups.is_complex() or groups.dtype == torch.bool:
        raise BatchError(f"groups have type {groups.dtype}: expected integers, the values of losses.Group")
    others = {"groups": groups, "targets": targets, "weights": weights}
    for name, tensor in others.items():
        if tensor is not None and tensor.shape != logits.shape:
            raise BatchError(
                f"{name} have shape {tuple(tensor.shape)}, logits {tuple(logits.shape)}: expected the same, "
                "one value a post"
            )


def _check_values(groups: Tensor, targets: Tensor, weights: Tensor) -> None:
    known = (groups >= min(Group)) & (groups <= max(Group))
    target_fits = (targets >= 0) & (targets <= 1)
    weight_fits = (weights >= 0) & torch.isfinite(weights)
    if bool((known & target_fits & weight_fits).all()):  # one wait for the device instead of three
        return
    if not bool(known.all()):
        names = ", ".join(f"{group.value} {group.name}" for group in Group)
        raise BatchError(f"group {int(groups[~known][0])} is unknown: expected one of {names}")
    if not bool(target_fits.all()):
        found = float(targets[~target_fits][0])
        raise BatchError(f"an agreed post has soft target {found}: expected a number in [0, 1]")
    found = float(weights[~weight_fits][0])
    reason = "negative" if not math.isnan(found) and found < 0 else "not finite"
    raise BatchError(f"weight {found} is {reason}: expected finite numbers >= 0; 0 leaves a post out")


# ---- risks of one labelled class and unlabelled posts ---------------------------------------------------


# All have one shape. With l the loss of the labelled class's own side and l' that of the other side, pi the
# prior of the labelled class and D the unlabelled posts::
#
#     risk = pi mean_labelled l + correct(bracket),   bracket = mean_D l' - pi mean_labelled l'
#
# The bracket estimates the risk of the class that has no labels here, which cannot be negative; on few posts
# the estimate can. What `correct` does about it is all that the published risks differ in.


class OneSided(NamedTuple):
    """Means [] that a one-sided risk is built of."""

    own: Tensor  # mean_labelled l, the labelled posts judged as what they are
    opposite: Tensor  # mean_labelled l', the same posts judged as the other class
    unlabelled: Tensor  # mean_D l', the unlabelled posts judged as the other class
    present: Tensor  # whether D carries any weight, bool []


class UnlabelledRisk(NamedTuple):
    """A one-sided risk [], its bracket [] before correction, and whether it was clipped, 0 or 1 []."""

    unlabelled: Tensor
    bracket: Tensor
    clipped: Tensor


Correction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(pi mean_labelled l [], bracket []) -> (risk [], clipped bool [])"""


def labelled_means(batch: GroupedBatch, *, positive: bool) -> OneSided:
    """The means over the labelled posts of one class alone, and over D (Sakai, Kiryo, the article)."""
    own, opposite = (batch.plus, batch.minus) if positive else (batch.minus, batch.plus)
    group = Group.POSITIVE if positive else Group.NEGATIVE
    return OneSided(
        own=batch.mean(own, group),
        opposite=batch.mean(opposite, group),
        unlabelled=batch.mean(opposite, Group.DIVERGENT),
        present=batch.occupied(Group.DIVERGENT),
    )


def labelled_and_agreed_means(batch: GroupedBatch, *, positive: bool) -> OneSided:
    """As `labelled_means`, the labelled and the agreed posts of the class at half weight each (the paper).

    R+ = 1/2 [mean_P l+ + mean_AP BCE(z, t)]; its opposite judges the agreed posts by the flipped target,
    BCE(z, 1-t), which for t = .67 is the paper's BCE(z, .33).
    """
    labelled = labelled_means(batch, positive=positive)
    agreed = Group.AGREED_POSITIVE if positive else Group.AGREED_NEGATIVE
    return labelled._replace(
        own=0.5 * (labelled.own + batch.mean(batch.soft, agreed)),
        opposite=0.5 * (labelled.opposite + batch.mean(batch.soft_flipped, agreed)),
    )


def one_sided_risk(means: OneSided, prior: float, correct: Correction) -> UnlabelledRisk:
    """The risk of the module's docstring; exactly 0, its gradient too, where D is empty.

    Without D there is nothing to subtract from: the bracket would be -pi mean_labelled l', uPU would sink
    without bound, and nnPU's way out of a negative bracket would push the labelled posts to the wrong side.
    """
    bracket = means.unlabelled - prior * means.opposite
    risk, clipped = correct(prior * means.own, bracket)
    zero = torch.zeros_like(bracket)
    return UnlabelledRisk(
        unlabelled=torch.where(means.present, risk, zero),
        bracket=torch.where(means.present, bracket, zero),
        clipped=(means.present & clipped).to(bracket.dtype),
    )


def uncorrected(own: Tensor, bracket: Tensor) -> tuple[Tensor, Tensor]:
    """Unbiased and unbounded below: uPU, and R_pu and R_nu of Sakai et al. (2017)."""
    return own + bracket, torch.zeros_like(bracket, dtype=torch.bool)


def leaky(own: Tensor, bracket: Tensor) -> tuple[Tensor, Tensor]:
    """own + h(bracket), h(x) = x if x >= 0 else -.01 x (arXiv 2511.13759); value and gradient agree."""
    clipped = bracket < 0
    return own + torch.where(clipped, -0.01 * bracket, bracket), clipped


def non_negative(beta: float, gamma: float) -> Correction:
    """nnPU, Kiryo et al. (2017), equation 6 and algorithm 1.

    The value is own + max(bracket, -beta). Where the bracket lies below -beta the gradient is not that of
    the value, but that of -gamma bracket alone: a step back, out of the overfitting that made it negative.
    """

    def correct(own: Tensor, bracket: Tensor) -> tuple[Tensor, Tensor]:
        clipped = bracket < -beta
        way_back = -gamma * bracket
        # x - x.detach() is exactly 0 and has the gradient of x: value from one side, gradient from the other
        stepped = (own - beta).detach() + (way_back - way_back.detach())
        return torch.where(clipped, stepped, own + bracket), clipped

    return correct
