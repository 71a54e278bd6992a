"""Who judges a post: roles, judgments, cross-review. Part of the selftrain distribution.

The names below are imported when they are first asked for: ``import agents`` loads no numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agents.ask.cache import ResponseCache as ResponseCache
    from agents.ask.judge import JudgePanel as JudgePanel
    from agents.ask.judge import JudgePrompts as JudgePrompts
    from agents.ask.judge import VLMAgent as VLMAgent
    from agents.ask.prompt_files import Brief as Brief
    from agents.ask.runner import Runner as Runner
    from agents.errors import AgentError as AgentError
    from agents.errors import JudgmentError as JudgmentError
    from agents.errors import LearningError as LearningError
    from agents.errors import NearChanceError as NearChanceError
    from agents.errors import NotFittedError as NotFittedError
    from agents.errors import ReplayError as ReplayError
    from agents.errors import ReviewError as ReviewError
    from agents.errors import SimulationError as SimulationError
    from agents.judgment import Accepted as Accepted
    from agents.judgment import Agent as Agent
    from agents.judgment import Candidate as Candidate
    from agents.judgment import Judgment as Judgment
    from agents.judgment import LabelledPost as LabelledPost
    from agents.judgment import Learner as Learner
    from agents.judgment import PostLike as PostLike
    from agents.judgment import State as State
    from agents.judgment import Verdict as Verdict
    from agents.offline.offline_agent import OfflineAgent as OfflineAgent
    from agents.offline.offline_agent import offline_agents as offline_agents
    from agents.panel import CrossReview as CrossReview
    from agents.panel import NoPanel as NoPanel
    from agents.panel import Panel as Panel
    from agents.replayed import ReplayedAgent as ReplayedAgent
    from agents.replayed import replayed_agents as replayed_agents
    from agents.simulated import SimulatedAgent as SimulatedAgent
    from agents.simulated import symmetric as symmetric
    from agents.trust import Trust as Trust
# the function `trust` lives in a module of the same name: `from agents.trust import trust`
_HOME = {
    "Accepted": "judgment",
    "Agent": "judgment",
    "AgentError": "errors",
    "CrossReview": "panel",
    "Brief": "ask.prompt_files",
    "Candidate": "judgment",
    "JudgePrompts": "ask.judge",
    "Judgment": "judgment",
    "JudgmentError": "errors",
    "LabelledPost": "judgment",
    "Learner": "judgment",
    "LearningError": "errors",
    "NearChanceError": "errors",
    "NoPanel": "panel",
    "NotFittedError": "errors",
    "OfflineAgent": "offline.offline_agent",
    "Panel": "panel",
    "PostLike": "judgment",
    "ReplayError": "errors",
    "ReplayedAgent": "replayed",
    "ResponseCache": "ask.cache",
    "ReviewError": "errors",
    "Runner": "ask.runner",
    "SimulatedAgent": "simulated",
    "SimulationError": "errors",
    "State": "judgment",
    "Trust": "trust",
    "VLMAgent": "ask.judge",
    "JudgePanel": "ask.judge",
    "Verdict": "judgment",
    "offline_agents": "offline.offline_agent",
    "replayed_agents": "replayed",
    "symmetric": "simulated",
}
__all__ = [
    "Accepted",
    "Agent",
    "AgentError",
    "Brief",
    "Candidate",
    "CrossReview",
    "JudgePanel",
    "JudgePrompts",
    "Judgment",
    "JudgmentError",
    "LabelledPost",
    "Learner",
    "LearningError",
    "NearChanceError",
    "NoPanel",
    "NotFittedError",
    "OfflineAgent",
    "Panel",
    "PostLike",
    "ReplayError",
    "ReplayedAgent",
    "ResponseCache",
    "ReviewError",
    "Runner",
    "SimulatedAgent",
    "SimulationError",
    "State",
    "Trust",
    "VLMAgent",
    "Verdict",
    "offline_agents",
    "replayed_agents",
    "symmetric",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
