"""What `TensorRTCompiler` needs of TensorRT, recorded: for the logic around a build."""

import hashlib
from types import ModuleType, SimpleNamespace

import onnx
from onnx import TensorProto

GENERATIONS = {
    8: (["EXPLICIT_BATCH"], ["FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"]),
    10: (["EXPLICIT_BATCH", "STRONGLY_TYPED"], ["FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"]),
    11: (["STRONGLY_TYPED"], []),
}


class FakeTensorRT(ModuleType):
    """What `TensorRTCompiler` needs of TensorRT, with the flags of one of its generations.

    It records what it is told, builds engines out of the ONNX file's sha256, and refuses names
    that the generation does not have, as any module does.
    """

    def __init__(self, generation: int, version: str = "10.3.0.30") -> None:
        super().__init__("tensorrt")
        self.__version__ = version
        self.flags, self.builds, self.caches = [], [], []
        self.layers = []  # of each network whose layers were asked for
        self.DataType = SimpleNamespace(FLOAT=TensorProto.FLOAT)
        self.LayerType = SimpleNamespace(CONSTANT="CONSTANT")
        self.fails = ""
        self.says = ["out of\nmemory"]
        network_flags, builder_flags = GENERATIONS[generation]
        self.NetworkDefinitionCreationFlag = SimpleNamespace(
            **{name: place for place, name in enumerate(network_flags)}
        )
        self.BuilderFlag = SimpleNamespace(**{name: name for name in builder_flags})
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
        self.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
        fake = self

        class ILogger:
            Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)

        class Cache:
            def __init__(self, content):
                self.content = content

            def serialize(self):
                return self.content + b"+"

        class Config:
            def __init__(self):
                self.flags, self.limits, self.profiles = [], [], []
                self.cache = None
                if generation != 8:
                    self.builder_optimization_level = 3

            def set_memory_pool_limit(self, pool, size):
                self.limits.append((pool, size))

            def set_flag(self, flag):
                self.flags.append(flag)

            def add_optimization_profile(self, profile):
                self.profiles.append(profile.shapes)

            def create_timing_cache(self, content):
                return Cache(bytes(content))

            def set_timing_cache(self, cache, ignore_mismatch):
                assert ignore_mismatch is False
                self.cache = cache.content
                return cache.content.strip(b"+") == b""

        class Layer:
            """A node of the file, with the types that ONNX infers; it notes what it is told."""

            def __init__(self, node, types):
                self.name = node.op_type if not node.name else node.name
                self.type = node.op_type.upper()
                self.inputs = [types.get(name) for name in node.input if name]
                self.outputs = [types.get(name) for name in node.output]
                self.output_types = {}
                self.precision = None
                self.num_inputs, self.num_outputs = len(self.inputs), len(self.outputs)

            def get_input(self, place):
                return SimpleNamespace(dtype=self.inputs[place])

            def get_output(self, place):
                return SimpleNamespace(dtype=self.outputs[place])

            def set_output_type(self, place, dtype):
                self.output_types[place] = dtype

        class Network:
            @property
            def layers(self):
                if not hasattr(self, "_layers"):
                    graph = onnx.shape_inference.infer_shapes(self.model).graph
                    values = [*graph.input, *graph.output, *graph.value_info]
                    types = {v.name: v.type.tensor_type.elem_type for v in values}
                    types.update({t.name: t.data_type for t in graph.initializer})
                    self._layers = [Layer(node, types) for node in graph.node]
                    fake.layers.append(self._layers)
                return self._layers

            @property
            def num_layers(self):
                return len(self.layers)

            def get_layer(self, place):
                return self.layers[place]

            def tensor(self, value):
                kind = value.type.tensor_type
                sizes = [d.dim_value or -1 for d in kind.shape.dim]
                dtype = TensorProto.DataType.Name(kind.elem_type).replace("FLOAT16", "HALF")
                return SimpleNamespace(
                    name=value.name, shape=sizes, dtype=SimpleNamespace(name=dtype)
                )

            def get_input(self, place):
                return self.tensor(self.model.graph.input[place])

            def get_output(self, place):
                return self.tensor(self.model.graph.output[place])

            @property
            def num_inputs(self):
                return len(self.model.graph.input)

            @property
            def num_outputs(self):
                return len(self.model.graph.output)

        class OnnxParser:
            def __init__(self, network, logger):
                self.network = network
                self.num_errors = 0

            def parse(self, content):
                self.network.model = onnx.load_from_string(content)
                self.network.content = content
                bad = [n for n in self.network.model.graph.node if n.op_type == "DFT"]
                self.num_errors = len(bad)
                return not bad

            def get_error(self, place):
                told = {
                    "node": lambda: 3,
                    "desc": lambda: "No importer\n  for DFT",
                    "code": lambda: SimpleNamespace(name="UNSUPPORTED_NODE"),
                }
                if generation != 8:
                    told["node_name"], told["node_operator"] = lambda: "the_DFT_9", lambda: "DFT"
                return SimpleNamespace(**told)

        class Builder:
            def __init__(self, logger):
                self.logger = logger
                if fake.fails == "start":
                    raise TypeError("factory function returned nullptr")

            def create_network(self, flags):
                fake.flags.append(flags)
                return Network()

            def create_builder_config(self):
                return Config()

            def create_optimization_profile(self):
                profile = SimpleNamespace(shapes=[])
                profile.set_shape = lambda *shape: profile.shapes.append(shape)
                return profile

            def build_serialized_network(self, network, config):
                fake.builds.append(config)
                if len(fake.builds) == fake.fails:
                    for message in fake.says:
                        self.logger.log(ILogger.Severity.ERROR, message)
                    return None
                return b"engine of " + hashlib.sha256(network.content).digest() + bytes([salt()])

        def salt():
            return len(fake.builds)

        self.ILogger, self.OnnxParser, self.Builder = ILogger, OnnxParser, Builder
