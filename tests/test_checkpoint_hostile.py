"""Files made to take memory, time or trust: each is one sentence, at almost no cost."""

import io
import pickle
import resource
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import compress
from compress.checkpoint import read_checkpoint
from compress.checkpoint.archive import TorchArchive
from compress.errors import CompressError, UserInputError
from compress.models.gfnet import GFNet
from compress.models.vgg import VGG


def network() -> VGG:
    torch.manual_seed(0)
    return VGG(widths=[[8], [16]], num_classes=5, hidden=[6], pooled=2).eval()


def rewritten(path, change, compression=zipfile.ZIP_STORED):
    """Write the archive at `path` anew, with `change(name, bytes)` of every member."""
    with zipfile.ZipFile(path) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, content in members.items():
            new.writestr(name, change(name, content))


def refused(path, words, **options):
    """Expect one sentence, in little memory and time."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserInputError, match=words) as caught:
        read_checkpoint(path, **options)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
    assert time.monotonic() - began < 10
    assert "\n" not in str(caught.value)


def peak_of_loading(path) -> int:
    """Return the peak of the memory in bytes of a process that tries to load the file."""
    code = (
        "import sys, resource, compress\nfrom compress.errors import CompressError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    compress.load(sys.argv[1]); print('loaded')\n"
        "except CompressError as err:\n    print('refused')\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print((after - before) * 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    answer, grown = done.stdout.split()
    assert answer == "refused", done.stdout + done.stderr
    return int(grown)


def test_an_expanded_value_takes_no_memory(tmp_path):
    state = network().state_dict()
    state["features.0.weight"] = torch.zeros((), dtype=torch.float16).expand(1 << 14, 1 << 14)
    torch.save(state, tmp_path / "net.pth")
    refused(
        tmp_path / "net.pth", r"features\.0\.weight .*268,435,456 values .*holds 1;.*contiguous"
    )


@pytest.mark.slow  # a process of its own imports torch
def test_the_peak_of_a_process_that_is_given_an_expanded_value(tmp_path):
    torch.save({"w": torch.zeros((), dtype=torch.float16).expand(1 << 30)}, tmp_path / "net.pth")
    assert peak_of_loading(tmp_path / "net.pth") < 200 << 20


def test_views_that_overlap_a_thousand_times_take_no_memory(tmp_path):
    block = torch.zeros(1 << 18, dtype=torch.float16)
    state = {f"w{i}": block[i : i + (1 << 17)] for i in range(2000)}
    torch.save(state, tmp_path / "net.pth")
    refused(tmp_path / "net.pth", "overlap claim .* of 524,288")


def test_tied_weights_stay_one_tensor(tmp_path):
    model = network()
    model.classifier[0].bias = model.features[0].bias = nn.Parameter(torch.arange(8.0)[:6])
    state = {"a.weight": model.features[0].bias, "b.weight": model.features[0].bias}
    torch.save(state, tmp_path / "net.pth")
    read = read_checkpoint(tmp_path / "net.pth", factory="a:b").state_dict
    assert torch.equal(read["a.weight"], torch.arange(6.0))
    assert read["a.weight"].data_ptr() == read["b.weight"].data_ptr()


def test_a_compressed_archive_is_refused(tmp_path):
    path = tmp_path / "net.pth"
    torch.save({"w": torch.zeros(1 << 22), "v": torch.zeros(1 << 22)}, path)
    rewritten(path, lambda name, content: content, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 18
    refused(path, "is compressed, which torch does not do")


def test_members_that_lie_over_one_another(tmp_path):
    path = tmp_path / "net.pth"
    torch.save({"w": torch.zeros(1 << 16), "v": torch.zeros(1 << 16)}, path)
    content = bytearray(path.read_bytes())
    places = [i for i in range(len(content)) if content[i : i + 4] == b"PK\x01\x02"]
    data = [i for i in places if b"/data/" in content[i + 46 : i + 66]]
    content[data[1] + 42 : data[1] + 46] = content[data[0] + 42 : data[0] + 46]
    path.write_bytes(content)
    refused(path, "lie over one another|cannot be read")


def test_a_size_that_the_file_does_not_hold(tmp_path):
    path = tmp_path / "net.pth"
    torch.save({"w": torch.zeros(3)}, path)
    # The storage says 3 values (BININT1 3, TUPLE), now a thousand million.
    big = b"J" + struct.pack("<i", 10**9)
    rewritten(path, lambda n, c: c.replace(b"K\x03t", big + b"t") if n.endswith(".pkl") else c)
    refused(path, "claims 4,000,000,000 bytes and 12 are there")


def test_a_tensor_that_reads_behind_its_values(tmp_path):
    path = tmp_path / "net.pth"
    torch.save({"w": torch.zeros(3)}, path)
    rewritten(path, lambda n, c: c.replace(b"K\x00K\x03\x85", b"K\x01K\x03\x85"))
    refused(path, "w reads behind the end of its values")


def test_the_bound_on_all_tensors(tmp_path):
    compress.save(network(), tmp_path / "net.pth")
    refused(tmp_path / "net.pth", r"as float32; expected at most 1e-06, .*--max-gib", max_gib=1e-6)
    # Half of the bytes in the file count twice, as they become float32.
    torch.save({"w": torch.zeros(1 << 18, dtype=torch.float16)}, tmp_path / "half.pth")
    refused(tmp_path / "half.pth", "--max-gib", max_gib=0.9 / 1024)


@pytest.mark.parametrize(
    "keys", [pytest.param(1_000_000, marks=pytest.mark.slow, id="million"), 20_000]
)
def test_keys_without_end(tmp_path, monkeypatch, keys):
    if keys < 1_000_000:
        monkeypatch.setattr("compress.checkpoint.pickle_outline.MAX_INSTRUCTIONS", 10_000)
    entries = b"".join(
        b"X" + struct.pack("<I", 7) + f"{i:07}".encode() + b"h\x01" for i in range(keys)
    )
    with zipfile.ZipFile(tmp_path / "net.pth", "w") as archive:
        archive.writestr("net/data.pkl", b"\x80\x02K\x01q\x01}(" + entries + b"u.")
        archive.writestr("net/version", "3")
    began = time.monotonic()
    with pytest.raises(UserInputError, match=r"takes more than .* instructions"):
        read_checkpoint(tmp_path / "net.pth")
    assert time.monotonic() - began < 20


def test_too_many_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr("compress.checkpoint.tensors.MAX_TENSORS", 10)
    torch.save({f"w{i}": torch.zeros(1) for i in range(11)}, tmp_path / "net.pth")
    refused(tmp_path / "net.pth", "has 11 tensors; expected at most 10")


def test_keys_that_take_for_ever_to_hash(tmp_path):
    nested = ()
    for _ in range(70):
        nested = (nested, nested)
    # Asking `pickle` for {nested: 1} would take as long as reading it.
    body = pickle.dumps(nested, 2)[2:-1]
    with zipfile.ZipFile(tmp_path / "net.pth", "w") as archive:
        archive.writestr("net/data.pkl", b"\x80\x02}(" + body + b"K\x01u.")
    refused(tmp_path / "net.pth", "holds no weights")


def test_copies_without_end(tmp_path):
    text = "a" * (1 << 20)
    body = b"X" + struct.pack("<I", len(text)) + text.encode() + b"q\x00"
    call = b"c_codecs\nencode\n" + b"h\x00\x85R"
    with zipfile.ZipFile(tmp_path / "net.pth", "w") as archive:
        archive.writestr("net/data.pkl", b"\x80\x02](" + body + call * 500 + b"e.")
    with pytest.raises(UserInputError, match="copies values without end"):
        read_checkpoint(tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        pytest.param(torch.empty(3, device="meta"), "meta device, without data", id="meta"),
        pytest.param(torch.eye(3).to_sparse(), "is sparse", id="sparse"),
        pytest.param(
            lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
            r"quantised weights \(a\.weight\).*float network",
            id="quantised",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*quantize")
def test_tensors_that_are_no_weights(tmp_path, tensor, words):
    tensor = tensor if isinstance(tensor, torch.Tensor) else tensor()
    torch.save({"a.weight": tensor, "b.weight": torch.zeros(2)}, tmp_path / "net.pth")
    refused(tmp_path / "net.pth", words)


@pytest.mark.filterwarnings("ignore:.*jit.script")
def test_a_torchscript_program_is_named(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "net.pt"))
    refused(tmp_path / "net.pt", "TorchScript program.*torch.jit.load")


# Configurations of our own files.


def with_config(path, **changes):
    content = torch.load(path, weights_only=True)
    content["config"].update(changes)
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"hidden": [8] * 20_000}, "20000 entries for hidden", id="blocks"),
        pytest.param({"hidden": None, "depth": 20_000}, "20000 for depth", id="depth"),
        pytest.param({"width": 2**40}, "for width", id="width"),
        pytest.param(
            {"grid": [4096, 4096], "image_size": [4096, 4096], "patch_size": 1},
            "grid of 4096x4096",
            id="grid",
        ),
        pytest.param({"hidden": "abc"}, "is 'a'; expected 1 to", id="kind"),
        pytest.param({"image_size": [0, None]}, "configuration|image size|a size", id="none"),
        pytest.param({"drop_path": "x"}, "configuration", id="text"),
    ],
)
def test_configurations_that_do_not_fit_their_tensors(tmp_path, changes, words):
    small = GFNet(image_size=16, patch_size=8, width=8, depth=2, num_classes=3)
    path = with_config(compress.save(small, tmp_path / "net.pth"), **changes)
    began = time.monotonic()
    with pytest.raises(CompressError, match=words):
        compress.load(path)
    assert time.monotonic() - began < 5


def test_layers_without_end_are_stopped_whatever_the_architecture(tmp_path, monkeypatch):
    class Endless(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList()
            for _ in range(100_000):
                self.layers.append(nn.ReLU())

    monkeypatch.setitem(compress.models.ARCHITECTURES, "endless", Endless)
    path = compress.save(network(), tmp_path / "net.pth")
    content = torch.load(path, weights_only=True)
    torch.save({**content, "arch": "endless", "config": {}}, path)
    with pytest.raises(UserInputError, match="more layers than the 18 tensors"):
        compress.load(path)
    nn.ModuleList(nn.ReLU() for _ in range(2000))  # and nobody else is counted


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"preprocessing": 3}, r"meta\.preprocessing .* is 3; expected a mapping"),
        ({"preprocessing": {"image_size": "big"}}, r"image_size .* is 'big'"),
        ({"preprocessing": {"mean": "abc"}}, r"mean .* expected a list of numbers"),
        ({"preprocessing": {"std": [1.0, 0.0]}}, r"std .* above 0"),
        ({"classes": 7}, r"meta\.classes .* is 7; expected a list of names"),
        ({"classes": ["a", 1]}, r"meta\.classes"),
        ({"data": ["digits"]}, r"meta\.data "),
        ({"data": {"name": 5}}, r"meta\.data\.name"),
        ({"metrics": "good"}, r"meta\.metrics"),
    ],
)
@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
def test_meta_of_a_wrong_type(tmp_path, name, meta, words):
    path = compress.save(network(), tmp_path / name, meta=meta)
    with pytest.raises(UserInputError, match=words):
        read_checkpoint(path)


@pytest.mark.parametrize("meta", [[1], "words", {1: 2}, {"x": torch.zeros(1)}, {"x": {"y": b"z"}}])
def test_meta_that_is_no_json(tmp_path, meta):
    path = compress.save(network(), tmp_path / "net.pth")
    torch.save({**torch.load(path, weights_only=True), "meta": meta}, path)
    with pytest.raises(UserInputError, match="meta of checkpoint"):
        read_checkpoint(path)


def test_meta_that_doubles_at_every_level(tmp_path):
    meta = {"x": 1}
    for _ in range(40):
        meta = {"a": meta, "b": meta}
    path = compress.save(network(), tmp_path / "net.pth")
    torch.save({**torch.load(path, weights_only=True), "meta": meta}, path)
    began = time.monotonic()
    with pytest.raises(UserInputError, match="nested deeper"):
        read_checkpoint(path)
    assert time.monotonic() - began < 10


# Damage.

SAVED: dict[str, bytes] = {}


def saved(kind: str) -> bytes:
    """Return a small file: "ours", "foreign", "ours.safetensors"."""
    if not SAVED:
        model = network()
        foreign = io.BytesIO()
        torch.save({"state_dict": model.state_dict(), "epoch": 3}, foreign)
        SAVED["foreign"] = foreign.getvalue()
        import tempfile
        from pathlib import Path

        with tempfile.TemporaryDirectory() as folder:
            for name in ("ours", "ours.safetensors"):
                SAVED[name] = compress.save(model, Path(folder) / name).read_bytes()
    return SAVED[kind]


def same_or_refused(path) -> None:
    try:
        loaded = compress.load(path)
    except CompressError:
        return
    for (name, mine), (_, its) in zip(
        network().state_dict().items(), loaded.state_dict().items(), strict=True
    ):
        assert torch.equal(mine, its), name


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(["ours", "foreign", "ours.safetensors"]), st.data())
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path, kind, data):
    content = bytearray(saved(kind))
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << bit % 8
    path = tmp_path / kind
    path.write_bytes(content)
    same_or_refused(path)


@pytest.mark.parametrize("kind", ["ours", "foreign", "ours.safetensors"])
def test_every_flipped_bit_in_weights_is_refused(tmp_path, kind):
    weights = network().state_dict()["classifier.0.weight"].numpy().tobytes()
    place = saved(kind).index(weights)
    for bit in range(0, len(weights) * 8, 401):
        content = bytearray(saved(kind))
        content[place + bit // 8] ^= 1 << bit % 8
        path = tmp_path / kind
        path.write_bytes(content)
        with pytest.raises(UserInputError, match=r"CRC-32|their sha256 differs"):
            read_checkpoint(path)


@pytest.mark.parametrize("kind", ["ours", "foreign"])
def test_a_torn_copy_is_refused(tmp_path, kind):
    """A block of the file is zeros, as after a crash."""
    content = saved(kind)
    for start in range(1024, len(content) - 1024, 1024):
        torn = content[:start] + bytes(512) + content[start + 512 :]
        path = tmp_path / kind
        path.write_bytes(torn)
        if torn != content:
            same_or_refused(path)


def test_weights_that_were_edited_are_noticed(tmp_path):
    path = compress.save(network(), tmp_path / "net.pth")
    content = torch.load(path, weights_only=True)
    content["state_dict"]["features.0.bias"] += 1
    torch.save(content, path)
    with pytest.raises(UserInputError, match="their sha256 differs"):
        read_checkpoint(path)


def test_the_checksum_does_not_know_the_kind_of_file(tmp_path):
    kinds = [compress.save(network(), tmp_path / name) for name in ("a.pth", "a.safetensors")]
    sums = []
    for path in kinds:
        if path.suffix == ".pth":
            sums.append(torch.load(path, weights_only=True)["tensors_sha256"])
        else:
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                import json

                sums.append(json.loads(file.metadata()["compress"])["tensors_sha256"])
    assert sums[0] == sums[1]
    assert len(sums[0]) == 64


def test_files_before_the_checksum_are_read(tmp_path):
    path = compress.save(network(), tmp_path / "net.pth")
    content = torch.load(path, weights_only=True)
    del content["tensors_sha256"]
    torch.save(content, path)
    same_or_refused(path)
    assert read_checkpoint(path).arch == "vgg"


def test_memory_is_counted_by_this_test(tmp_path):
    """What is read is not much more than the file, and the measure is not blind."""
    path = tmp_path / "net.pth"
    torch.save({"w": torch.zeros(1 << 22)}, path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with TorchArchive(path) as file:
        record = file.content["w"]
        assert file.bytes_of(record.storage).numel() == 1 << 24
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_an_old_file_whose_storage_is_too_long(tmp_path):
    path = tmp_path / "net.pth"
    torch.save(OrderedDict(w=torch.zeros(3)), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<q", 3) + bytes(12), struct.pack("<q", 10**12)))
    refused(path, "end behind the end of the file")
