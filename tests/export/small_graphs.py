"""ONNX graphs written by hand, and two implementations that run them."""

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

FLOAT, HALF, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64


def node(kind, inputs, outputs, **attributes):
    """A node; inputs and outputs are names with blanks between them."""
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def value(name, shape, dtype=FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def graph(nodes, inputs, outputs, *, opset=18, ir_version=8, **constants):
    """A model of nodes; constants are arrays by name. It is not checked."""
    initializers = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    made = helper.make_graph(nodes, "small", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(made, opset_imports=opsets, ir_version=ir_version)


def valid_graph(*args, **keywords):
    made = graph(*args, **keywords)
    checker.check_model(made, full_check=True)
    return made


def run_reference(proto, feed):
    """What onnx's own numpy implementation computes, in exactly the types of the graph."""
    return ReferenceEvaluator(proto).run(None, feed)


def run_onnxruntime(proto, feed):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)


def kinds(proto):
    return [n.op_type for n in proto.graph.node]
