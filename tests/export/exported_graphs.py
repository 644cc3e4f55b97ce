"""Small networks of every kind, as torch's exporter writes them; each is exported once a run."""

from functools import cache

import numpy as np
import torch
from torch import nn

from compress.export.graph import graph_from_module
from compress.models.frequencies import real_frequencies
from compress.models.gfnet_dynn import GFNetDynn
from compress.models.global_filter import with_matrix_filters
from compress.models.vgg import VGG

CLASSES = 10


class FirstSegment(nn.Module):
    """From image to hidden state, logits and gate probability; the last two in float32."""

    def __init__(self, network: GFNetDynn) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden = self.start(x.to(self.network.pos_embed.dtype))
        logits, gate = self.network.exit_outputs(0, hidden)
        return hidden, logits.float(), torch.sigmoid(gate).float()

    def start(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.run_blocks(self.network.embed(x), 0, 2)


class MiddleSegment(FirstSegment):
    """From hidden state to the same."""

    def start(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.run_blocks(x, 0, 2)


def network(**config) -> GFNetDynn:
    """A GFNet of two blocks before its exit, all parameters random, filters as matrices."""
    torch.manual_seed(0)
    made = GFNetDynn(
        **{
            "image_size": 16,
            "patch_size": 4,
            "width": 16,
            "depth": 3,
            "exits": [1],
            "num_classes": CLASSES,
            **config,
        }
    ).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.2)
    return with_matrix_filters(made)  # type: ignore[return-value]


def halved(made: GFNetDynn) -> GFNetDynn:
    """Half precision but for the gates, which compute on float32 logits."""
    made.half().gates.float()
    return made


def slimmed() -> GFNetDynn:
    """Filters that keep different frequencies in each block."""
    everything = real_frequencies((4, 4))
    return network(frequencies=[everything[::2], everything[1::2], everything])


def vgg() -> VGG:
    torch.manual_seed(0)
    made = VGG(widths=[[8], [8, 16]], num_classes=CLASSES, hidden=[12], pooled=1).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.02, 0.2)
    return made


MODULES = {
    "plain": lambda: FirstSegment(network()),
    "plain-fp16": lambda: FirstSegment(halved(network())),
    "distilled": lambda: FirstSegment(network(distilled=True)),
    "distilled-fp16": lambda: FirstSegment(halved(network(distilled=True))),
    "oblong": lambda: FirstSegment(network(image_size=(32, 16))),
    "slimmed": lambda: FirstSegment(slimmed()),
    "middle": lambda: MiddleSegment(network()),
    "middle-fp16": lambda: MiddleSegment(halved(network())),
    "vgg": vgg,
}


def example(name: str, batch: int = 3) -> dict[str, np.ndarray]:
    """What the graph of that name takes, by the name of the input."""
    generator = torch.Generator().manual_seed(1)
    if name.startswith("middle"):
        x = torch.randn(batch, 16, 16, generator=generator)
        return {"hidden_in": (x.half() if name.endswith("fp16") else x).numpy()}
    size = (32, 16) if name == "oblong" else (16, 16)
    return {"image": torch.randn(batch, 3, *size, generator=generator).numpy()}


@cache
def exported(name: str):
    """The graph of that name as torch writes it. Shared: copy it before you change it."""
    return export(name)


def export(name: str):
    """The same, exported anew."""
    ((input_name, x),) = example(name).items()
    names = ["logits"] if name == "vgg" else ["hidden", "logits", "gate"]
    return graph_from_module(
        MODULES[name](), torch.from_numpy(x), input_name=input_name, output_names=names
    )
