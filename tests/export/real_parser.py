"""NVIDIA's own ONNX parser, in a process of its own: see tools/tensorrt_fixtures.py."""

import json
import os
import subprocess
import sys

import pytest

from tools.tensorrt_fixtures import FOLDER, is_installed

VERSIONS = ("rtx-1.4", "rtx-1.7")  # the parser of TensorRT 10, of TensorRT 11

SCRIPT = """
import json, sys
import tensorrt_rtx as trt

asked = json.load(sys.stdin)
logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
builder = trt.Builder(logger)
flags = 0
for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED"):
    flag = getattr(trt.NetworkDefinitionCreationFlag, name, None)
    flags |= 0 if flag is None else 1 << int(flag)


def errors(path):
    network = builder.create_network(flags)  # must outlive its parser, which only points to it
    parser = trt.OnnxParser(network, logger)
    with open(path, "rb") as file:
        parser.parse(file.read())
    return [parser.get_error(i).desc() for i in range(parser.num_errors)]


def built(path):
    # bytes of an engine for a batch of one to three, or None
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    with open(path, "rb") as file:
        parser.parse(file.read())
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        sizes = [tuple([n, *tuple(tensor.shape)[1:]]) for n in (1, 2, 3)]
        profile.set_shape(tensor.name, *sizes)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    return None if engine is None else engine.nbytes


network = builder.create_network(flags)
parser = trt.OnnxParser(network, logger)
answer = {
    "built": {path: built(path) for path in asked["build"]},
    "errors": {path: errors(path) for path in asked["files"]},
    "supported": {name: parser.supports_operator(name) for name in asked["operators"]},
}
json.dump(answer, sys.stdout)
"""


def ask(version, *, files=(), operators=()):
    """Return the parser's errors per file, and whether it knows each operator."""
    answer = _answer(version, files=files, operators=operators)
    return answer["errors"], answer["supported"]


def build(version, files):
    """Return the bytes of the engine of each file, None where the builder makes none."""
    return _answer(version, build=files)["built"]


def _answer(version, *, files=(), operators=(), build=()):
    if not is_installed(FOLDER, version):
        pytest.skip("needs: python tools/tensorrt_fixtures.py")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(
            {"files": [*map(str, files)], "operators": [*operators], "build": [*map(str, build)]}
        ),
        env={**os.environ, "PYTHONPATH": str(FOLDER / version)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout[done.stdout.index("{") :])
