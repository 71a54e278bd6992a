"""Every error that the agents raise.

AgentError
├── JudgmentError       a judgment or verdict, or its record, that breaks the contract
├── LearningError       posts from which an agent cannot learn: none, or of one class only
├── NotLearnedError     an agent was asked to judge before it learned
├── ReviewError         an agent that did not answer every candidate once, in order
├── ReplayError         a file of judgments that cannot be read
└── SimulationError     a confusion matrix, rate or answer key that simulates nothing
"""

from __future__ import annotations


class AgentError(Exception):
    """Base of the tree."""


class JudgmentError(AgentError, ValueError):
    """A judgment or verdict, or its record, that breaks the contract."""


class LearningError(AgentError, ValueError):
    """Posts from which an agent cannot learn; the message carries the counts."""


class NotLearnedError(AgentError, RuntimeError):
    """An agent was asked to judge before it learned."""


class ReviewError(AgentError, RuntimeError):
    """An agent that did not answer every candidate once, in order."""


class ReplayError(AgentError, ValueError):
    """A file of judgments that cannot be read; the message names the line."""


class SimulationError(AgentError, ValueError):
    """A confusion matrix, rate or answer key that simulates nothing."""
