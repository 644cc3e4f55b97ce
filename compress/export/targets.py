"""What each deployment target's ONNX parser accepts, as data.

A graph that a parser reads is not yet a graph that it understands: the parser of TensorRT 8 takes a
ReduceMean whose axes are an input, ignores them, and averages over everything. So every target has
a table of the operators that our exports can hold, with the inputs and attributes that its parser
needs, refuses or silently ignores. `compress.export.lowering` writes graphs to fit a table,
`compress.export.lint` proves that they do.

Sources: docs/operators.md of onnx-tensorrt at 8.5-GA and 10.15; the C++ of its importers; NVIDIA's
answers in issue NVIDIA/TensorRT 3467 (axes as inputs before 10.0); and, tried in the tests, the
parsers of TensorRT for RTX 1.4 (the API of TensorRT 10) and 1.7 (that of 11), which run without a
GPU. JetPack versions are NVIDIA's release notes.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from compress.errors import UserInputError

__all__ = ["TARGETS", "Operator", "Target", "target"]

FLOATS = frozenset({"float32", "float16"})
# TensorRT 8 computes int64 as int32, TensorRT 10 and later as they are.
INTEGERS = frozenset({"int32", "int64"})
NUMBERS = FLOATS | INTEGERS
ANYTHING = NUMBERS | {"bool"}
BFLOAT = frozenset({"bfloat16"})

NATIVE_OPSET = 18  # what torch's exporter writes; a newer one would say nothing more for us

ARITHMETIC = "Abs Add Div Equal Max Mean Min Mul Neg Sub Sum"
COMPARISONS = "Greater GreaterOrEqual Less LessOrEqual"
FLOAT_ONLY = """
    Ceil Clip Conv ConvTranspose Cos Dropout Elu Erf Exp Floor Gemm GlobalAveragePool GlobalMaxPool
    HardSigmoid HardSwish InstanceNormalization LeakyRelu Log LogSoftmax MatMul PRelu Pow Reciprocal
    Relu Selu Sigmoid Sign Sin Softmax Softplus Softsign Sqrt Tanh
"""
MOVING = "Cast Concat Expand Flatten Gather Identity Reshape Slice Split Transpose Where"
REDUCTIONS = """
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSumSquare
"""


@dataclass(frozen=True, kw_only=True)
class Operator:
    """What a parser accepts of one ONNX operator. Inputs are named by their place, from 0.

    Attributes:
        types: element types of its data, the first input (the second of Where); None is any.
        constants: inputs that must be initializers.
        computed: inputs that must not be.
        zeros: inputs that must be initializers full of zeros, where they are given.
        ignored: inputs that the parser does not read: it computes something else than was meant.
        ignored_attributes: attributes of which the same is true.
        attributes: attributes that must have this value, every element of a list of them.
        outputs: how many outputs may be used.
    """

    types: frozenset[str] | None = FLOATS
    constants: tuple[int, ...] = ()
    computed: tuple[int, ...] = ()
    zeros: tuple[int, ...] = ()
    ignored: tuple[int, ...] = ()
    ignored_attributes: tuple[str, ...] = ()
    attributes: Mapping[str, int] = field(default_factory=dict)
    outputs: int = 1


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where an exported graph shall run.

    Attributes:
        name: as the command line has it.
        runtime: "tensorrt", "tensorrt-rtx" or "onnxruntime".
        version: of that runtime, as people write it.
        opset: ONNX opset that graphs are written in for it, at most.
        newest_opset: the newest that its parser is known to know.
        ir_version: newest ONNX file format that it is known to read.
        operators: by ONNX name, those known to be accepted; None is the whole ONNX standard.
        types: element types that tensors may have.
        io_types: element types that inputs and outputs of the graph may have.
        narrow_integers: int64 is computed as int32.
        subgraphs: operators that hold graphs, such as If and Loop, may be used.
        jetpack: version of JetPack that brings it; None where it is not bound to one.
        python: version of the system's Python on that JetPack.
        int8_note: what is to be known of int8 there, or "".
    """

    name: str
    runtime: str
    version: str
    opset: int
    newest_opset: int
    ir_version: int
    operators: Mapping[str, Operator] | None
    types: frozenset[str]
    io_types: frozenset[str]
    narrow_integers: bool = False
    subgraphs: bool = False
    jetpack: str | None = None
    python: str | None = None
    int8_note: str = ""

    @property
    def display_name(self) -> str:
        """The name with what runs there, such as "jetpack5.1 (TensorRT 8.5.2)"."""
        names = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}
        return f"{self.name} ({names.get(self.runtime, 'ONNX Runtime')} {self.version})"

    @property
    def int8_float_weights(self) -> bool:
        """Whether int8 weights must stay float in the file, behind a QuantizeLinear."""
        accepted = self.operator("DequantizeLinear")
        return accepted is not None and 0 in accepted.computed

    def operator(self, name: str) -> Operator | None:
        """Return what is accepted of an operator; None where it is not."""
        if self.operators is None:
            return Operator(types=None, outputs=1 << 31)
        return self.operators.get(name)

    def accepts(self, name: str) -> bool:
        """Tell whether an operator of the ONNX standard is accepted at all."""
        return self.operator(name) is not None


def target(name: str) -> Target:
    """Return the target of that name.

    Raises:
        UserInputError: there is none; the message names the nearest.
    """
    if name not in TARGETS:
        near = difflib.get_close_matches(name, TARGETS, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserInputError(
            f"target {name!r} is not known; expected one of {', '.join(TARGETS)}{hint}"
        )
    return TARGETS[name]


def _all(names: str, operator: Operator) -> dict[str, Operator]:
    return dict.fromkeys(names.split(), operator)


def _union(*groups: Iterable[str]) -> frozenset[str]:
    return frozenset().union(*groups)


def _tensorrt_8(*more: str) -> dict[str, Operator]:
    """Return the table of TensorRT 8.5 and `more` operators on floats with one output."""
    pooling = Operator(attributes={"dilations": 1})
    return {
        **_all(f"{ARITHMETIC} {COMPARISONS}", Operator(types=NUMBERS)),
        **_all(FLOAT_ONLY, Operator()),
        **_all(MOVING, Operator(types=ANYTHING | {"int8"})),
        **_all("AveragePool MaxPool", pooling),
        # reduceTensor takes axes from the attribute; only ReduceSum, which has had them as an input
        # since opset 13, hands its input on.
        **_all(REDUCTIONS, Operator(ignored=(1,))),
        "ReduceSum": Operator(constants=(1,)),
        **_all("Squeeze Unsqueeze", Operator(types=ANYTHING, constants=(1,))),
        **_all("ArgMax ArgMin", Operator()),
        "BatchNormalization": Operator(attributes={"training_mode": 0}),
        "Constant": Operator(types=None),
        "Pad": Operator(types=NUMBERS),
        # The importer adds the whole shape, whatever start and end say.
        "Shape": Operator(types=ANYTHING, ignored_attributes=("start", "end")),
        "Slice": Operator(types=ANYTHING, constants=(3,)),
        "Split": Operator(types=ANYTHING, outputs=1 << 31),
        "TopK": Operator(constants=(1,), outputs=2),
        "QuantizeLinear": Operator(constants=(1, 2), zeros=(2,)),
        # Weights stay float and get a QuantizeLinear of their own: ONNX Runtime's documentation of
        # its TensorRT provider asks for that (AddQDQPairToWeight).
        "DequantizeLinear": Operator(
            types=frozenset({"int8"}), computed=(0,), constants=(1, 2), zeros=(2,)
        ),
        **_all(" ".join(more), Operator()),
    }


def _tensorrt_10() -> dict[str, Operator]:
    """Return the table of TensorRT 10.0, which is also what 11 and TensorRT for RTX accept."""
    floats, numbers, anything = (kind | BFLOAT for kind in (FLOATS, NUMBERS, ANYTHING))
    pooling = Operator(types=floats, attributes={"dilations": 1})
    return {
        **_all(f"{ARITHMETIC} {COMPARISONS}", Operator(types=numbers)),
        **_all(FLOAT_ONLY, Operator(types=floats)),
        # bytes pass through Cast alone
        **_all(MOVING, Operator(types=anything)),
        "Cast": Operator(types=anything | {"uint8"}),
        **_all("AveragePool MaxPool", pooling),
        **_all(f"{REDUCTIONS} ReduceSum", Operator(types=numbers, constants=(1,))),
        **_all("Squeeze Unsqueeze", Operator(types=anything, constants=(1,))),
        **_all("ArgMax ArgMin", Operator(types=numbers)),
        "BatchNormalization": Operator(types=floats, attributes={"training_mode": 0}),
        "Constant": Operator(types=None),
        "ConstantOfShape": Operator(types=INTEGERS),
        **_all("Gelu HardSwish LayerNormalization", Operator(types=floats)),
        "Pad": Operator(types=numbers),
        "Shape": Operator(types=anything),
        "Split": Operator(types=anything, outputs=1 << 31),
        "TopK": Operator(types=numbers, outputs=2),
        "QuantizeLinear": Operator(types=floats, constants=(1, 2), zeros=(2,)),
        "DequantizeLinear": Operator(types=frozenset({"int8"}), constants=(1, 2), zeros=(2,)),
    }


# DOUBLE is in no list: every TensorRT takes it, and computes float32 without a word.
TYPES_8 = _union(ANYTHING, {"int8"})
IO_TYPES_8 = TYPES_8 - {"int64"}  # an int64 input becomes an int32 one
TYPES_10 = _union(ANYTHING, BFLOAT, {"int8", "uint8"})
TYPES_ORT = _union(
    TYPES_10,
    {"float64", "int16", "uint16", "uint32", "uint64", "string", "int4", "uint4"},
    {"float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz"},
)


def _jetson_8(jetpack: str, version: str, python: str, *more: str) -> Target:
    return Target(
        name=f"jetpack{jetpack}",
        runtime="tensorrt",
        version=version,
        opset=17,
        newest_opset=17,
        ir_version=8,
        operators=_tensorrt_8(*more),
        types=TYPES_8,
        io_types=IO_TYPES_8,
        narrow_integers=True,
        jetpack=jetpack,
        python=python,
    )


def _modern(
    name: str,
    runtime: str,
    version: str,
    *,
    jetpack: str | None = None,
    python: str = "",
    int8_note: str = "",
) -> Target:
    return Target(
        name=name,
        runtime=runtime,
        version=version,
        opset=NATIVE_OPSET,
        newest_opset=20,
        ir_version=10,
        operators=_tensorrt_10(),
        types=TYPES_10,
        io_types=TYPES_10,
        jetpack=jetpack,
        python=python or None,
        int8_note=int8_note,
    )


# Opset 20 is what TensorRT 10.0 knows; later ones know more (24 at 10.15), which is not needed.
# Opset 17 is what TensorRT 8.5 and 8.6 know.
TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        _jetson_8("5.1", "8.5.2", "3.8"),
        _jetson_8("6.0", "8.6.2", "3.10", "LayerNormalization"),
        _modern("jetpack6.2", "tensorrt", "10.3", jetpack="6.2", python="3.10"),
        _modern("jetpack7", "tensorrt", "10.13 to 10.16", jetpack="7", python="3.12"),
        _modern("tensorrt10", "tensorrt", "10"),
        _modern("tensorrt11", "tensorrt", "11"),
        _modern(
            "tensorrt-rtx",
            "tensorrt-rtx",
            "1.4 or later",
            int8_note="TensorRT for RTX 1.4 reads int8 segments and builds no engine of them; 1.7 "
            "does",
        ),
        Target(
            name="onnxruntime",
            runtime="onnxruntime",
            version="1.19 or later",
            opset=NATIVE_OPSET,
            newest_opset=21,
            ir_version=10,
            operators=None,
            types=TYPES_ORT,
            io_types=TYPES_ORT,
            subgraphs=True,
        ),
    )
}
