"""The VGG16-BN of the original logs: one set of γ from which one rule gives all their widths.

The survivors per layer at each threshold are what the printed widths allow (each is the printed
width less at most 7); the γ are laid into the four bands between the printed thresholds so that
exactly one γ equals each threshold.
"""

import torch
from torch import Tensor

from compress.models.vgg import VGG, vgg_bn

FULL = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
SURVIVORS = {
    0.2: (22, 51, 91, 107, 163, 147, 212, 300, 340, 444, 492, 500, 510),
    0.4: (22, 46, 70, 94, 110, 86, 166, 190, 190, 238, 390, 422, 510),
    0.6: (19, 35, 51, 84, 68, 44, 116, 108, 100, 76, 244, 244, 500),
}
THRESHOLDS = {0.2: 0.3885, 0.4: 0.4532, 0.6: 0.5161}

# What the logs print.
BASE_LINES = ("FLOPs= 15.507270656G", "params= 134.678692M")
LOG = {
    0.2: {
        "widths": [24, 56, 96, 112, 168, 152, 216, 304, 344, 448, 496, 504, 512],
        "lines": ("FLOPs= 8.363818592G", "params= 130.309732M"),
        "fc_in": 25088,
        "true": "0.1875",
        "threshold": "tensor(0.3885)",
    },
    0.4: {
        "widths": [24, 48, 72, 96, 112, 88, 168, 192, 192, 240, 392, 424, 512],
        "lines": ("FLOPs= 4.519959104G", "params= 125.719276M"),
        "fc_in": 25088,
        "true": "0.3939393939393939",
        "threshold": "tensor(0.4532)",
    },
    0.6: {
        "widths": [24, 40, 56, 88, 72, 48, 120, 112, 104, 80, 248, 248, 504],
        "lines": ("FLOPs= 2.450902352G", "params= 120.72662M"),
        "fc_in": 24696,
        "true": "0.5871212121212122",
        "threshold": "tensor(0.5161)",
    },
}


def golden_gammas() -> list[Tensor]:
    """Return γ (C,) per BatchNorm layer, a tenth of them negative, in a shuffled order."""
    generator = torch.Generator().manual_seed(0)
    bands = [
        (0.05, 0.3885, [full - kept for full, kept in zip(FULL, SURVIVORS[0.2], strict=True)]),
        (0.3885, 0.4532, _differences(0.2, 0.4)),
        (0.4532, 0.5161, _differences(0.4, 0.6)),
        (0.5161, 0.9, list(SURVIVORS[0.6])),
    ]
    layers: list[list[Tensor]] = [[] for _ in FULL]
    for low, high, counts in bands:
        # Evenly spaced, the largest exactly the upper bound, dealt to the layers at random.
        values = torch.linspace(low, high, sum(counts) + 1)[1:]
        dealt = values[torch.randperm(len(values), generator=generator)].split(counts)
        for layer, part in zip(layers, dealt, strict=True):
            layer.append(part)
    gammas = [torch.cat(parts) for parts in layers]
    gammas = [gamma[torch.randperm(len(gamma), generator=generator)] for gamma in gammas]
    signs = [torch.where(torch.rand(len(g), generator=generator) < 0.1, -1.0, 1.0) for g in gammas]
    return [gamma * sign for gamma, sign in zip(gammas, signs, strict=True)]


def golden_vgg16() -> VGG:
    """Return VGG16-BN for 100 classes with the golden γ.

    The two wide linear layers are one value expanded: the architecture and every count are those of
    the logs, and a checkpoint of it takes 60 MB instead of 540.
    """
    with torch.device("meta"):
        model = vgg_bn(16, num_classes=100)
    state = {name: _weights(name, tensor) for name, tensor in model.state_dict().items()}
    for group, gamma in zip(model.channel_groups(), golden_gammas(), strict=True):
        state[group.scale] = gamma
    model.load_state_dict(state, assign=True)
    return model.eval()


def _weights(name: str, like: Tensor) -> Tensor:
    if name in ("classifier.0.weight", "classifier.3.weight"):
        return torch.tensor(0.001).expand(like.shape)
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if name.endswith("running_var"):
        return torch.ones(like.shape)
    if like.dim() >= 2:  # keeps the scale of the signal from layer to layer
        generator = torch.Generator().manual_seed(like.shape[0])
        std = (2 / like[0].numel()) ** 0.5
        return torch.randn(like.shape, generator=generator) * std
    return torch.zeros(like.shape)


def _differences(more: float, less: float) -> list[int]:
    return [a - b for a, b in zip(SURVIVORS[more], SURVIVORS[less], strict=True)]
