import math
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import compress
from compress.data.image_data import Preprocessing
from compress.errors import UserInputError
from compress.models.factory import call_factory
from compress.models.gfnet import GFNet
from compress.models.gfnet_dynn import GFNetDynn
from compress.models.vgg import VGG
from compress.opened import Opening, open_checkpoint
from compress.training.batches import Batch
from compress.training.distillation import distillation, hard_loss, soft_loss, student_logits
from compress.training.distillation_config import DistillationConfig
from compress.training.loop import TrainingResult, fit
from compress.training.objectives import cross_entropy
from compress.training.teacher import Teacher, teacher_from
from tests.training.fakes import CLASSES, FakeAugment, Net, config, fake_data, same_weights
from tests.training.test_resume import assert_same, die, in_a_process

SMALL: dict[str, Any] = {
    "image_size": 8, "patch_size": 4, "width": 8, "depth": 2, "num_classes": CLASSES,
}  # fmt: skip
TEACH = DistillationConfig(kind="soft", alpha=0.7, temperature=2.0)


def logits_of(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, CLASSES, generator=generator)


def batch_of(images: Tensor, labels: list[int]) -> Batch:
    index = torch.tensor(labels)
    return Batch(images=images, labels=index, targets=F.one_hot(index, CLASSES).float())


def small(model: type[GFNet] = GFNet, seed: int = 0, **more: Any) -> GFNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model(**{**SMALL, **more})


def test_equal_logits_have_nothing_to_learn() -> None:
    logits = logits_of(5, 0).requires_grad_()
    loss = soft_loss(logits, logits.detach() + 4.0, temperature=3.0)  # a shift changes no softmax
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    torch.testing.assert_close(logits.grad, torch.zeros(5, CLASSES), atol=1e-6, rtol=0)


def test_the_soft_loss_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, math.log(3)]])
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert soft_loss(student, teacher, temperature=1.0).item() == pytest.approx(expected)
    # T = 2 halves the teacher's logit: probabilities 1 / (1 + √3) and the rest; times T².
    p = 1 / (1 + math.sqrt(3))
    expected = 4 * (p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5))
    assert soft_loss(student, teacher, temperature=2.0).item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_gradient_of_the_soft_loss(temperature: float) -> None:
    """d/dz T²·KL(p||q) = T·(q - p), as softmax(z / T) has a derivative of 1/T."""
    student, teacher = logits_of(4, 1).requires_grad_(), logits_of(4, 2)
    soft_loss(student, teacher, temperature=temperature).backward()
    p, q = (F.softmax(z / temperature, dim=1) for z in (teacher, student.detach()))
    torch.testing.assert_close(student.grad, temperature * (q - p) / 4)  # the mean of 4 images


def test_t_squared_keeps_the_gradient_as_t_grows() -> None:
    """At high T it tends to (z - v) / K for logits of mean zero (arXiv 1503.02531, section 2.1)."""
    student, teacher = (logits_of(1, seed) for seed in (1, 2))
    student, teacher = (z - z.mean() for z in (student, teacher))
    student.requires_grad_()
    soft_loss(student, teacher, temperature=1000.0).backward()
    expected = (student.detach() - teacher) / CLASSES
    torch.testing.assert_close(student.grad, expected, atol=1e-2, rtol=1e-2)


@given(
    st.lists(st.floats(-50, 50), min_size=6, max_size=6),
    st.floats(0.1, 20),
)
def test_the_soft_loss_is_never_negative_nor_infinite(
    numbers: list[float], temperature: float
) -> None:
    student, teacher = torch.tensor(numbers).view(2, 1, 3)
    loss = soft_loss(student, teacher, temperature=temperature).item()
    assert math.isfinite(loss)
    assert loss > -1e-3  # rounding, times T² of up to 400


def test_hard_labels_are_what_the_teacher_finds_likeliest() -> None:
    student = torch.tensor([[0.0, math.log(3), -99.0], [0.0, math.log(3), -99.0]])
    teacher = torch.tensor([[0.1, 5.0, 4.9], [2.0, 1.0, 0.0]])
    expected = (math.log(4 / 3) + math.log(4)) / 2  # class 1, then class 0
    assert hard_loss(student, teacher).item() == pytest.approx(expected)


def test_alpha_divides_between_labels_and_teacher() -> None:
    student, teacher = logits_of(3, 1), logits_of(3, 2)
    batch = batch_of(student, [0, 2, 1])
    for kind in ("soft", "hard"):
        how = DistillationConfig(kind=kind, alpha=0.3, temperature=4.0)
        terms = distillation(lambda _: teacher, how)(nn.Identity(), batch)
        labels = F.cross_entropy(student, batch.labels)
        taught = (
            16 * F.kl_div(
                F.log_softmax(student / 4, 1), F.softmax(teacher / 4, 1), reduction="batchmean"
            )
            if kind == "soft"
            else F.cross_entropy(student, teacher.argmax(1))
        )  # fmt: skip
        torch.testing.assert_close(terms["loss"], 0.7 * labels + 0.3 * taught)
        torch.testing.assert_close(terms["label_loss"], labels)
        torch.testing.assert_close(terms["teacher_loss"], taught)


def test_without_weight_the_teacher_leaves_cross_entropy() -> None:
    batch = batch_of(logits_of(3, 1), [0, 2, 1])
    how = DistillationConfig(alpha=0.0)
    terms = distillation(lambda _: logits_of(3, 2), how, label_smoothing=0.2)(nn.Identity(), batch)
    plain = cross_entropy(label_smoothing=0.2)(nn.Identity(), batch)
    assert torch.equal(terms["loss"], plain["loss"])


def test_smoothing_is_of_the_labels_alone() -> None:
    batch, how = batch_of(logits_of(3, 1), [0, 2, 1]), DistillationConfig(kind="hard")
    terms = [
        distillation(lambda _: logits_of(3, 2), how, label_smoothing=s)(nn.Identity(), batch)
        for s in (0.0, 0.5)
    ]
    assert torch.equal(terms[0]["teacher_loss"], terms[1]["teacher_loss"])
    assert terms[0]["label_loss"] != terms[1]["label_loss"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "warm"}, "distillation is 'warm'; expected one of soft, hard"),
        ({"alpha": 1.5}, "alpha is 1.5; expected 0 <= alpha <= 1"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"temperature": 0.0}, "temperature is 0.0; expected a number above 0"),
        ({"temperature": math.inf}, "temperature is inf"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        DistillationConfig(**settings)


# --- the teacher


def test_a_teacher_is_frozen_and_leaves_its_original_alone() -> None:
    original = Net(dropout=0.5, seed=3)
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    teacher, images = Teacher(original), torch.randn(4, 3, 4, 4)
    logits = teacher(images)
    assert not logits.requires_grad
    assert torch.equal(logits, teacher(images))  # no dropout
    assert not any(p.requires_grad or p.grad is not None for p in teacher.model.parameters())
    assert original.training
    assert all(p.requires_grad for p in original.parameters())
    assert all(torch.equal(tensor, before[n]) for n, tensor in teacher.model.state_dict().items())
    torch.testing.assert_close(logits, original.eval()(images).detach())


def test_its_answer_can_take_part_in_a_backward_pass() -> None:
    """What inference mode made cannot; an objective may multiply by it all the same."""
    student, images = Net(seed=1), torch.randn(4, 3, 4, 4)
    (student(images) * Teacher(Net(seed=2))(images)).sum().backward()
    assert all(p.grad is not None for p in student.parameters())


def test_a_training_keeps_the_teacher_out_of_everything(tmp_path: Path) -> None:
    teacher, student = Teacher(Net(dropout=0.4, seed=5)), Net(seed=1)
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    seen: list[set[int]] = []

    def objective(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        seen.append({id(p) for p in model.parameters()})
        return distillation(teacher, TEACH)(model, batch)

    result = fit(
        student, fake_data(), objective, config(save_every_steps=1), tmp_path, progress=False,
        device="cpu",
    )  # fmt: skip
    after = teacher.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not any(p.grad is not None for p in teacher.model.parameters())
    assert not seen[0] & {id(p) for p in teacher.model.parameters()}
    state = torch.load(tmp_path / "last.pth", weights_only=True)["state_dict"]
    assert list(state) == list(student.state_dict())
    assert {"train_loss", "train_label_loss", "train_teacher_loss"} <= set(result.history[0])


class Images:
    """As much of a data set as a teacher looks at, prepared in two ways."""

    name = "pictures"
    classes = ("red", "green", "blue")

    def __init__(self, size: int, mean: float = 0.5, std: float = 0.5) -> None:
        self.preprocessing = Preprocessing(
            image_size=size, resize="pillow-bicubic", resize_size=size, mean=(mean,) * 3,
            std=(std,) * 3,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(size)
        pixels = torch.randint(0, 256, (6, 3, size, size), generator=generator).to(torch.uint8)
        split = SimpleNamespace(images=lambda indices: pixels[indices])
        self.pixels, self.splits = pixels, {"train": split}

    def normalize(self, images: Tensor) -> Tensor:
        return self.preprocessing.normalize(images)


def from_factory() -> nn.Module:
    return call_factory("tests.training.fakes:Net")


@pytest.mark.parametrize(
    ("build", "factory"),
    [
        (lambda: VGG(widths=[[4]], num_classes=CLASSES, hidden=[], pooled=2), None),
        (lambda: small(), None),
        (lambda: small(distilled=True), None),
        (lambda: small(GFNetDynn, exits=[0]), None),
        (from_factory, "tests.training.fakes:Net"),
    ],
    ids=["vgg", "gfnet", "gfnet_distil", "gfnet_dynn", "factory"],
)
def test_any_network_teaches(
    tmp_path: Path, build: Callable[[], nn.Module], factory: str | None
) -> None:
    model, data = build().eval(), Images(8)
    file = compress.save(model, tmp_path / "teacher.pth")
    teacher = teacher_from(open_checkpoint(file, Opening(factory=factory)), data)  # type: ignore[arg-type]
    images = data.normalize(data.pixels)
    torch.testing.assert_close(teacher(images), model(images).detach())
    assert teacher.source["arch"] == model.arch
    assert len(teacher.source["sha256"]) == 64


def test_a_teacher_sees_its_own_normalisation(tmp_path: Path) -> None:
    data, own = Images(8), Images(8, mean=0.2, std=0.25)
    meta = {"preprocessing": own.preprocessing.to_dict(), "classes": list(data.classes)}
    file = compress.save(small(), tmp_path / "teacher.pth", meta=meta)
    teacher = teacher_from(open_checkpoint(file), data)  # type: ignore[arg-type]
    torch.testing.assert_close(teacher.view(data.normalize(data.pixels)), own.normalize(own.pixels))


def test_a_teacher_sees_its_own_size(tmp_path: Path) -> None:
    data = Images(8)
    file = compress.save(small(image_size=16), tmp_path / "teacher.pth")
    teacher = teacher_from(open_checkpoint(file), data)  # type: ignore[arg-type]
    assert teacher.view(data.normalize(data.pixels)).shape == (6, 3, 16, 16)
    assert teacher(data.normalize(data.pixels)).shape == (6, CLASSES)
    flat = torch.full((1, 3, 8, 8), 0.3)
    torch.testing.assert_close(teacher.view(flat), torch.full((1, 3, 16, 16), 0.3))


def vgg_with_many_pools() -> VGG:
    return VGG(widths=[[4]] * 4, num_classes=CLASSES, hidden=[], pooled=1)


@pytest.mark.parametrize(
    ("build", "meta", "message"),
    [
        (
            lambda: small(num_classes=7), {},
            "the teacher .*pth has 7 classes, but the student learns the 3 of the data pictures",
        ),
        (
            small, {"classes": ["red", "blue", "green"]},
            "class 1 of the teacher is 'blue', but of the data pictures 'green'",
        ),
        (vgg_with_many_pools, {}, r"does not take images of \(3, 8, 8\)"),
    ],
    ids=["classes", "order of the classes", "too small"],
)  # fmt: skip
def test_a_teacher_that_does_not_fit(
    tmp_path: Path, build: Callable[[], nn.Module], meta: dict[str, Any], message: str
) -> None:
    file = compress.save(build(), tmp_path / "teacher.pth", meta=meta)
    with pytest.raises(UserInputError, match=message):
        teacher_from(open_checkpoint(file), Images(8))  # type: ignore[arg-type]


# --- the token form


def test_each_head_of_the_token_form_has_its_own_task() -> None:
    student, teacher = small(distilled=True), logits_of(2, 1)
    batch = batch_of(torch.randn(2, 3, 8, 8), [0, 2])
    for alpha, learning, idle in ((0.0, "head", "head_dist"), (1.0, "head_dist", "head")):
        student.zero_grad()
        how = DistillationConfig(kind="hard", alpha=alpha)
        distillation(lambda _: teacher, how)(student, batch)["loss"].backward()
        assert student.get_parameter(f"{learning}.weight").grad.abs().sum() > 0
        assert student.get_parameter(f"{idle}.weight").grad.abs().sum() == 0


def test_the_heads_are_those_that_evaluation_averages() -> None:
    student, images = small(distilled=True).eval(), torch.randn(3, 3, 8, 8)
    for_labels, for_teacher = student_logits(student, images)
    assert not torch.allclose(for_labels, for_teacher)
    torch.testing.assert_close((for_labels + for_teacher) / 2, student(images))
    torch.testing.assert_close(for_teacher, student.forward_both(images)[1])
    assert not student.head._forward_hooks  # nothing is left behind
    assert not student.head_dist._forward_hooks


def halves(folder: Path, rank: int) -> None:
    """One of two processes, which takes half of a batch."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    student = small(distilled=True, seed=rank)  # of which the first process's weights count
    wrapped = DistributedDataParallel(student)
    objective = distillation(Teacher(small(seed=7)), TEACH)
    whole = both_halves()
    part = batch_of(whole.images[2 * rank :][:2], whole.labels[2 * rank :][:2].tolist())
    objective(wrapped, part)["loss"].backward()
    gradients = {name: p.grad for name, p in student.named_parameters()}
    torch.save(gradients, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


def both_halves() -> Batch:
    generator = torch.Generator().manual_seed(3)
    return batch_of(torch.randn(4, 3, 8, 8, generator=generator), [0, 1, 2, 1])


@pytest.mark.slow
def test_two_processes_exchange_the_gradients_of_both_heads(tmp_path: Path) -> None:
    codes: list[int | None] = []
    runs = [
        threading.Thread(target=lambda r=r: codes.append(in_a_process(halves, tmp_path, r)))
        for r in (0, 1)
    ]
    for thread in runs:
        thread.start()
    for thread in runs:
        thread.join()
    assert codes == [0, 0]
    student = small(distilled=True, seed=0)
    distillation(Teacher(small(seed=7)), TEACH)(student, both_halves())["loss"].backward()
    found = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, parameter in student.named_parameters():
        for gradients in found:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-4)


# --- resume


def distilled(folder: Path, dies_at: int = -1) -> TrainingResult:
    """Train with everything that draws random numbers; the teacher must draw none."""
    torch.set_num_threads(1)
    data, calls = fake_data(), 0
    taught = distillation(Teacher(Net(dropout=0.5, seed=9)), TEACH)

    def objective(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        nonlocal calls
        if calls == dies_at:
            die()
        calls += 1
        return taught(model, batch)

    return fit(
        Net(dropout=0.4), data, objective, config(epochs=2, save_every_steps=3, optimizer="adamw"),
        folder, augment=FakeAugment(data), device="cpu", progress=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("dies_at", [2, 6])
def test_a_killed_distillation_ends_in_the_same_bits(tmp_path: Path, dies_at: int) -> None:
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    assert in_a_process(distilled, undisturbed) == 0
    assert in_a_process(distilled, killed, dies_at) == -signal.SIGKILL
    assert in_a_process(distilled, killed) == 0
    assert_same(killed, undisturbed)


def test_a_distillation_repeats_itself(tmp_path: Path) -> None:
    models = []
    for name in ("one", "two"):
        model = Net(dropout=0.4)
        taught = distillation(Teacher(Net(dropout=0.5, seed=9)), TEACH)
        fit(
            model, fake_data(), taught, config(epochs=1), tmp_path / name, device="cpu",
            progress=False,
        )  # fmt: skip
        models.append(model)
    assert same_weights(*models)
