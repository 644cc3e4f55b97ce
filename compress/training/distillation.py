"""Knowledge distillation: a student learns from the labels and from the logits of a teacher.

Soft (Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531):

    loss = (1 - α) · CE(student, labels) + α · T² · KL(softmax(teacher / T) || softmax(student / T))

Hard (Touvron et al., DeiT, arXiv 2012.12877):

    loss = (1 - α) · CE(student, labels) + α · CE(student, argmax of the teacher)

T² keeps the size of the gradient as T grows. A GFNet with distillation token has a head for each
term, as DeiT does: the head on the class token learns the labels, the head on the distillation
token the teacher. In use its logits are the mean of both.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from compress.models.gfnet import GFNet
from compress.models.outputs import logits_of
from compress.training.batches import Batch
from compress.training.distillation_config import DistillationConfig
from compress.training.objectives import Objective, bare

__all__ = ["distillation", "hard_loss", "soft_loss", "student_logits"]


def distillation(
    teacher: Callable[[Tensor], Tensor],
    config: DistillationConfig,
    *,
    label_smoothing: float = 0.0,
) -> Objective:
    """Return the objective that draws a student to the labels and to a teacher.

    Its terms are "label_loss" and "teacher_loss", neither of them weighted, and their weighted sum
    "loss". The teacher sees the very images that the student sees, mixed and augmented as they are
    (Beyer et al., arXiv 2106.05237).

    Args:
        teacher: images to logits (B, K) without gradient: a `compress.training.teacher.Teacher`.
        config: kind, α and T.
        label_smoothing: of the labels, in [0, 1); the teacher's answer is taken as it is.
    """

    def objective(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        for_labels, for_teacher = student_logits(model, batch.images)
        label_loss = F.cross_entropy(for_labels, batch.targets, label_smoothing=label_smoothing)
        told = teacher(batch.images)
        if config.kind == "soft":
            teacher_loss = soft_loss(for_teacher, told, temperature=config.temperature)
        else:
            teacher_loss = hard_loss(for_teacher, told)
        loss = (1 - config.alpha) * label_loss + config.alpha * teacher_loss
        return {"loss": loss, "label_loss": label_loss, "teacher_loss": teacher_loss}

    return objective


def soft_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Return T² · KL(softmax(teacher / T) || softmax(student / T)) in nats, the mean of the batch.

    With T = 1, teacher (0, ln 3) and student (0, 0) it is ¼·ln(¼ / ½) + ¾·ln(¾ / ½) = 0.1308.

    Args:
        student: logits (B, K).
        teacher: logits (B, K), without gradient.
        temperature: T > 0.
    """
    log_p = F.log_softmax(teacher.float() / temperature, dim=1)
    log_q = F.log_softmax(student.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def hard_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the cross entropy of the student's logits (B, K) to the teacher's likeliest class."""
    return F.cross_entropy(student.float(), teacher.argmax(dim=1))


def student_logits(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits (B, K) that learn the labels, and those that learn the teacher.

    They are the same but for the distilled form of a GFNet, which has a head for each.
    """
    inner = bare(model)
    if not (isinstance(inner, GFNet) and inner.config["distilled"]):
        logits = logits_of(model(images))
        return logits, logits
    # DistributedDataParallel exchanges gradients only of what ran through its own forward, and that
    # returns the mean of both heads; so the heads are listened to instead of being called.
    heard: dict[nn.Module, Tensor] = {}

    def listen(head: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        heard[head] = output

    hooks = [head.register_forward_hook(listen) for head in (inner.head, inner.head_dist)]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return heard[inner.head].float(), heard[inner.head_dist].float()
