"""From a torch module to an ONNX graph in memory."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import UnsupportedModelError
from compress.export.graph_outputs import name_outputs_
from compress.optional import require

__all__ = ["OPSET", "graph_from_module"]

OPSET = 18  # what torch's exporter writes natively; targets that know less are lowered to


def graph_from_module(
    module: nn.Module,
    example: Tensor,
    *,
    input_name: str,
    output_names: Sequence[str],
    free_batch: bool = True,
) -> Any:
    """Export a module that takes one tensor as an `onnx.ModelProto` with no trace of this machine.

    Args:
        module: in eval mode, on the CPU.
        example: (N, …) of what it takes.
        input_name: of the graph's input.
        output_names: of its outputs, in order.
        free_batch: leave the first dimension free; else it is one image.

    Raises:
        UnsupportedModelError: torch cannot export the module.
        ToolchainError: onnx or onnxscript is missing.
    """
    onnx = require("onnx", "writing ONNX files")
    require("onnxscript", "exporting to ONNX")
    example = example[:1]
    if free_batch:  # two images: a batch of one would be baked into the graph
        example = example.expand(2, *example.shape[1:]).contiguous()
    shapes = ({0: torch.export.Dim("batch")},) if free_batch else None
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                (example,),
                input_names=[input_name],
                opset_version=OPSET,
                dynamic_shapes=shapes,
                dynamo=True,
                verbose=False,
            )
    except Exception as err:  # the exporter wraps whatever went wrong in its own classes
        reason = next((line for line in str(err).splitlines() if line.strip()), type(err).__name__)
        raise UnsupportedModelError(f"torch cannot export the network to ONNX: {reason}") from err
    graph = program.model_proto  # type: ignore[union-attr]
    name_outputs_(graph, output_names)
    _drop_traces(graph)
    onnx.checker.check_model(graph)
    return graph


def _drop_traces(graph: Any) -> None:
    """Remove the exporter's notes: they hold source paths of the machine that exported."""
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.graph.input, *graph.graph.output, *graph.graph.value_info):
        del value.metadata_props[:]
    del graph.graph.metadata_props[:]
    del graph.metadata_props[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's advice to its own developers off the user's screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
