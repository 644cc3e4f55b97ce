"""From a torch module to an ONNX graph in memory."""

import copy
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import CompressError, UnsupportedModelError
from compress.export.fourier import rewrite_transforms_
from compress.export.graph_outputs import name_outputs_
from compress.export.graph_tidy import constants_to_initializers_, tidy_
from compress.export.real_form import real_form
from compress.optional import require

__all__ = ["OPSET", "graph_from_module", "told_whole"]

logger = logging.getLogger(__name__)

TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
# From here on the exporter tells how to report an error to its developers.
ADVICE = re.compile(r"This is step \d|Next steps:|Use tlparse|## Exception summary")
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
                _in_real_numbers(module, example, shapes),
                (example,),
                input_names=[input_name],
                opset_version=OPSET,
                dynamic_shapes=shapes,
                dynamo=True,
                verbose=False,
            )
    except CompressError:
        raise
    except Exception as err:  # the exporter wraps whatever went wrong in its own classes
        raise UnsupportedModelError(
            f"torch cannot export the network to ONNX: {told_whole(err)}"
        ) from err
    graph = program.model_proto  # type: ignore[union-attr]
    if free_batch:
        _check_free(graph)
    name_outputs_(graph, output_names)
    constants_to_initializers_(graph)
    if rewrite_transforms_(graph):
        tidy_(graph)
    _drop_traces(graph)
    onnx.checker.check_model(graph)
    return graph


def told_whole(err: BaseException) -> str:
    """Return what an exporter's error says: the cause first, whole, without terminal codes."""
    chain: list[BaseException] = []
    cause: BaseException | None = err
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    told: list[str] = []
    for part in reversed(chain):
        text = TERMINAL_CODES.sub("", str(part))
        text = " ".join(ADVICE.split(text)[0].split())
        line = f"{type(part).__name__}: {text}".rstrip(": ")
        if line not in told:
            told.append(line)
    return "; then ".join(told)


def _in_real_numbers(module: nn.Module, example: Tensor, shapes: Any) -> Any:
    """Return the module traced, with pairs in place of complex tensors where it has such."""
    try:
        frozen = copy.deepcopy(module).requires_grad_(False)
        program = torch.export.export(frozen, (example,), dynamic_shapes=shapes, strict=False)
    except Exception as err:  # the exporter itself has more ways to trace, and tells what is wrong
        logger.info("not traced for complex tensors: %s", err)
        return module
    return real_form(program) or program


def _check_free(graph: Any) -> None:
    """Raise UnsupportedModelError where the number of images of the example was baked in."""
    batch = graph.graph.input[0].type.tensor_type.shape.dim[0]
    if batch.HasField("dim_value"):
        raise UnsupportedModelError(
            f"torch exports the network for {batch.dim_value} images alone, as its forward takes "
            "their number as a plain one; expected x.shape[0] in place of len(x) there, or export "
            "for one image at a time, with --batch 1"
        )


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
