"""VGG with BatchNorm in the layouts of CIFAR code, widths as data.

`compress.models.vgg` has torchvision's layout. Most code for small images has another: one linear
layer, called `classifier` itself; a dropout or BatchNorms among the linear layers; convolutions
without bias; `feature` for `features`. Checkpoints of all these load strictly.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import UserInputError
from compress.models.state_names import confirmed
from compress.models.vgg_layout import infer_vgg_variant_config

__all__ = ["VGGVariant"]

MAX_WIDTH = 1 << 16


class VGGVariant(nn.Module):
    """Stages of Conv-BatchNorm-ReLU with max pools between, then linear layers.

    Args:
        widths: channels per convolution, one sequence a stage: ((64, 64), (128, 128), …).
        num_classes: length of the logits.
        head: layers of `classifier` before its last: "linear", "norm", "relu" or "dropout"; None
            where `classifier` is the only linear layer itself.
        hidden: widths of those that are linear.
        in_channels: channels of the image.
        pooled: side of the map that the linear layers read, made by adaptive average pooling.
        conv_bias: whether convolutions have a bias.
        features: name of the sequence of convolutions, "features" or "feature".
        last_pool: whether a max pool closes the last stage too.
        dropout: rate of the dropouts, in [0, 1).

    Shapes: image (N, in_channels, H, W), H and W at least 2 ** stages; logits (N, num_classes).

    Raises:
        UserInputError: a width is out of range, or a name is none of the above.
    """

    arch = "vgg_variant"
    # What shapes do not tell: `infer_config` takes it from what the names stand for.
    told_by_convention = ("last_pool", "dropout", "head")

    def __init__(
        self,
        *,
        widths: Sequence[Sequence[int]],
        num_classes: int,
        head: Sequence[str] | None = None,
        hidden: Sequence[int] = (),
        in_channels: int = 3,
        pooled: int = 1,
        conv_bias: bool = True,
        features: str = "features",
        last_pool: bool = True,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "widths": [list(stage) for stage in widths],
            "num_classes": num_classes,
            "head": None if head is None else list(head),
            "hidden": list(hidden),
            "in_channels": in_channels,
            "pooled": pooled,
            "conv_bias": conv_bias,
            "features": features,
            "last_pool": last_pool,
            "dropout": dropout,
        }
        _check_config(self.config)
        self.add_module(features, _features(self.config))
        self.avgpool = nn.AdaptiveAvgPool2d((pooled, pooled))
        self.classifier = _classifier(self.config)
        self._initialise()

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, in_channels, H, W)."""
        x = self.avgpool(self.get_submodule(self.config["features"])(image))
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits

    @property
    def default_input_size(self) -> int | None:
        """Side of the images that networks of this form are published for; None where unknown."""
        return {1: 32, 7: 224}.get(self.config["pooled"])

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the configuration from the names and shapes of a state_dict.

        Layers without tensors do not show, so conventions stand for them. `features` ends with a
        max pool, as in most code; `feature`, the name that the code of network slimming (arXiv
        1708.06519) uses, does not, and the mean over the map follows. In the classifier a ReLU
        follows each linear layer, or the BatchNorm behind it; other places are dropouts.

        Returns:
            None where the names are not those of a VGG.

        Raises:
            UnsupportedModelError: the names of a VGG, but without BatchNorm, or tensors that fit
                none.
        """
        config = infer_vgg_variant_config(state)
        return config and confirmed(cls, config, state, family="VGG")

    def _initialise(self) -> None:
        if next(self.parameters()).is_meta:
            return
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0, 0.01)
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _features(config: Mapping[str, Any]) -> nn.Sequential:
    layers: list[nn.Module] = []
    width_in = config["in_channels"]
    for stage in config["widths"]:
        for width in stage:
            conv = nn.Conv2d(width_in, width, 3, padding=1, bias=config["conv_bias"])
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            width_in = width
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*(layers if config["last_pool"] else layers[:-1]))


def _classifier(config: Mapping[str, Any]) -> nn.Module:
    layers: list[nn.Module] = []
    width_in = config["widths"][-1][-1] * config["pooled"] ** 2
    hidden = iter(config["hidden"])
    for kind in config["head"] or ():
        if kind == "linear":
            width = next(hidden)
            layers.append(nn.Linear(width_in, width))
            width_in = width
        elif kind == "norm":
            layers.append(nn.BatchNorm1d(width_in))
        else:
            layers.append(nn.ReLU() if kind == "relu" else nn.Dropout(config["dropout"]))
    last = nn.Linear(width_in, config["num_classes"])
    return last if config["head"] is None else nn.Sequential(*layers, last)


def _check_config(config: Mapping[str, Any]) -> None:
    if not config["widths"] or not all(config["widths"]):
        raise UserInputError("a VGG needs at least one stage, and a convolution in each")
    head = config["head"] or []
    is_known = set(head) <= {"linear", "norm", "relu", "dropout"}
    if not is_known or head.count("linear") != len(config["hidden"]):
        raise UserInputError(
            f"the head of the VGG is {config['head']} with widths {config['hidden']}; expected "
            "'linear', 'norm', 'relu' and 'dropout', and a width for each that is linear"
        )
    if config["features"] not in ("features", "feature"):
        raise UserInputError(
            f"features of the VGG is {config['features']!r}; expected 'features' or 'feature'"
        )
    counts = [config["num_classes"], config["in_channels"], config["pooled"], *config["hidden"]]
    counts += [width for stage in config["widths"] for width in stage]
    for count in counts:
        if not isinstance(count, int) or not 1 <= count <= MAX_WIDTH:
            raise UserInputError(f"a width of the VGG is {count!r}; expected 1 to {MAX_WIDTH}")
