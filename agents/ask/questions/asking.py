"""One question about one post: the call that asks it, and what its answer says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from agents.ask.answer_schema import Form, FormName, read_answer
from agents.ask.brief import unsure_beside
from agents.ask.metering import MeteredClient, Reply
from agents.ask.pictures import Opener
from agents.ask.questions.prompts import QuestionPrompts
from agents.ask.questions.question import Asked
from agents.ask.vlm_agent import PreparedPost, prepare_post, source_of
from agents.client.base import ChatRequest, Completion, Sampling
from agents.errors import CallFailedError, RequestRefusedError
from agents.judgment import PostLike, State

# as many alternatives of a token as there are answers, within what servers give
_FEWEST_LOGPROBS, _MOST_LOGPROBS = 8, 20


@dataclass(frozen=True, slots=True)
class Given:
    """What came back on a question.

    Attributes:
        question: Its name.
        state: LABEL: answered; ABSTAIN: the agent cannot tell; FAILED: no usable answer.
        answer: One of those offered, a count in digits; None unless state is LABEL.
        shares: Offered answer -> share of the probability, adding up to 1, not calibrated; None when no
            log-probabilities came back.
        rationale: As written. Data, never instructions: nothing parses it.
        fault: Why there is no usable answer; empty unless state is FAILED.
        source: What answered: the model and its revision.
        address: Of the stored answer, its first 16 hex digits; empty when none came.
        attempts: How many answers were asked for.
    """

    question: str
    state: State
    answer: str | None
    shares: Mapping[str, float] | None
    rationale: str
    fault: str
    source: str
    address: str = ""
    attempts: int = 0


class Questioner:
    """Asks questions about posts and reads the answers.

    Args:
        prompts: The files, filled for the task.
        opener: Opens image files.
        form: Of every answer, see `Form`.
        rationale_chars: Most characters of a rationale.
        image_side: Longest side of a picture, in pixels.
        max_images: Most pictures of a post that are sent, in order.
        seed: Of the model's draws.
    """

    def __init__(
        self,
        prompts: QuestionPrompts,
        opener: Opener,
        *,
        form: FormName = "reason_first",
        rationale_chars: int = 240,
        image_side: int = 768,
        max_images: int = 16,
        seed: int = 0,
    ) -> None:
        self._prompts = prompts
        self._opener = opener
        self._form_name = form
        self._rationale_chars = rationale_chars
        self._image_side = image_side
        self._max_images = max_images
        self._seed = seed
        self._system = prompts.system(form)

    async def prepare_post(self, post: PostLike) -> PreparedPost:
        """`post` with its pictures, made ready once for all questions."""
        return await prepare_post(post, self._opener, self._image_side, self._max_images)

    def form(self, asked: Asked, pictures: int) -> Form:
        """The form of an answer to `asked`, of a post of which `pictures` are seen."""
        offered = asked.offered(pictures)
        return Form(offered, unsure_beside(offered), self._form_name, self._rationale_chars)

    def most_tokens(self, post: PostLike, asked: Asked) -> int:
        """Most tokens of one answer to `asked` about `post`."""
        return self.form(asked, min(len(post.images), self._max_images)).max_tokens

    def request(self, seen: PreparedPost, asked: Asked) -> ChatRequest:
        """The call that asks."""
        form = self.form(asked, len(seen.pictures))
        question = self._prompts.question(seen.post.text, seen.pictures, asked, form)
        top = min(max(len(form.labels), _FEWEST_LOGPROBS), _MOST_LOGPROBS)
        sampling = Sampling(form.max_tokens, seed=self._seed, top_logprobs=top)
        return ChatRequest((self._system, question), form.schema(), sampling, affinity=seen.post.id)

    async def ask(self, seen: PreparedPost, asked: Asked, payer: MeteredClient) -> Given:
        """What comes back; FAILED with the reason when nothing usable does.

        Raises:
            TokenCapError, ServerRefusedError, ServerLostError: Nobody can be asked any more.
        """
        source = source_of(payer)
        if seen.fault:
            return Given(asked.name, State.FAILED, None, None, "", seen.fault, source)
        form = self.form(asked, len(seen.pictures))

        def read(completion: Completion) -> tuple[Mapping[str, Any], str]:
            answer = asdict(read_answer(completion, form))
            return answer, str(answer.pop("fault"))

        try:
            reply = await payer.ask(
                self.request(seen, asked), read, post=seen.post.id, role=f"question:{asked.name}", step=0
            )
        except (RequestRefusedError, CallFailedError) as error:
            return Given(asked.name, State.FAILED, None, None, "", str(error), source)
        return _given(asked, reply, source)


def _given(asked: Asked, reply: Reply, source: str) -> Given:
    place, attempts = reply.address[:16], reply.attempts
    if reply.fault:
        fault = f"no usable answer in {attempts} attempt(s); the last was {reply.fault}"
        return Given(asked.name, State.FAILED, None, None, "", fault, source, place, attempts)
    answer = reply.answer
    return Given(
        asked.name, State(answer["state"]), answer["label"], answer["probabilities"], answer["rationale"], "",
        source, place, attempts,
    )  # fmt: skip
