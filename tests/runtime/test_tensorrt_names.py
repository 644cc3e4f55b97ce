"""Every name of TensorRT that the code uses exists in the versions that it is meant for.

The names come from the syntax tree: whatever is reached from a value of type Any is taken for an
object of TensorRT, and `RECEIVERS` tells its class. The versions are NVIDIA's own Python modules.
Those of TensorRT itself need its libraries, which need a GPU to be of use; but to import them takes
no more than libraries that have the right names in them, and these a C compiler makes.
"""

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from compress.runtime import tensorrt_backend, tensorrt_compiler, tensorrt_engine
from tools.tensorrt_fixtures import FOLDER, is_installed, wanted

FILES = [Path(m.__file__) for m in (tensorrt_backend, tensorrt_compiler, tensorrt_engine)]

# What is reached from Any, as it is written, and its class; "" is the module, None not TensorRT's.
RECEIVERS = {
    "trt": "",
    "self._trt": "",
    "self._builder": "Builder",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "fault": "ParserError",
    "fault.code()": "ErrorCode",
    "tensor": "ITensor",
    "tensor.dtype": "DataType",
    "layer": "ILayer",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "engine.get_tensor_dtype(name)": "DataType",
    "context": "IExecutionContext",
    "preview": "PreviewFeature",
    "severities": "ILogger.Severity",
    "severity": "ILogger.Severity",
    "self._messages": None,
    "levels": None,
    "names": None,
    "runtimes": None,
    "spec": None,
}

# Names that not every version has. Each version has one of a group, and the code asks which.
ALTERNATIVES = [
    {
        "NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    },
    {"NetworkDefinitionCreationFlag.STRONGLY_TYPED", "BuilderFlag.FP16"},
    {"NetworkDefinitionCreationFlag.STRONGLY_TYPED", "BuilderFlag.INT8"},
    {
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "BuilderFlag.OBEY_PRECISION_CONSTRAINTS",
    },
    {"NetworkDefinitionCreationFlag.STRONGLY_TYPED", "ILayer.precision"},
    {"NetworkDefinitionCreationFlag.STRONGLY_TYPED", "ILayer.set_output_type"},
    {"ParserError.node_name", "ParserError.node"},
    {"ParserError.node_operator", "ParserError.desc"},
    {"ICudaEngine.device_memory_size_v2", "ICudaEngine.device_memory_size"},
    {
        "ICudaEngine.create_execution_context_without_device_memory",
        "ExecutionContextAllocationStrategy.USER_MANAGED",
    },
    {
        "ICudaEngine.create_execution_context_without_device_memory",
        "ExecutionContextAllocationStrategy",
    },
    {"IExecutionContext.set_device_memory", "IExecutionContext.device_memory"},
    {
        "PreviewFeature.PROFILE_SHARING_0806",
        "ICudaEngine.create_execution_context_without_device_memory",
        "ExecutionContextAllocationStrategy",
    },
    {
        "PreviewFeature",
        "ICudaEngine.create_execution_context_without_device_memory",
        "ExecutionContextAllocationStrategy",
    },
]


@dataclass
class Names:
    """What one function reaches from values of type Any."""

    where: str
    used: set = field(default_factory=set)  # "Class.name"
    asked: set = field(default_factory=set)  # in hasattr and getattr
    receivers: set = field(default_factory=set)  # that are declared
    unknown: set = field(default_factory=set)  # and that are not


def functions_of(tree: ast.AST):
    """Yield each function with the functions around it, outermost first."""

    def visit(node, around):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                yield [*around, child]
                yield from visit(child, [*around, child])
            else:
                yield from visit(child, around)

    yield from visit(tree, [])


def own_nodes(function: ast.FunctionDef):
    """Yield the nodes of a function, but not those of functions inside it."""
    waiting = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [
            child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.FunctionDef)
        ]


def mentions(node: ast.AST, names: set) -> bool:
    return any(
        isinstance(part, ast.Name | ast.Attribute) and ast.unparse(part) in names
        for part in ast.walk(node)
    )


def spread(function: ast.FunctionDef, names: set) -> None:
    """Add to `names` all that is assigned from one of them, until nothing is added."""
    size = -1
    while size != len(names):
        size = len(names)
        for node in own_nodes(function):
            if isinstance(node, ast.Assign) and mentions(node.value, names):
                targets = node.targets
            elif isinstance(node, ast.For | ast.comprehension) and mentions(node.iter, names):
                targets = [node.target]
            else:
                continue
            for target in targets:
                parts = target.elts if isinstance(target, ast.Tuple) else [target]
                names |= {ast.unparse(part) for part in parts}


def is_any(annotation: ast.AST | None) -> bool:
    return annotation is not None and "Any" in ast.unparse(annotation)


def names_of(path: Path) -> list[Names]:
    """Collect what the functions of a file reach from values of type Any."""
    chains = list(functions_of(ast.parse(path.read_text(encoding="utf-8"))))
    shared = set(GIVE_ANY)  # with the attributes of self, which every method knows
    found = []
    for last in (False, True):  # the second time with all that the first found on self
        for chain in chains:
            reached = set(shared)
            for function in chain:
                arguments = [*function.args.args, *function.args.kwonlyargs]
                reached -= {each.arg for each in arguments}
                reached |= {each.arg for each in arguments if is_any(each.annotation)}
                spread(function, reached)
            shared |= {name for name in reached if name.startswith("self.")}
            if last:
                found.append(names_in(chain[-1], reached, path))
    return found


def names_in(function: ast.FunctionDef, reached: set, path: Path) -> Names:
    names = Names(f"{path.name}: {function.name}")
    for node in own_nodes(function):
        asks = isinstance(node, ast.Call) and ast.unparse(node.func) in ("hasattr", "getattr")
        if asks:
            receiver, name = node.args[0], ast.literal_eval(node.args[1])
        elif isinstance(node, ast.Attribute):
            receiver, name = node.value, node.attr
        else:
            continue
        written = ast.unparse(receiver)
        if written == "self" or not mentions(receiver, reached):
            continue
        owner = RECEIVERS.get(written, class_written_out(written))
        if owner is not None:
            (names.asked if asks else names.used).add(f"{owner}.{name}".lstrip("."))
        if written in RECEIVERS:
            names.receivers.add(written)
        elif owner is None:
            names.unknown.add(written)
    return names


def class_written_out(receiver: str):
    """Return "BuilderFlag" of "trt.BuilderFlag"; None of anything else."""
    found = re.fullmatch(r"(?:self\._)?trt\.([A-Z][\w.]*)", receiver)
    return found and found[1]


GIVE_ANY = {
    spelling
    for path in FILES
    for *_, function in functions_of(ast.parse(path.read_text(encoding="utf-8")))
    for spelling in (function.name, f"self.{function.name}")
    if is_any(function.returns)
}
FOUND = [names for path in FILES for names in names_of(path)]
USED = set().union(*(names.used | names.asked for names in FOUND))


def test_every_object_of_tensorrt_is_of_a_declared_class():
    assert {names.where: names.unknown for names in FOUND if names.unknown} == {}


def test_nothing_is_declared_that_is_not_used():
    receivers = set().union(*(names.receivers for names in FOUND))
    assert receivers == set(RECEIVERS)
    assert set().union(*ALTERNATIVES) <= USED


def test_the_walk_finds_what_a_reader_finds():
    """A few names that stand in the files today, of each kind of receiver."""
    assert {
        "Builder.build_serialized_network",  # on a local that was unpacked from attributes
        "OnnxParser",  # a class
        "ITensor.dtype",  # on a loop variable
        "BuilderFlag.INT8",  # an enumeration
        "IExecutionContext.execute_async_v3",  # on an argument
        "ICudaEngine.device_memory_size_v2",  # asked for
    } <= USED


def test_where_versions_differ_the_function_asks():
    for names in FOUND:
        for group in ALTERNATIVES:
            if names.used & group:
                assert names.asked & group, f"{names.where} uses one of {group} and asks for none"


STUB = """
#define NOTHING(name) void *name(void) { return 0; }
NOTHING(createInferBuilder_INTERNAL)
NOTHING(createInferRuntime_INTERNAL)
NOTHING(createInferRefitter_INTERNAL)
NOTHING(createNvOnnxParser_INTERNAL)
NOTHING(createNvOnnxParserRefitter_INTERNAL)
NOTHING(getNvOnnxParserVersion)
NOTHING(getPluginRegistry)
NOTHING(getBuilderPluginRegistry)
NOTHING(initLibNvInferPlugins)
/* TensorRT 8 has parsers of Caffe and UFF too. */
NOTHING(_ZN11nvuffparser15createUffParserEv)
NOTHING(_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi)
NOTHING(_ZN14nvcaffeparser117createCaffeParserEv)
NOTHING(_ZN14nvcaffeparser123shutdownProtobufLibraryEv)
"""

LOOK_UP = """
import importlib, json, sys

trt = importlib.import_module(sys.argv[1])

def is_there(name):
    owner = trt
    for part in name.split("."):
        if not hasattr(owner, part):
            return False
        owner = getattr(owner, part)
    return True

print(json.dumps([name for name in json.load(sys.stdin) if not is_there(name)]))
"""


def stub_libraries(package: Path, folder: Path) -> None:
    """Make every library of NVIDIA's that a package asks for, with nothing in it."""
    source = folder / "stub.c"
    source.write_text(STUB)
    content = next(package.glob("*/tensorrt.so")).read_bytes()
    libraries = set(re.findall(rb"\0(libnv\w+\.so\.\d+)(?=\0)", content))
    assert len(libraries) >= 3
    for library in libraries:
        target = folder / library.decode()
        subprocess.run(["cc", "-shared", "-fPIC", "-o", target, source], check=True)


def missing_names(version: str, folder: Path) -> set:
    """Return which of the names that the code uses a version does not have."""
    package = FOLDER / version
    assert is_installed(FOLDER, version), (
        f"{package} is not there or is of another Python; run: python tools/tensorrt_fixtures.py"
    )
    module, environment = "tensorrt_rtx", {**os.environ, "PYTHONPATH": str(package)}
    if version.startswith("bindings"):
        stub_libraries(package, folder)
        module, environment["LD_LIBRARY_PATH"] = "tensorrt_bindings", str(folder)
    done = subprocess.run(
        [sys.executable, "-c", LOOK_UP, module],
        input=json.dumps(sorted(USED)),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.parametrize("version", wanted())
def test_every_name_is_there_or_has_an_alternative_that_is(version, tmp_path):
    missing = missing_names(version, tmp_path)
    assert missing <= set().union(*ALTERNATIVES)
    for group in ALTERNATIVES:
        assert group - missing, f"{version} has none of {group}"


@pytest.mark.slow
def test_names_that_no_version_has_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "USED", {"Builder.build_cuda_engine", "Builder"})
    assert missing_names("bindings-11.4.0", tmp_path) == {"Builder.build_cuda_engine"}
