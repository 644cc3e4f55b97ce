import math

import pytest
import torch
from torch import Tensor, nn

from compress.errors import UserInputError
from compress.models.vgg import VGG
from compress.training.batches import Batch
from compress.training.objectives import cross_entropy, objective_of, with_gamma_penalty
from tests.training.fakes import Net, config


def batch_of(images: Tensor, targets: Tensor) -> Batch:
    return Batch(images=images, labels=targets.argmax(dim=1), targets=targets)


def random_batch(count: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.eye(3)[torch.randint(0, 3, (count,), generator=generator)]
    return batch_of(torch.randn(count, 3, 4, 4, generator=generator), targets)


def test_cross_entropy_of_soft_targets_by_hand() -> None:
    # Logits (0, ln 3): probabilities 1/4 and 3/4.
    logits = torch.tensor([[0.0, math.log(3)]])
    batch = batch_of(logits, torch.tensor([[0.2, 0.8]]))
    loss = cross_entropy()(nn.Identity(), batch)["loss"]
    assert loss.item() == pytest.approx(0.2 * math.log(4) + 0.8 * math.log(4 / 3))


def test_label_smoothing_spreads_a_share_over_all_classes() -> None:
    logits = torch.tensor([[0.0, math.log(3)]])
    batch = batch_of(logits, torch.tensor([[0.0, 1.0]]))
    loss = cross_entropy(label_smoothing=0.1)(nn.Identity(), batch)["loss"]
    # The target becomes (0.05, 0.95).
    assert loss.item() == pytest.approx(0.05 * math.log(4) + 0.95 * math.log(4 / 3))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def with_signs() -> Net:
    """A network whose γ are of both signs, one of them zero."""
    model = Net(seed=3)
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([0.5, -0.25, 0.0, 1e-3, -1e-3, 2.0]))
    return model


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_the_gradient_of_gamma_holds_lambda_sign_once(micro_batches: int) -> None:
    sparsity_lambda = 0.01
    found = []
    for objective in (cross_entropy(), with_gamma_penalty(cross_entropy(), sparsity_lambda)):
        model = with_signs()
        for part in range(micro_batches):
            (objective(model, random_batch(4, part))["loss"] / micro_batches).backward()
        found.append(gradients(model))
    without, penalised = found
    added = penalised.pop("norm.weight") - without.pop("norm.weight")
    expected = sparsity_lambda * torch.tensor([1.0, -1.0, 0.0, 1.0, -1.0, 1.0])
    torch.testing.assert_close(added, expected, atol=1e-8, rtol=0)  # float32 rounding of a sum
    assert all(torch.equal(penalised[name], without[name]) for name in without)


def test_a_loss_scale_applies_to_the_penalty_as_to_the_rest() -> None:
    # What a GradScaler does: multiply the loss, divide the gradients. A power of two is exact.
    model, scaled = with_signs(), with_signs()
    objective = with_gamma_penalty(cross_entropy(), 0.01)
    objective(model, random_batch(4))["loss"].backward()
    (objective(scaled, random_batch(4))["loss"] * 65536.0).backward()
    ours = {name: gradient / 65536.0 for name, gradient in gradients(scaled).items()}
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-8, rtol=1e-5)


def test_a_real_grad_scaler_steps_gamma_by_lambda() -> None:
    model = with_signs()
    before = model.norm.weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    zero = with_gamma_penalty(lambda m, _: {"loss": m.norm.weight.sum() * 0.0}, 0.01)
    scaler.scale(zero(model, random_batch(2))["loss"]).backward()
    scaler.step(optimizer)
    torch.testing.assert_close(before - model.norm.weight, 0.01 * before.sign())


def test_the_penalty_is_told_beside_the_loss() -> None:
    terms = with_gamma_penalty(cross_entropy(), 0.01)(with_signs(), random_batch(4))
    assert terms["gamma_penalty"].item() == pytest.approx(0.01 * (0.5 + 0.25 + 0.002 + 2.0))


def test_a_model_that_tells_its_groups_is_penalised_on_their_scales() -> None:
    model = VGG(widths=[[4, 6]], num_classes=3, hidden=[], pooled=1)
    objective = with_gamma_penalty(lambda m, _: {"loss": torch.zeros(())}, 0.5)
    objective(model, random_batch(2))["loss"].backward()
    touched = gradients(model)
    assert set(touched) == {"features.1.weight", "features.4.weight"}
    assert all(
        torch.equal(gradient, torch.full_like(gradient, 0.5)) for gradient in touched.values()
    )


def test_a_model_without_scales_cannot_be_made_sparse() -> None:
    with pytest.raises(UserInputError, match="Net has no BatchNorm with a scale"):
        with_gamma_penalty(cross_entropy(), 0.1)(Net(norm=False), random_batch(2))


def test_the_settings_name_the_objective() -> None:
    batch, model = random_batch(4), with_signs().eval()
    assert set(objective_of(config())(model, batch)) == {"loss"}
    terms = objective_of(config(sparsity_lambda=0.1, label_smoothing=0.2))(model, batch)
    smoothed = cross_entropy(label_smoothing=0.2)(model, batch)["loss"]
    assert terms["loss"].item() == pytest.approx((smoothed + terms["gamma_penalty"]).item())
