"""Einsum of two tensors as a matrix product, for parsers that do not take it, or not all of it.

Letters of both tensors and of the result are a batch, letters of both alone are summed over. Each
tensor is transposed to (batch, own, summed) or (batch, summed, own), and the product transposed to
what the equation names. Constants are laid out here and now.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.export.node_writer import NodeWriter

__all__ = ["write_einsum"]

Sizes = list[int | None]
UNNAMED = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # letters for the axes of an ellipsis, from the last on


def write_einsum(writer: NodeWriter) -> None:
    """Write an Einsum as Transpose, Reshape, MatMul.

    Raises:
        UnsupportedModelError: it has another number of tensors, takes diagonals or sums over an
            axis of one tensor alone, or sizes are free in several places.
    """
    terms, result = _letters(writer)
    left, right = terms
    batch = [c for c in left if c in right and c in result]
    summed = [c for c in left if c in right and c not in result]
    own = [[c for c in term if c not in batch and c not in summed] for term in terms]
    if any(c not in result for side in own for c in side):
        raise writer.fail("it sums over an axis of one tensor alone")
    sizes = _sizes(writer, terms)
    a = _laid_out(writer, 0, left, [batch, own[0], summed], sizes)
    b = _laid_out(writer, 1, right, [batch, summed, own[1]], sizes)
    product = writer.emit("MatMul", a, b, label="product")
    order = [*batch, *own[0], *own[1]]
    if [len(side) for side in own] != [1, 1]:
        shape: Sizes = [*([0] * len(batch)), *(sizes[c] for c in (*own[0], *own[1]))]
        product = _reshaped(writer, product, shape, "grid")
    places = [order.index(c) for c in result]
    if places != sorted(places):
        writer.emit("Transpose", product, label="result", perm=places)


def _letters(writer: NodeWriter) -> tuple[list[str], str]:
    """Return the letters of both tensors and of the result, those of an ellipsis named."""
    equation = writer.given["equation"].decode().replace(" ", "")
    names = list(writer.node.input)
    if len(names) != 2:
        raise writer.fail(f"it is of {len(names)} tensors, and those of two are rewritten")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        single = sorted(c for c in set(left) - {",", "."} if left.count(c) == 1)
        result = ("..." if "..." in left else "") + "".join(single)
    widest = ""
    for i, term in enumerate(terms):
        rank = writer.facts.rank(names[i])
        if rank is None:
            raise writer.fail(f"the rank of {names[i]} is not known")
        unnamed = UNNAMED[len(UNNAMED) - (rank - len(term.replace("...", ""))) :]
        unnamed = "" if rank == len(term.replace("...", "")) else unnamed
        widest = max(widest, unnamed, key=len)
        terms[i] = term.replace("...", unnamed)
    if any(len(set(term)) < len(term) for term in terms):
        raise writer.fail(f"it takes a diagonal ({equation})")
    return terms, result.replace("...", widest)


def _sizes(writer: NodeWriter, terms: Sequence[str]) -> dict[str, int | None]:
    """Return the size of every letter."""
    found: dict[str, int | None] = {}
    for name, term in zip(writer.node.input, terms, strict=True):
        for letter, size in zip(term, writer.facts.shapes[name], strict=True):
            known = found.get(letter)
            if 1 in (known, size) and known != size and None not in (known, size):
                raise writer.fail("it stretches an axis of length 1")
            found[letter] = size if known is None else known
    return found


def _laid_out(
    writer: NodeWriter,
    which: int,
    term: str,
    groups: Sequence[Sequence[str]],
    sizes: dict[str, int | None],
) -> str:
    """Write a tensor as (batch…, first group, second group), each group one axis."""
    name = writer.node.input[which]
    order = [term.index(letter) for group in groups for letter in group]
    merged: Sizes = [0] * len(groups[0])
    merged += [_merged([sizes[letter] for letter in group]) for group in groups[1:]]
    value: NDArray[Any] | None = writer.facts.array(name)
    if value is not None:
        value = value.transpose(order)
        shape = [value.shape[i] if n == 0 else n for i, n in enumerate(merged)]
        return writer.constant(
            f"operand_{which}", value.reshape([n or 0 for n in shape]), value.dtype
        )
    if order != sorted(order):
        name = writer.emit("Transpose", name, label=f"operand_{which}", perm=order)
    if any(len(group) != 1 for group in groups[1:]):
        name = _reshaped(writer, name, merged, f"flat_{which}")
    return name


def _merged(sizes: Sequence[int | None]) -> int | None:
    return None if None in sizes else prod(n or 0 for n in sizes)


def _reshaped(writer: NodeWriter, name: str, shape: Sizes, label: str) -> str:
    """Write a reshape; 0 keeps a size, one None is what is left."""
    if shape.count(None) > 1:
        raise writer.fail("its sizes are free in more than one place")
    values = writer.constant(f"{label}/shape", [-1 if n is None else n for n in shape], np.int64)
    return writer.emit("Reshape", name, values, label=label)
