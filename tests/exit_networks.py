"""Small networks with exits, a GFNet and residual ones, whose gates let some images go.

Scores follow the largest probability of each head, and lie on both sides of a half.
"""

from collections.abc import Callable

import torch
from torch import nn

from compress.data.spec import load_data
from compress.models.early_exit import EarlyExitNetwork
from compress.models.gfnet_dynn import GFNetDynn
from compress.models.give_exits import with_exits
from compress.models.resnet import ResNet
from compress.models.with_exits import WithExits

RESNET_EXITS = ("layer1.1", "layer2.0", "layer2.1")


def resnet(*, num_classes: int = 10) -> ResNet:
    """A residual network of two stages of two blocks, for images of any size."""
    return ResNet(
        stage_widths=[8, 16],
        block_widths=[[[8], [8]], [[16], [16]]],
        num_classes=num_classes,
        projections=[False, True],
        stem_width=8,
        stem_kernel=3,
        stem_stride=1,
        stem_pool=False,
    )


def residual(
    head: str = "linear",
    *,
    size: int = 16,
    num_classes: int = 10,
    exits=RESNET_EXITS,
    seed: int = 0,
) -> EarlyExitNetwork:
    """The residual network with exits behind three of its blocks."""
    torch.manual_seed(seed)
    model = resnet(num_classes=num_classes)
    with torch.no_grad():  # running statistics as after some training
        for _ in range(3):
            model.train()(torch.randn(16, 3, size, size))
    image = torch.zeros(1, 3, size, size)
    return lively(with_exits(model.eval(), exits, image, head=head), size)  # type: ignore[return-value]


def gfnet(*, size: int = 16, num_classes: int = 10, exits=(0, 1, 2), seed: int = 0) -> GFNetDynn:
    """A GFNet of four blocks with exits behind three of them."""
    torch.manual_seed(seed)
    model = GFNetDynn(
        exits=list(exits), image_size=size, patch_size=4, width=16, depth=4,
        num_classes=num_classes,
    )  # fmt: skip
    return lively(model, size)  # type: ignore[return-value]


@torch.no_grad()
def lively(model: WithExits, size: int) -> WithExits:
    """Give every exit logits that differ between digits, and a gate that half of them pass."""
    data = load_data("digits", image_size=size)
    images = data.normalize(data.splits["train"].images(torch.arange(128)))
    model.eval()
    for number, gate in enumerate(model.gates):
        for head in model.heads_of(number):
            last = [layer for layer in head.modules() if isinstance(layer, nn.Linear)][-1]
            last.weight.normal_(0, 1)
            logits = model.every_exit(images)[0][number]
            scale = 2 / logits.std(dim=0)
            last.weight *= scale[:, None]
            last.bias.copy_(-scale * (logits - last.bias).mean(dim=0))
        p_max = model.every_exit(images)[0][number].softmax(dim=1).amax(dim=1)
        gate.linear.weight.copy_(torch.tensor([[8.0, 0.0, 0.0, 0.0]]))
        gate.linear.bias.fill_(-8 * float(p_max.median()))
    return model


# Every kind of network with exits, by name: each has three.
KINDS: dict[str, Callable[[], WithExits]] = {
    "gfnet": gfnet,
    "resnet-linear": lambda: residual("linear"),
    "resnet-conv": lambda: residual("conv:8"),
}
