"""Training the backbone together with the head: all of its weights, or low-rank adapters beside them.

Posts are collated as they are needed; no feature is cached, since the features are what changes.

Shape legend: ``M`` training posts, ``V`` validation posts, ``B`` posts of a batch, ``D`` width of a row,
``C`` classes set against the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backbones.base import Backbone
from losses.base import ClassLoss
from selftrain._util.types import Float32Array, IntArray
from selftrain.data.context import RunContext
from selftrain.data.corpus import Corpus, TrainingSet
from selftrain.errors import NonFiniteLossError, RunStateError, TrainingError
from selftrain.models import finetune_network
from selftrain.models.calibration import Calibration, fit_calibration
from selftrain.models.head import ADVICE, HeadKind, HeadSettings, fit_scaling, train_head
from selftrain.models.metrics import evaluate
from selftrain.models.train_loop import (
    EpochResult,
    Pace,
    StepLoss,
    TrainingLog,
    best_epoch,
    train_epochs,
    warm_up_schedule,
)

LEARNING_RATES = {"full": 5e-6, "lora": 1e-4}
_CHUNK = 8  # evaluation batches scored at once: texts are sorted by length within a chunk
_NAMED = 5  # posts that an error names
CLIP = 1.0  # longest gradient; one odd batch of 16 must not undo the others


@dataclass(eq=False)
class FineTuner:
    """Fits, scores and loads fine-tuned classifiers; one network at a time is in memory.

    The head begins as one trained on the pretrained backbone's features: an untrained head would send random
    gradients into the backbone, and bend the pretrained features before it has learned anything (Kumar et
    al. 2022). `probe=False` begins from an untrained head instead.

    Args:
        make_backbone: Gives a newly built pretrained backbone at each call; None: that of the run. Build it
            with dtype "fp32": `precision` then decides alone, and a model fits the same backbone on every
            machine.
        mode: "full" trains every weight, "lora" adapters at `lora_targets()` of the backbone.
        head: "linear" or "mlp", with `hidden` units and `dropout`.
        epochs: Passes over the posts, at least 1.
        batch_size: The most posts in a step, at least one for each group of the training set.
        learning_rate: Of the backbone; None: 5e-6 for "full" (as published), 1e-4 for "lora".
        head_learning_rate: Of the head, which reads scaled features and so stands larger steps.
        weight_decay: AdamW's.
        lora_rank, lora_alpha: Of the adapters.
        precision: "auto" multiplies in bfloat16 on a GPU that has it, else in float32. Weights stay float32.
        gradient_checkpointing: Trade time for memory in the backward pass.
        evaluation_batch: Images (or texts) encoded at once without gradients.
        workers: Threads that decode images during evaluation.
        augment: Let the backbone crop training images at random.
        probe: See above.
        progress: Draw a bar with the epoch and the loss.
    """

    make_backbone: Callable[[], Backbone] | None = None
    _: KW_ONLY
    mode: finetune_network.Mode = "full"
    head: HeadKind = "mlp"
    hidden: int = 32
    dropout: float = 0.3
    epochs: int = 10
    batch_size: int = 16
    learning_rate: float | None = None
    head_learning_rate: float = 1e-4
    weight_decay: float = 0.01
    lora_rank: int = 16
    lora_alpha: int = 32
    precision: finetune_network.Precision = "auto"
    gradient_checkpointing: bool = False
    evaluation_batch: int = 64
    workers: int = 0
    augment: bool = True
    probe: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        self.architecture = finetune_network.NetworkShape(
            self.mode, self.head, self.hidden, self.dropout, self.lora_rank, self.lora_alpha
        )
        self._network: finetune_network.Network | None = None
        self._holds: finetune_network.FinetunedClassifier | None = None  # whose weights the network has
        self._pretrained = ""

    def for_run(self, run: RunContext) -> FineTuner:
        """Return the same trainer on the run's backbone, unless it was given one."""
        return replace(self, make_backbone=self.make_backbone or run.make_backbone)

    def fit(
        self,
        corpus: Corpus,
        training: TrainingSet,
        *,
        loss: ClassLoss,
        seed: int,
        where: str,
        start: finetune_network.FinetunedClassifier | None,
    ) -> finetune_network.FinetunedClassifier:
        """Train from the pretrained backbone, or on from `start`; keep the epoch of the best macro-F1.

        See `Trainer.fit`; the corpus's feature table is not read, and the loss is computed batch by batch.
        The same seed gives the same weights, to the bit on a CPU. The global random state is left as it was.
        """
        shape = self.architecture._replace(outputs=len(corpus.columns))
        if start is not None and start.architecture != shape:
            raise TrainingError(
                f"{where} is to go on from a model of {start.architecture}, this trainer's is"
                f" {shape}: start from the pretrained backbone, or restore the settings"
            )
        if not len(corpus.validation):
            raise TrainingError(
                f"{where}: no validation post to choose an epoch by, and leaving labelled posts out in turn"
                " would train the backbone many times over. Give a validation split"
                " (data.validation_share above 0), or train the head alone"
            )
        with _random_state(seed), _memory_advice(where, self._advice()):
            network = self._build(shape)
            if start is None:
                self._begin_head(network, corpus, training, loss=loss, seed=seed, where=where)
            else:
                _check_origin(network, start)
                network.put(start.weights)
            batches = GroupBatches(training.groups, self.batch_size, seed)
            best = _NetworkStepper(
                network, corpus, training, batches, loss, self.augment,
                lambda: network.classify(self._rows(network, corpus, corpus.validation, where)), where,
            )  # fmt: skip
            curve = self._descend(best, batches.steps, where)
        self._network = network
        calibration = fit_calibration(best.raw, corpus.labels[corpus.validation])
        return finetune_network.FinetunedClassifier(
            best.weights, shape, network.pretrained, calibration, curve, best_epoch(curve).epoch
        )

    def logits(
        self, model: finetune_network.FinetunedClassifier, corpus: Corpus, positions: IntArray
    ) -> Iterator[tuple[IntArray, Float32Array]]:
        """See `Trainer.logits`; RunStateError: the model does not belong to this backbone."""
        size = _CHUNK * self.evaluation_batch
        for first in range(0, len(positions), size):
            part = positions[first : first + size]
            with _memory_advice("scoring", self._advice()):
                # asked again for each chunk: another model may have been scored or fitted in between
                network = self._ready(model)
                posts = [corpus.posts[position] for position in part]
                raw = network.classify(network.encode(posts, self.evaluation_batch, self.workers).rows)
            yield part, model.calibration(raw)

    def calibrate(
        self, model: finetune_network.FinetunedClassifier, calibration: Calibration
    ) -> finetune_network.FinetunedClassifier:
        return replace(model, calibration=calibration)

    def load(self, file: Path) -> finetune_network.FinetunedClassifier:
        """See `Trainer.load`; trained from another backbone is another kind too."""
        model = finetune_network.load_finetuned(file)[0]
        with _memory_advice(str(file), self._advice()):
            self._ready(model)
        return model

    def _descend(self, stepper: _NetworkStepper, steps_per_epoch: int, where: str) -> tuple[EpochResult, ...]:
        """Train with AdamW, a warm-up and a cosine decay."""
        network = stepper.model
        assert network.head is not None, "a head is attached before training"
        trained = [weight for weight in network.backbone.parameters() if weight.requires_grad]
        rate = LEARNING_RATES[self.mode] if self.learning_rate is None else self.learning_rate
        optimizer = torch.optim.AdamW(
            [
                {"params": trained, "lr": rate},
                {"params": list(network.head.parameters()), "lr": self.head_learning_rate},
            ],
            weight_decay=self.weight_decay,
        )
        steps = self.epochs * steps_per_epoch
        with TrainingLog(steps, name=where, bar=self.progress) as log:
            return train_epochs(
                stepper, optimizer, warm_up_schedule(optimizer, steps, decay="cosine"),
                Pace(epochs=self.epochs, steps_per_epoch=steps_per_epoch), where=where, log=log,
            )  # fmt: skip

    # ---- networks -----------------------------------------------------------------------------------

    def _build(self, architecture: finetune_network.NetworkShape) -> finetune_network.Network:
        """A network on a new pretrained backbone; the one held until now is let go first."""
        self._network = self._holds = None
        assert self.make_backbone is not None, "`for_run` gives it"
        network = finetune_network.Network(self.make_backbone(), architecture, self.precision)
        if self._pretrained not in ("", network.pretrained):
            raise TrainingError(
                f"make_backbone gave fingerprint {network.pretrained[:12]}, before {self._pretrained[:12]}:"
                " it must build a new pretrained backbone at each call"
            )
        self._pretrained = network.pretrained
        if self.gradient_checkpointing:
            switch = getattr(network.source, "set_gradient_checkpointing", None)
            if switch is None:
                raise TrainingError(f"the backbone {network.source.name} has no gradient checkpointing")
            switch(True)
        return network

    def _ready(self, model: finetune_network.FinetunedClassifier) -> finetune_network.Network:
        """The network with this model's weights in it."""
        network = self._network
        if network is not None and self._holds is model:
            return network
        with _random_state(0):  # new layers are drawn before the weights overwrite them
            if network is None or network.architecture != model.architecture:
                network = self._build(model.architecture)
            _check_origin(network, model)
            self._holds = None
            network.put(model.weights)
        self._network, self._holds = network, model
        return network

    def _begin_head(
        self,
        network: finetune_network.Network,
        corpus: Corpus,
        training: TrainingSet,
        *,
        loss: ClassLoss,
        seed: int,
        where: str,
    ) -> None:
        """Scale the head to the pretrained features and, with `probe`, train it on them."""
        posts = np.concatenate([training.positions, corpus.validation])
        rows = self._rows(network, corpus, posts, where)
        scaling = fit_scaling(rows, network.source.layout)
        if not self.probe:
            network.attach(network.new_head(scaling))
            return
        count = len(training.positions)
        probe = train_head(
            rows[:count], training, rows[count:], corpus.labels[corpus.validation], scaling=scaling,
            loss=loss, settings=HeadSettings(self.head, self.hidden, self.dropout), seed=seed,
            classes=corpus.classes if len(corpus.classes) > 2 else (), where=f"{where}, head alone",
        )  # fmt: skip
        network.attach(probe.head)

    def _rows(
        self, network: finetune_network.Network, corpus: Corpus, positions: IntArray, where: str
    ) -> Float32Array:
        """Feature rows [n, D] of posts none of which may be missing."""
        posts = [corpus.posts[position] for position in positions]
        encoded = network.encode(posts, self.evaluation_batch, self.workers)
        if encoded.failures:
            named = "; ".join(f"{posts[f.index].id}: {f.reason}" for f in encoded.failures[:_NAMED])
            raise TrainingError(
                f"{where}: {len(encoded.failures)} of {len(posts)} posts to learn from cannot be encoded"
                f" ({named}). Mend them or take them out of the manifest"
            )
        return encoded.rows

    def _advice(self) -> str:
        switch = "" if self.gradient_checkpointing else " turn on gradient checkpointing,"
        lora = ' or set classifier.mode = "lora"' if self.mode == "full" else ""
        return (
            f"Lower classifier.batch_size (now {self.batch_size}),{switch} lower the evaluation"
            f" batch (now {self.evaluation_batch}){lora}"
        )


class GroupBatches:
    """Deals the posts of each group, of groups [M, C], evenly over the batches of an epoch.

    A batch without a group would take that group's mean for 0, so that a small group would be learned from
    now and then, with the weight of a whole risk, and forgotten in between. Here every batch holds at least
    one post of each group, and each group's share of a batch is its share of the posts, to within one post.
    Every post occurs at least once an epoch; a group with fewer posts than there are batches goes round. The
    `steps` of an epoch are as few as keep each within the batch size.

    TrainingError: no posts, or a batch too small to hold one of each group.
    """

    def __init__(self, groups: IntArray, batch_size: int, seed: int) -> None:
        kinds, kind = np.unique(groups, axis=0, return_inverse=True)
        self._members = [np.flatnonzero(kind.reshape(-1) == one) for one in range(len(kinds))]
        self._seed = seed
        if not self._members:
            raise TrainingError("there are no posts to train on")
        if batch_size < len(self._members):
            raise TrainingError(
                f"a batch of {batch_size} cannot hold posts of all {len(self._members)} groups (labelled and"
                f" agreed of each class, divergent): set classifier.batch_size to at least"
                f" {len(self._members)}"
            )
        sizes = np.array([len(members) for members in self._members])
        steps = -(-int(sizes.sum()) // batch_size)
        while (-(-sizes // steps)).sum() > batch_size:
            steps += 1
        self.steps = steps

    def epoch(self, number: int) -> list[IntArray]:
        """Return the batches of an epoch, indices [n] into the training posts, by seed and number alone."""
        generator = np.random.default_rng([self._seed, number])
        dealt = [self._deal(members, generator) for members in self._members]
        return [np.concatenate(parts) for parts in zip(*dealt, strict=True)]

    def _deal(self, members: IntArray, generator: np.random.Generator) -> list[IntArray]:
        """Deal one group's posts, shuffled, in `steps` runs whose lengths differ by one at most."""
        order = generator.permutation(members)
        while len(order) < self.steps:
            order = np.concatenate([order, generator.permutation(members)])
        if len(members) < self.steps:
            order = order[: self.steps]
        return np.array_split(order, self.steps)


@dataclass(eq=False)
class _NetworkStepper:
    """A `Stepper` of a whole network, trained in place: every group in a batch, gradients clipped."""

    model: finetune_network.Network
    corpus: Corpus
    training: TrainingSet
    groups: GroupBatches  # of `training`
    loss: ClassLoss  # computed batch by batch
    augment: bool  # let the backbone crop training images
    validate: Callable[[], Float32Array]  # raw logits [V, K] of the validation posts by the network as it is
    where: str  # said in an error
    weights: dict[str, Tensor] = field(default_factory=dict)  # of the best epoch, on the CPU
    raw: Float32Array = field(default_factory=lambda: np.empty((0, 0), np.float32))  # its [V, K]

    def __post_init__(self) -> None:
        self._epoch, self._now = 0, self.raw

    def batches(self, epoch: int, skip: int) -> Generator[IntArray, None, None]:
        """Yield indices into the training set."""
        self._epoch = epoch
        yield from self.groups.epoch(epoch)[skip:]

    def gradients(self, batch: IntArray) -> StepLoss:
        training = self.training
        posts = [self.corpus.posts[position] for position in training.positions[batch]]
        logits = self.model(self.model.source.collate(posts, train=self.augment))
        groups = torch.from_numpy(training.groups[batch]).to(logits.device)
        targets = torch.from_numpy(training.targets[batch]).to(logits.device)
        output = self.loss(logits, groups, targets)
        output.loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        return StepLoss.of(output)

    def evaluate(self) -> dict[str, Any]:
        """Return macro-F1 and, where both classes occur, AUC.

        A loss can be finite and its gradient not; then the weights are lost, and only the logits tell.
        """
        self._now = self.validate()
        broken = int((~np.isfinite(self._now)).any(1).sum())
        if broken:
            raise NonFiniteLossError(
                f"{self.where}, epoch {self._epoch}, after step {self.groups.steps}: {broken} of"
                f" {len(self._now)} validation logits are not finite. Lower classifier.learning_rate"
            )
        labels = self.corpus.labels[self.corpus.validation]
        found = evaluate(labels, self._now)
        return {"macro_f1": found.macro_f1, **({} if found.auc is None else {"auc": found.auc})}

    def keep_best(self) -> None:
        self.weights, self.raw = self.model.portable(), self._now

    def advice(self, batch: IntArray) -> str:
        return ADVICE


def _check_origin(network: finetune_network.Network, model: finetune_network.FinetunedClassifier) -> None:
    if model.pretrained != network.pretrained:
        raise RunStateError(
            f"the model was trained from a backbone with fingerprint {model.pretrained[:12]}, this one"
            f" ({network.source.name}) has {network.pretrained[:12]}: use the backbone, weights and precision"
            " of the recipe that it was trained with"
        )


@contextmanager
def _random_state(seed: int) -> Iterator[None]:
    """Seed torch everywhere, and restore its states afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


@contextmanager
def _memory_advice(where: str, advice: str) -> Iterator[None]:
    """Turn a device's exhaustion into an error that says what to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        summary = str(error).partition(". ")[0]
        raise TrainingError(f"{where}: the device ran out of memory ({summary}). {advice}") from error
