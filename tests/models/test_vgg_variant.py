import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import compress
from compress.errors import UnsupportedModelError, UserInputError
from compress.models import build, infer
from tests.networks import trained_like

PLAN = (8, "M", 12, 9, "M", 16)


def layers(plan, *, bias: bool) -> list[nn.Module]:
    made: list[nn.Module] = []
    width_in = 3
    for width in plan:
        if width == "M":
            made.append(nn.MaxPool2d(2, 2))
            continue
        conv = nn.Conv2d(width_in, width, 3, padding=1, bias=bias)
        made += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        width_in = width
    return made


class OneLinear(nn.Module):
    """`features` closed by a max pool and a pool of one, `classifier` a linear layer itself."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers((*PLAN, "M"), bias=bias), nn.AvgPool2d(1, 1))
        self.classifier = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).view(x.size(0), -1))


class OneLinearOfTheSlimmingCode(nn.Module):
    """`feature` without bias and without a pool at its end, then the mean over what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.feature = nn.Sequential(*layers(PLAN, bias=False))
        self.classifier = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.avg_pool2d(self.feature(x), 2).view(x.size(0), -1))


class Hidden(nn.Module):
    """`features` closed by a max pool, then the given layers."""

    def __init__(self, *classifier: nn.Module, bias: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers((*PLAN, "M"), bias=bias))
        self.classifier = nn.Sequential(*classifier)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


FOREIGN = [
    pytest.param(lambda: OneLinear(), 8, "vgg_variant", id="one linear layer"),
    pytest.param(lambda: OneLinear(bias=False), 8, "vgg_variant", id="without bias"),
    pytest.param(OneLinearOfTheSlimmingCode, 8, "vgg_variant", id="code of network slimming"),
    pytest.param(lambda: Hidden(nn.Linear(16, 10)), 8, "vgg", id="a sequence of one"),
    pytest.param(
        lambda: Hidden(
            nn.Dropout(), nn.Linear(16, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 14), nn.ReLU(),
            nn.Linear(14, 10),
        ),
        8, "vgg_variant", id="dropout first",
    ),
    pytest.param(
        lambda: Hidden(
            nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 10),
            bias=False,
        ),
        8, "vgg_variant", id="BatchNorm in the classifier",
    ),
    pytest.param(
        lambda: Hidden(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)),
        16, "vgg_variant", id="a map of 2x2",
    ),
    pytest.param(
        lambda: Hidden(nn.Linear(16, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 10)),
        8, "vgg", id="torchvision's layout",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("foreign", "side", "arch"), FOREIGN)
def test_foreign_checkpoints_give_the_outputs_of_the_foreign_code(foreign, side, arch, tmp_path):
    network = trained_like(foreign())
    torch.save(network.state_dict(), tmp_path / "foreign.pth")
    ours = compress.load(tmp_path / "foreign.pth")
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), network(images), rtol=1e-5, atol=1e-6)
    assert ours.arch == arch
    assert infer(ours.state_dict())[1].items() <= ours.config.items()


def test_a_plain_vgg_behind_either_name_says_that_it_has_no_batchnorm():
    state = {
        "feature.0.weight": torch.zeros(8, 3, 3, 3),
        "feature.2.weight": torch.zeros(8, 8, 3, 3),
        "classifier.weight": torch.zeros(10, 8),
    }
    with pytest.raises(UnsupportedModelError, match=r"feature\.0 .* has no BatchNorm"):
        infer(state)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("classifier.weight", torch.zeros(10, 17), "reads 17 values, .* has 16 channels"),
        ("attention.weight", torch.zeros(3), r"attention\.weight \(3,\) is not among"),
        ("features.4.weight", torch.zeros(12, 8, 1, 1), r"features\.4\.weight is \(12, 8, 1, 1\)"),
    ],
)
def test_what_only_looks_like_a_vgg_is_refused_by_the_tensor(name, tensor, message):
    with pytest.raises(UnsupportedModelError, match=message):
        infer({**OneLinear().state_dict(), name: tensor})


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"widths": []}, id="no stages"),
        pytest.param({"num_classes": 0}, id="no classes"),
        pytest.param({"features": "body"}, id="name"),
        pytest.param({"head": ["tanh"]}, id="layer"),
        pytest.param({"head": ["linear"], "hidden": [0]}, id="hidden width"),
        pytest.param({"hidden": [8]}, id="width without a layer"),
        pytest.param({"depth": 3}, id="unknown keyword"),
    ],
)
def test_bad_configurations(change):
    build("vgg_variant", {"widths": [[8]], "num_classes": 2})
    with pytest.raises(UserInputError):
        build("vgg_variant", {"widths": [[8]], "num_classes": 2, **change})
