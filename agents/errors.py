"""Every error that the agents raise.

AgentError
├── JudgmentError, LearningError, NotFittedError, ReviewError, ReplayError, SimulationError
├── PromptFileError, StoreError, TokenCapError, NearChanceError, TooManyFailedError, ServerLaunchError
└── ChatError
    ├── RequestRefusedError, CallFailedError      this request has no answer; others may
    │   └── UnreadableError                       it was not even sent: a picture cannot be read
    └── ServerRefusedError, ServerLostError       no request has one
"""

from __future__ import annotations


class AgentError(Exception):
    """Base of the tree."""


class JudgmentError(AgentError, ValueError):
    """A judgment or verdict, or its record, that breaks the contract."""


class LearningError(AgentError, ValueError):
    """Posts from which an agent cannot learn; the message carries the counts."""


class NotFittedError(AgentError, RuntimeError):
    """An agent was asked to judge before it was fitted."""


class ReviewError(AgentError, RuntimeError):
    """An agent or a panel that did not answer every post once, in order, or that lacks a method."""


class ReplayError(AgentError, ValueError):
    """A file of judgments that cannot be read; the message names the line."""


class SimulationError(AgentError, ValueError):
    """A confusion matrix, rate or answer key that simulates nothing."""


class PromptFileError(AgentError, ValueError):
    """A prompt file that cannot be filled; the message names the file and the placeholder."""


class StoreError(AgentError, OSError):
    """A cache of answers that cannot be read or written."""


class TokenCapError(AgentError):
    """The tokens that a run may cost are spent; what was paid for is kept."""


class NearChanceError(AgentError):
    """An agent near chance on posts of known label; the message carries its figures."""


class TooManyFailedError(AgentError):
    """More questions without a usable answer than tolerated; the message lists the first of them."""


class ServerLaunchError(AgentError):
    """vLLM could not be started, or ended before it could serve; the message ends with what its log says."""


class ChatError(AgentError):
    """A call to a model server failed."""


class RequestRefusedError(ChatError, ValueError):
    """The server will never answer this request (too long, malformed, refused by a filter)."""


class UnreadableError(RequestRefusedError):
    """A picture or a video of the post cannot be read; nothing was sent."""


class CallFailedError(ChatError):
    """A call that brought no answer within its retries; the message carries the last reason."""


class ServerRefusedError(ChatError):
    """The server refuses us whatever is asked: key, model, or a version without what is needed."""


class ServerLostError(ChatError):
    """No endpoint has answered for longer than we wait."""
