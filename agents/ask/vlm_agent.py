"""One question about one post: the prompt that asks it, and the judgment that its answer is."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from agents.ask.answer_schema import Form, FormName, read_answer
from agents.ask.label_calibration import Calibration, identity
from agents.ask.metering import MeteredClient, Reply
from agents.ask.pictures import Opener, encode
from agents.ask.prompts import ROLES, Prompts
from agents.ask.protocols import Ask, Protocol
from agents.client.base import ChatRequest, Completion, Message, Picture, Sampling
from agents.errors import CallFailedError, RequestRefusedError
from agents.judgment import Judgment, LabelledPost, PostLike, State

# what can follow a label is its classes: a few alternatives hold all that the grammar allows
_TOP_LOGPROBS = 8


@dataclass(frozen=True, slots=True)
class PreparedPost:
    """A post made ready to be asked about, once for all questions.

    Attributes:
        post: The post.
        pictures: As they are sent, at most as many as the limit allows.
        examples: Turns that come before it.
        fault: Why it cannot be asked about; empty if it can.
    """

    post: PostLike
    pictures: tuple[Picture, ...] = ()
    examples: tuple[Message, ...] = ()
    fault: str = ""


class VLMAgent:
    """Asks about posts and reads the answers.

    Args:
        prompts: The files, filled for the task.
        protocol: Says whether labelled posts are shown first, and the usual form.
        opener: Opens image files.
        form: Overrides the protocol's form of answer.
        rationale_chars: Most characters of a rationale.
        image_side: Longest side of a picture, in pixels.
        max_images: Most pictures of a post that are sent, in order.
        examples: Labelled posts of each class that a protocol with examples shows.
        seed: Of the draw of examples and of the model's own.
    """

    def __init__(
        self,
        prompts: Prompts,
        protocol: Protocol,
        opener: Opener,
        *,
        form: FormName | None = None,
        rationale_chars: int = 240,
        image_side: int = 768,
        max_images: int = 16,
        examples: int = 2,
        seed: int = 0,
    ) -> None:
        brief = prompts.brief
        name = form or cast(FormName, protocol.form)
        self.form = Form(brief.names, brief.unsure, name, rationale_chars)
        self.calibrations: dict[str, Calibration] = {}
        self._prompts = prompts
        self._protocol = protocol
        self._opener = opener
        self._image_side = image_side
        self._max_images = max_images
        self._per_class = examples if protocol.examples else 0
        self._seed = seed
        named = [role for role in protocol.roles if role in ROLES]
        self._system = prompts.system(self.form, named)
        self._drawn: tuple[PreparedPost, ...] = ()

    async def draw_examples(self, labelled: Sequence[LabelledPost]) -> None:
        """Choose the posts that are shown as examples; a protocol without examples chooses none."""
        if not self._per_class:
            return
        order = random.Random(self._seed).sample(range(len(labelled)), len(labelled))
        chosen: list[LabelledPost] = []
        for name in self.form.classes:
            # one more than shown: a labelled post that is asked about is not its own example
            chosen += [labelled[i] for i in order if labelled[i].label == name][: self._per_class + 1]
        self._drawn = tuple([await self._seen(post) for post in chosen])

    async def prepare_post(self, post: PostLike) -> PreparedPost:
        """`post` with its pictures and, where the protocol has them, examples."""
        seen = await self._seen(post)
        return PreparedPost(seen.post, seen.pictures, tuple(self._example_turns(post)), seen.fault)

    def request(self, seen: PreparedPost, ask: Ask) -> ChatRequest:
        """The call that asks."""
        ending = self._prompts.ending(ask.template, own=ask.own, other=ask.other, classifier=ask.classifier)
        question = self._prompts.post(seen.post.text, seen.pictures, ending)
        sampling = Sampling(self.form.max_tokens, seed=self._seed, top_logprobs=_TOP_LOGPROBS)
        messages = (self._system, *seen.examples, question)
        return ChatRequest(messages, self.form.schema(), sampling, affinity=seen.post.id)

    async def judge(self, seen: PreparedPost, ask: Ask, payer: MeteredClient) -> Judgment:
        """The judgment that `ask` brings; FAILED with the reason when it brings none.

        Raises:
            TokenCapError, ServerRefusedError, ServerLostError: Nobody can be asked any more.
        """
        source = source_of(payer)
        if seen.fault:
            return Judgment(ask.role, ask.step, State.FAILED, None, None, seen.fault, source)
        try:
            reply = await payer.ask(
                self.request(seen, ask), self.read, post=seen.post.id, role=ask.role, step=ask.step
            )
        except (RequestRefusedError, CallFailedError) as error:
            return Judgment(ask.role, ask.step, State.FAILED, None, None, str(error), source)
        return self._judgment(ask, reply, source)

    def read(self, completion: Completion) -> tuple[Mapping[str, Any], str]:
        """What a completion says, as the store keeps it, and why it cannot be used."""
        answer = asdict(read_answer(completion, self.form))
        return answer, str(answer.pop("fault"))

    def _judgment(self, ask: Ask, reply: Reply, source: str) -> Judgment:
        details: dict[str, Any] = {"address": reply.address[:16], "attempts": reply.attempts}
        if reply.fault:
            words = f"No usable answer in {reply.attempts} attempt(s); the last was {reply.fault}."
            return Judgment(ask.role, ask.step, State.FAILED, None, None, words, source, details)
        answer = reply.answer
        state, label, shares = State(answer["state"]), answer["label"], answer["probabilities"]
        probability = None
        if shares is not None:
            corrected = self.calibrations.get(ask.role, identity(self.form.classes)).apply(shares)
            details |= {"uncalibrated": shares, "probabilities": corrected}
            probability = None if label is None else corrected[label]
        return Judgment(ask.role, ask.step, state, label, probability, answer["rationale"], source, details)

    async def _seen(self, post: PostLike) -> PreparedPost:
        return await prepare_post(post, self._opener, self._image_side, self._max_images)

    def _example_turns(self, post: PostLike) -> list[Message]:
        turns: list[Message] = []
        for name in self.form.classes:
            fitting = [
                s for s in self._drawn if getattr(s.post, "label", None) == name and s.post.id != post.id
            ]
            for seen in fitting[: self._per_class]:
                ending = self._prompts.ending(self._protocol.examples)
                turns.append(self._prompts.post(seen.post.text, seen.pictures, ending))
                turns.append(Message("assistant", (json.dumps({"label": name}, ensure_ascii=False),)))
        return turns


async def prepare_post(post: PostLike, opener: Opener, side: int, most: int) -> PreparedPost:
    """`post` with its first `most` pictures, the longest side of each at most `side` pixels."""
    paths = tuple(post.images)[:most]
    try:
        # decoding takes long enough to hold up every other call
        pictures = [await asyncio.to_thread(encode, path, opener, side) for path in paths]
    except Exception as error:  # decoders raise a dozen types; the reason becomes the judgment's
        return PreparedPost(post, fault=f"A picture of this post could not be read: {error}")
    return PreparedPost(post, tuple(pictures))


def source_of(payer: MeteredClient) -> str:
    """What answers, as judgments name it: the model and its revision."""
    revision = f"@{payer.identity.revision[:12]}" if payer.identity.revision else ""
    return f"vlm:{payer.identity.model}{revision}"
