"""Multi-agent verified self-training on text-and-image posts.

``import selftrain as st``: everything that a program needs is named here, and imported when it is first
asked for. Importing this package loads neither torch nor numpy nor pydantic.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from selftrain._util.package_names import check_names

if TYPE_CHECKING:
    import backbones as backbones
    import losses as losses
    from agents.judgment import Agent as Agent
    from agents.judgment import Candidate as Candidate
    from agents.judgment import Judgment as Judgment
    from agents.judgment import State as State
    from agents.judgment import Verdict as Verdict
    from agents.panel import CrossReview as CrossReview
    from agents.panel import NoPanel as NoPanel
    from agents.panel import Panel as Panel
    from backbones.base import Backbone as Backbone
    from losses.base import RoundLoss as RoundLoss
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
    from selftrain.errors import SelftrainError as SelftrainError
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
    from selftrain.selection import Mixed as Mixed
    from selftrain.selection import RandomPosts as RandomPosts
    from selftrain.selection import Selection as Selection
    from selftrain.selection import Selector as Selector
    from selftrain.selection import TopK as TopK
    from selftrain.selection import Uncertain as Uncertain
    from selftrain.serving.load_predictor import load_predictor as load_predictor
    from selftrain.state import RoundLimits as RoundLimits
    from selftrain.store.run_dir import HumanLabel as HumanLabel

__version__ = "0.1.0"

_HOME = {
    "ACTTrainer": "selftrain.act.training",
    "Agent": "agents.judgment",
    "Backbone": "backbones.base",
    "Candidate": "agents.judgment",
    "CrossReview": "agents.panel",
    "FineTuner": "selftrain.models.finetune",
    "HeadTrainer": "selftrain.models.trainer",
    "HumanLabel": "selftrain.store.run_dir",
    "HumanReview": "selftrain.review.reviewers",
    "Judgment": "agents.judgment",
    "Mixed": "selftrain.selection",
    "NoPanel": "agents.panel",
    "OfflinePanel": "selftrain.panels",
    "Panel": "agents.panel",
    "Post": "selftrain.data.posts",
    "Prediction": "selftrain.models.predictor",
    "Predictor": "selftrain.models.predictor",
    "RandomPosts": "selftrain.selection",
    "Recipe": "selftrain.config",
    "ReplayedPanel": "selftrain.panels",
    "Reviewers": "selftrain.review.reviewers",
    "RoundLimits": "selftrain.state",
    "RoundLoss": "losses.base",
    "RoundResult": "selftrain.rounds",
    "Run": "selftrain.runs",
    "RunContext": "selftrain.data.context",
    "Selection": "selftrain.selection",
    "Selector": "selftrain.selection",
    "SelfTrainer": "selftrain.runs",
    "SelftrainError": "selftrain.errors",
    "State": "agents.judgment",
    "Task": "selftrain.data.task",
    "TopK": "selftrain.selection",
    "Trainer": "selftrain.models.trainer",
    "Uncertain": "selftrain.selection",
    "VLMPanel": "selftrain.panels",
    "Verdict": "agents.judgment",
    "backbones": "",
    "draw_posts": "selftrain.data.drawn",
    "load_predictor": "selftrain.serving.load_predictor",
    "load_recipe": "selftrain.config",
    "load_task": "selftrain.data.task",
    "losses": "",
    "read_manifest": "selftrain.data.manifest",
    "run": "selftrain.runs",
    "split": "selftrain.data.preparation",
    "start": "selftrain.runs",
    "train_agentps": "selftrain.agentps.train",
}
__all__ = list(_HOME)

check_names()


def __getattr__(name: str) -> Any:  # noqa: ANN401 -- whatever the table names
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOME[name]
    value = getattr(import_module(home), name) if home else import_module(name)
    globals()[name] = value
    return value
