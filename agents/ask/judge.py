"""Reviewer and User, or a judge alone: vision-language agents that verify candidates.

`VLMAgent` words what a protocol asks and reads judgments out of the responses; `JudgePanel` runs the protocol
on many candidates and implements `agents.panel.Panel`.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

from agents.ask.answer_schema import NO_CLAUSE, AnswerForm, AnswerSchema
from agents.ask.guard import GuardWords
from agents.ask.label_calibration import LabelCalibration, fit_calibration, held_out, identity
from agents.ask.metering import PostPrompt, Response, UsageTotals
from agents.ask.prepare import PreparedPost
from agents.ask.prompt_files import BUILT_IN, PromptFiles, listed
from agents.ask.protocols import Protocol, Query, QueryPlan, all_queries
from agents.ask.runner import DEFAULT, Runner
from agents.client.base import Identity, Message, PromptSize
from agents.errors import LearningError, ServerRefusedError
from agents.judgment import ROLES, Accepted, Candidate, Judgment, LabelledPost, PostLike, State, Verdict


class JudgePrompts(PromptFiles):
    """The prompt files of Reviewer, User and a judge alone; see `PromptFiles`."""

    built_in = BUILT_IN / "judge"
    required: ClassVar[set[str]] = {
        "form", "own", "other", "words", "policy", "classes", "labels", "side",
    }  # fmt: skip

    def opening(
        self, schema: AnswerSchema, roles: Sequence[str] = (), *, label_apart: bool = False
    ) -> Message:
        """Return the task, its policy and classes, the roles and the form of an answer.

        Each agent reads of the others' roles too; a judge alone has none.
        """
        described = [f"The {role.capitalize()}: {self._role(role)}" for role in roles]
        spelt = schema.spelt
        clause = self.fill("form.clause") + " " if schema.clauses else ""
        form = self.fill(
            "form.apart" if label_apart else f"form.{schema.form}",
            labels=listed(spelt.values()), unsure=spelt[schema.unsure], clause=clause,
        )  # fmt: skip
        turn = self.system(roles="\n\n".join(described), form=form)
        words = (re.sub(r"\n{3,}", "\n\n", str(part)) for part in turn.parts)  # where there are no roles
        return Message("system", tuple(words))

    def asking(self, query: Query, post: PreparedPost, schema: AnswerSchema) -> Message:
        """Return one post, and at the end who is asked what about it, with the judgments that it shows."""
        own, other = self._words_of(query.own), self._words_of(query.other)
        return self.about(
            post, query.template, schema, own=own, other=other, classifier=query.classifier or "",
            side=f'"{schema.classes[0]}"',
        )  # fmt: skip

    def label_question(self, schema: AnswerSchema) -> Message:
        """Return the turn that asks for the label alone, once the reasons are given."""
        spelt = schema.spelt
        return Message(
            "user", (self.fill("label", labels=listed(spelt.values()), unsure=spelt[schema.unsure]),)
        )

    def _role(self, role: str) -> str:
        given = self.brief.roles.get(role)
        return given.strip() if given else self.fill(f"{role}.role")

    def _words_of(self, judgment: Judgment | None) -> str:
        if judgment is None:
            return ""
        if judgment.state is State.FAILED:
            return "no answer that could be read"
        rationale = self.quote(judgment.rationale)
        if judgment.argued:
            return rationale
        label = judgment.label if judgment.label is not None else self.brief.unsure
        return f'"{label}"' + (f"\n{rationale}" if rationale else "")


@dataclass(eq=False, repr=False)
class VLMAgent:
    """What a vision-language model is asked about a post, and the judgment that its answer is."""

    prompts: JudgePrompts  # the files, filled for the task
    protocol: Protocol  # who is asked what; whether labelled posts are shown first; the usual form
    _: KW_ONLY
    form: AnswerForm | None = None  # overrides the protocol's
    rationale_chars: int = 240  # most characters of a rationale
    examples: int = 2  # labelled posts of each class that a protocol with examples shows
    seed: int = 0  # of the draw of examples and of the model's own
    guards: Mapping[str, GuardWords] = field(default_factory=dict)  # role -> words of a guard that plays it
    # ask for the reasons first, and for the label in a turn of its own, on the same prefix: written after its
    # reasons in one answer, the label's probability is 0 or 1
    label_apart: bool = False

    def __post_init__(self) -> None:
        brief, form = self.prompts.brief, self.form or self.protocol.form
        self._clauses = brief.clauses
        self.schema = AnswerSchema(
            brief.names, brief.unsure, form, self.rationale_chars, clauses=len(self._clauses)
        )
        self._variants: dict[tuple[bool, bool], AnswerSchema] = {}
        # role -> the correction of its probabilities; empty before a panel is fitted
        self.calibrations: dict[str, LabelCalibration] = {}
        # a judge alone has no role to describe
        described = [role for role in self.protocol.roles if role in ROLES]
        self._system = self.prompts.opening(self.schema, described, label_apart=self.label_apart)
        self._examples: tuple[PreparedPost, ...] = ()

    async def draw_examples(self, labelled: Sequence[LabelledPost], runner: Runner) -> None:
        """Choose the posts that are shown as examples; a protocol without examples chooses none."""
        if not (self.protocol.examples and self.examples):
            return
        order = random.Random(self.seed).sample(range(len(labelled)), len(labelled))
        chosen: list[LabelledPost] = []
        for name in self.schema.classes:
            # one more than shown: a labelled post that is asked about is not its own example
            chosen += [labelled[i] for i in order if labelled[i].label == name][: self.examples + 1]
        self._examples = tuple([await runner.prepare(post) for post in chosen])

    def prompt(self, post: PreparedPost, query: Query) -> PostPrompt:
        """Return the prompt that asks `query` about `post`."""
        if guard := self.guards.get(query.role):
            # a guard's own template says all but the post; asked again it is shown no more, and says the same
            shown = (Message("user", self.prompts.bare(post)),)
            return PostPrompt(post, shown, guard, query.role, query.step, seed=self.seed)
        # the second agent reads the classes the other way round: what a place in a list does cancels out
        reverse = query.role == ROLES[1]
        schema = self._variant(reverse, query.argues)
        asked = self.prompts.asking(query, post, schema)
        messages = (self._system, *self._example_turns(post.post.id), asked)
        return PostPrompt(post, messages, schema, query.role, query.step, seed=self.seed)

    def _variant(self, reverse: bool, argues: bool) -> AnswerSchema:
        if (reverse, argues) not in self._variants:
            schema = replace(self.schema, reverse=reverse, reasons_only=argues or self.label_apart)
            if schema.reasons_only and not schema.limit:
                schema = replace(schema, form="reason_first")
            # who makes a case decides nothing, so no clause does
            self._variants[reverse, argues] = replace(schema, clauses=0) if argues else schema
        return self._variants[reverse, argues]

    def prompts_of(self, post: PreparedPost, query: Query, rationale: str) -> list[PostPrompt]:
        """Return the prompt that asks `query`, and the one that asks for its label where that is apart."""
        prompt = self.prompt(post, query)
        label = None if query.argues else self.label_prompt(prompt, rationale)
        return [prompt] if label is None else [prompt, label]

    def label_prompt(self, prompt: PostPrompt, rationale: str, clause: str = "") -> PostPrompt | None:
        """Return what asks for the label after the reasons; None: the answer has its label, or needs none."""
        schema = prompt.schema
        if not self.label_apart or not isinstance(schema, AnswerSchema):
            return None
        said = {"rationale": rationale, **({"clause": clause or NO_CLAUSE} if schema.clauses else {})}
        # as it was written, without white space: the server has it in its cache, and goes on from there
        given = Message("assistant", (json.dumps(said, ensure_ascii=False, separators=(",", ":")),))
        asked = replace(schema, form="label_only", reasons_only=False)
        turns = (*prompt.messages, given, self.prompts.label_question(asked))
        return replace(prompt, messages=turns, schema=asked)

    def judgment(self, query: Query, response: Response) -> Judgment:
        """Return the judgment in a response; FAILED with the reason where there is none."""
        answer, role, probability = response.answer, query.role, None
        details: dict[str, Any] = {}
        if response.attempts:
            details = {"cache_key": response.cache_key, "attempts": response.attempts}
        if answer.probabilities is not None:
            calibration = self.calibrations.get(role, identity(self.schema.classes))
            corrected = calibration.apply(answer.probabilities)
            details |= {"uncalibrated": answer.probabilities, "probabilities": corrected}
            probability = None if answer.label is None else corrected[answer.label]
        if query.argues:
            details["argues"] = self.schema.classes[0]
        if answer.reasoning:
            details["reasoning"] = answer.reasoning
        if answer.clause:
            details["clause"] = f"{answer.clause}. {self._clauses[int(answer.clause) - 1]}"
        return Judgment(
            role, query.step, answer.state, answer.label, probability, response.fault or answer.rationale,
            response.source, details,
        )  # fmt: skip

    def _example_turns(self, post_id: str) -> list[Message]:
        """Return labelled posts with their answers, as turns of a conversation that went before."""
        turns: list[Message] = []
        spelt = self.schema.spelt
        for name in self.schema.classes:
            fitting = [
                one
                for one in self._examples
                if getattr(one.post, "label", None) == name and one.post.id != post_id
            ]
            for one in fitting[: self.examples]:
                turns.append(self.prompts.about(one, self.protocol.examples, self.schema))
                turns.append(Message("assistant", (json.dumps({"label": spelt[name]}, ensure_ascii=False),)))
        return turns


class PromptSizes(NamedTuple):
    """Calls on one candidate and their mean prompts."""

    first_calls: int  # of the first round, before the classifier's label counts
    first: tuple[float, float]  # mean tokens of such a prompt, and of the pictures in it
    review_calls: int  # at most this many more in the cross-review
    review: tuple[float, float]  # mean tokens of those, and of the pictures in them


@dataclass(eq=False, repr=False)
class JudgePanel:
    """Agents behind a model server; implements `Panel`."""

    runner: Runner  # what answers, and where answers are kept; closed here, its cache too
    agent: VLMAgent  # what is asked, by which protocol
    _: KW_ONLY
    always_cross_review: bool = False  # ask everybody again even where the verdict is settled
    settings: Mapping[str, Any] = field(default_factory=dict)  # what `describe` says besides
    # role -> the `Judgment.source` of what it has judged for the same run so far, where it has
    before: Mapping[str, str] = field(default_factory=dict)

    simulated: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._protocol = self.agent.protocol
        self._first: dict[str, tuple[Judgment, ...]] = {}  # first judgments of labelled posts, by post id

    # ---- as the loop sees it --------------------------------------------------------------------------

    def fit(
        self,
        labelled: Sequence[LabelledPost],
        *,
        accepted: Sequence[Accepted] = (),
        pool: Sequence[PostLike] = (),
    ) -> None:
        """Judge the labelled posts and calibrate on them; accepted ones teach these agents nothing.

        Raises:
            LearningError: No labelled post, or an id given twice.
            ServerRefusedError: Another model is served than the run was begun with; nothing was asked.
            AgentError: As `verify`.
        """
        ids = [post.id for post in labelled]
        if not ids or len(set(ids)) < len(ids):
            raise LearningError(f"{len(ids)} labelled posts with {len(set(ids))} different ids")
        if set(ids) == self._first.keys():
            return

        async def begin() -> None:
            await self._check_models()
            await self.agent.draw_examples(labelled, self.runner)

        judged = self.runner.map("labelled posts", labelled, self._judge_alone, first=begin)
        self._first = dict(zip(ids, judged, strict=True))
        truth = [str(post.label) for post in labelled]
        for role in self._protocol.roles:
            known = [(p, t) for p, t in zip(self._raw_probs(role, ids), truth, strict=True) if p is not None]
            self.agent.calibrations[role] = fit_calibration(
                [probs for probs, _ in known], [label for _, label in known], self.agent.schema.classes
            )

    def verify(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Return one verdict a candidate, in order. Raises as `Runner.map`."""
        return self.runner.map("candidates", candidates, self._verdict)

    def predict_out_of_fold(self, labelled: Sequence[LabelledPost]) -> dict[str, list[Judgment]]:
        """Return each role's judgments on the labelled posts, calibrated on the others of them."""
        self.fit(labelled)
        ids, truth = [post.id for post in labelled], [str(post.label) for post in labelled]
        judgments: dict[str, list[Judgment]] = {}
        for place, role in enumerate(self._protocol.roles):
            corrected = held_out(self._raw_probs(role, ids), truth, self.agent.schema.classes)
            judgments[role] = [
                _recalibrated(self._first[post_id][place], probs)
                for post_id, probs in zip(ids, corrected, strict=True)
            ]
        return judgments

    def describe(self) -> dict[str, Any]:
        """Return protocol and settings; the model too once it was reached."""
        reached = {role: identity._asdict() for role, identity in self.runner.reached().items()}
        model = {"model" if role == DEFAULT else f"model of the {role}": one for role, one in reached.items()}
        return {
            "protocol": self._protocol.name,
            "simulated": False,
            "agents": [{"role": role, "source": "vlm"} for role in self._protocol.roles],
            **self.settings,
            **model,
        }

    def usage(self) -> UsageTotals:
        """Return what this process has asked and paid so far."""
        return self.runner.usage()

    def identity(self) -> Identity:
        """Return the model that answers; it is reached if it was not before."""
        return self.runner.identity()

    def measure(self, posts: Sequence[PostLike], stand_in: Judgment, classifier: str) -> PromptSizes:
        """Return mean prompt sizes of the calls on `posts`; no answer is asked for.

        Args:
            posts: A sample, one or more.
            stand_in: A judgment of usual length, of another label than `classifier`.
            classifier: The label that prompts of the second step show.
        """
        parts = all_queries(self._protocol, stand_in, classifier)

        async def sizes(post: PostLike) -> list[list[PromptSize]]:
            prepared = await self.runner.prepare(post)
            return [
                [
                    await self.runner.measure(asked)
                    for query in queries
                    for asked in self.agent.prompts_of(prepared, query, stand_in.rationale)
                ]
                for queries in parts
                if not prepared.fault
            ]

        measured = self.runner.map("prompt sizes", posts, sizes)
        first, review = ([size for one in measured if one for size in one[part]] for part in (0, 1))
        calls = [sum(1 + (self.agent.label_apart and not query.argues) for query in part) for part in parts]
        return PromptSizes(calls[0], _mean(first), calls[1], _mean(review))

    def close(self) -> None:
        """Let go of the server and the cache; safe to repeat."""
        self.runner.close()
        self.runner.cache.close()

    # ---- on the event loop ----------------------------------------------------------------------------

    async def _check_models(self) -> None:
        """Refuse to go on with a run whose rounds another model has judged: they would not be comparable."""
        for role in self._protocol.roles:
            now = (await self.runner.client(role)).source
            if (before := self.before.get(role, now)) != now:
                raise ServerRefusedError(
                    f"the finished rounds of {self.runner.run} were judged by {before!r} as {role}, and now"
                    f" {now!r} is served: serve the same model again, or begin another run"
                )

    async def _judge_alone(self, post: PostLike) -> tuple[Judgment, ...]:
        prepared = await self.runner.prepare(post)
        judged = await self._carried_out(self._protocol.first_round, prepared)
        last = {one.agent: one for one in judged}  # who argued before decided after
        return tuple(last[role] for role in self._protocol.roles)

    async def _verdict(self, candidate: Candidate) -> Verdict:
        prepared = await self.runner.prepare(candidate.post)
        first = await self._carried_out(self._protocol.first_round, prepared)
        plan = self._protocol.cross_review(first, candidate.label, self.always_cross_review)
        # a verdict lists a step's judgments in the order of the roles, whoever was asked first
        again = sorted(
            await self._carried_out(plan, prepared), key=lambda one: self._protocol.roles.index(one.agent)
        )
        return Verdict(
            candidate.post.id,
            candidate.label,
            candidate.probability,
            (*first, *again),
            self._protocol.deciders,
        )

    async def _carried_out(self, plan: QueryPlan, post: PreparedPost) -> list[Judgment]:
        """Return all judgments of a plan, in the order of its queries."""
        judgments: list[Judgment] = []
        for queries in plan(judgments):
            responses = await self._asked(post, queries)
            judgments += [self.agent.judgment(q, r) for q, r in zip(queries, responses, strict=True)]
        return judgments

    async def _asked(self, post: PreparedPost, queries: Sequence[Query]) -> list[Response]:
        """Return what comes back on queries; a label that is asked for apart, with its reasons."""
        prompts = [self.agent.prompt(post, query) for query in queries]
        responses = await self.runner.ask_together(prompts)
        later = {
            place: asked
            for place, (query, prompt, given) in enumerate(zip(queries, prompts, responses, strict=True))
            if not given.fault
            and not given.answer.fault
            and not query.argues
            and (asked := self.agent.label_prompt(prompt, given.answer.rationale, given.answer.clause))
            is not None
        }
        for place, label in zip(later, await self.runner.ask_together([*later.values()]), strict=True):
            reasons = responses[place].answer
            said = replace(
                label.answer, rationale=reasons.rationale, clause=reasons.clause,
                reasoning=reasons.reasoning, perplexity=reasons.perplexity,
            )  # fmt: skip
            responses[place] = replace(label, answer=said)
        return responses

    def _raw_probs(self, role: str, ids: Sequence[str]) -> list[dict[str, float] | None]:
        """Return a role's uncalibrated probabilities on labelled posts, None where it gave none."""
        place = self._protocol.roles.index(role)
        return [self._first[post_id][place].details.get("uncalibrated") for post_id in ids]


def _mean(sizes: Sequence[PromptSize]) -> tuple[float, float]:
    """Return mean tokens of prompts, and of the pictures in them; (0, 0) of none."""
    count = max(len(sizes), 1)
    return sum(size.prompt for size in sizes) / count, sum(size.image for size in sizes) / count


def _recalibrated(judgment: Judgment, probs: dict[str, float] | None) -> Judgment:
    """Return the judgment with other probabilities."""
    if probs is None:
        return judgment
    probability = None if judgment.label is None else probs[judgment.label]
    return replace(judgment, probability=probability, details={**judgment.details, "probabilities": probs})
