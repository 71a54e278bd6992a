"""Panels that a recipe names, and models behind servers: plain settings that a run makes agents of.

`OfflinePanel`, `VLMPanel`, `ReplayedPanel` and `SimulatedPanel` hold what a user chooses. Classes, features
and the folder are known once a run begins: `for_run` then gives the panel that judges (`agents.panel.Panel`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from agents.ask.answer_schema import AnswerForm
from agents.ask.cache import ResponseCache
from agents.ask.guard import guard_words
from agents.ask.judge import JudgePanel, JudgePrompts, VLMAgent
from agents.ask.metering import Manner, UsageTotals
from agents.ask.postgres_cache import PostgresCache
from agents.ask.prepare import FrameReader, Opener
from agents.ask.prompt_files import Brief
from agents.ask.protocols import PROTOCOLS, alone
from agents.ask.runner import Runner
from agents.client.base import Backend, Recorded, route_to
from agents.client.client import ChatClient
from agents.client.endpoints import plain_endpoint
from agents.client.moderation import ModerationClient
from agents.errors import ReviewError
from agents.judgment import ROLES, PostLike
from agents.offline.offline_agent import offline_agents
from agents.panel import CrossReview
from agents.replayed import AnswersPanel, replayed_agents
from agents.simulated import SimulatedAgent, symmetric
from backbones.images import open_image
from backbones.progress import ProgressBar
from selftrain._util.types import Float32Array
from selftrain.config import ServersSection, VlmSection
from selftrain.data.answer_files import read_answers
from selftrain.data.context import RunContext
from selftrain.data.corpus import Corpus
from selftrain.data.task import Task
from selftrain.store.run_dir import RunFolder

logger = logging.getLogger(__name__)

CACHE = "responses.sqlite"
"""Beside the run folders, so that all runs of a folder share what was paid for."""

# ---- panels that cost nothing -------------------------------------------------------------------------


@dataclass(frozen=True)
class OfflinePanel:
    """Reviewer and User that need no model server: they learn words and pictures from the labelled posts.

    Args:
        count: 2, or 1: the Reviewer alone, who reads words and looks at the nearest pictures.
    """

    count: int = 2

    when_silent: ClassVar[str] = (
        "the labels teach it too little to be sure of any post. Label more posts, ask other agents"
        ' (agents.kind), or set verification.rule = "posterior", which hears what it leans to'
    )

    def for_run(self, run: RunContext) -> CrossReview:
        """Return the agents, for the run's classes and features."""
        corpus = run.corpus
        looks = any(post.images for post in corpus.posts)
        agents = offline_agents(
            corpus.shown,
            image_vectors=_ImageVectors(corpus) if looks else None,
            seed=run.seed,
        )
        return CrossReview(*agents[: self.count])


class _ImageVectors:
    """Posts to the image blocks of their feature rows; zeros where a post has no image."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    def __call__(self, posts: Sequence[PostLike]) -> Float32Array:
        assert self._corpus.table is not None, "features are extracted before the agents look"
        position_of = self._corpus.position_of
        positions = np.array([position_of[post.id] for post in posts], dtype=np.int64)
        return self._corpus.rows(positions)[:, self._corpus.table.layout.image]


@dataclass(frozen=True)
class SimulatedPanel:
    """Agents drawn from known labels: what if they were this good?

    Args:
        accuracy: Share of posts that each gets right, in [0, 1].
        abstention: Share of posts on which each abstains, in [0, 1].
        shared: How much they err together, in [0, 1]: see `agents.simulated.SimulatedAgent`.
        count: 2, or 1 alone.
    """

    accuracy: float = 0.9
    abstention: float = 0.0
    shared: float = 0.7
    count: int = 2

    when_silent: ClassVar[str] = (
        "lower agents.abstention; posts whose label is not in the manifest get no answer either"
    )

    def for_run(self, run: RunContext) -> CrossReview:
        """Return agents that know the truth as far as the run's posts tell it."""
        corpus = run.corpus
        known = np.flatnonzero(corpus.truth >= 0)
        truth = {
            post.id: corpus.classes[value]
            for post, value in zip(corpus.posts_at(known), corpus.truth[known], strict=True)
        }
        confusion = symmetric(corpus.shown, self.accuracy)
        rates = {"abstention": self.abstention, "shared": self.shared}
        agents = (
            SimulatedAgent(role, truth, confusion, **rates, seed=run.seed) for role in ROLES[: self.count]
        )
        return CrossReview(*agents)


@dataclass(frozen=True)
class ReplayedPanel:
    """Agents that say again what they said: in an earlier run, or wherever else they were asked.

    Args:
        file: The verdicts.jsonl of a run, of two agents.
        files: Answers of any models, a file an agent, one or more: `data.answer_files.read_answers`. Exactly
            one of `file` and `files` is given.
        count: 2: all agents that are there; 1: the first alone.
    """

    file: Path | str | None = None
    files: Sequence[Path | str] = ()
    count: int = 2

    when_silent: ClassVar[str] = (
        "its file holds answers about other posts, or hardly any label. Compare its ids with those of"
        " data.manifest, or name another file"
    )

    def for_run(self, run: RunContext) -> CrossReview | AnswersPanel:
        """Return the agents of the files; posts that a file of answers does not hold are told at once.

        ReplayError, ReviewError: a file that cannot be used; verdicts of more than two roles.
        """
        if self.file is None:
            return self._answers(run.corpus)
        agents = replayed_agents(Path(self.file))
        if len(agents) > len(ROLES):
            roles = [agent.role for agent in agents]
            raise ReviewError(f"{self.file}: cross-review takes two agents of two roles, or one, not {roles}")
        return CrossReview(*agents[: self.count])

    def _answers(self, corpus: Corpus) -> AnswersPanel:
        files = [Path(file) for file in (self.files[:1] if self.count == 1 else self.files)]
        panel = AnswersPanel([(file, read_answers(file, corpus.shown)) for file in files])
        asked = np.concatenate([corpus.labelled, corpus.pool])
        for missing in panel.missing(corpus.posts_at(asked)):
            logger.warning("%s", missing)
        return panel


AskedForNothing = OfflinePanel | SimulatedPanel | ReplayedPanel
"""Agents that may be asked before a run, for nothing; `when_silent` is what to do if they hardly answer."""

# ---- a model behind servers ---------------------------------------------------------------------------


class ModelServers(ServersSection):
    """A model behind one or more servers: the keys of its section, and what asks it."""

    def runner(
        self,
        cache: ResponseCache,
        *,
        run: str,
        max_pixels: int,
        progress: bool = False,
        frames: FrameReader | None = None,
    ) -> Runner:
        """Return what asks the model about many posts, paid for by `run`; nothing is asked yet.

        The `cache` of answers is not closed by it; `frames` samples videos, where they are asked about.
        """
        others = {role: (build_backend(model), model.manner()) for role, model in self.others().items()}
        own, most = build_backend(self), self.concurrency * max(1, len(self.servers))
        return Runner(
            own, cache, run=run, opener=opener(max_pixels), image_side=self.image_side,
            max_images=self.max_images, frames=frames, width=most, worth=own.width,
            manner=self.manner(), others=others, token_cap=self.token_cap,
            progress=partial(bar, drawn=progress),
        )  # fmt: skip

    def others(self) -> dict[str, ModelServers]:
        """Return role -> the model of its own that it has."""
        return {}

    def check_routes(self) -> None:
        """Check that calls can be sent, and send none.

        ServerRefusedError: The environment's proxy or certificates cannot be used.
        """
        for model in (self, *self.others().values()):
            for url in model.servers:
                route_to(plain_endpoint(url))

    def manner(self) -> Manner:
        """Return how the model is asked."""
        return Manner(
            self.answer_tokens,
            self.thinking_tokens,
            self.extra_body or {},
            self.attempts,
            cast("tuple[Recorded, ...]", self.keyed),
        )

    def runner_for(self, run: RunContext) -> Runner:
        """Return the runner of a run, which pays for it; StoreError: its cache cannot be opened."""
        path = run.folder.path.resolve()
        return self.runner(
            self.cache_beside(path), run=run.folder.payer, max_pixels=run.max_pixels, progress=run.progress
        )

    def cache_beside(self, path: Path) -> ResponseCache:
        """Open the answers paid for so far: where the section says, else beside `path`; or StoreError."""
        return PostgresCache(self.database) if self.database else cache_beside(path, self.store)


class ModerationServers(ModelServers):
    """A moderation classifier (/v1/moderations); see `ModelServers`."""


class VLMPanel(VlmSection, ModelServers):
    """Vision-language agents on a server, by the keys of the recipe's section [vlm] (`VlmSection`).

    Args:
        servers, model, revision, key_variable: Endpoints of vLLM servers, the model that they serve, and the
            environment variable that holds their key.
        protocol: Who is asked what: a name of `agents.ask.protocols.PROTOCOLS`.
        reviewer, user: What is otherwise for that role, where another model plays it: servers, model,
            revision, key_variable, answer_tokens, thinking_tokens, extra_body; and `kind` "guard" or
            "moderation" with its `words` (word or category -> class).
        count: 2: as many agents as the protocol has; 1: its first alone.

    Raises:
        pydantic.ValidationError: An argument that is unknown, or outside its range.
    """

    count: int = 2

    def others(self) -> dict[str, ModelServers]:
        """Return role -> the model of its own that it has."""
        mine = {name: getattr(self, name) for name in ModelServers.model_fields}
        # another server serves another model: what was said of the first one's does not hold there
        fresh = {"model": "", "revision": ""}
        found = {}
        for role, section in self.roles().items():
            given = {name: value for name, value in section.items() if name not in ("words", "kind")}
            made = ModerationServers if section.get("kind") == "moderation" else ModelServers
            if given:
                found[role] = made(**{**mine, **(fresh if "servers" in given else {}), **given})
        return found

    def for_run(self, run: RunContext) -> JudgePanel:
        """Return the agents; nothing is asked yet. PromptFileError, StoreError: with what to do."""
        return JudgePanel(
            self.runner_for(run),
            self.agent(brief_of(run.task), run.seed),
            always_cross_review=self.always_cross_review,
            settings={"vlm": self._shown()},
            before=_judged_by(run.folder),
        )

    def agent(self, brief: Brief, seed: int) -> VLMAgent:
        """Return prompts and answer schema; PromptFileError: a prompt file that cannot be used."""
        prompts = JudgePrompts(brief, folder=self.prompts, text_chars=self.text_chars)
        protocol = PROTOCOLS[self.protocol]
        return VLMAgent(
            prompts, alone(protocol) if self.count == 1 else protocol,
            form=cast("AnswerForm | None", self.form), rationale_chars=self.rationale_chars,
            examples=self.examples, seed=seed, label_apart=self.label_apart,
            guards={
                role: guard_words(brief.names, brief.unsure, given.get("words", {}))
                for role, given in self.roles().items()
                if given.get("kind") in ("guard", "moderation")
            },
        )  # fmt: skip

    def _shown(self) -> dict[str, Any]:
        """Return the settings that a reader of the run wants to know; never the key."""
        hidden = ("key_variable", "store", "database", "token_cap")
        shown = {name: value for name, value in self if name not in hidden}
        for role, given in self.roles().items():
            shown[role] = {name: value for name, value in given.items() if name != "key_variable"} or None
        shown |= {"servers": list(self.servers), "prompts": self.prompts and str(self.prompts)}
        return {name: value for name, value in shown.items() if value is not None}


def _judged_by(folder: RunFolder) -> dict[str, str]:
    """Return role -> what answered as it in the last finished round that asked anybody; {}: none has."""
    for number in reversed(range(folder.finished())):
        if found := {one.agent: one.source for said in folder.verdicts(number) for one in said.judgments}:
            return found
    return {}


def cache_beside(path: Path, named: Path | None = None) -> ResponseCache:
    """Open the answers paid for so far: in the file that is named, else beside `path`; or StoreError."""
    return ResponseCache(named or path.resolve().parent / CACHE)


def build_backend(model: ModelServers) -> Backend:
    """Return the client of a model's servers."""
    made = ModerationClient if isinstance(model, ModerationServers) else ChatClient
    return made(
        tuple(model.servers), model=model.model, revision=model.revision, key_variable=model.key_variable,
        maximum=model.concurrency, timeout=model.timeout, retries=model.retries, patience=model.patience,
        same=[name for name in model.keyed if name != "encoder"], on_event=_log,
    )  # fmt: skip


def brief_of(task: Task) -> Brief:
    """Return a task as agents read it."""
    return Brief(task.name, task.policy, {one.name: one.meaning for one in task.classes}, dict(task.roles))


def opener(max_pixels: int) -> Opener:
    """Return what opens image files whose header claims at most `max_pixels`."""
    return lambda path, side: open_image(path, max_pixels=max_pixels, target_size=side)


def bar(what: str, total: int, *, drawn: bool = True) -> Callable[[UsageTotals], None]:
    """Count posts on a bar, with calls, stored answers and failures."""
    shown = ProgressBar(total=total, desc=what, disable=not drawn)

    def update(usage: UsageTotals) -> None:
        shown.set_postfix(calls=usage.calls, stored=usage.stored, failed=usage.failed)
        shown.update()
        if shown.n >= total:
            shown.close()

    return update


def _log(event: str, figures: Mapping[str, Any]) -> None:
    """Log at once that a server is lost or found: whoever waits wants to know for what."""
    if event == "down":
        logger.warning("a model server is down, calls go elsewhere or wait: %(reason)s", dict(figures))
    elif event == "up":
        logger.info("%(endpoint)s answers", dict(figures))
    elif event == "lacks":
        logger.warning("the model's server does without: %(lacks)s", dict(figures))
    else:
        logger.debug("%s %s", event, dict(figures))
