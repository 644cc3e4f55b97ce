"""Read a pickle of plain values and uint8 arrays without running anything that it names.

A pickle is a program: it can call whatever it can import. This reader lets it import nothing. The
four names that numpy's own pickles ask for get stand-ins that only write down what they are given;
any other name stops the reading. The result is dicts, lists, tuples, numbers, text, bytes and
`PickledArray`.
"""

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import UserInputError

__all__ = ["PickledArray", "load_plain_pickle"]


def load_plain_pickle(content: bytes, what: str) -> Any:
    """Return the value in a pickle, with arrays as `PickledArray`.

    Text that Python 2 wrote comes back as bytes.

    Args:
        content: the bytes of the pickle.
        what: names the file in the message.

    Raises:
        UserInputError: it is no pickle, is damaged, or asks for code.
    """
    try:
        return _PlainUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as err:  # damaged bytes raise nearly anything here
        raise UserInputError(
            f"{what} cannot be read as a pickle of plain values ({err}); nothing in it was run; "
            "fetch the file again from its publisher"
        ) from err


class PickledArray:
    """What a pickle says about one array of bytes.

    Attributes:
        values: the array; empty until the pickle gives its content.
    """

    values: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, column_major, raw = state
        if dtype != "u1" or column_major or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("it holds an array that is not row-major uint8")
        self.values = np.frombuffer(raw, dtype=np.uint8).reshape(shape)


class _DtypeName(str):
    """The name of a dtype; what numpy adds about byte order has no meaning for single bytes."""

    def __setstate__(self, state: Any) -> None:
        pass


def _reconstruct(*_arguments: Any) -> PickledArray:
    return PickledArray()


def _dtype(name: Any, *_arguments: Any) -> str:
    return _DtypeName(name.decode("ascii") if isinstance(name, bytes) else name)


def _ndarray(*_arguments: Any) -> None:
    raise pickle.UnpicklingError("it builds an array in an unknown way")


def _encode(text: str, _encoding: str) -> bytes:
    return text.encode("latin-1")  # how protocol 2 of Python 3 spells bytes


# The reader that is written in Python: the one in C makes room for as many values as an opcode of
# five bytes says that there are.
class _PlainUnpickler(pickle._Unpickler):
    """Give stand-ins for four names, and nothing else."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        stand_in = _STAND_INS.get((module.replace("numpy._core", "numpy.core"), name))
        if stand_in is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return stand_in


_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
}
