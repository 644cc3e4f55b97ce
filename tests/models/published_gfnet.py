"""A second GFNet, written from the published formulas as functions of a published state_dict.

It shares no code with the toolkit: numbers that agree with it are those of the published network.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def random_state(
    *,
    width: int,
    depth: int,
    grid: tuple[int, int],
    classes: int,
    patch: int = 4,
    distilled: bool = False,
    exits: int = 0,
    seed: int = 0,
) -> State:
    """A state_dict with the published names; every tensor is random, none is at its start value."""
    make = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make) * 0.3

    rows, columns = grid
    state = {
        "patch_embed.proj.weight": draw(width, 3, patch, patch),
        "patch_embed.proj.bias": draw(width),
        "pos_embed": draw(1, rows * columns, width),
        "norm.weight": draw(width) + 1,
        "norm.bias": draw(width),
        "head.weight": draw(classes, width),
        "head.bias": draw(classes),
    }
    for i in range(depth):
        for norm in ("norm1", "norm2"):
            state[f"blocks.{i}.{norm}.weight"] = draw(width) + 1
            state[f"blocks.{i}.{norm}.bias"] = draw(width)
        state[f"blocks.{i}.filter.complex_weight"] = draw(rows, columns // 2 + 1, width, 2)
        state[f"blocks.{i}.mlp.fc1.weight"] = draw(4 * width, width)
        state[f"blocks.{i}.mlp.fc1.bias"] = draw(4 * width)
        state[f"blocks.{i}.mlp.fc2.weight"] = draw(width, 4 * width)
        state[f"blocks.{i}.mlp.fc2.bias"] = draw(width)
    if distilled:
        for name in ("cls_token", "dist_token"):
            state[name] = draw(1, 1, width)
        state |= {"head_dist.weight": draw(classes, width), "head_dist.bias": draw(classes)}
    for i in range(exits):
        for part in ("intermediate_heads", *(("intermediate_heads_dist",) if distilled else ())):
            state[f"{part}.{i}.weight"] = draw(classes, width)
            state[f"{part}.{i}.bias"] = draw(classes)
        state[f"gates.{i}.linear.weight"] = draw(1, 4)
        state[f"gates.{i}.linear.bias"] = draw(1)
    return state


def hidden_states(state: State, image: Tensor, grid: tuple[int, int]) -> list[Tensor]:
    """The tokens behind every block."""
    patch = state["patch_embed.proj.weight"].shape[-1]
    x = F.conv2d(
        image, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch
    )
    x = x.flatten(2).transpose(1, 2)
    if "cls_token" in state:
        tokens = [state[name].repeat(len(x), 1, 1) for name in ("cls_token", "dist_token")]
        x = torch.cat([*tokens, x], dim=1)
    x = x + state["pos_embed"]
    behind = []
    while (block := f"blocks.{len(behind)}") + ".norm1.weight" in state:
        y = layer_norm(state, f"{block}.norm1", x)
        y = circular_filter(y, state[f"{block}.filter.complex_weight"], grid)
        y = layer_norm(state, f"{block}.norm2", y)
        y = F.gelu(F.linear(y, state[f"{block}.mlp.fc1.weight"], state[f"{block}.mlp.fc1.bias"]))
        x = x + F.linear(y, state[f"{block}.mlp.fc2.weight"], state[f"{block}.mlp.fc2.bias"])
        behind.append(x)
    return behind


def logits(state: State, tokens: Tensor, heads: tuple[str, str]) -> Tensor:
    """The logits that a head (two with distillation tokens) reads from tokens."""
    z = layer_norm(state, "norm", tokens)
    if "cls_token" not in state:
        return linear(state, heads[0], z.mean(1))
    return (linear(state, heads[0], z[:, 0]) + linear(state, heads[1], z[:, 1])) / 2


def final_logits(state: State, image: Tensor, grid: tuple[int, int]) -> Tensor:
    return logits(state, hidden_states(state, image, grid)[-1], ("head", "head_dist"))


def gate(state: State, i: int, exit_logits: Tensor) -> Tensor:
    """The gate's logit, features by numpy in float64 as the formulas are written."""
    weight = state[f"gates.{i}.linear.weight"].double().numpy()[0]
    bias = state[f"gates.{i}.linear.bias"].item()
    return torch.tensor(numpy_features(exit_logits) @ weight + bias, dtype=torch.float32)


def numpy_features(exit_logits: Tensor) -> np.ndarray:
    shifted = exit_logits.double().numpy()
    shifted = shifted - shifted.max(-1, keepdims=True)
    p = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
    q = p**2 / (p**2).sum(-1, keepdims=True)
    ordered = np.sort(p, -1)
    return np.stack(
        [ordered[..., -1], entropy(p), ordered[..., -1] - ordered[..., -2], entropy(q)], -1
    )


def entropy(p: np.ndarray) -> np.ndarray:
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1)


def circular_filter(x: Tensor, weight: Tensor, grid: tuple[int, int]) -> Tensor:
    """The filter as what it is: a circular convolution, summed up shift by shift."""
    kernel = torch.fft.irfft2(torch.view_as_complex(weight.contiguous()), s=grid, dim=(0, 1))
    image = x.unflatten(1, grid)
    total = torch.zeros_like(image)
    for row in range(grid[0]):
        for column in range(grid[1]):
            total = total + kernel[row, column] * image.roll((row, column), dims=(1, 2))
    return total.flatten(1, 2)


def layer_norm(state: State, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])
