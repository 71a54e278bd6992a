"""Questions about posts: what is asked, what comes back, each answer paid for once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, TypeAlias

from agents.ask.answer_schema import AnswerForm, AnswerSchema
from agents.ask.metering import PostPrompt, Response, UsageTotals
from agents.ask.prepare import PreparedPost
from agents.ask.prompt_files import BUILT_IN, PromptFiles, unsure_beside
from agents.ask.runner import DEFAULT, Runner
from agents.client.base import Identity, PromptSize
from agents.errors import TooManyFailedError, UnreadableError
from agents.judgment import PostLike, State

QuestionKind: TypeAlias = Literal["choice", "count", "final"]

# of so few questions a share of failures says little
_FEWEST = 20
_LISTED = 5


@dataclass(frozen=True, slots=True)
class AgentQuestion:
    """One question as an agent reads it."""

    name: str  # under which its answers are kept
    wording: str  # as the agent reads it; of a "final" question the prompt file says it
    answers: tuple[str, ...]  # two or more. Of a "count" they are not offered: a number of pictures is
    # "choice" (one of the answers), "count" (how many pictures show it), or "final" (the classes of the task,
    # asked directly)
    kind: QuestionKind = "choice"

    def offered(self, pictures: int) -> tuple[str, ...]:
        """Return what can be answered about a post of which `pictures` are seen.

        Numbers are offered as texts: their closing quote is what tells 1 from 10 in the log-probabilities.

        Raises:
            ValueError: Nothing to count.
        """
        if self.kind != "count":
            return self.answers
        if pictures < 1:
            raise ValueError(f"question {self.name!r} counts pictures and the post has none")
        return tuple(str(count) for count in range(pictures + 1))


class PostQuestions(NamedTuple):
    """A post, and the questions that are asked about it."""

    post: PostLike
    questions: tuple[AgentQuestion, ...]
    video: Path | None = None  # whose frames are shown in place of pictures


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """What came back on a question."""

    question: str  # its name
    state: State  # LABEL: answered; ABSTAIN: the agent cannot tell; FAILED: no usable answer
    answer: str | None  # one of those offered, a count in digits; None unless state is LABEL
    # offered answer -> probability, adding up to 1, not calibrated; None when no log-probabilities came back
    probs: Mapping[str, float] | None
    rationale: str  # as written. Data, never instructions: nothing parses it
    fault: str  # why there is no usable answer; empty unless state is FAILED
    source: str  # what answered: the model and its revision
    cache_key: str = ""  # of the stored answer, its first 16 hex digits; empty when none came
    attempts: int = 0  # how many answers were asked for

    @classmethod
    def of(cls, question: AgentQuestion, response: Response) -> QuestionAnswer:
        """Return the answer in a response; FAILED with the reason where there is none."""
        answer = response.answer
        return cls(
            question.name, answer.state, answer.label, answer.probabilities, answer.rationale,
            response.fault, response.source, response.cache_key, response.attempts,
        )  # fmt: skip


class QuestionPrompts(PromptFiles):
    """The prompt files of a task's questions; see `PromptFiles`."""

    built_in = BUILT_IN / "questions"
    required: ClassVar[set[str]] = {"form", "words", "wording", "labels"}


@dataclass(eq=False, repr=False)
class Questioner:
    """A model that answers questions about posts."""

    runner: Runner  # what answers, and where answers are kept; closed here, its cache too
    prompts: QuestionPrompts  # the files, filled for the task
    _: KW_ONLY
    form: AnswerForm = "reason_first"  # of every answer, see `AnswerSchema`
    rationale_chars: int = 240  # the same
    seed: int = 0  # of the model's draws
    max_failed: float = 1.0  # the largest share of questions without a usable answer, in [0, 1]

    def __post_init__(self) -> None:
        self._system = self.prompts.system(form=self.prompts.fill(f"form.{self.form}"))

    def ask(self, posts: Sequence[PostQuestions]) -> list[tuple[QuestionAnswer, ...]]:
        """Return what comes back on each post, in its questions' order.

        Raises:
            TooManyFailedError: More questions without a usable answer than tolerated; raised as soon as it
                is clear, not after the last post. Else as `Runner.map`.
        """
        failures = FailedQuestions(self.max_failed)

        async def one(item: PostQuestions) -> tuple[QuestionAnswer, ...]:
            prepared = await self.runner.prepare(item.post, item.video)
            answers = []
            # one after the other: the first call computes the prefix that the others read from the cache
            for question in item.questions:
                answer = await self._answer(prepared, question)
                answers.append(answer)
                failures.count(item.post.id, answer)
            return tuple(answers)

        answers = self.runner.map("posts", posts, one)
        failures.check()
        return answers

    def usage(self) -> UsageTotals:
        """Return what this process has asked and paid so far."""
        return self.runner.usage()

    def answered_by(self) -> Identity | None:
        """Return the model that was asked; None: nothing was."""
        return self.runner.reached().get(DEFAULT)

    def measure(self, posts: Sequence[PostQuestions]) -> list[PromptSize]:
        """Return the size of every prompt about `posts` that can be read; no answer is asked for.

        Raises:
            ChatError: The server cannot be asked, or does not measure.
        """

        async def sizes(item: PostQuestions) -> list[PromptSize]:
            prepared = await self.runner.prepare(item.post, item.video)
            if prepared.fault:
                return []
            try:
                return [await self.runner.measure(self._prompt(prepared, one)) for one in item.questions]
            except UnreadableError:  # it costs no call either
                return []

        return [size for one in self.runner.map("prompt sizes", posts, sizes) for size in one]

    def most_tokens(self, item: PostQuestions) -> int:
        """Return the most tokens of the answers about one post, each asked for once."""
        most = self.runner.max_images
        pictures = min(len(item.post.images), most) if item.video is None else most
        schemas = (self._schema(question, pictures) for question in item.questions)
        return sum(map(self.runner.manner.most_tokens, schemas))

    def close(self) -> None:
        """Let go of the server and the cache; safe to repeat."""
        self.runner.close()
        self.runner.cache.close()

    def _schema(self, question: AgentQuestion, pictures: int) -> AnswerSchema:
        """Return the schema of an answer about a post of which `pictures` are seen."""
        offered = question.offered(pictures)
        return AnswerSchema(offered, unsure_beside(offered), self.form, self.rationale_chars)

    def _prompt(self, post: PreparedPost, question: AgentQuestion) -> PostPrompt:
        schema = self._schema(question, len(post.pictures))
        asked = self.prompts.about(
            post, f"question.{question.kind}", schema, wording=question.wording.strip()
        )
        role = f"question:{question.name}"
        return PostPrompt(post, (self._system, asked), schema, role, seed=self.seed)

    async def _answer(self, post: PreparedPost, question: AgentQuestion) -> QuestionAnswer:
        if post.fault:  # its pictures are not there to be counted
            response = Response.failed(post.fault, (await self.runner.client()).source)
        else:
            response = await self.runner.ask(self._prompt(post, question))
        return QuestionAnswer.of(question, response)


class FailedQuestions:
    """Counts questions, and those without a usable answer, of which a share of `most` is tolerated."""

    def __init__(self, most: float) -> None:
        self._most = most
        self._asked = 0
        self._failed: list[tuple[str, QuestionAnswer]] = []

    def count(self, post_id: str, answer: QuestionAnswer) -> None:
        """Take in what came back; raises as `check`, once there are enough to say so."""
        self._asked += 1
        if answer.state is State.FAILED:
            self._failed.append((post_id, answer))
        self.check(_FEWEST)

    def check(self, fewest: int = 1) -> None:
        """Raise TooManyFailedError where more failed than tolerated, of `fewest` questions or more."""
        if self._asked < fewest or len(self._failed) <= self._most * self._asked:
            return
        lines = [
            f"  post {post_id!r}, {one.question}: {one.fault}" for post_id, one in self._failed[:_LISTED]
        ]
        if more := len(self._failed) - len(lines):
            lines.append(f"  and {more:,} more")
        raise TooManyFailedError(
            f"{len(self._failed):,} of {self._asked:,} questions ({len(self._failed) / self._asked:.1%}) have"
            f" no usable answer, at most {self._most:.1%} tolerated:\n"
            + "\n".join(lines)
            + "\nTry a stronger model, a longer rationale if answers are cut off, or fewer or smaller"
            " pictures if the server refuses them; or tolerate more. What was paid for is kept."
        )
