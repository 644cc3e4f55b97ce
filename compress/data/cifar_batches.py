"""The files of CIFAR's two distributions, as bytes that become pixels and labels.

A binary record is one byte of label (CIFAR-100: coarse, then fine), then 3072 bytes of pixels, R, G
and B planes of 32x32. A python batch is a pickle of a dict, which is read without running it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.data.plain_pickle import PickledArray, load_plain_pickle
from compress.errors import UserInputError

__all__ = [
    "PIXELS",
    "BatchForm",
    "binary_batch",
    "names_from_pickle",
    "names_from_text",
    "python_batch",
]

PIXELS = 3 * 32 * 32

Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]  # (R, 3072) and (R,)


@dataclass(frozen=True, kw_only=True)
class BatchForm:
    """How the batches of one data set are built.

    Attributes:
        data_set: its name, such as "CIFAR-10".
        classes: how many.
        label_bytes: in a binary record; the last one is the label.
        labels_key: of the list of labels in a python batch.
        names_key: of the list of class names in the python file of names.
    """

    data_set: str
    classes: int
    label_bytes: int
    labels_key: str
    names_key: str


def binary_batch(content: bytes, records: int, form: BatchForm, what: str) -> Batch:
    """Return the images and labels of a binary file."""
    record = form.label_bytes + PIXELS
    if len(content) != records * record:
        labels = "one label" if form.label_bytes == 1 else "two labels"
        raise UserInputError(
            f"{what} has {len(content)} bytes; expected {records * record}, which is {records} "
            f"records of {labels} and {PIXELS} pixel values; fetch it again"
        )
    rows = np.frombuffer(content, dtype=np.uint8).reshape(records, record)
    labels_of_rows = rows[:, form.label_bytes - 1].astype(np.int64)
    highest = int(labels_of_rows.max())
    if highest >= form.classes:
        raise UserInputError(
            f"{what} has the label {highest}; expected labels from 0 to {form.classes - 1}, so it "
            f"is damaged or not {form.data_set}; fetch it again"
        )
    return rows[:, form.label_bytes :], labels_of_rows


def python_batch(content: bytes, records: int, form: BatchForm, what: str) -> Batch:
    """Return the images and labels of a python file."""
    fields = _fields(content, form, what)
    data, labels = fields.get("data"), fields.get(form.labels_key)
    if not isinstance(data, PickledArray) or not isinstance(labels, list):
        raise UserInputError(
            f"{what} holds {sorted(fields)[:9]}; expected an array under 'data' and a list under "
            f"'{form.labels_key}'; fetch it again"
        )
    shape = data.values.shape
    if shape != (records, PIXELS) or len(labels) != records:
        raise UserInputError(
            f"{what} has data of shape {shape} and {len(labels)} labels; expected "
            f"({records}, {PIXELS}) and {records}; fetch it again"
        )
    if not all(type(label) is int and 0 <= label < form.classes for label in labels):
        raise UserInputError(
            f"{what} has labels that are not whole numbers from 0 to {form.classes - 1}"
        )
    return data.values, np.array(labels, dtype=np.int64)


def names_from_text(content: bytes, form: BatchForm, what: str) -> tuple[str, ...]:
    """Return the class names of the binary distribution."""
    return _checked_names(tuple(content.decode("utf-8", "replace").split()), form, what)


def names_from_pickle(content: bytes, form: BatchForm, what: str) -> tuple[str, ...]:
    """Return the class names of the python distribution."""
    names = _fields(content, form, what).get(form.names_key)
    return _checked_names(tuple(map(_text, names)) if isinstance(names, list) else (), form, what)


def _fields(content: bytes, form: BatchForm, what: str) -> dict[str, object]:
    value = load_plain_pickle(content, what)
    if not isinstance(value, dict):
        raise UserInputError(
            f"{what} holds a {type(value).__name__}; expected a dict of {form.data_set}"
        )
    return {_text(key): part for key, part in value.items()}


def _checked_names(names: tuple[str, ...], form: BatchForm, what: str) -> tuple[str, ...]:
    if not len(names) == len(set(names)) == form.classes:
        raise UserInputError(
            f"{what} names {len(set(names))} classes; expected {form.classes}; fetch it again"
        )
    return names


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
