"""Accuracy of a classifier, from integer counts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.data.prefetch import LabelledSplit, prefetched
from compress.errors import CompressError, UserInputError
from compress.models.outputs import logits_of
from compress.progress import progress_bar

__all__ = ["Accuracy", "evaluate_accuracy", "evaluation_mode"]


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How often a network was right; two of them over different images can be added.

    Attributes:
        count: images.
        correct: images whose class has the largest logit.
        correct5: images whose class is among the five largest.
        loss_sum: cross entropy in nats, summed over the images.
    """

    count: int
    correct: int
    correct5: int
    loss_sum: float

    @property
    def acc1(self) -> float:
        """Accuracy in per cent, 0 to 100."""
        return 100.0 * self.correct / self.count

    @property
    def acc5(self) -> float:
        """Share of images whose class is among the five largest logits, in per cent."""
        return 100.0 * self.correct5 / self.count

    @property
    def loss(self) -> float:
        """Mean cross entropy in nats."""
        return self.loss_sum / self.count

    def __add__(self, other: "Accuracy") -> "Accuracy":
        return Accuracy(
            count=self.count + other.count,
            correct=self.correct + other.correct,
            correct5=self.correct5 + other.correct5,
            loss_sum=self.loss_sum + other.loss_sum,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "acc1": self.acc1, "acc5": self.acc5, "loss": self.loss,
            "correct": self.correct, "count": self.count,
        }  # fmt: skip


def evaluate_accuracy(
    model: nn.Module,
    split: LabelledSplit,
    normalize: Callable[[Tensor], Tensor],
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    progress: bool = True,
    workers: int = 2,
    share: tuple[int, int] = (0, 1),
) -> Accuracy:
    """Count how many images of a split a network classifies rightly, in eval mode.

    Args:
        model: gives logits (B, K), alone or among other outputs; it is moved to `device` and keeps
            its training mode.
        split: the images and their classes.
        normalize: from the images of the split to what the network reads.
        batch_size: images at a time.
        device: where to compute.
        progress: show a bar on stderr.
        workers: threads that load ahead.
        share: (i, n) counts only every n-th batch from batch i on, so that n processes can divide
            the work.

    Raises:
        UserInputError: the split is empty, or has a class that the network does not know.
        CompressError: the network gave NaN.
    """
    if len(split) == 0:
        raise UserInputError("the split to evaluate on is empty; expected at least one image")
    chunks = torch.arange(len(split)).split(batch_size)[share[0] :: share[1]]
    model.to(device)
    counts: list[Tensor] = []
    with evaluation_mode(model), torch.inference_mode(), _bar(len(chunks), progress) as bar:
        for indices, images in _loaded(split, chunks, workers):
            logits = logits_of(model(normalize(images.to(device))))
            counts.append(_count(logits.float(), split.labels[indices]))
            bar.update()
    return _accuracy(counts, images=sum(map(len, chunks)))


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and every layer back into the mode that it was in."""
    modes = {layer: layer.training for layer in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode


def _bar(batches: int, show: bool) -> Any:
    return progress_bar(batches, "evaluate", unit="batch", show=show)


def _loaded(
    split: LabelledSplit, chunks: Sequence[Tensor], workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    return prefetched(lambda indices: (indices, split.images(indices)), chunks, workers=workers)


def _count(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (correct, correct among five, loss sum, rows with NaN) as a vector on the device."""
    classes = logits.shape[1]
    if int(labels.max()) >= classes:
        raise UserInputError(
            f"the data have class {int(labels.max())}, but the network gives {classes} logits; "
            "expected a network trained for these classes"
        )
    top = logits.topk(min(5, classes), dim=1).indices  # (B, 5)
    labels = labels.to(logits.device)
    hits = top == labels[:, None]
    loss = F.cross_entropy(logits, labels, reduction="sum")
    return torch.stack([hits[:, 0].sum(), hits.sum(), loss, logits.isnan().any(dim=1).sum()])


def _accuracy(counts: Sequence[Tensor], *, images: int) -> Accuracy:
    # Moved once, at the end: a copy for every batch would make the device wait. In float64, as
    # float32 holds whole numbers only up to 2**24.
    rows = torch.stack(list(counts)).cpu().double() if counts else torch.zeros(1, 4)
    correct, correct5, loss_sum, broken = rows.sum(dim=0).tolist()
    if broken:
        raise CompressError(
            f"the network gives NaN for {int(broken)} of {images} images; check its weights and "
            "the normalisation, or train with a lower learning rate"
        )
    return Accuracy(count=images, correct=int(correct), correct5=int(correct5), loss_sum=loss_sum)
