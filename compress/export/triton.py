"""A bundle as a model repository of NVIDIA Triton Inference Server.

    repository/
        NAME/config.pbtxt               early exit: `image` in, `logits` and `exit` out
        NAME/1/model.py                 calls the segments (`compress/export/triton_bls.py`)
        NAME_segment_0/config.pbtxt     a segment
        NAME_segment_0/1/model.onnx     or model.plan, where the platform is "tensorrt"
        …

Triton's ensembles cannot stop in between, so the dispatcher is a Python model that calls the
others (business logic scripting), and hands on by name what crosses from segment to segment. Its
thresholds are a parameter of config.pbtxt: edit it, and reload the model. Outputs that a network
gives beside its logits are had from its segment's model.

`max_batch_size` says whether Triton itself adds the batch to `dims`. For a bundle with a batch of
1 to N it is N, and `dims` are those of one image. For a batch of 1 alone it is 0, and `dims` begin
with 1: above 0, Triton demands files whose first dimension is free, which these need not have.
Clients send and get the same shapes either way.

On a CPU, ONNX Runtime gives every segment threads of its own, which get in each other's way. Let
them share: `tritonserver --backend-config=onnxruntime,enable-global-threadpool=1` with
`--backend-config=onnxruntime,intra_op_thread_count=…`.
"""

import functools
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from compress.errors import UserInputError
from compress.files import replacing, replacing_folder, write_text
from compress.runtime.engines import EngineSet, read_engines
from compress.runtime.manifest import Manifest, TensorSpec, read_manifest

__all__ = ["PLATFORMS", "write_triton"]

PLATFORMS = ("onnxruntime", "tensorrt")
DTYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "bool": "TYPE_BOOL",
}


def write_triton(
    bundle: Path, repository: Path, *, platform: str = "onnxruntime", force: bool = False
) -> list[Path]:
    """Write a model repository: the segments of a bundle, and a model that dispatches.

    Args:
        bundle: its folder.
        repository: the folder to write. It appears whole or not at all.
        platform: "onnxruntime", or "tensorrt" for the engines that were built in the bundle; the
            server must have the TensorRT and the kind of GPU that they were built for.
        force: replace an existing repository, unless it holds models of another name too.

    Returns:
        The files that were written.

    Raises:
        UserInputError: the bundle or its engines cannot be used, or the folder must not be written.

    >>> write_triton(Path("digits.bundle"), Path("models"))  # doctest: +SKIP
    """
    bundle, repository = Path(bundle), Path(repository)
    manifest = read_manifest(bundle)
    engines = _engines(bundle, manifest, platform)
    _check_names(manifest)
    _check_classes(manifest, bundle)
    name = _model_name(manifest)
    _check_place(repository, name, force=force)
    with replacing_folder(repository, foreign_in=functools.partial(_foreign, name=name)) as part:
        for number in range(len(manifest.segments)):
            _write_segment(part, bundle, manifest, engines, number)
        _write_dispatcher(part / name, manifest)
        written = sorted(path.relative_to(part) for path in part.rglob("*") if path.is_file())
    return [repository / path for path in written]


def _engines(bundle: Path, manifest: Manifest, platform: str) -> EngineSet | None:
    if platform not in PLATFORMS:
        raise UserInputError(f"platform is {platform!r}; expected one of {', '.join(PLATFORMS)}")
    if platform == "onnxruntime":
        return None
    engines = read_engines(bundle, manifest)
    if engines.builder != "tensorrt":
        raise UserInputError(
            f"the engines of bundle {bundle} were built by {engines.builder}; Triton loads those "
            "of tensorrt, so build them with: python -m compress.build_engines --builder tensorrt "
            f"--force {bundle}"
        )
    return engines


def _check_names(manifest: Manifest) -> None:
    """Files of bundles of the format before call every tensor that crosses the same."""
    for segment in manifest.segments:
        for spec in (*segment.inputs, *segment.outputs):
            if spec.alias is not None:
                raise UserInputError(
                    f"segment {segment.file} calls {spec.name} {spec.alias!r:.60}, as bundles of "
                    "an earlier version do; expected the names of this one, by which Triton's "
                    "dispatcher hands tensors on, so export the bundle again"
                )


def _check_classes(manifest: Manifest, bundle: Path) -> None:
    if not manifest.classes:
        raise UserInputError(
            f"bundle {bundle} has no classes, as {manifest.name} is no classifier; expected one, "
            f"as Triton's dispatcher gives logits: give {manifest.segments[0].file} to Triton as a "
            "model of its own"
        )


def _model_name(manifest: Manifest) -> str:
    """Return the name of the network as a plain name of a folder and of a Triton model."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", manifest.name).strip("_-")[:100] or "network"


def _segment_name(manifest: Manifest, number: int) -> str:
    return f"{_model_name(manifest)}_segment_{number}"


def _check_place(repository: Path, name: str, *, force: bool) -> None:
    if not repository.exists():
        return
    if not repository.is_dir():
        raise UserInputError(f"model repository {repository} is a file; expected a folder")
    if not force:
        raise UserInputError(
            f"model repository {repository} exists; give another folder, or --force to replace it"
        )
    foreign = _foreign(repository, name)
    if foreign:
        raise UserInputError(
            f"model repository {repository} also holds {', '.join(foreign)[:200]}, which --force "
            "would delete; give another folder"
        )


def _foreign(repository: Path, name: str) -> list[str]:
    ours = re.compile(re.escape(name) + r"(_segment_\d+)?")
    return sorted(each.name for each in repository.iterdir() if not ours.fullmatch(each.name))


def _write_segment(
    repository: Path, bundle: Path, manifest: Manifest, engines: EngineSet | None, number: int
) -> None:
    segment, name = manifest.segments[number], _segment_name(manifest, number)
    if engines is None:
        source, target = segment.file, "model.onnx"
        head = f'name: "{name}"\nbackend: "onnxruntime"\n'
        kind = "KIND_AUTO"  # a GPU where the server has one
    else:
        source, target = engines.segments[number].file, "model.plan"
        head = f'{_origin(engines)}name: "{name}"\nplatform: "tensorrt_plan"\nbackend: "tensorrt"\n'
        kind = "KIND_GPU"
    _copy(bundle / source, repository / name / "1" / target)
    config = (
        head
        + f"max_batch_size: {_max_batch(manifest)}\n"
        + _tensors("input", segment.inputs, manifest)
        + _tensors("output", segment.outputs, manifest)
        + _instances(kind)
    )
    write_text(repository / name / "config.pbtxt", config)


def _origin(engines: EngineSet) -> str:
    """Return a comment that says which server can load the engines."""
    device = engines.device
    gpu = f"{device.name} ({device.compute_capability})" if device else "any GPU"
    return f"# Built by TensorRT {engines.tensorrt_version} for {gpu}; no other can load it.\n"


def _write_dispatcher(folder: Path, manifest: Manifest) -> None:
    (logits,) = (o for o in manifest.segments[-1].outputs if o.name == "logits")
    names = [_segment_name(manifest, number) for number in range(len(manifest.segments))]
    parameters = {
        "segments": ",".join(names),
        "takes": ";".join(",".join(spec.name for spec in s.inputs) for s in manifest.segments),
        "gives": ";".join(",".join(spec.name for spec in s.gives) for s in manifest.segments),
        "thresholds": ",".join(map(repr, manifest.thresholds)),  # repr: the very same float
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",  # an image in device memory stays there
    }
    config = (
        f'name: "{_model_name(manifest)}"\nbackend: "python"\n'
        f"max_batch_size: {_max_batch(manifest)}\n"
        + _tensors("input", [manifest.image], manifest)
        + _message("output", [_tensor(logits, manifest), _exit_tensor(manifest)])
        + _instances("KIND_CPU")
        + "".join(
            f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
            for key, value in parameters.items()
        )
    )
    _copy(Path(__file__).with_name("triton_bls.py"), folder / "1" / "model.py")
    write_text(folder / "config.pbtxt", config)


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as part:
        shutil.copyfile(source, part)


def _max_batch(manifest: Manifest) -> int:
    largest = manifest.batch[1]
    return largest if largest > 1 else 0


def _tensors(field: str, specs: Sequence[TensorSpec], manifest: Manifest) -> str:
    return _message(field, [_tensor(spec, manifest) for spec in specs])


def _tensor(spec: TensorSpec, manifest: Manifest) -> str:
    """Return the name, type and dims of a tensor.

    A model must not have empty `dims`, which a gate would have without the batch: it is shown to
    callers as (B, 1), and `reshape` says that the file itself gives (B,).
    """
    reshape = ""
    if _max_batch(manifest) == 0:
        shape: tuple[int, ...] = (1, *spec.shape)
    elif spec.shape:
        shape = spec.shape
    else:
        shape, reshape = (1,), " reshape { shape: [ ] }"
    dims = ", ".join(map(str, shape))
    return f'name: "{spec.name}" data_type: {DTYPES[spec.dtype]} dims: [ {dims} ]{reshape}'


def _exit_tensor(manifest: Manifest) -> str:
    dims = "1" if _max_batch(manifest) else "1, 1"
    return f'name: "exit" data_type: TYPE_INT32 dims: [ {dims} ]'


def _instances(kind: str) -> str:
    return _message("instance_group", [f"count: 1 kind: {kind}"])


def _message(field: str, items: Sequence[str]) -> str:
    body = ",\n".join(f"  {{ {item} }}" for item in items)
    return f"{field} [\n{body}\n]\n"
