"""Who judges a post: roles, judgments, cross-review. Part of the selftrain distribution.

The names below are imported when they are first asked for: ``import agents`` loads no numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.judgment import Agent as Agent
    from agents.judgment import Candidate as Candidate
    from agents.judgment import Judgment as Judgment
    from agents.judgment import State as State
    from agents.judgment import Verdict as Verdict
    from agents.panel import CrossReview as CrossReview
    from agents.panel import NoPanel as NoPanel
    from agents.panel import Panel as Panel

_NAMES = {
    "agents.ask.cache": ["ResponseCache"],
    "agents.ask.judge": ["JudgePanel", "JudgePrompts", "VLMAgent"],
    "agents.ask.prompt_files": ["Brief"],
    "agents.ask.runner": ["Runner"],
    "agents.errors": [
        "AgentError", "JudgmentError", "LearningError", "NearChanceError", "NotFittedError", "ReplayError",
        "ReviewError", "SimulationError",
    ],
    "agents.judgment": [
        "Accepted", "Agent", "Candidate", "Judgment", "LabelledPost", "Learner", "PostLike", "State",
        "Verdict",
    ],
    "agents.offline.offline_agent": ["OfflineAgent", "offline_agents"],
    "agents.panel": ["CrossReview", "NoPanel", "Panel"],
    "agents.replayed": ["AnswersPanel", "ReplayedAgent", "replayed_agents"],
    "agents.simulated": ["SimulatedAgent", "symmetric"],
    "agents.trust": ["Trust"],
}  # fmt: skip
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_HOME)  # noqa: PLE0605 -- a list of texts all the same


def __getattr__(name: str) -> Any:  # noqa: ANN401 -- whatever stands under the name
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
