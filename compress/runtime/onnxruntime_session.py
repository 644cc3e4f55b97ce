"""Sessions of ONNX Runtime: on the provider that really starts, and of the files that are meant.

A provider that is listed need not start: onnxruntime-gpu lists CUDA on machines without it. What a
session runs on is known once it is open, so that is where to look. ONNX Runtime's own fallback is
turned off, as it prints into the results.
"""

import logging
import warnings
from typing import Any, Dict, List, Optional, Sequence, Tuple

from compress.errors import ToolchainError, UserInputError
from compress.runtime.manifest import Segment, TensorSpec

__all__ = ["PROVIDERS", "SLOWER", "SessionMaker", "check_session", "turned_off"]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# On the CPU the first fusion's kernel takes three times as long as its parts, and the second keeps
# int8 products with a bias from becoming integer products, and gains nothing in float.
SLOWER = ["SkipLayerNormFusion", "MatMulAddFusion"]
# Together with the layout of convolutions this one ends the process in float16 attention (seen with
# 1.31); in float32 it gains 2 % there.
CRASHING_IN_HALF = ["MatmulTransposeFusion"]
ELEMENTS = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}

log = logging.getLogger(__name__)


def turned_off(half: bool) -> List[str]:
    """Return the optimizers that sessions do without, `half` where they compute in float16."""
    return SLOWER + CRASHING_IN_HALF if half else SLOWER


class SessionMaker:
    """Opens sessions, all on one device.

    Args:
        ort: the module onnxruntime.
        device: "cpu" or "cuda"; None takes "cuda" where it starts, else "cpu".
        threads: inside an operation, on the CPU; None leaves it to ONNX Runtime.

    Attributes:
        device: where sessions run: until the first is open, where they shall.
    """

    def __init__(self, ort: Any, device: Optional[str], threads: Optional[int]) -> None:
        self._ort = ort
        self._threads = threads
        self._is_chosen = device is not None
        available = ort.get_available_providers()
        self.device = device or ("cuda" if PROVIDERS["cuda"] in available else "cpu")

    def open(self, model: Any, half: bool = False) -> Any:
        """Return a session of an ONNX file or of its bytes, `half` where it computes in float16.

        Raises:
            ToolchainError: ONNX Runtime cannot read it, or the device that was asked for does not
                start.
        """
        if self.device != "cpu":
            session, reason = self._tried(model, half)
            if session is not None:
                return session
            if self._is_chosen:
                raise ToolchainError(
                    f"{PROVIDERS[self.device]} of ONNX Runtime {self._ort.__version__} does not "
                    f"start here ({reason}); give --provider cpu, or install what it needs"
                )
            log.info("ONNX Runtime runs on the CPU: CUDA does not start (%s)", reason)
            self.device = "cpu"
        try:
            return self._session(model, ["cpu"], half)
        except Exception as err:  # ONNX Runtime has a class of its own per status code
            raise ToolchainError(
                f"ONNX Runtime {self._ort.__version__} cannot open {_shown(model)} "
                f"({_one_line(err)}); export the bundle for this version, or install a newer "
                "onnxruntime"
            ) from err

    def _tried(self, model: Any, half: bool) -> Tuple[Any, str]:
        """Return a session on the device, or None and why there is none."""
        try:
            session = self._session(model, [self.device, "cpu"], half)
        except Exception as err:  # as above; the CPU will tell whether it is the model's fault
            return None, _one_line(err)
        found = session.get_providers()
        if PROVIDERS[self.device] in found:
            return session, ""
        return None, f"the session has {', '.join(found)} alone"

    def _session(self, model: Any, devices: Sequence[str], half: bool) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._threads or 0
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of providers that are not there, which is told above
            return self._ort.InferenceSession(
                model,
                options,
                providers=[PROVIDERS[device] for device in devices],
                disabled_optimizers=turned_off(half),
                enable_fallback=0,
            )


def check_session(session: Any, segment: Segment, max_batch: int) -> None:
    """Raise UserInputError unless a file takes and gives what the manifest says.

    A size that the file leaves open fits any; ONNX Runtime compares it when it runs.

    Args:
        session: of the file.
        segment: of the manifest.
        max_batch: the most images at a time.
    """
    sides = (
        ("takes", session.get_inputs(), segment.inputs),
        ("gives", session.get_outputs(), segment.outputs),
    )
    for verb, values, specs in sides:
        found: Dict[str, Any] = {value.name: value for value in values}
        names = [spec.file_name for spec in specs]
        if sorted(found) != sorted(names):
            raise _misfit(segment, verb, ", ".join(sorted(found)), names)
        for spec in specs:
            value = found[spec.file_name]
            if not _fits(value, spec, max_batch):
                said = f"{value.name} {value.type} of shape {list(value.shape)}"
                raise _misfit(segment, verb, said, [f"{spec.dtype} (N, {_sizes(spec)})"])


def _fits(value: Any, spec: TensorSpec, max_batch: int) -> bool:
    if ELEMENTS.get(value.type) != spec.dtype:
        return False
    wanted = (1 if max_batch == 1 else None, *spec.shape)
    if len(value.shape) != len(wanted):
        return False
    # A size that is no number is open; where batches vary, the first must be.
    return all(
        not isinstance(size, int) or size == expected for size, expected in zip(value.shape, wanted)
    )


def _misfit(segment: Segment, verb: str, found: str, expected: List[str]) -> UserInputError:
    return UserInputError(
        f"segment {segment.file} {verb} {found:.200}, its manifest says {', '.join(expected)}; "
        "they are of different bundles, so export the bundle again"
    )


def _sizes(spec: TensorSpec) -> str:
    return ", ".join(map(str, spec.shape))


def _shown(model: Any) -> str:
    return f"{model:.200}" if isinstance(model, str) else "a model of this program"


def _one_line(err: BaseException) -> str:
    return " ".join(str(err).split())[:300]
