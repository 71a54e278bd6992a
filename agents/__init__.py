"""Who judges a post: roles, judgments, cross-review. Part of the selftrain distribution.

The names below are imported when they are first asked for: ``import agents`` loads no numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .errors import AgentError as AgentError
    from .errors import JudgmentError as JudgmentError
    from .errors import LearningError as LearningError
    from .errors import NotLearnedError as NotLearnedError
    from .errors import ReplayError as ReplayError
    from .errors import ReviewError as ReviewError
    from .errors import SimulationError as SimulationError
    from .judgment import Accepted as Accepted
    from .judgment import Agent as Agent
    from .judgment import Candidate as Candidate
    from .judgment import Judgment as Judgment
    from .judgment import LabelledPost as LabelledPost
    from .judgment import Learner as Learner
    from .judgment import PostLike as PostLike
    from .judgment import State as State
    from .judgment import Verdict as Verdict
    from .offline import OfflineAgent as OfflineAgent
    from .offline import offline_agents as offline_agents
    from .replayed import ReplayedAgent as ReplayedAgent
    from .replayed import replayed_agents as replayed_agents
    from .review import AgentPanel as AgentPanel
    from .review import Panel as Panel
    from .simulated import SimulatedAgent as SimulatedAgent
    from .simulated import symmetric as symmetric
    from .trust import Trust as Trust

# the functions `review` and `trust` live in modules of the same names: `from agents.trust import trust`
_HOME = {
    "AgentError": "errors",
    "JudgmentError": "errors",
    "LearningError": "errors",
    "NotLearnedError": "errors",
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
    "OfflineAgent": "offline",
    "offline_agents": "offline",
    "ReplayedAgent": "replayed",
    "replayed_agents": "replayed",
    "AgentPanel": "review",
    "Panel": "review",
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
