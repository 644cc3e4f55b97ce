import onnx
import pytest

from compress.errors import UserInputError
from compress.export.targets import TARGETS, target
from tests.export.real_parser import VERSIONS, ask

TABLES = {name: t.operators for name, t in TARGETS.items() if t.operators is not None}


@pytest.mark.parametrize(
    ("name", "opset", "layer_norm", "gelu", "python"),
    [
        ("jetpack5.1", 17, False, False, "3.8"),
        ("jetpack6.0", 17, True, False, "3.10"),
        ("jetpack6.2", 18, True, True, "3.10"),
        ("jetpack7", 18, True, True, "3.12"),
        ("tensorrt10", 18, True, True, None),
        ("tensorrt11", 18, True, True, None),
        ("tensorrt-rtx", 18, True, True, None),
        ("onnxruntime", 18, True, True, None),
    ],
)
def test_what_the_release_notes_say(name, opset, layer_norm, gelu, python):
    found = target(name)
    assert (found.opset, found.python) == (opset, python)
    assert found.accepts("LayerNormalization") is layer_norm
    assert found.accepts("Gelu") is gelu
    assert found.opset <= found.newest_opset


def test_there_are_no_others():
    assert len(TARGETS) == 8
    assert all(name == t.name for name, t in TARGETS.items())


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("jetpack6", "jetpack6"), ("tensorrt", "tensorrt1"), ("onnx-runtime", "onnxruntime")],
)
def test_an_unknown_name_is_answered_with_the_nearest(wrong, near):
    with pytest.raises(UserInputError, match=rf"expected one of jetpack5.1.*did you mean '{near}"):
        target(wrong)


def test_a_name_like_no_other_gets_the_list_alone():
    with pytest.raises(UserInputError, match=r"'abc' is not known; expected one of [^;]*$"):
        target("abc")


def test_display_names_tell_what_runs_there():
    assert target("jetpack5.1").display_name == "jetpack5.1 (TensorRT 8.5.2)"
    assert target("tensorrt-rtx").display_name == "tensorrt-rtx (TensorRT for RTX 1.4 or later)"
    assert target("onnxruntime").display_name.startswith("onnxruntime (ONNX Runtime ")


@pytest.mark.parametrize("name", TABLES)
def test_every_operator_is_one_of_the_onnx_standard(name):
    assert [o for o in TABLES[name] if not onnx.defs.has(o)] == []


@pytest.mark.parametrize("name", TABLES)
def test_places_of_inputs_and_names_of_attributes_exist(name):
    for operator, accepted in TABLES[name].items():
        schema = onnx.defs.get_schema(operator, target(name).newest_opset)
        places = (*accepted.constants, *accepted.computed, *accepted.zeros)
        assert all(place < len(schema.inputs) for place in places), operator
        assert {*accepted.attributes, *accepted.ignored_attributes} <= {
            *schema.attributes,
            "dilations",
        }


def test_only_tensorrt_8_ignores_axes_and_wants_float_weights():
    for name, table in TABLES.items():
        old = name in ("jetpack5.1", "jetpack6.0")
        assert (table["ReduceMean"].ignored == (1,)) is old
        assert target(name).int8_float_weights is old
    assert not target("onnxruntime").int8_float_weights


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_the_real_parser_knows_every_operator_of_the_tables(version):
    operators = {name for table in TABLES.values() for name in table}
    _, supported = ask(version, operators=[*operators, "DFT", "QLinearConv"])
    assert {name for name, known in supported.items() if not known} == {"DFT", "QLinearConv"}
