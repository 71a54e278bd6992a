"""Who judges a post: roles, judgments, cross-review. Part of the selftrain distribution.

The names below are imported when they are first asked for: ``import agents`` loads no numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agents.errors import AgentError as AgentError
    from agents.errors import JudgmentError as JudgmentError
    from agents.errors import LearningError as LearningError
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
    from agents.panel import AgentPanel as AgentPanel
    from agents.panel import Panel as Panel
    from agents.replayed import ReplayedAgent as ReplayedAgent
    from agents.replayed import replayed_agents as replayed_agents
    from agents.simulated import SimulatedAgent as SimulatedAgent
    from agents.simulated import symmetric as symmetric
    from agents.trust import Trust as Trust

# the functions `review` and `trust` live in modules of the same names: `from agents.trust import trust`
_HOME = {
    "AgentError": "errors",
    "JudgmentError": "errors",
    "LearningError": "errors",
    "NotFittedError": "errors",
    "ReplayError": "errors",
    "ReviewError": "errors",
    "SimulationError": "errors",
    "Accepted": "judgment",
    "Agent": "judgment",
    "Candidate": "judgment",
    "Judgment": "judgment",
    "LabelledPost": "judgment",
    "Learner": "judgment",
    "PostLike": "judgment",
    "State": "judgment",
    "Verdict": "judgment",
    "OfflineAgent": "offline.offline_agent",
    "offline_agents": "offline.offline_agent",
    "ReplayedAgent": "replayed",
    "replayed_agents": "replayed",
    "AgentPanel": "panel",
    "Panel": "panel",
    "SimulatedAgent": "simulated",
    "symmetric": "simulated",
    "Trust": "trust",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
