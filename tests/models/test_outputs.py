from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from compress.errors import UnsupportedModelError
from compress.models.outputs import float_outputs, named_outputs

Pair = namedtuple("Pair", "boxes scores")


@dataclass
class Found:
    masks: Tensor
    loss: Tensor | None = None


def tensor(value: float) -> Tensor:
    return torch.tensor([float(value)])


@pytest.mark.parametrize(
    ("output", "names"),
    [
        pytest.param(tensor(0), ["output"], id="tensor"),
        pytest.param([tensor(0), tensor(1), tensor(2)], ["0", "1", "2"], id="list"),
        pytest.param((tensor(0), None, 3.0, "x", tensor(1)), ["0", "4"], id="with-others"),
        pytest.param({"probs": tensor(0)}, ["probs"], id="dict"),
        pytest.param((tensor(0), {"boxes": tensor(1)}), ["0", "1.boxes"], id="nested"),
        pytest.param(Pair(tensor(0), tensor(1)), ["boxes", "scores"], id="named-tuple"),
        pytest.param([Found(tensor(0))], ["0.masks"], id="dataclass"),
    ],
)
def test_names_and_order(output, names):
    found = named_outputs(output)
    assert list(found) == names
    assert [t.item() for t in found.values()] == list(range(len(names)))


def test_float_outputs_leave_integers_out():
    assert list(float_outputs({"classes": torch.tensor([1]), "scores": tensor(0)})) == ["scores"]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        pytest.param({"a": {1, 2}}, r"a set at 'a'; expected tensors", id="set"),
        pytest.param([], r"returns no tensor \(list\)", id="empty"),
        pytest.param({1: tensor(0), "1": tensor(1)}, "two tensors by the name '1'", id="twice"),
    ],
)
def test_what_could_hide_a_tensor_is_refused(output, words):
    with pytest.raises(UnsupportedModelError, match=words):
        named_outputs(output)
