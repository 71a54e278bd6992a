"""From a recipe to objects, and from objects to the recipe that a run's folder keeps. Nowhere else."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from agents.panel import CrossReview, Panel, missing_methods
from agents.trust import OnNearChance
from backbones.base import Backbone
from losses.base import RoundLoss
from selftrain import config
from selftrain._util.plugins import accepted, build_part, locate, name_of, options_of
from selftrain.data.context import ForRun, RunContext
from selftrain.data.features import EncoderPool
from selftrain.data.preparation import PreparedData
from selftrain.engine.mapping import Engine, InProcess
from selftrain.engine.on_ray import OnRay
from selftrain.errors import RecipeError
from selftrain.loop import LoopSettings
from selftrain.models.pretrained import finetuning_backbone, worker_backbone
from selftrain.models.trainer import Trainer
from selftrain.panels import ModelServers, VLMPanel
from selftrain.review.reviewers import Reviewers
from selftrain.selection import Selector
from selftrain.state import RoundLimits, Start
from selftrain.store.checksums import digest_of
from selftrain.store.run_dir import RunFolder
from selftrain.verification.rules import VerdictRule


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run is made of: by a recipe, or as a `SelfTrainer` was given it."""

    classifier: Trainer[Any] | ForRun[Trainer[Any]]  # fits and scores models
    selector: Selector  # chooses whom the agents judge
    panel: Panel | ForRun[Panel]  # the agents
    loss: RoundLoss  # what is minimised
    rule: VerdictRule  # decides which verdicts become labels
    reviewers: Reviewers | ForRun[Reviewers | None] | None  # people; None: nobody
    backbone: Backbone | None = None  # posts to features; None: the recipe's, loaded when features are wanted

    def __post_init__(self) -> None:
        """Refuse a part without the methods that the loop calls, before anything is loaded or asked."""
        for name in _METHODS:
            part = getattr(self, name)
            if isinstance(part, type):
                called = part.__qualname__
                raise RecipeError(f"{called} as {name} is a class: expected an object of it, {called}(...)")
            if name not in _FOR_RUN or not hasattr(part, "for_run"):
                _check_methods(name, part)

    def in_run(self, name: str, run: RunContext) -> Any:  # noqa: ANN401 -- any kind of part
        """Return a part as it works in a run: the part itself, unless it has `for_run`.

        Raises:
            RecipeError: What `for_run` gives lacks a method; what `for_run` raises.
        """
        part = getattr(self, name)
        if not hasattr(part, "for_run"):
            return part
        made = part.for_run(run)
        _check_methods(name, made)
        return made


def _check_methods(name: str, part: object) -> None:
    protocol = _METHODS[name]
    # a look at a backbone's others may load weights, or they are for fine-tuning alone
    but = vars(Backbone).keys() - {"fingerprint", "encode"} if protocol is Backbone else ()
    lacks = [] if part is None else missing_methods(part, protocol, but=but)
    if lacks:
        raise RecipeError(
            f"{name_of(part)} as {name}: it has no {', '.join(lacks)}; expected what"
            f" {protocol.__module__}.{protocol.__name__} describes (docs/extending.md)"
        )


_METHODS = {
    "classifier": Trainer, "selector": Selector, "panel": Panel, "loss": RoundLoss, "rule": VerdictRule,
    "reviewers": Reviewers, "backbone": Backbone,
}  # fmt: skip
"""Part -> the protocol whose methods it must have, or that has what it becomes in a run."""
_FOR_RUN = ("classifier", "panel", "reviewers")
"""Parts that may be settings until a run begins; the others are asked as they are."""

# ---- recipe -> objects --------------------------------------------------------------------------------


def build(recipe: config.Recipe, *, progress: bool = False) -> Parts:
    """Build the parts of a recipe; nothing heavy is loaded, and nobody is asked yet.

    Raises:
        RecipeError, SettingError: A class that cannot be made of its options, or lacks a method; settings of
            a loss at odds.
    """
    served = accepted(ModelServers, dict(recipe.vlm))
    return Parts(
        classifier=build_named(
            recipe.classifier,
            evaluation_batch=recipe.backbone.batch_size, workers=recipe.backbone.workers, progress=progress,
        ),
        selector=build_named(recipe.selection),
        panel=build_panel(recipe),
        loss=build_named(recipe.loss),
        rule=build_named(recipe.verification),
        reviewers=build_named(recipe.human, served=ModelServers(**served)),
    )  # fmt: skip


def build_named(section: config.PartSection, **more: Any) -> Any:  # noqa: ANN401 -- whatever the section names
    """Build the part that a section names; RecipeError: it cannot be imported, or made of its options.

    A built-in one gets those of the section's keys, and of `more`, that its constructor has a parameter for;
    one of the user's own gets the section's `options` alone.
    """
    key = f"{section.name}.{section.key}"
    if not section.built_in:
        return build_part(section.part, section.options, key)
    path = config.KINDS[section.name][section.part]
    given = accepted(locate(path), {**more, **section.arguments()})
    return build_part(path, given | section.options, key)


def build_panel(recipe: config.Recipe) -> Panel | ForRun[Panel]:
    """Build the agents of a recipe."""
    section = recipe.agents
    if section.kind == "vlm":
        return VLMPanel(**dict(recipe.vlm), count=section.count)
    if section.kind == "cross_review":
        pair = {"reviewer": section.reviewer, "user": section.user if section.count > 1 else None}
        return CrossReview(
            *(build_part(one.kind, one.options, f"agents.{role}.kind") for role, one in pair.items() if one)
        )
    panel: Panel = build_named(section)
    return panel


def encoder_pool(recipe: config.Recipe, engine: Engine | None = None) -> EncoderPool | None:
    """Return who computes features: the workers of `engine`, else of the recipe's; None: this process."""
    if engine is None:
        engine = build_named(recipe.engine)
    if isinstance(engine, InProcess):
        return None
    threads = int(engine.cpus) if isinstance(engine, OnRay) else recipe.engine.cpus
    return EncoderPool(engine, partial(worker_backbone, recipe, threads))


def digests_of_files(recipe: config.Recipe) -> dict[str, str]:
    """Return what the files hold that the agents are made of, SHA-256 by kind: a part of a run's identity."""
    agents, prompts = recipe.agents, recipe.vlm.prompts
    named: dict[str, Sequence[Path]] = {}
    if agents.kind == "replayed":
        named["answers"] = [*filter(None, [agents.file]), *agents.files]
    if agents.kind == "vlm" and prompts is not None:
        named["prompts"] = sorted(one for one in prompts.iterdir() if not one.name.startswith("."))
    return {
        kind: hashlib.sha256(repr([(one.name, digest_of(one)) for one in files]).encode()).hexdigest()
        for kind, files in named.items()
    }


def build_settings(recipe: config.Recipe) -> LoopSettings:
    """Build the loop's plain arguments."""
    rounds, selection, agents = recipe.rounds, recipe.selection, recipe.agents
    return LoopSettings(
        seed=recipe.seed,
        retract_flipped=selection.retract_flipped,
        start=cast(Start, rounds.start),  # the recipe has checked both choices
        folds=recipe.verification.folds,
        limits=RoundLimits(rounds.max, rounds.patience, rounds.budget, selection.reselect_divergent),
        root=recipe.data.manifest.parent,
        # agents that are paid for end the run before the pool is spent on; others learn again each round
        on_near_chance=cast(
            OnNearChance, agents.on_near_chance or ("stop" if agents.kind == "vlm" else "continue")
        ),
    )


def run_context(
    recipe: config.Recipe, folder: RunFolder, prepared: PreparedData, *, progress: bool = False
) -> RunContext:
    """Return what the parts may know of a run whose posts are prepared."""
    return RunContext(
        folder=folder, task=prepared.task, corpus=prepared.corpus, seed=recipe.seed,
        make_backbone=partial(finetuning_backbone, recipe), max_pixels=recipe.data.max_image_pixels,
        progress=progress,
    )  # fmt: skip


# ---- objects -> recipe --------------------------------------------------------------------------------


def describe(parts: Parts) -> dict[str, dict[str, Any]]:
    """Return the recipe's sections that would build these parts: what a run's folder keeps of them.

    A run goes on only with parts of the same classes and the same arguments, as far as these are plain values
    (`options_of`).
    """
    named = {
        "backbone": parts.backbone, "classifier": parts.classifier, "selection": parts.selector,
        "agents": parts.panel, "loss": parts.loss, "human": parts.reviewers, "verification": parts.rule,
    }  # fmt: skip
    sections = {name: _section(name, part) for name, part in named.items() if part is not None}
    if isinstance(parts.panel, VLMPanel):
        options = parts.panel.model_dump(mode="json", exclude_none=True)
        sections |= {"agents": {"kind": "vlm", "count": options.pop("count")}, "vlm": options}
    if isinstance(parts.panel, CrossReview):
        pair = {"reviewer": parts.panel.reviewer, "user": parts.panel.user}
        given = {role: agent for role, agent in pair.items() if agent is not None}
        sections["agents"] = {"kind": "cross_review", "count": len(given)} | {
            role: {"kind": name_of(agent), "options": options_of(agent)} for role, agent in given.items()
        }
    return sections


def default_rule_for(panel: Panel | ForRun[Panel]) -> VerdictRule:
    """Return the rule that a recipe with these agents has where it names none."""
    kind = config.default_rule(_named("agents", panel))
    rule: VerdictRule = _plain("verification", kind)
    return rule


def default_selector_for(rule: VerdictRule) -> Selector:
    """Return the selector that a recipe with this rule has where it names none."""
    kind = config.default_selection(_named("verification", rule))
    selector: Selector = _plain("selection", kind)
    return selector


def _plain(section: str, kind: str) -> Any:  # noqa: ANN401 -- whatever the section names
    return build_part(config.KINDS[section][kind], {}, section)


def _named(section: str, part: object) -> str:
    """Return the name that a section has for the class of a part; "package.module:Class" for others."""
    path = name_of(part)
    return next((name for name, known in config.KINDS[section].items() if known == path), path)


def _section(name: str, part: object) -> dict[str, Any]:
    """Return kind and arguments of a part; what the section has no key for stands in its options."""
    section: type[config.PartSection] = type(config.Recipe.model_fields[name].default)
    kind, options, keys = _named(name, part), options_of(part), section.model_fields
    if kind not in config.KINDS[name]:
        return {section.key: kind, "options": options}
    known = inspect.signature(type(part)).parameters
    # a bar changes nothing, and a default is not worth a line
    others = {
        key: value
        for key, value in options.items()
        if key not in keys and key != "progress" and value != known[key].default
    }
    return {
        section.key: kind, "options": others,
        **{key: value for key, value in options.items() if key in keys},
    }  # fmt: skip
