from types import SimpleNamespace

import numpy as np
import pytest
import torch

from compress.errors import AccuracyError
from compress.export.parity import BundleParity, check_parity, measure_parity
from tests.export.test_segments import network, split


class Session:
    """A file of a bundle that computes what torch computes, apart from what `change` does to it."""

    def __init__(self, segment, change=None):
        self.segment, self.change = segment, change

    def get_inputs(self):
        return [SimpleNamespace(name=self.segment.specs.input.name, type="tensor(float)")]

    def get_outputs(self):
        return self.segment.specs.outputs

    @torch.inference_mode()
    def run(self, names, feed):
        found = self.segment(torch.from_numpy(feed[self.segment.specs.input.name]))
        values = [v.numpy() for v in (found if isinstance(found, tuple) else (found,))]
        outputs = dict(zip([spec.name for spec in self.segment.specs.outputs], values, strict=True))
        if self.change is not None:
            self.change(outputs)
        return [outputs[name] for name in names]


def measured(changes=None, *, images=6, batch=4):
    torch.manual_seed(1)
    segments = split(network())
    sessions = [Session(s, (changes or {}).get(i)) for i, s in enumerate(segments)]
    pictures = torch.randn(images, 3, 16, 16)
    return measure_parity(
        segments, sessions, pictures, [0.5, 0.5], batch=batch, images_name="noise"
    )


def scaled(name, factor):
    def change(outputs):
        outputs[name] = outputs[name] * np.float32(factor)

    return change


def test_files_that_compute_the_same_agree_wholly():
    parity = measured()
    assert parity.worst_relative_error == 0
    assert (parity.top1_agreement, parity.exit_agreement, parity.images) == (1.0, 1.0, 6)
    assert parity.segment_errors == (0, 0, 0)
    check_parity(parity, "fp32")


def test_the_error_of_a_segment_is_its_own_and_the_chain_carries_it_on():
    parity = measured({0: scaled("hidden", 1.01)})
    assert parity.segment_errors[0] == pytest.approx(0.01, rel=1e-3)
    assert parity.segment_errors[1:] == (0, 0)  # fed by torch
    assert parity.worst_relative_error > 0  # of the logits behind it


def test_the_first_diverging_segment_is_named():
    parity = measured({1: scaled("hidden", 1.5), 2: scaled("logits", 1.2)})
    with pytest.raises(
        AccuracyError, match=r"expected at most 0.001. segment_1 diverges first, by 0.5"
    ):
        check_parity(parity, "fp32")
    check_parity(parity, "fp32", tolerance=10)


def test_a_gate_that_flips_moves_an_exit_and_no_logits():
    def flip(outputs):
        outputs["gate"] = 1 - outputs["gate"]

    parity = measured({0: flip})
    assert parity.exit_agreement < 1
    assert parity.worst_gate_error > 0
    assert parity.worst_relative_error == 0


def test_nan_is_never_within_a_tolerance():
    parity = measured({2: scaled("logits", np.nan)})
    with pytest.raises(AccuracyError, match="segment_2 diverges first"):
        check_parity(parity, "fp32", tolerance=1e9)


def parity_of(**figures):
    values = {
        "worst_relative_error": 0.2,
        "worst_gate_error": 0.0,
        "top1_agreement": 1.0,
        "exit_agreement": 1.0,
        "segment_errors": (0.1, 0.2),
        "images": 8,
        "images_name": "noise",
    }
    return BundleParity(**{**values, **figures})


def test_int8_is_judged_by_its_classes():
    check_parity(parity_of(), "int8")
    with pytest.raises(AccuracyError, match=r"80.0% of classes agree.*expected 90% of classes"):
        check_parity(parity_of(top1_agreement=0.8), "int8")
