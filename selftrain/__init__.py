"""Multi-agent verified self-training on text-and-image posts.

``import selftrain as st``: everything that a program needs is named here, and imported when it is first
asked for. Importing this package loads neither torch nor numpy nor pydantic.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from selftrain._util.package_names import check_names

if TYPE_CHECKING:
    import agents as agents
    import backbones as backbones
    import losses as losses
    from agents.panel import CrossReview as CrossReview
    from selftrain import errors as errors
    from selftrain import selection as selection
    from selftrain.act.training import ACTTrainer as ACTTrainer
    from selftrain.agentps.train import train_agentps as train_agentps
    from selftrain.config import Recipe as Recipe
    from selftrain.config import load_recipe as load_recipe
    from selftrain.data.context import RunContext as RunContext
    from selftrain.data.drawn import draw_posts as draw_posts
    from selftrain.data.manifest import read_manifest as read_manifest
    from selftrain.data.posts import Post as Post
    from selftrain.data.preparation import split as split
    from selftrain.data.task import Task as Task
    from selftrain.data.task import load_task as load_task
    from selftrain.models.finetune import FineTuner as FineTuner
    from selftrain.models.predictor import Prediction as Prediction
    from selftrain.models.predictor import Predictor as Predictor
    from selftrain.models.trainer import HeadTrainer as HeadTrainer
    from selftrain.models.trainer import Trainer as Trainer
    from selftrain.panels import OfflinePanel as OfflinePanel
    from selftrain.panels import ReplayedPanel as ReplayedPanel
    from selftrain.panels import VLMPanel as VLMPanel
    from selftrain.review.reviewers import HumanReview as HumanReview
    from selftrain.review.reviewers import Reviewers as Reviewers
    from selftrain.rounds import RoundResult as RoundResult
    from selftrain.runs import Run as Run
    from selftrain.runs import SelfTrainer as SelfTrainer
    from selftrain.runs import run as run
    from selftrain.runs import start as start
    from selftrain.selection import TopK as TopK
    from selftrain.serving.load_predictor import load_predictor as load_predictor
    from selftrain.state import RoundLimits as RoundLimits
    from selftrain.store.run_dir import HumanLabel as HumanLabel
    from selftrain.verification import rules as rules

__version__ = "0.1.0"

_NAMES = {
    "agents.panel": ["CrossReview"],
    "selftrain.act.training": ["ACTTrainer"],
    "selftrain.agentps.train": ["train_agentps"],
    "selftrain.config": ["Recipe", "load_recipe"],
    "selftrain.data.context": ["RunContext"],
    "selftrain.data.drawn": ["draw_posts"],
    "selftrain.data.manifest": ["read_manifest"],
    "selftrain.data.posts": ["Post"],
    "selftrain.data.preparation": ["split"],
    "selftrain.data.task": ["Task", "load_task"],
    "selftrain.models.finetune": ["FineTuner"],
    "selftrain.models.predictor": ["Prediction", "Predictor"],
    "selftrain.models.trainer": ["HeadTrainer", "Trainer"],
    "selftrain.panels": ["OfflinePanel", "ReplayedPanel", "VLMPanel"],
    "selftrain.review.reviewers": ["HumanReview", "Reviewers"],
    "selftrain.rounds": ["RoundResult"],
    "selftrain.runs": ["Run", "SelfTrainer", "run", "start"],
    "selftrain.selection": ["TopK"],
    "selftrain.serving.load_predictor": ["load_predictor"],
    "selftrain.state": ["RoundLimits"],
    "selftrain.store.run_dir": ["HumanLabel"],
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
_MODULES = {
    "agents": "agents",
    "backbones": "backbones",
    "errors": "selftrain.errors",
    "losses": "losses",
    "rules": "selftrain.verification.rules",
    "selection": "selftrain.selection",
}
"""What is named in its module: protocols, values and errors of one kind."""
__all__ = sorted((*_HOME, *_MODULES))  # noqa: PLE0605 -- a list of texts all the same

check_names()


def __getattr__(name: str) -> Any:  # noqa: ANN401 -- whatever the table names
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = import_module(_MODULES[name]) if name in _MODULES else getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
