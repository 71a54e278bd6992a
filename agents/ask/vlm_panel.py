"""A panel of vision-language agents: candidates in, verdicts out, whatever the protocol and the server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from agents.ask import label_calibration as calibration
from agents.ask.metering import UsageTotals
from agents.ask.protocols import Ask, Asking, Protocol, all_asks
from agents.ask.runner import Runner
from agents.ask.vlm_agent import PreparedPost, VLMAgent
from agents.client.base import Identity, PromptSize
from agents.errors import LearningError
from agents.judgment import Accepted, Candidate, Judgment, LabelledPost, PostLike, Verdict


class PromptSizes(NamedTuple):
    """Calls on one candidate and their mean prompts.

    Attributes:
        alone_calls: Before the classifier's label counts.
        alone: Mean tokens of such a prompt, and of the pictures in it.
        then_calls: At most this many more.
        then: Mean tokens of those, and of the pictures in them.
    """

    alone_calls: int
    alone: tuple[float, float]
    then_calls: int
    then: tuple[float, float]


class VLMPanel:
    """Agents behind a backend; implements `Panel`.

    Args:
        runner: What answers, where answers are kept, and what they may cost; closed here, its store too.
        interviewer: Prompts, pictures, forms.
        protocol: Who is asked what.
        always_cross_review: Ask everybody again even where the verdict is settled.
        settings: What `describe` says besides.
    """

    simulated = False

    def __init__(
        self,
        runner: Runner,
        interviewer: VLMAgent,
        protocol: Protocol,
        *,
        always_cross_review: bool = False,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self._runner = runner
        self._agent = interviewer
        self._protocol = protocol
        self._always_cross_review = always_cross_review
        self._settings = dict(settings or {})
        self._alone: dict[str, tuple[Judgment, ...]] = {}  # judgments of labelled posts, by post id

    # ---- as the loop sees it --------------------------------------------------------------------------

    def fit(
        self,
        labelled: Sequence[LabelledPost],
        *,
        accepted: Sequence[Accepted] = (),
        pool: Sequence[PostLike] = (),
    ) -> None:
        """Judge the labelled posts alone and calibrate on them; accepted ones teach these agents nothing.

        Raises:
            LearningError: No labelled post, or an id given twice.
            AgentError: As `verify`.
        """
        ids = [post.id for post in labelled]
        if not ids or len(set(ids)) < len(ids):
            raise LearningError(f"{len(ids)} labelled posts with {len(set(ids))} different ids")
        if set(ids) == self._alone.keys():
            return

        async def draw_examples() -> None:
            await self._agent.draw_examples(labelled)

        judged = self._runner.work("labelled posts", labelled, self._judge_alone, first=draw_examples)
        self._alone = dict(zip(ids, judged, strict=True))
        truth = [str(post.label) for post in labelled]
        for role in self._protocol.roles:
            known = [(s, t) for s, t in zip(self._shares(role, ids), truth, strict=True) if s is not None]
            self._agent.calibrations[role] = calibration.fit(
                [shares for shares, _ in known], [label for _, label in known], self._agent.form.classes
            )

    def verify(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """One verdict a candidate, in order.

        Raises:
            TokenCapError: The tokens are spent.
            ServerLostError, ServerRefusedError: Nobody answers.
            StoreError: The answers cannot be kept.
            KeyboardInterrupt: After the calls under way have come home. What was paid for is kept, whatever
                is raised.
        """
        return self._runner.work("candidates", candidates, self._verdict)

    def predict_out_of_fold(self, labelled: Sequence[LabelledPost]) -> dict[str, list[Judgment]]:
        """Each role's judgments on the labelled posts, calibrated on the others of them."""
        self.fit(labelled)
        ids, truth = [post.id for post in labelled], [str(post.label) for post in labelled]
        recalled: dict[str, list[Judgment]] = {}
        for place, role in enumerate(self._protocol.roles):
            corrected = calibration.held_out(self._shares(role, ids), truth, self._agent.form.classes)
            recalled[role] = [
                _recalibrated(self._alone[post_id][place], probabilities)
                for post_id, probabilities in zip(ids, corrected, strict=True)
            ]
        return recalled

    def describe(self) -> dict[str, Any]:
        """Protocol and settings; the model too once it was reached."""
        identity = self._runner.reached()
        model = {"model": identity._asdict()} if identity is not None else {}
        return {
            "protocol": self._protocol.name,
            "simulated": False,
            "agents": [{"role": role, "source": "vlm"} for role in self._protocol.roles],
            **self._settings,
            **model,
        }

    def usage(self) -> UsageTotals:
        """What this process has asked and paid so far."""
        return self._runner.usage()

    def identity(self) -> Identity:
        """The model that answers; it is reached if it was not before."""
        return self._runner.identity()

    def measure(self, posts: Sequence[PostLike], said: Judgment, classifier: str) -> PromptSizes:
        """Mean prompt sizes of the calls on `posts`; no answer is asked for.

        Args:
            posts: A sample, one or more.
            said: A judgment of usual length, of another label than `classifier`.
            classifier: The label that prompts of the second step show.
        """
        parts = all_asks(self._protocol, said, classifier)

        async def sizes(post: PostLike) -> list[list[PromptSize]]:
            seen = await self._agent.prepare_post(post)
            return [
                [await self._runner.backend.measure(self._agent.request(seen, ask)) for ask in asks]
                for asks in parts
                if not seen.fault
            ]

        measured = self._runner.work("prompt sizes", posts, sizes)
        alone, then = ([size for one in measured if one for size in one[part]] for part in (0, 1))
        return PromptSizes(len(parts[0]), _mean(alone), len(parts[1]), _mean(then))

    def close(self) -> None:
        """Let go of the server and the store; safe to repeat."""
        self._runner.close()
        self._runner.store.close()

    # ---- on the event loop ----------------------------------------------------------------------------

    async def _judge_alone(self, post: PostLike) -> tuple[Judgment, ...]:
        return tuple(await self._asked(self._protocol.alone(), await self._agent.prepare_post(post)))

    async def _verdict(self, candidate: Candidate) -> Verdict:
        seen = await self._agent.prepare_post(candidate.post)
        first = await self._asked(self._protocol.alone(), seen)
        then = await self._asked(self._protocol.then(first, candidate.label, self._always_cross_review), seen)
        # a verdict lists a step's judgments in the order of the roles, whoever was asked first
        again = sorted(then, key=lambda judgment: self._protocol.roles.index(judgment.agent))
        return Verdict(
            candidate.post.id,
            candidate.label,
            candidate.probability,
            (*first, *again),
            self._protocol.deciders,
        )

    async def _asked(self, asking: Asking, seen: PreparedPost) -> list[Judgment]:
        """All judgments of a protocol's part, in the order of its questions."""
        judgments: list[Judgment] = []
        try:
            asks = next(asking)
            while True:
                answers = await self._together(asks, seen)
                judgments += answers
                asks = asking.send(answers)
        except StopIteration:
            return judgments

    async def _together(self, asks: Sequence[Ask], seen: PreparedPost) -> list[Judgment]:
        """Answers to questions that do not wait for each other."""
        payer = await self._runner.payer()
        answers = await asyncio.gather(
            *(self._agent.judge(seen, ask, payer) for ask in asks), return_exceptions=True
        )
        # only now, when none is under way any more: what the others brought is kept
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        if errors:
            raise errors[0]
        return [answer for answer in answers if isinstance(answer, Judgment)]

    def _shares(self, role: str, ids: Sequence[str]) -> list[dict[str, float] | None]:
        place = self._protocol.roles.index(role)
        return [self._alone[post_id][place].details.get("uncalibrated") for post_id in ids]


def _mean(sizes: Sequence[PromptSize]) -> tuple[float, float]:
    """Mean tokens of prompts, and of the pictures in them; (0, 0) of none."""
    count = max(len(sizes), 1)
    return sum(size.prompt for size in sizes) / count, sum(size.image for size in sizes) / count


def _recalibrated(judgment: Judgment, probabilities: dict[str, float] | None) -> Judgment:
    """The judgment with other probabilities."""
    if probabilities is None:
        return judgment
    details = {**judgment.details, "probabilities": probabilities}
    probability = None if judgment.label is None else probabilities[judgment.label]
    return replace(judgment, probability=probability, details=details)
