"""A recipe: everything a run needs to know, in TOML, checked by pydantic. Read here and nowhere else.

Below this module everything takes plain arguments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import (
    AfterValidator,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from agents.client.urls import may_hold_secret
from backbones.images import MAX_PIXELS
from selftrain._util.plugins import choices, is_own
from selftrain._util.toml_sections import TABLE, WORD, WORD_OR_TABLE, Section, TablePath, read_table
from selftrain.errors import RecipeError, RunStateError
from selftrain.store.run_dir import RunFolder

Options = dict[str, Any]
"""Keyword arguments of a class."""

KINDS: Mapping[str, Mapping[str, str]] = {
    "backbone": {
        "minilm_efficientnet": "backbones.minilm_efficientnet:MiniLMEfficientNet",
        "clip": "backbones.clip:CLIP",
    },
    "classifier": {
        "head": "selftrain.models.trainer:HeadTrainer",
        "finetune": "selftrain.models.finetune:FineTuner",
    },
    "loss": {"pnu": "losses.pnu:PNULoss"},
    "selection": {
        "top_k": "selftrain.selection:TopK",
        "uncertain": "selftrain.selection:Uncertain",
        "random": "selftrain.selection:RandomPosts",
        "mixed": "selftrain.selection:Mixed",
    },
    "agents": {
        "offline": "selftrain.panels:OfflinePanel",
        "vlm": "selftrain.panels:VLMPanel",
        "replayed": "selftrain.panels:ReplayedPanel",
        "simulated": "selftrain.panels:SimulatedPanel",
        "cross_review": "agents.panel:CrossReview",
        "none": "agents.panel:NoPanel",
    },
    "human": {"ledger": "selftrain.review.reviewers:HumanReview"},
    "engine": {
        "in_process": "selftrain.engine.mapping:InProcess",
        "ray": "selftrain.engine.on_ray:OnRay",
    },
    "verification": {
        "posterior": "selftrain.verification.rules:PosteriorRule",
        "unanimous": "selftrain.verification.rules:Unanimous",
    },
}
"""Section -> kind -> the class it names. The keys of a section are its arguments, and have its defaults."""


@dataclass(frozen=True)
class OneOf:
    """A text that is one of a registry's names."""

    # "package.module:NAME" of a mapping or a `Literal`; imported when a recipe names one, because much of
    # what a recipe names lies above this module, or is slow to load
    registry: str

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check against the registry after pydantic's own check."""
        return core_schema.no_info_after_validator_function(self._known, handler(source))

    def _known(self, name: str | None) -> str | None:
        known = choices(self.registry)
        if name is not None and name not in known:
            raise ValueError(f"{name!r} is not known: expected one of {', '.join(known)}")
        return name


def _without_secrets(servers: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse what may hold a password: the recipe is written into the run's folder."""
    if any(map(may_hold_secret, servers)):
        raise ValueError(
            "a server's URL holds a user, a query or a fragment, which would be written into run folders:"
            " expected http://host:port; a key belongs into the environment variable"
        )
    return servers


Servers = Annotated[tuple[str, ...], AfterValidator(_without_secrets)]
"""Endpoints, "http://127.0.0.1:8000"."""


class PartSection(Section):
    """A section that names a part, by a name of `KINDS` or "package.module:Class".

    `options` are keyword arguments: all that a class of one's own gets, and those of a built-in one that the
    section has no key for.
    """

    name: ClassVar[str]
    key: ClassVar[str] = "kind"  # which names the part
    options: Options = Field(default_factory=dict)

    @field_validator("kind", "rule", check_fields=False)
    @classmethod
    def _known(cls, kind: str, info: ValidationInfo) -> str:
        if info.field_name == cls.key and kind not in KINDS[cls.name] and not is_own(kind):
            names = ", ".join(f'"{name}"' for name in KINDS[cls.name])
            raise ValueError(
                f'{cls.name}.{cls.key} is {kind!r}: expected one of {names}, or a "package.module:Class" of'
                " your own"
            )
        return kind

    @property
    def part(self) -> str:
        """The name of the part, or of a class of one's own."""
        return str(getattr(self, self.key))

    @property
    def built_in(self) -> bool:
        """Whether the part is one of `KINDS`."""
        return not is_own(self.part)

    def arguments(self) -> Options:
        """Return the keys as arguments of a built-in part; what is None is left to its constructor."""
        keys = type(self).model_fields.keys() - {self.key, "options"}
        return {key: getattr(self, key) for key in keys if getattr(self, key) is not None}


class DataSection(Section):
    """Where the posts are and how they are split. Paths are relative to the recipe; manifests may be URLs."""

    manifest: TablePath
    task: Path
    # a manifest of its own for a split; without one the posts of `manifest` are split by `shares`
    validation: TablePath | None = None
    test: TablePath | None = None
    pool: TablePath | None = None
    # field -> column of the manifests that holds it, where that is called otherwise: { label = "class" }
    columns: dict[str, str] = Field(default_factory=dict)
    # "column": every row of `manifest` names its split; "shares": stratified by label. Where rows name a
    # split and this is not set, the run stops and asks
    split: Literal["shares", "column"] = "shares"
    train_share: float = Field(0.7, gt=0, le=1)
    validation_share: float = Field(0.3, ge=0, lt=1)
    test_share: float = Field(0.0, ge=0, lt=1)
    # use only so many labels; the other labelled posts join the pool with their labels hidden
    labelled: int | None = Field(None, ge=2)
    balanced_labels: bool = True
    # cut the larger classes down to the smallest before splitting by shares
    balance: bool = False
    duplicates: Literal["any", "all", "off"] = "any"
    near_duplicate_cosine: float = Field(0.97, gt=0, le=1)
    # pool posts with the text and pictures, byte for byte, of one before them, or of a labelled one (its copy
    # came to the pool by `labelled`); "drop_near": those of nearly the same content too
    pool_copies: Literal["keep", "drop", "drop_near"] = "keep"
    max_bad_rows: int = Field(100, ge=0)
    max_bad_share: float = Field(0.05, ge=0, le=1)
    max_image_pixels: int = Field(MAX_PIXELS, ge=1, le=MAX_PIXELS)

    @model_validator(mode="after")
    def _shares_add_up(self) -> DataSection:
        total = self.train_share + self.validation_share + self.test_share
        if self.split == "shares" and abs(total - 1) > 1e-6:
            raise ValueError(
                f"train_share + validation_share + test_share is {total:g}: expected 1"
                " (a split with a manifest of its own has share 0)"
            )
        return self


class BackboneSection(PartSection):
    """What turns posts into features."""

    name = "backbone"
    kind: str = "minilm_efficientnet"
    model: str = "ViT-L-14"
    weights: str = "openai"
    device: str = "auto"
    batch_size: int = Field(64, ge=1)
    workers: int = Field(0, ge=0)
    cache: Path | None = None  # default: a folder of the user's cache, shared by all runs


class ClassifierSection(PartSection):
    """The head on cached features ("head"), or the backbone trained with it ("finetune")."""

    name = "classifier"
    kind: str = "head"
    mode: Annotated[str, OneOf("selftrain.models.finetune_network:Mode")] = "full"  # finetune
    head: Annotated[str, OneOf("selftrain.models.head:HeadKind")] = "mlp"
    hidden: int = Field(32, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)
    # None: the trainer's own, which differ between a head and a backbone
    epochs: int | None = Field(None, ge=1)
    learning_rate: float | None = Field(None, gt=0, le=1e6)
    weight_decay: float | None = Field(None, ge=0, allow_inf_nan=False)
    batch_size: int = Field(16, ge=1)  # finetune
    lora_rank: int = Field(16, ge=1)
    lora_alpha: int = Field(32, ge=1)


class LossSection(PartSection):
    """The PNU loss. `balance` is the article's P (the paper's gamma, Sakai's eta)."""

    name = "loss"
    kind: str = "pnu"
    form: Annotated[str, OneOf("losses.pnu:Form")] = "weighted"
    balance: float = Field(0.1, ge=-1, le=1)
    theta: float | Literal["estimate"] = "estimate"
    # "count": an agreed post counts half as much as a labelled one, however many there are of each
    lambda_soft: float | Literal["count"] = "count"
    lambda_u: float = Field(0.1, ge=0)
    soft_positive: float = Field(0.8, gt=0.5, le=1)

    @model_validator(mode="after")
    def _theta_in_range(self) -> LossSection:
        if isinstance(self.theta, float) and not 0 < self.theta < 1:
            raise ValueError(f'theta is {self.theta:g}: expected a share between 0 and 1, or "estimate"')
        if isinstance(self.lambda_soft, float) and not 0 <= self.lambda_soft < math.inf:
            raise ValueError(f'lambda_soft is {self.lambda_soft:g}: expected a number from 0, or "count"')
        return self

    def arguments(self) -> Options:
        """Return the arguments of the loss, which each round fills in where they are left out."""
        return {name: value for name, value in super().arguments().items() if value not in _LEFT_OPEN}


_LEFT_OPEN = ("estimate", "count")


class SelectionSection(PartSection):
    """Which pool posts are verified in a round, how many, and of which class.

    They are the surest ("top_k"), the least sure ("uncertain"), any ("random"), or some of each ("mixed").
    """

    name = "selection"
    kind: str = "top_k"  # left out, it is "uncertain" unless the rule is "unanimous"
    k: int = Field(500, ge=1)
    # a quota for each class; left out, it is "equal" for top_k and "any" (none) for the others
    shares: Annotated[
        Annotated[Literal["equal", "natural", "any"], WORD] | Annotated[dict[str, float], TABLE],
        WORD_OR_TABLE,
    ] = "equal"
    mix: dict[str, float] | None = None  # mixed: shares of "uncertain", "random" and "confident"
    # posts once found divergent may be chosen again: agents that learn may think otherwise by then
    reselect_divergent: bool = True
    # accepted posts whose label the best classifier no longer gives are unlabelled again
    retract_flipped: bool = True

    @model_validator(mode="before")
    @classmethod
    def _shares_by_kind(cls, table: Any) -> Any:  # noqa: ANN401 -- whatever a recipe holds
        if isinstance(table, Mapping) and table.get("kind", "top_k") != "top_k":
            return {"shares": "any", **table}
        return table


class AgentSection(Section):
    """One agent of a cross-review: a "package.module:Class" and its arguments."""

    kind: str
    options: Options = Field(default_factory=dict)

    @field_validator("kind")
    @classmethod
    def _own(cls, kind: str) -> str:
        if not is_own(kind):
            raise ValueError(f'{kind!r} is no agent: expected a "package.module:Class"')
        return kind


LEARN_FROM_LABELS = ("offline", "none")
"""`agents.kind` of agents that know nothing but the labels: they err where the classifier does."""


def default_rule(agents: str) -> str:
    """Return the `verification.rule` that helps most for an `agents.kind`, see docs/experiments.md."""
    return "unanimous" if agents in LEARN_FROM_LABELS else "posterior"


def default_selection(rule: str) -> str:
    """Return the `selection.kind` that helps most under a `verification.rule`."""
    return "top_k" if rule == "unanimous" else "uncertain"


class VerificationSection(PartSection):
    """How the agents' answers become labels."""

    name = "verification"
    key = "rule"

    # "posterior" puts together all that classifier and agents know of a post; "unanimous" is the article's: a
    # post counts where both agents repeat the classifier's label; or "package.module:Class", made of its
    # options alone. Left out: "unanimous" for agents that learn from the labels, else "posterior"
    rule: str = "unanimous"
    # posterior: probability of a label from which on a post is learned with it
    threshold: float = Field(0.5, ge=0.5, le=1)
    # posterior, and wherever there is no validation split: parts in which labelled posts are left out
    folds: int = Field(5, ge=2)


class AgentsSection(PartSection):
    """Who verifies: `none` takes the classifier's word for it (an ablation)."""

    name = "agents"
    kind: str = "offline"
    reviewer: AgentSection | None = None  # cross_review: agents of one's own
    user: AgentSection | None = None
    file: Path | None = None  # replayed: verdicts.jsonl of a run,
    files: tuple[Path, ...] = ()  # or answers of any models, a file each; see docs/formats.md
    accuracy: float = Field(0.9, ge=0, le=1)  # simulated
    abstention: float = Field(0.0, ge=0, le=1)  # simulated
    # simulated: how much they err together; the correlation of their errors, as they are equally good
    shared: float = Field(0.7, ge=0, le=1)
    # 1: the first agent alone, half the calls; the estimate before a run says what a second would add
    count: int = Field(2, ge=1, le=2)
    # whether an agent whose balanced accuracy on the labelled posts may be chance ends the run; left out, it
    # is "stop" for `vlm`, which is paid for, and "continue" for all others
    on_near_chance: Annotated[str | None, OneOf("agents.trust:OnNearChance")] = None

    @model_validator(mode="after")
    def _complete(self) -> AgentsSection:
        if self.kind == "replayed" and self.file is None and not self.files:
            raise ValueError(
                'agents.kind is "replayed" but agents.file names no file to replay, and agents.files none'
            )
        if self.file is not None and self.files:
            raise ValueError("agents.file and agents.files are both given: expected one of them")
        if self.kind == "cross_review" and (self.reviewer is None or (self.user is None and self.count > 1)):
            raise ValueError(
                'agents.kind is "cross_review" but agents.reviewer or agents.user is missing: write for each'
                ' { kind = "package.module:Class", options = { ... } }, or agents.count = 1 for the reviewer'
                " alone"
            )
        return self


class RoleSection(Section):
    """Another model for one of the two roles: what is not given is as in `vlm`."""

    # "guard": a model that answers in a template of its own; "moderation": a classifier at /v1/moderations;
    # what they answer is mapped by `words`
    kind: Literal["chat", "guard", "moderation"] = "chat"
    servers: Servers = ()
    model: str | None = None
    revision: str | None = None
    key_variable: str | None = None
    answer_tokens: int | None = Field(None, ge=8)
    thinking_tokens: int | None = Field(None, ge=0)
    extra_body: Options | None = None
    words: dict[str, str] = Field(default_factory=dict)

    def given(self) -> Options:
        """Return the keys that say something; a 0 does."""
        return {name: value for name, value in self if value not in (None, (), {})}


class ServersSection(Section):
    """A model behind one or more servers: where it is, what it is sent, what it may cost."""

    servers: Servers = ()  # endpoints of vLLM servers that serve the same model
    model: str = ""  # as it is served; empty: the only one that is
    revision: str = ""  # of the weights, where the server's model comes from a hub
    key_variable: str = "SELFTRAIN_API_KEY"  # the environment variable that holds the servers' key
    # order of rationale and label in an answer; None: as the prompts prefer it
    form: Annotated[str | None, OneOf("agents.ask.answer_schema:AnswerForm")] = None
    rationale_chars: int = Field(240, ge=20, le=4000)  # of a rationale, at most
    text_chars: int = Field(4000, ge=100)  # longer texts are cut, with a mark
    image_side: int = Field(768, ge=28, le=4096)  # pixels; pictures whose longest side is longer are scaled
    max_images: int = Field(16, ge=0, le=16)  # pictures of a post that are sent, at most
    # calls under way for each endpoint, at most; from 64 on, more as long as they bring more answers
    concurrency: int = Field(1024, ge=1)
    timeout: float = Field(120, gt=0)  # seconds, of one try
    retries: int = Field(4, ge=0)  # of a call that brought no answer
    patience: float = Field(120, ge=0)  # seconds without any server that takes a call before it gives up
    attempts: int = Field(3, ge=1)  # answers to one question, when they cannot be used
    answer_tokens: int | None = Field(None, ge=8)  # of an answer, at most; None: as many as its form needs
    thinking_tokens: int = Field(0, ge=0)  # added to them for a model that thinks before it answers
    extra_body: Options | None = None  # further keys of every request: {"chat_template_kwargs": {...}}
    # what else makes an answer another one: "server" (its version), "context", "encoder" (of pictures)
    keyed: tuple[Annotated[str, OneOf("agents.client.base:Recorded")], ...] = ()
    token_cap: int | None = Field(None, ge=1)  # prompt and answer tokens of the whole run; None: any number
    store: Path | None = None  # the SQLite file of paid answers; None: responses.sqlite beside the run folder
    database: str | None = (
        None  # postgresql://USER@HOST/NAME: several machines share the answers, in its place
    )

    @field_validator("database")
    @classmethod
    def _without_password(cls, url: str | None) -> str | None:
        """Refuse a password: the recipe is written into the run's folder."""
        if url is None:
            return url
        found = urlsplit(url)
        if found.scheme not in ("postgresql", "postgres"):
            raise ValueError("expected postgresql://USER@HOST/NAME")
        if found.password is not None or "password" in dict(parse_qsl(found.query)):
            raise ValueError("a password would be written into run folders: put it into ~/.pgpass")
        return url


class VlmSection(ServersSection):
    """Vision-language agents. The keys are the arguments of `selftrain.panels.VLMPanel`."""

    protocol: Annotated[str, OneOf("agents.ask.protocols:PROTOCOLS")] = "cross_review"  # who is asked what
    # ask for the reasons first, and for the label in a turn of its own: a call more, and a probability that
    # is not 0 or 1
    label_apart: bool = False
    always_cross_review: bool = False  # ask everybody again even where the verdict is settled
    prompts: Path | None = None  # a folder of prompt files that replace the built-in ones
    examples: int = Field(2, ge=1)  # labelled posts of each class that "few_shot" shows
    reviewer: RoleSection | None = None  # what is otherwise for that role
    user: RoleSection | None = None

    def roles(self) -> dict[str, Options]:
        """Return role -> what is otherwise for it."""
        pair = {"reviewer": self.reviewer, "user": self.user}
        return {role: section.given() if section else {} for role, section in pair.items()}


class RoundsSection(Section):
    """How often to go round, and when to stop."""

    max: int = Field(10, ge=0)
    patience: int = Field(3, ge=1)
    # most candidates verified in all rounds together
    budget: int | None = Field(None, ge=1)
    start: Annotated[str, OneOf("selftrain.state:Start")] = "pretrained"


class HumanSection(PartSection):
    """A small budget of human reviews, spent on what the agents cannot agree on."""

    name = "human"
    kind: str = "ledger"
    # posts over the whole run that people may be asked about; 0: nobody is asked
    budget: int = Field(0, ge=0)
    per_round: int = Field(50, ge=1)
    # how an estimated error becomes the chance of being reviewed, see docs/human-budget.md
    rule: Annotated[str, OneOf("selftrain.act.budget:Rule")] = "exponential"
    floor: float = Field(0.1, ge=0, le=1)  # the share of the budget that is spread evenly
    # where error estimates come from: what classifier and agents said of a post, and how far apart they are;
    # or a model that criticizes the label that they give together, in a way that `act select-models` can test
    source: Annotated[str, OneOf("selftrain.review.reviewers:Source")] = "disagreement"
    strategy: Annotated[str, OneOf("agents.ask.criticizer:STRATEGIES")] = "devils_advocate"
    servers: Servers = ()  # of the criticizing model; none: it is that of `vlm`
    model: str = ""  # as it is served there; empty: the only one that is
    double_annotation_rate: float = Field(0.0, ge=0, le=1)  # of the posts, reviewed by two people
    # while reviews are missing: end in good order, or look for them until they are there
    wait: Annotated[str, OneOf("selftrain.review.reviewers:Wait")] = "end"


class EngineSection(PartSection):
    """Where features are computed: in this process, or by the workers of the Ray cluster it belongs to."""

    name = "engine"
    kind: str = "in_process"
    workers: int | None = Field(None, ge=1)  # ray; by default as many as the cluster has room for
    cpus: int = Field(1, ge=1)  # of a worker
    gpus: float = Field(0.0, ge=0)  # of a worker; 0.25 where four share one

    @model_validator(mode="after")
    def _no_address(self) -> EngineSection:
        # what comes back from a cluster is code as much as data, and a recipe may be a stranger's
        if self.built_in and "address" in self.options:
            raise ValueError("a recipe names no cluster: give its address on the command line, --ray ADDRESS")
        return self


class Recipe(Section):
    """A whole recipe, with its paths resolved."""

    seed: int = Field(0, ge=0, lt=2**32)
    threads: int | None = Field(None, ge=1)
    data: DataSection
    backbone: BackboneSection = BackboneSection()
    classifier: ClassifierSection = ClassifierSection()
    loss: LossSection = LossSection()
    selection: SelectionSection = SelectionSection()
    agents: AgentsSection = AgentsSection()
    verification: VerificationSection = VerificationSection()
    vlm: VlmSection = VlmSection()
    rounds: RoundsSection = RoundsSection()
    human: HumanSection = HumanSection()
    engine: EngineSection = EngineSection()

    @model_validator(mode="before")
    @classmethod
    def _by_the_agents(cls, table: Any) -> Any:  # noqa: ANN401 -- whatever a recipe holds
        """Fill in the rule, and whom to ask, by who the agents are."""
        tables = {name: table.get(name, {}) for name in ("agents", "verification", "selection")}
        if not all(isinstance(one, Mapping) for one in tables.values()):
            return table  # what is no section is refused by its own check
        verification = {
            "rule": default_rule(tables["agents"].get("kind", "offline")), **tables["verification"],
        }  # fmt: skip
        selection = {"kind": default_selection(verification["rule"]), **tables["selection"]}
        return {**table, "verification": verification, "selection": selection}

    @model_validator(mode="after")
    def _servers_given(self) -> Recipe:
        if self.agents.kind == "vlm" and not self.vlm.servers:
            raise ValueError(
                'agents.kind is "vlm" but vlm.servers names no endpoint: start a server with `selftrain'
                " agents serve MODEL` and write what it prints, for instance"
                ' vlm.servers = ["http://127.0.0.1:8000"]'
            )
        return self

    @model_validator(mode="after")
    def _criticizer_given(self) -> Recipe:
        asked = self.human.budget > 0 and self.human.source == "criticizer"
        if asked and not self.human.servers and not self.vlm.servers:
            raise ValueError(
                'human.source is "criticizer" but neither human.servers nor vlm.servers names an endpoint:'
                " write where the criticizing model is served, for instance"
                ' human.servers = ["http://127.0.0.1:8001"]'
            )
        return self


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply ``section.key=value`` overrides, each value in TOML (a bare word is a string).

    Raises:
        RecipeError: The file cannot be read, is not TOML, or does not describe a recipe; the message lists
            every fault with its place.
    """
    recipe = read_table(Recipe, Path(path), overrides)
    typed = {override.partition("=")[0].strip() for override in overrides}
    named = {"vlm.key_variable": recipe.vlm.key_variable}
    for role, given in recipe.vlm.roles().items():
        if "key_variable" in given:
            named[f"vlm.{role}.key_variable"] = given["key_variable"]
    if recipe.vlm.database and "vlm.database" not in typed:
        raise RecipeError(
            "vlm.database stands in the recipe, and a recipe may be a stranger's: the answers would go to a"
            f" server of theirs. It is named on the command line, --set vlm.database={recipe.vlm.database}"
        )
    for key, variable in named.items():
        if not variable.startswith(KEY_PREFIX) and key not in typed:
            raise RecipeError(
                f"{key} is {variable!r}: a recipe would send that variable to its own server. Only names that"
                f" begin with {KEY_PREFIX} stand in a recipe; another is named on the command line, --set"
                f" {key}={variable}"
            )
    return recipe


KEY_PREFIX = "SELFTRAIN_"
"""Of the environment variables that a recipe, which may be a stranger's, has sent to a server as a key."""


def stored_recipe(folder: RunFolder) -> Recipe:
    """Read the recipe of a run folder; RunStateError: there is none, or it was changed into another."""
    try:
        return Recipe.model_validate(folder.recipe())
    except ValidationError as error:
        raise RunStateError(
            f"{folder.recipe_path} does not describe a recipe any more ({error.error_count()} faults):"
            " restore the file as the run wrote it"
        ) from error
