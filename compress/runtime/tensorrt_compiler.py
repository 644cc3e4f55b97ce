"""Turn one ONNX file into an engine with TensorRT's Python module: `TensorRTCompiler`.

One code path serves TensorRT 8.5 to 11 and TensorRT-RTX: what a version lacks is found by its
missing name, never by comparing versions. Precision stands in the ONNX files (float16 weights,
Q/DQ). Networks are strongly typed where TensorRT knows that, and nothing else is said about
precision then; TensorRT 8 does not know it, and is allowed float16 or int8 by a flag. With float16,
it is told to keep the layers that give float32, norms and gates, in that: casts bind nobody there.
"""

import hashlib
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any, List, Optional, Tuple

from compress.errors import ToolchainError, UnsupportedModelError, UserInputError
from compress.files import replacing
from compress.runtime.build_remedy import remedy_for
from compress.runtime.cuda import DeviceInfo
from compress.runtime.manifest import Segment, TensorSpec
from compress.runtime.tensorrt_engine import DTYPES
from compress.runtime.trtexec import TIMING_CACHE, Batch, keeps_float32, weak_precisions

__all__ = ["TensorRTCompiler"]

log = logging.getLogger(__name__)


class TensorRTCompiler:
    """Builds with TensorRT's Python module, or TensorRT-RTX's, which has the same names.

    Attributes:
        builder: "tensorrt" or "tensorrt_rtx".
        tensorrt_version: of the module.
        device: the GPU that TensorRT builds on and for; None of TensorRT-RTX, which needs none and
            builds for all that it supports.
    """

    def __init__(
        self, trt: Any, builder: str, workspace_mib: Optional[int], level: Optional[int]
    ) -> None:
        """Probe the GPU first: without one, objects of TensorRT can crash the interpreter."""
        self.builder = builder
        self.tensorrt_version: str = trt.__version__
        self.device: Optional[DeviceInfo] = None
        if builder == "tensorrt":
            from compress.runtime.cuda import probe_cuda

            self.device = probe_cuda()
        self._trt = trt
        self._workspace_mib = workspace_mib
        self._level = level
        self._messages = _messages(trt)
        self._messages.first_error = ""
        try:
            self._builder = trt.Builder(self._messages)
        except (TypeError, RuntimeError) as err:  # how the bindings tell of a null object
            raise self._failure("could not start", err) from err

    def compile(self, bundle: Path, segment: Segment, batch: Batch, engine: Path) -> None:
        """Build the engine of one segment into the file `engine`."""
        trt, builder = self._trt, self._builder
        self._messages.first_error = ""
        network = builder.create_network(_network_flags(trt))
        parser = trt.OnnxParser(network, self._messages)  # owns weights: it must outlive the build
        _parse(parser, _content(bundle / segment.file, segment), segment)
        _check_network(network, segment, batch)
        config = self._config(segment)
        if keeps_float32(segment):
            self._keep_float32(network, config, segment)
        _add_profile(builder, network, config, batch)
        # TensorRT-RTX builds without timing anything; its timing cache is deprecated and empty.
        cache = None
        if self.builder == "tensorrt":
            cache = _use_timing_cache(config, bundle / TIMING_CACHE)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise self._failure(f"could not build the engine of {segment.file}")
        engine.write_bytes(plan)
        if cache is not None:
            with replacing(bundle / TIMING_CACHE) as part:
                part.write_bytes(cache.serialize())

    def _config(self, segment: Segment) -> Any:
        trt = self._trt
        config = self._builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if self._workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, self._workspace_mib << 20)
        if self._level is not None:
            if hasattr(config, "builder_optimization_level"):
                config.builder_optimization_level = self._level
            else:
                log.warning("%s %s has no optimization level", self.builder, self.tensorrt_version)
        if not hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
            allowed = weak_precisions(segment)
            if "fp16" in allowed:
                config.set_flag(trt.BuilderFlag.FP16)
            if "int8" in allowed:
                config.set_flag(trt.BuilderFlag.INT8)
            preview = getattr(trt, "PreviewFeature", None)
            if preview is not None and hasattr(preview, "PROFILE_SHARING_0806"):
                config.set_preview_feature(preview.PROFILE_SHARING_0806, True)
        return config

    def _keep_float32(self, network: Any, config: Any, segment: Segment) -> None:
        """Where types are weak, pin the layers that give float32 to it; say how many these are."""
        trt, pinned = self._trt, 0
        if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
            return
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        for number in range(network.num_layers):
            layer = network.get_layer(number)
            outputs = _float32_outputs(trt, layer)
            for place in outputs:
                layer.set_output_type(place, trt.DataType.FLOAT)
            if outputs and _takes_float32(trt, layer):  # no cast, nor what also takes places
                layer.precision = trt.DataType.FLOAT
            pinned += bool(outputs)
        log.info(
            "%s: %d of %d layers are kept in float32, as their graph says",
            *(segment.file, pinned, network.num_layers),
        )

    def _failure(self, what: str, err: Optional[Exception] = None) -> ToolchainError:
        told = _one_line(self._messages.first_error or str(err or "it did not say why"))
        return ToolchainError(
            f"{self.builder} {self.tensorrt_version} {what} ({told}); {remedy_for(told)}"
        )


def _float32_outputs(trt: Any, layer: Any) -> List[int]:
    """Return which outputs of a layer are float32; of constants none, as they are folded."""
    if layer.type == trt.LayerType.CONSTANT:
        return []
    outputs = [layer.get_output(place) for place in range(layer.num_outputs)]
    return [i for i, tensor in enumerate(outputs) if tensor.dtype == trt.DataType.FLOAT]


def _takes_float32(trt: Any, layer: Any) -> bool:
    """Whether all that a layer takes is float32."""
    inputs = [layer.get_input(place) for place in range(layer.num_inputs)]
    return all(tensor.dtype == trt.DataType.FLOAT for tensor in inputs if tensor is not None)


def _network_flags(trt: Any) -> int:
    """Explicit batch, which TensorRT 11 no longer names; strong types, which 8 does not know."""
    flags = 0
    for flag in (
        getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None),
        getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None),
    ):
        flags |= 0 if flag is None else 1 << int(flag)
    return flags


def _content(path: Path, segment: Segment) -> bytes:
    """Return the bytes of a segment, the very ones that the manifest names."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != segment.sha256:
        raise UserInputError(f"segment {path} was altered while engines were built; build again")
    return content


def _parse(parser: Any, content: bytes, segment: Segment) -> None:
    if parser.parse(content):
        return
    faults = [_told(parser.get_error(place)) for place in range(parser.num_errors)]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    raise UnsupportedModelError(
        f"TensorRT's parser refuses {segment.file}: {faults[0] if faults else 'it says not why'}"
        f"{more}; export the bundle again for the TensorRT of this machine (--target)"
    )


def _told(fault: Any) -> str:
    """Put one error of the parser into words; TensorRT 8 knows of the node only its number."""
    named = hasattr(fault, "node_name") and fault.node_name()
    node = f"node {fault.node_name()}" if named else f"node number {fault.node()}"
    operator = f" ({fault.node_operator()})" if hasattr(fault, "node_operator") else ""
    return _one_line(f"{node}{operator}: {fault.code().name}: {fault.desc()}")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def _check_network(network: Any, segment: Segment, batch: Batch) -> None:
    """Raise unless the parser understood what the manifest says."""
    inputs = [network.get_input(place) for place in range(network.num_inputs)]
    outputs = [network.get_output(place) for place in range(network.num_outputs)]
    for what, tensors, specs in (
        ("takes", inputs, segment.inputs),
        ("gives", outputs, segment.outputs),
    ):
        found = {tensor.name: (tensor.dtype.name, tuple(tensor.shape)) for tensor in tensors}
        fits = len(found) == len(specs) and all(
            spec.file_name in found and _fits(spec, batch, *found[spec.file_name]) for spec in specs
        )
        if not fits:
            raise UnsupportedModelError(
                f"TensorRT reads that {segment.file} {what} {found}; its manifest says "
                f"{[(spec.file_name, spec.dtype, spec.shape) for spec in specs]} in batches of "
                f"{batch[0]} to {batch[2]}; export the bundle again"
            )


def _fits(spec: TensorSpec, batch: Batch, dtype: str, shape: Tuple[int, ...]) -> bool:
    """Whether a tensor, whose sizes TensorRT gives as -1 where they vary, may be what is meant."""
    if dtype != DTYPES[spec.dtype] or len(shape) != 1 + len(spec.shape):
        return False
    fixed = batch[0] if batch[0] == batch[2] else -1
    return shape[0] in (-1, fixed) and all(
        size in (-1, meant) for size, meant in zip(shape[1:], spec.shape)
    )


def _add_profile(builder: Any, network: Any, config: Any, batch: Batch) -> None:
    """Tell the range of batches, where an input leaves it open; the expected is made fastest."""
    inputs = [network.get_input(place) for place in range(network.num_inputs)]
    varying = [tensor for tensor in inputs if tensor.shape[0] == -1]
    if not varying:
        return
    profile = builder.create_optimization_profile()
    for tensor in varying:
        shapes = ((size, *tuple(tensor.shape)[1:]) for size in batch)
        profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)


def _use_timing_cache(config: Any, path: Path) -> Any:
    """Give a build the times that former builds measured, and return what will hold them all."""
    kept = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(kept)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        log.warning("%s is damaged or of another GPU or TensorRT; it is made anew", path)
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


@lru_cache(maxsize=None)
def _messages(trt: Any) -> Any:
    """Return TensorRT's logger, which speaks through logging and keeps the first error.

    There is one for the life of the process, since TensorRT keeps a pointer to the first.
    """
    severities = trt.ILogger.Severity
    levels = {
        severities.INTERNAL_ERROR: logging.ERROR,
        severities.ERROR: logging.ERROR,
        severities.WARNING: logging.WARNING,
        severities.INFO: logging.DEBUG,  # some twenty lines for each engine
        severities.VERBOSE: logging.NOTSET + 1,
    }

    class Messages(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.first_error = ""

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.DEBUG)
            if level == logging.ERROR and not self.first_error:
                self.first_error = message
            log.log(level, "TensorRT: %s", message)

    return Messages()
