"""What a part may know of the run that it works in, beyond what each of its calls is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from backbones.base import Backbone
from selftrain.data.corpus import Corpus
from selftrain.data.task import Task
from selftrain.store.run_dir import RunFolder

Part_co = TypeVar("Part_co", covariant=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class RunContext:
    """A run whose posts are prepared and whose first round has not begun."""

    folder: RunFolder  # opened and locked; its finished rounds can be read
    task: Task  # classes and policy
    corpus: Corpus  # posts, labels and features by position
    # gives a newly built pretrained backbone in float32, as fine-tuning wants it
    make_backbone: Callable[[], Backbone]
    seed: int  # of the run's draws
    max_pixels: int  # the largest width x height that an image's header may claim
    progress: bool = False  # whether what takes long shows how far it is


class ForRun(Protocol[Part_co]):
    """A part that is whole only in a run: settings, from which the part itself is made when a run begins."""

    def for_run(self, run: RunContext) -> Part_co:
        """Return the part that works in `run`; called once, before the first round of each start.

        Raises:
            SelftrainError, or an error of a leaf's tree: The part cannot work here; nothing was asked yet.
        """
        ...
