"""Parity on real files in ONNX Runtime, which are made to give something else than torch."""

from functools import cache

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from compress.errors import AccuracyError
from compress.export.cut import cut_graph
from compress.export.deployed_form import deployed_form
from compress.export.graph import graph_from_module
from compress.export.onnx_file import onnx_session
from compress.export.parity import BundleParity, check_parity, measure_parity
from compress.export.whole_network import WholeNetwork, results_of_exits
from tests.export.test_whole_network import network


@cache
def scene():
    """A network, its segments, and some images."""
    torch.manual_seed(1)
    images = torch.randn(6, 3, 16, 16)
    whole, results = WholeNetwork(deployed_form(network()), split=True), results_of_exits(2)
    names = [name for each in results for name in each]
    graph = graph_from_module(whole, images, input_name="image", output_names=names)
    return whole, [each.proto for each in cut_graph(graph, results, images.numpy())], images


def changed(proto, name, kind, factor):
    """The segment with an output that is `kind` of itself and a factor."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    for node in graph.node:
        for side in (node.input, node.output):
            side[:] = [f"{name}_before" if each == name else each for each in side]
    graph.initializer.append(numpy_helper.from_array(np.float32(factor), "factor"))
    graph.node.append(helper.make_node(kind, ["factor", f"{name}_before"], [name]))
    return result


def measured(changes=None, *, batch=4):
    """The parity of segments that were changed; the float32 ones are right."""
    whole, protos, images = scene()
    files = [changed(p, *changes[i]) if i in (changes or {}) else p for i, p in enumerate(protos)]
    return measure_parity(
        whole,
        [onnx_session(each) for each in files],
        [onnx_session(each) for each in protos] if changes else None,
        images,
        [0.5, 0.5],
        outputs=["logits"],
        batch=batch,
        images_name="noise",
    )


ROUNDING = 1e-5  # of float32 sums in another order


def test_files_that_compute_the_same_agree_wholly():
    parity = measured()
    assert parity.worst_relative_error < ROUNDING
    assert (parity.top1_agreement, parity.exit_agreement, parity.images) == (1.0, 1.0, 6)
    assert max(parity.segment_errors) < ROUNDING
    assert len(parity.segment_errors) == 3
    check_parity(parity, "fp32")


def test_the_error_of_a_segment_is_its_own_and_the_chain_carries_it_on():
    parity = measured({0: ("hidden_0", "Mul", 1.01)})
    assert parity.segment_errors[0] == pytest.approx(0.01, rel=1e-3)
    assert max(parity.segment_errors[1:]) < ROUNDING  # fed by the right one
    assert parity.worst_relative_error > 10 * ROUNDING  # of the logits behind it


def test_the_first_diverging_segment_is_named():
    parity = measured({1: ("hidden_1", "Mul", 1.5), 2: ("logits", "Mul", 1.2)})
    with pytest.raises(
        AccuracyError, match=r"expected at most 0.001. segment_1 diverges first, by 0.5"
    ):
        check_parity(parity, "fp32")
    check_parity(parity, "fp32", tolerance=10)


def test_logits_of_a_segment_are_compared_with_torch():
    parity = measured({1: ("logits", "Mul", 1.25)})
    assert parity.segment_errors[1] == pytest.approx(0.25, rel=1e-3)
    assert parity.worst_relative_error == pytest.approx(0.25, rel=1e-3)


def test_a_gate_that_flips_moves_an_exit_and_no_logits():
    parity = measured({0: ("gate", "Sub", 1.0)})
    assert parity.exit_agreement < 1
    assert parity.worst_gate_error > 0.01
    assert parity.worst_relative_error < ROUNDING


def test_nan_is_never_within_a_tolerance():
    parity = measured({2: ("logits", "Mul", np.nan)})
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
