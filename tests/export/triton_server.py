"""A stand-in for Triton: it reads config.pbtxt strictly, runs segments, and holds every tensor
against the configuration, as the server does.
"""

import importlib.util
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, text_format
from google.protobuf.message_factory import GetMessageClass


def _schema():
    """The part of Triton's ModelConfig that is used here: its own names and types of fields.

    The real parser of the text format reads against it, so an unknown field, a wrong type or a
    slip of syntax fails as it would in the server.
    """
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="triton_test")
    file.syntax = "proto3"
    kinds = {"string": 9, "int32": 5, "int64": 3, "enum": 14, "message": 11}

    def message(name, *fields, parent=file.message_type):
        made = parent.add(name=name)
        for number, (field, kind, *rest) in enumerate(fields, start=1):
            repeated = "repeated" in rest
            made.field.add(name=field, number=number, label=3 if repeated else 1, type=kinds[kind])
            types = [each for each in rest if each != "repeated"]
            if types:
                made.field[-1].type_name = f".triton_test.{types[0]}"
        return made

    def enum(name, *values, parent=file.enum_type):
        made = parent.add(name=name)
        for number, value in enumerate(values):
            made.value.add(name=value, number=number)

    types = ["INVALID", "BOOL", "INT32", "INT64", "FP16", "FP32"]
    enum("DataType", *(f"TYPE_{each}" for each in types))
    message("Reshape", ("shape", "int64", "repeated"))
    tensor = [("name", "string"), ("data_type", "enum", "DataType")]
    tensor += [("dims", "int64", "repeated"), ("reshape", "message", "Reshape")]
    message("ModelInput", *tensor)
    message("ModelOutput", *tensor)
    group = message(
        "ModelInstanceGroup", ("count", "int32"), ("kind", "enum", "ModelInstanceGroup.Kind")
    )
    enum("Kind", "KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL", parent=group.enum_type)
    message("ModelParameter", ("string_value", "string"))
    config = message(
        "ModelConfig",
        *(("name", "string"), ("platform", "string"), ("backend", "string")),
        ("max_batch_size", "int32"),
        ("input", "message", "repeated", "ModelInput"),
        ("output", "message", "repeated", "ModelOutput"),
        ("instance_group", "message", "repeated", "ModelInstanceGroup"),
        ("parameters", "message", "repeated", "ModelConfig.ParametersEntry"),
    )
    entry = message(
        "ParametersEntry",
        ("key", "string"),
        ("value", "message", "ModelParameter"),
        parent=config.nested_type,
    )
    entry.options.map_entry = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("triton_test.ModelConfig"))


ModelConfig = _schema()
NUMPY = {
    "TYPE_FP32": np.float32,
    "TYPE_FP16": np.float16,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_BOOL": np.bool_,
}


def read_config(folder):
    text = (folder / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, ModelConfig())


def type_of(io):
    return (
        ModelConfig.DESCRIPTOR.file.enum_types_by_name["DataType"]
        .values_by_number[io.data_type]
        .name
    )


def shape_in_file(config, io):
    """The shape that the server expects of the file: -1 where it adds the batch."""
    dims = list(io.reshape.shape) if io.HasField("reshape") else list(io.dims)
    return [-1, *dims] if config.max_batch_size else dims


def check_tensor(config, io, array):
    """Hold a tensor on its way in or out of a model against config.pbtxt."""
    assert array.dtype == NUMPY[type_of(io)], io.name
    shape = list(array.shape)
    if config.max_batch_size:
        assert 1 <= shape[0] <= config.max_batch_size, io.name
        shape = shape[1:]
    assert shape == list(io.dims), io.name


class ServerError(Exception):
    def message(self):
        return str(self)


class Tensor:
    """pb_utils.Tensor; with `device` its memory can be reached through DLPack alone."""

    def __init__(self, name, array, *, device=False):
        assert array.flags.c_contiguous
        self._name, self.array, self.device = name, array, device

    def name(self):
        return self._name

    def is_cpu(self):
        return not self.device

    def as_numpy(self):
        if self.device:
            raise ServerError("Tensor is stored in GPU and cannot be converted to NumPy.")
        return self.array

    def to_dlpack(self):
        holder = SimpleNamespace(capsule=self.array.__dlpack__(), tensor=self)
        HANDED[id(holder.capsule)] = holder
        return holder.capsule

    @staticmethod
    def from_dlpack(name, capsule):
        origin = HANDED.pop(id(capsule)).tensor
        return Tensor(name, origin.array, device=origin.device)


HANDED = {}


class Response:
    def __init__(self, output_tensors=(), error=None):
        self.tensors, self._error = list(output_tensors), error

    def has_error(self):
        return self._error is not None

    def error(self):
        return self._error


class TritonError:
    INTERNAL, INVALID_ARG = 1, 3

    def __init__(self, message, code=INTERNAL):
        self._message, self.code = message, code

    def message(self):
        return self._message


class Server:
    """The models of a repository, and what was asked of them."""

    def __init__(self, repository):
        self.configs = {each.name: read_config(each) for each in repository.iterdir()}
        self.sessions, self.calls, self.failing, self.device = {}, [], None, False
        for path in repository.glob("*/1/model.onnx"):
            self.sessions[path.parent.parent.name] = onnxruntime.InferenceSession(path)

    def run(self, name, inputs, wanted):
        config = self.configs[name]
        feeds = {}
        for io in config.input:
            (tensor,) = (each for each in inputs if each.name() == io.name)
            check_tensor(config, io, tensor.array)
            feeds[io.name] = tensor.array
        assert len(inputs) == len(feeds)
        self.calls.append((name, len(tensor.array), inputs))
        if name == self.failing:
            return Response(error=TritonError("out of memory"))
        found = self.sessions[name].run(wanted, feeds)
        tensors = []
        for io in config.output:
            if io.name in wanted:
                array = np.array(found[wanted.index(io.name)])  # a copy, and 0-d stays an array
                array = array.reshape(-1, *io.dims) if config.max_batch_size else array
                check_tensor(config, io, array)
                tensors.append(Tensor(io.name, array, device=self.device))
        return Response(tensors)

    def module(self):
        """A stand-in for triton_python_backend_utils, as servers since 23.09 have it."""
        server = self

        class InferenceRequest:
            def __init__(self, model_name, requested_output_names, inputs, preferred_memory=None):
                self.asked = model_name, inputs, requested_output_names
                self.preferred = preferred_memory

            def exec(self):
                server.preferred = self.preferred
                return server.run(*self.asked)

        def by_name(tensors, name):
            return next((each for each in tensors if each.name() == name), None)

        module = ModuleType("triton_python_backend_utils")
        module.Tensor, module.InferenceRequest = Tensor, InferenceRequest
        module.InferenceResponse, module.TritonError = Response, TritonError
        module.TritonModelException = ServerError
        module.TRITONSERVER_MEMORY_CPU = 0
        module.PreferredMemory = lambda kind, number: ("preferred", kind, number)
        module.get_input_tensor_by_name = lambda request, name: by_name(request.tensors, name)
        module.get_output_tensor_by_name = lambda answer, name: by_name(answer.tensors, name)
        return module


def load_model(repository, server, name="tiny", **parameters):
    """Import model.py from the repository, and initialise it, as the server does."""
    spec = importlib.util.spec_from_file_location(
        "triton_model", repository / name / "1" / "model.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = json_format.MessageToDict(server.configs[name], preserving_proto_field_name=True)
    for key, value in parameters.items():
        config["parameters"][key] = {"string_value": value}
    model = module.TritonPythonModel()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", server.module())
        model.initialize({"model_config": json.dumps(config), "model_name": name})
    model._cuda = None  # whatever this machine has
    return model


def request(images, parameters=None, *, device=False):
    return SimpleNamespace(
        tensors=[Tensor("image", images, device=device)],
        parameters=lambda: json.dumps(parameters or {}),
    )


def answer(model, server, images, parameters=None):
    """Send one request; hold the answer against the dispatcher's config.pbtxt."""
    server.calls.clear()
    (response,) = model.execute([request(images, parameters)])
    assert not response.has_error(), response.error().message()
    config = server.configs["tiny"]
    found = {each.name(): each.as_numpy() for each in response.tensors}
    assert set(found) == {io.name for io in config.output}
    for io in config.output:
        check_tensor(config, io, found[io.name])
    return found["logits"], found["exit"]
