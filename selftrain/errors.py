"""Every error that selftrain itself raises, in one tree, branch by branch. The leaves have their own."""

from __future__ import annotations


class SelftrainError(Exception):
    """Base of the tree; the command line prints its message and exits with 2."""


class NameTakenError(SelftrainError, ImportError):
    """Another distribution's package stands where ours should."""


class RecipeError(SelftrainError, ValueError):
    """A recipe, or a ``--set``, that cannot be understood."""


class TaskError(SelftrainError, ValueError):
    """A task file that does not describe a task."""


class DataError(SelftrainError):
    """Something is wrong with the posts."""


class ManifestError(DataError, ValueError):
    """A manifest that cannot be read at all."""


class QuarantineError(DataError, ValueError):
    """More bad rows than the recipe tolerates."""


class SplitError(DataError, ValueError):
    """The posts cannot be split as asked: too few labels, an id in two splits, an empty pool."""


class MediaError(DataError, ValueError):
    """A video that may not be read, or cannot be."""


class CacheError(DataError, OSError):
    """A feature cache that cannot be read or written."""


class ActError(SelftrainError):
    """Something is wrong with the human budget."""


class BudgetError(ActError, ValueError):
    """A human budget, or error estimates, that cannot be spent as asked."""


class EstimateError(ActError, ValueError):
    """A review from which nothing can be estimated; the message carries the counts."""


class LedgerError(ActError):
    """A ledger of reviews that cannot be read or written, or that holds another review."""


class DecisionError(ActError, ValueError):
    """A decision that the ledger of reviews refuses: nobody's post, another's, an unknown class."""


class ExchangeError(ActError, ValueError):
    """A file of reviews that cannot be read at all; single bad lines are refused one by one."""


class TrainingError(SelftrainError):
    """Training could not go on."""


class NonFiniteLossError(TrainingError, ArithmeticError):
    """A NaN or infinite loss; the message names the round, epoch and step, and each part's value."""


class ServingError(SelftrainError):
    """A model that cannot be served, filtered with or exported as asked."""


class QueueFullError(ServingError):
    """More posts wait to be scored than the server holds."""


class DrainingError(ServingError):
    """The server takes no more posts: it is about to end."""


class ScoringError(ServingError):
    """The model failed over a batch, and with it every request that had a post there."""


class EngineError(SelftrainError):
    """Workers on other machines cannot be had, or gave up."""


class ModelError(SelftrainError, ValueError):
    """A folder that holds no trained model, a damaged one, or one of another task or base model."""


class RunError(SelftrainError):
    """Something is wrong with a run folder."""


class RunMismatchError(RunError, ValueError):
    """The folder holds a run of another recipe."""


class RunBusyError(RunError):
    """Another process works on this run."""


class RunStateError(RunError):
    """A run folder that is incomplete or damaged."""


class StorageError(RunError, OSError):
    """The disk is full, or refuses to be written."""
