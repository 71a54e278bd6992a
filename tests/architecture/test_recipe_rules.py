"""Rule 5: every choice of the recipe comes from its registry, every default is the constructor's own.

Enumerated, not listed: a kind, a key or a constructor that is added is held to it without a change here.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from pydantic import ValidationError

from selftrain._util.plugins import choices, locate
from selftrain._util.toml_sections import Section
from selftrain.config import KINDS, OneOf, PartSection, Recipe
from selftrain.data.preparation import split
from selftrain.loop import LoopSettings
from selftrain.panels import VLMPanel
from selftrain.runs import SelfTrainer
from selftrain.state import RoundLimits

SECTIONS = {
    name: field.annotation
    for name, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
CONSTRUCTORS = [
    *((name, kind, path) for name, kinds in KINDS.items() for kind, path in kinds.items()),
    ("vlm", "", "selftrain.panels:VLMPanel"),
    ("rounds", "", "selftrain.loop:LoopSettings"),
    ("selection", "", "selftrain.loop:LoopSettings"),
    ("selection", "", "selftrain.state:RoundLimits"),
    ("rounds", "", "selftrain.state:RoundLimits"),
    ("data", "", "selftrain.data.preparation:split"),
]
LEFT_OPEN = {"theta": "estimate", "lambda_soft": "count"}
"""Words of a recipe for what a constructor has as None: TOML knows no null."""
WORDS = {
    "data.split": "read by selftrain.data.preparation alone",
    "data.duplicates": "read by selftrain.data.preparation alone",
    "data.pool_copies": "read by selftrain.data.preparation alone",
    "loss.theta": LEFT_OPEN["theta"],
    "loss.lambda_soft": LEFT_OPEN["lambda_soft"],
    "selection.shares": "or a table of shares",
}
"""Keys whose choices no registry has, and why."""


def defaults(section, kind):
    """A section that says its kind alone; a default may depend on that."""
    named = {SECTIONS[section].key: kind} if kind else {}
    try:
        return SECTIONS[section].model_validate(named)
    except ValidationError:  # it asks for more: a file, a manifest
        return SECTIONS[section].model_construct(**named)


def shared(section, kind, path):
    """Names of keys that are parameters of a constructor too, with both defaults."""
    ours = defaults(section, kind)
    for name, parameter in inspect.signature(locate(path)).parameters.items():
        field = SECTIONS[section].model_fields.get(name)
        if field is not None and not field.is_required():
            yield name, getattr(ours, name), parameter.default


def test_sections_that_name_a_part_are_those_with_kinds():
    assert {name for name, section in SECTIONS.items() if issubclass(section, PartSection)} == set(KINDS)
    assert all(SECTIONS[name].name == name for name in KINDS)


@pytest.mark.parametrize(("section", "kind", "path"), CONSTRUCTORS)
def test_a_key_has_the_default_of_the_constructor(section, kind, path):
    for name, ours, theirs in shared(section, kind, path):
        if ours is None or ours == LEFT_OPEN.get(name):
            continue  # left to the constructor
        if theirs is inspect.Parameter.empty:
            pytest.fail(f"{section}.{name} has the default {ours!r}, and {path} asks for it")
        assert ours == theirs, f"{section}.{name} is {ours!r} in a recipe, {theirs!r} in {path}"


@pytest.mark.parametrize(("section", "kind", "path"), CONSTRUCTORS[: sum(map(len, KINDS.values()))])
def test_a_kind_is_the_first_name_of_a_class_that_a_recipe_can_build(section, kind, path):
    made, keys = locate(path), SECTIONS[section].model_fields
    assert f"{made.__module__}:{made.__qualname__}" == path
    needed = {
        name
        for name, one in inspect.signature(made).parameters.items()
        if one.default is inspect.Parameter.empty and one.kind is not inspect.Parameter.VAR_KEYWORD
    }
    assert needed <= set(keys), f"{path} needs {sorted(needed - set(keys))}, which no key of {section} gives"
    assert keys[SECTIONS[section].key].default in KINDS[section]


def test_the_vlm_section_has_every_argument_of_its_panel():
    """But for how many agents there are, which every kind has: `agents.count`."""
    named = set(SECTIONS["vlm"].model_fields) | {"count"}
    assert named == set(VLMPanel.model_fields)


def test_what_the_recipe_calls_otherwise_has_the_same_defaults():
    rounds, selection, data = (SECTIONS[name]() for name in ("rounds", "selection", "agents"))
    assert (rounds.max, rounds.patience, rounds.budget) == RoundLimits()[:3]
    assert LoopSettings().limits == RoundLimits()
    assert LoopSettings().retract_flipped is selection.retract_flipped
    assert data.on_near_chance is None
    section, asked = SECTIONS["data"].model_fields, inspect.signature(split).parameters
    assert asked["validation"].default == section["validation_share"].default
    assert asked["test"].default == section["test_share"].default
    assert asked["labelled"].default == section["labelled"].default
    taken = inspect.signature(SelfTrainer).parameters
    assert taken["seed"].default == Recipe.model_fields["seed"].default
    assert taken["start"].default == rounds.start
    assert taken["retract_flipped"].default is selection.retract_flipped


def keys():
    """section.key -> its field."""
    sections = SECTIONS | {"data": Recipe.model_fields["data"].annotation}
    return {
        f"{name}.{key}": field for name, one in sections.items() for key, field in one.model_fields.items()
    }


def test_every_choice_comes_from_a_registry_and_every_default_is_in_it():
    checked = {key: one for key, field in keys().items() for one in field.metadata if isinstance(one, OneOf)}
    assert len(checked) > 10
    for key, one in checked.items():
        default = keys()[key].default
        assert default is None or default in choices(one.registry), key


def literal(annotation):
    """Whether a `Literal` stands anywhere in an annotation."""
    return get_origin(annotation) is Literal or any(map(literal, get_args(annotation)))


def test_no_choice_is_written_down_a_second_time():
    assert {key for key, field in keys().items() if literal(field.annotation)} == set(WORDS)


def test_the_page_lists_every_kind():
    page = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
    for name, kinds in KINDS.items():
        for kind in kinds:
            assert f'"{kind}"' in page, f"docs/extending.md does not name {name}.kind = {kind!r}"
