import pytest
import torch
from torch import nn

import compress
from compress.errors import UnsupportedModelError, UserInputError
from compress.models.factory import build_from_factory, call_factory, fit_widths_
from compress.slimming.selection import select_channels
from compress.slimming.traced import TracedNetwork
from tests.networks import FACTORIES, IMAGE, trained_like


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", FACTORIES)
def test_slim_network_is_saved_and_loaded_bit_for_bit(name, suffix, tmp_path):
    factory = f"tests.networks:{name}"
    net = TracedNetwork(trained_like(call_factory(factory)), torch.zeros(IMAGE))
    selection = select_channels(
        net.scores(),
        0.5,
        round_to=4,
        min_channels=4,
        channels_per_decision=net.channels_per_decision(),
    )
    slim = net.slim(selection)
    path = compress.save(slim, tmp_path / f"slim{suffix}")
    loaded = compress.load(path, factory=factory)
    images = torch.randn(2, *IMAGE[1:], generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded(images), slim(images))
    widths = ("in_channels", "out_channels", "groups", "num_features", "in_features")
    for mine, its in zip(slim.modules(), loaded.modules(), strict=True):
        assert [getattr(mine, w, None) for w in widths] == [getattr(its, w, None) for w in widths]
    # And what was loaded can be slimmed again.
    again = TracedNetwork(loaded, torch.zeros(IMAGE))
    assert again.widths() == {**net.widths(), **selection.widths}


def layers(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.GroupNorm(2, width),
        nn.PReLU(width),
        nn.Conv2d(width, width, 3, groups=width),
        nn.BatchNorm2d(width, affine=False),
        nn.Conv2d(width, 2 * width, 1, groups=2),
        nn.ConvTranspose2d(2 * width, width, 2, groups=2),
        nn.InstanceNorm2d(width, affine=True),
        nn.Flatten(),
        nn.LayerNorm(width * 169),
        nn.Linear(width * 169, 5),
    ).eval()


def test_every_kind_of_layer_takes_its_width():
    narrow, wide = layers(8), layers(16)
    state = narrow.state_dict()
    fit_widths_(wide, state)
    wide.load_state_dict(state, assign=True)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(wide(images), narrow(images))
    assert str(wide) == str(narrow)  # every attribute that a layer prints


class NormAct(nn.BatchNorm2d):
    """A BatchNorm with its activation inside, as some libraries have it."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(super().forward(x))


class LayerScale(nn.Module):
    """Scales channels by vectors under names of its own, and checks its width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dim, self.groups = width, 3
        self.gamma = nn.Parameter(torch.rand(width))
        self.register_buffer("shift", torch.rand(1, width, 1, 1))

    def forward(self, x):
        assert x.shape[1] == self.dim
        return x * self.gamma[:, None, None] + self.shift


def own_layers(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), NormAct(width), LayerScale(width)).eval()


def test_layers_of_the_users_own_take_their_width():
    torch.manual_seed(0)
    narrow, wide = own_layers(8), own_layers(16)
    fit_widths_(wide, narrow.state_dict())
    wide.load_state_dict(narrow.state_dict(), assign=True)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(wide(images), narrow(images))
    assert (wide[1].num_features, wide[2].dim, wide[2].groups) == (8, 8, 3)
    assert wide[2].gamma.requires_grad


@pytest.mark.parametrize(
    ("layer", "other", "shapes"),
    [
        pytest.param(nn.Embedding(5, 4), nn.Embedding(5, 3), r"\(5, 3\).*\(5, 4\)", id="embedding"),
        pytest.param(
            nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 5), r"8, 3, 5, 5.*8, 3, 3, 3", id="kernel"
        ),
        pytest.param(nn.Linear(4, 4), nn.Conv2d(4, 4, 1), r"4, 4, 1, 1.*\(4, 4\)", id="kind"),
        pytest.param(nn.GroupNorm(4, 8), nn.GroupNorm(1, 6), r"\(6,\).*\(8,\)", id="groups"),
    ],
)
def test_other_layers_are_named_with_both_shapes(layer, other, shapes):
    model, state = nn.Sequential(layer), nn.Sequential(other).state_dict()
    with pytest.raises(UnsupportedModelError, match=rf"^0\.weight .*{shapes}"):
        fit_widths_(model, state)


def test_depth_that_differs_is_told_as_a_misfit(tmp_path):
    factory = "tests.networks:branch_net"
    model = call_factory(factory)
    del model.fc2
    path = compress.save(model, tmp_path / "short.pth")
    with pytest.raises(UserInputError, match=r"do not fit.*fc2"):
        compress.load(path, factory=factory)


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("tests.networks", "expected package.module:factory"),
        ("tests.networks:", "expected package.module:factory"),
        ("tests.no_such_module:net", "ModuleNotFoundError"),
        ("tests.networks:no_such_function", "AttributeError"),
        ("tests.networks:conv_norm_relu", "TypeError"),
        ("builtins:dict", "returned dict"),
    ],
)
def test_bad_factories(factory, words):
    with pytest.raises(UserInputError, match=words):
        call_factory(factory)


def test_a_factory_network_tells_how_to_rebuild_it():
    model = build_from_factory("tests.networks:branch_net", {})
    assert (model.arch, model.config) == ("factory", {"factory": "tests.networks:branch_net"})
    assert not model.training
