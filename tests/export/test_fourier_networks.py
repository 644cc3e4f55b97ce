"""Networks with Fourier transforms, as their papers have them, from torch to every target."""

from functools import cache

import numpy as np
import onnx
import pytest
import torch

from compress.errors import UnsupportedModelError
from compress.export.deployed_form import deployed_form
from compress.export.graph import graph_from_module, told_whole
from compress.export.lint import lint
from compress.export.lowering import lowered
from compress.export.targets import TARGETS
from compress.models.gfnet_pyramid import gfnet_h
from compress.models.global_filter import GlobalFilter, MatrixFilter
from tests.export.fourier_networks import NETWORKS, network
from tests.export.real_parser import VERSIONS, build
from tests.export.small_graphs import kinds, run_onnxruntime

QUICK = "fno1d"  # an export takes seconds
NAMES = [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
LOWERED = ("jetpack5.1", "tensorrt-rtx")  # the oldest table, and what engines are built of


@cache
def exported(name):
    """The graph of a network, with its input and what torch makes of it."""
    module, x = network(name)
    with torch.no_grad():
        wanted = module(x).numpy()
    made = graph_from_module(module, x, input_name="x", output_names=["y"])
    return made, x.numpy(), wanted


@pytest.mark.parametrize("name", NAMES)
def test_every_target_takes_it_and_computes_what_torch_computes(name):
    made, x, wanted = exported(name)
    assert not {"DFT", "STFT", "Col2Im"} & set(kinds(made))
    for chosen in TARGETS.values():
        graph = lowered(made, chosen)
        assert [
            finding.message for finding in lint(graph, chosen) if finding.level == "error"
        ] == []
        if chosen.name in LOWERED:
            (found,) = run_onnxruntime(graph, {"x": x})
            assert np.linalg.norm(found - wanted) <= 1e-5 * np.linalg.norm(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_the_real_builder_makes_an_engine_of_it(version, tmp_path):
    for name in NETWORKS:
        made, _, _ = exported(name)
        onnx.save(lowered(made, TARGETS["tensorrt-rtx"]), tmp_path / f"{name}.onnx")
    files = sorted(tmp_path.iterdir())
    engines = build(version, files)
    assert [path for path, size in engines.items() if not size] == []
    assert len(engines) == len(NETWORKS)


def test_a_neural_operator_computes_low_frequencies_alone():
    """6 of 21 bins are kept: no matrix of all bins, no zeros in between, no moves."""
    made, _, _ = exported(QUICK)
    assert not {"Pad", "Concat", "Slice", "Gather", "Transpose"} & set(kinds(made))
    shapes = {tuple(sorted(tensor.dims)) for tensor in made.graph.initializer}
    assert (6, 40) in shapes
    assert (21, 40) not in shapes


def test_filters_of_large_grids_are_left_to_the_pass():
    """By hand a grid of 56x56 takes four matrices of five million entries, along the axes 3136."""
    model = gfnet_h("gfnet_h_ti", image_size=96, depths=[1, 1], widths=[4, 8], num_classes=3)
    twin = deployed_form(model)
    assert isinstance(twin.blocks[0][0].filter, GlobalFilter)
    assert isinstance(twin.blocks[1][0].filter, MatrixFilter)


class Complex(torch.nn.Module):
    """Computes something of complex numbers, from and to real ones."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def parts(z):
    return torch.cat((z.real, z.imag), dim=-1)


ARITHMETIC = {
    "quotient": lambda z: parts(z / (z.flip(-1) + 2 + 1j)),
    "number": lambda z: parts(1j * z - (2 - 3j) + 1 / z.conj()),
    "power": lambda z: parts(z**3 * z.abs()),
    "exponential": lambda z: parts(torch.exp(z) + torch.polar(z.abs(), z.real)),
    "product": lambda z: parts(z @ z.transpose(-1, -2) + z.sum(-1, keepdim=True)),
}


@pytest.mark.slow
def test_complex_arithmetic_is_done_on_parts():
    def everything(x):
        z = torch.complex(x[..., :4], x[..., 4:])
        return torch.cat([function(z).flatten(1) for function in ARITHMETIC.values()], dim=1)

    x = torch.randn(2, 3, 8)
    made = graph_from_module(Complex(everything), x, input_name="x", output_names=["y"])
    (found,) = run_onnxruntime(made, {"x": x.numpy()})
    np.testing.assert_allclose(found, everything(x).numpy(), rtol=1e-4, atol=1e-5)


def test_what_has_no_form_in_real_numbers_is_told_with_its_module():
    net = torch.nn.Sequential(Complex(lambda x: torch.linalg.eigvals(x).abs()))
    with pytest.raises(UnsupportedModelError, match=r"linalg_eigvals.*in module 0.*real and imagi"):
        graph_from_module(net, torch.randn(2, 3, 3), input_name="x", output_names=["y"])


def test_a_complex_result_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"gives a complex tensor.*view_as_real"):
        graph_from_module(
            Complex(torch.fft.rfft), torch.randn(2, 8), input_name="x", output_names=["y"]
        )


def test_errors_of_the_exporter_are_told_whole_and_cause_first():
    cause = ValueError("\x1b[96mslice_scatter\x1b[0m is not\nsupported\nUse tlparse to see more")
    try:
        try:
            raise cause
        except ValueError as err:
            raise RuntimeError("Failed. \x1b[96mThis is step 2/3\x1b[0m of many") from err
    except RuntimeError as err:
        told = told_whole(err)
    assert told == "ValueError: slice_scatter is not supported; then RuntimeError: Failed."


def test_an_export_that_fails_names_the_cause():
    def by_the_input(x):
        return x * 2 if x.sum() > 0 else x

    with pytest.raises(UnsupportedModelError) as caught:
        graph_from_module(
            Complex(by_the_input), torch.randn(2, 3), input_name="x", output_names=["y"]
        )
    text = str(caught.value)
    assert "\x1b" not in text
    assert "data-dependent" in text
    assert text.index("data-dependent") < text.index("then")
