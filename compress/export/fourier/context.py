"""What the rules of the pass share: the graph, what is written, which tensors are waves."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.export.fourier.constants import Known
from compress.export.fourier.products import Products
from compress.export.fourier.waves import Form, View, Wave
from compress.export.fourier.writer import Writer
from compress.optional import require

if TYPE_CHECKING:
    import onnx

__all__ = ["Context"]


@dataclass(kw_only=True)
class Context:
    """The state of one pass over a graph.

    Attributes:
        writer: of the new nodes.
        known: what tensors hold.
        products: computes waves.
        feeds_transforms: names of tensors that a transform hangs on.
        views: tensors of the graph that are not written yet, by name.
        aliases: names of new tensors that hold what a tensor of the graph held.
    """

    writer: Writer
    known: Known
    products: Products
    feeds_transforms: frozenset[str]
    views: dict[str, View] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    def attributes(self, node: "onnx.NodeProto") -> dict[str, Any]:
        """Return the attributes of a node by name."""
        helper = require("onnx.helper", "rewriting ONNX graphs")
        return {a.name: helper.get_attribute_value(a) for a in node.attribute}

    def tensor(self, name: str, *, exact: bool = False) -> str:
        """Return the name under which a tensor of the graph can be read, writing it if need be.

        Args:
            name: in the graph.
            exact: it must have this very name.
        """
        if name not in self.aliases:
            view = self.views.get(name)
            if view is None:
                return name
            self.aliases[name] = self._written(view, name)
        found = self.aliases[name]
        if exact and found != name:
            self.writer.emit("Identity", [found], self.writer.shape(found), "same", output=name)
            self.aliases[name] = name
        return self.aliases[name]

    def part(self, view: View, component: int) -> str:
        """Write one part of the wave of a view, zeros where it is zero."""
        return self.products.part(view.wave, component) or self._zeros(view.wave)

    def single(self, view: View) -> str | None:
        """Write the part that a view shows which shows one; None where it is zero."""
        return self.products.part(view.wave, view.component)

    def show(self, name: str, wave: Wave, form: Form, at: int | None) -> None:
        """Note that a tensor of the graph is a wave."""
        self.views[name] = View(wave=wave, form=form, at=at)

    def _written(self, view: View, name: str) -> str:
        if view.form is Form.PAIR:
            at = view.at or 0
            parts = [self.writer.unsqueezed(self.part(view, which), at, "part") for which in (0, 1)]
            return self.writer.concatenated(parts, at, "pair", output=name)
        part = self.part(view, view.component)
        if view.at is None:
            return part
        return self.writer.unsqueezed(part, view.at, "part", output=name)

    def _zeros(self, wave: Wave) -> str:
        other = self.products.part(wave, 0) or self.products.part(wave, 1)
        if other is None:
            raise self.writer.fail("both parts of a tensor are zero")
        return self.writer.scaled(other, np.array(0.0), "zeros")
