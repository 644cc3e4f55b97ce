"""The tensors that score channels: γ of BatchNorm, or what a model names as its scale."""

from torch import Tensor, nn

from compress.models.channels import Slimmable

__all__ = ["channel_scales"]


def channel_scales(model: nn.Module) -> dict[str, Tensor]:
    """Return the scale (C,) of every group of channels by layer name, still attached to the model.

    A model of ours tells its groups; of any other the affine BatchNorm layers are taken.
    """
    if isinstance(model, Slimmable):
        tensors = dict(model.named_parameters())
        return {group.name: tensors[group.scale] for group in model.channel_groups()}
    return {
        name: layer.weight
        for name, layer in model.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.weight is not None
    }
