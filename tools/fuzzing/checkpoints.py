"""Checkpoints: the archive, the pickle in it, the tensors, the configuration; safetensors, too."""

import io
import json
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import compress
from compress.models.early_exit import EarlyExitNetwork
from compress.models.gfnet import GFNet
from compress.models.gfnet_dynn import GFNetDynn
from compress.models.give_exits import with_exits
from compress.models.vgg import VGG
from tools.fuzzing.kind import Kind
from tools.fuzzing.mutations import damage_bytes, damage_file, mutate_json

__all__ = ["checkpoints", "safetensors_files"]

TORCH_NAME, SAFE_NAME = "net.pth", "net.safetensors"


class _RunsCode:
    """Its pickle makes a folder "canary" in the working folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("canary",)


def checkpoints(folder: Path) -> Kind:
    """Return the kind of torch files, with seeds under `folder`."""
    seeds = []
    for i, model in enumerate(_networks()):
        # Names and shapes tell neither which frequencies a filter keeps nor where exits stand:
        # those are ours alone.
        own = isinstance(model, EarlyExitNetwork) or (
            isinstance(model, GFNet) and model.config["frequency_scale"]
        )
        for layout in ("ours",) if own else ("ours", "bare", "wrapped", "old"):
            seed = folder / f"checkpoint_{i}_{layout}"
            seed.mkdir(parents=True)
            _write(model, layout, seed / TORCH_NAME)
            seeds.append(seed)
    return Kind(name="checkpoint", seeds=tuple(seeds), mutate=_mutate, read=_load(TORCH_NAME))


def safetensors_files(folder: Path) -> Kind:
    """Return the kind of safetensors files, with seeds under `folder`."""
    seeds = []
    for i, model in enumerate(_networks()):
        seed = folder / f"safetensors_{i}"
        seed.mkdir(parents=True)
        compress.save(model, seed / SAFE_NAME)
        seeds.append(seed)
    return Kind(
        name="safetensors", seeds=tuple(seeds), mutate=_mutate_safetensors, read=_load(SAFE_NAME)
    )


def _networks() -> list[torch.nn.Module]:
    torch.manual_seed(0)
    small: dict[str, Any] = {
        "image_size": 16,
        "patch_size": 8,
        "width": 8,
        "depth": 3,
        "num_classes": 4,
    }
    return [
        VGG(widths=[[4], [6, 4]], num_classes=4, hidden=[5], pooled=2),
        GFNet(**small, frequency_scale=True, hidden_scale=True),
        GFNetDynn(**small, exits=[0, 1]),
        _with_exits(),
    ]


def _with_exits() -> EarlyExitNetwork:
    vgg = VGG(widths=[[4], [6, 4]], num_classes=4, hidden=[5], pooled=2)
    image = torch.zeros(1, 3, 16, 16)
    network = with_exits(vgg.eval(), ["features.2", "features.6"], image, head="conv:4")
    assert isinstance(network, EarlyExitNetwork)
    return network


def _write(model: torch.nn.Module, layout: str, path: Path) -> None:
    if layout == "ours":
        compress.save(model, path, meta=_META)
        return
    state = model.state_dict()
    wrapped = {"state_dict": {f"module.{n}": t for n, t in state.items()}, "epoch": 3, "ema": state}
    content: Any = wrapped if layout == "wrapped" else state
    torch.save(content, path, _use_new_zipfile_serialization=layout != "old")


_META = {
    "data": {"name": "digits", "sha256": "0" * 64},
    "classes": ["a", "b", "c", "d"],
    "preprocessing": {"image_size": 16, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
    "metrics": {"acc1": 90.0},
}


def _load(name: str) -> Any:
    def read(case: Path) -> None:
        compress.load(case / name)

    return read


def _mutate(rng: random.Random, case: Path) -> None:
    path = case / TORCH_NAME
    ways = [_mutate_content, _mutate_content]
    if zipfile.is_zipfile(path):
        ways += [_mutate_archive, _mutate_pickle, _mutate_pickle]
    way = rng.choice([damage_file, *ways])
    way(rng, path)


def _mutate_archive(rng: random.Random, path: Path) -> None:
    """Write the archive anew: compressed, members renamed, doubled, left out, damaged."""
    members = _members(path)
    compression = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            drawn = rng.random()
            if drawn < 0.1:
                continue
            if drawn < 0.2:
                content = damage_bytes(rng, content)
            if drawn > 0.95:
                name = rng.choice((f"../{name}", f"/{name}", name * 2, "x/data.pkl"))
            archive.writestr(name, content)
        if rng.random() < 0.2:
            archive.writestr("bomb/data/9", bytes(rng.choice((10, 1 << 26))))
        if rng.random() < 0.1:
            for i in range(20_000):
                archive.writestr(f"net/data/x{i}", b"")


def _mutate_pickle(rng: random.Random, path: Path) -> None:
    """Change the pickle, with a CRC that fits: instructions, sizes, names, code to run."""
    members = _members(path)
    name = next(name for name in members if name.endswith("data.pkl"))
    content = bytearray(members[name])
    way = rng.randrange(6)
    place = rng.randrange(len(content))
    if way == 0:
        content = bytearray(damage_bytes(rng, bytes(content)))
    elif way == 1:  # another instruction
        content[place] = rng.choice(b"(012NRQbtsueadlcq\x81\x85\x86\x87\x93\x94\x95\x96.")
    elif way == 2:  # another small number, which may be a size
        spots = [i for i, byte in enumerate(content) if byte == ord("K")]
        spot = rng.choice(spots)
        big = b"J" + struct.pack("<i", rng.choice((2**31 - 1, -1, 10**6)))
        content[spot : spot + 2] = big
    elif way == 3:  # code
        content = bytearray(pickle.dumps({"state_dict": _RunsCode(), "x": 1}, 2))
    elif way == 4:  # code in the middle
        code = b"cposix\nmkdir\nX\x06\x00\x00\x00canary\x85R0"
        content[2:2] = code
    else:
        content[2:2] = _bombs(rng)
    members[name] = bytes(content)
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)


def _bombs(rng: random.Random) -> bytes:
    """Instructions that take long or much, and leave the stack as it was."""
    nested = b")q\xf0" + b"h\xf0h\xf0\x86q\xf0" * 60
    return rng.choice(
        (
            b"}" + nested + b"Ns0",  # a key that hashes for ever
            b"\x96" + struct.pack("<Q", 2**40) + b"0",  # an array of a tebibyte
            b"\x8b" + struct.pack("<I", 2**31 - 1) + b"0",  # a number of two gigabytes
            b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"q\xf10" + b"h\xf10" * 5000,
            b"]" + b"2" * 200_000 + b"0" * 200_001,
            (b"(" * 100_000) + (b"t" * 100_000) + b"0",
            b"(" + b"]" * 1000 + b"e" * 1 + b"0",
            b"c__builtin__\neval\nX\x11\x00\x00\x00__import__('os')  \x85R0",
        )
    )


def _mutate_content(rng: random.Random, path: Path) -> None:
    """Change tensors or values, and save the file anew with torch."""
    content = torch.load(path, weights_only=True)
    ours = isinstance(content, dict) and "format" in content
    if ours and rng.random() < 0.7:
        part = rng.choice(("config", "config", "meta", "arch", "all"))
        if part == "all":
            head = {k: v for k, v in content.items() if k != "state_dict"}
            changed = mutate_json(rng, head)
            content = {**changed, "state_dict": content["state_dict"]} if _is_dict(changed) else {}
        elif content["arch"] == EarlyExitNetwork.arch and part == "config" and rng.random() < 0.5:
            _claim_exits(rng, content["config"])
        else:
            content[part] = mutate_json(rng, content[part])
    else:
        holder = content.get("state_dict", content)
        for _ in range(rng.randint(1, 3)):
            name = rng.choice(list(holder))
            _change_tensor(rng, holder, name)
        if ours and rng.random() < 0.8:
            content.pop("tensors_sha256", None)
    torch.save(content, path)


def _claim_exits(rng: random.Random, config: dict[str, Any]) -> None:
    """Let the configuration of a network with exits claim what takes long or much to build."""
    one = rng.choice(config["exits"])
    way = rng.randrange(8)
    if way == 0:
        one["at"] = rng.choice(("x" * 10**6, "features." * 10**5, "features", "", 7, None, ["a"]))
    elif way == 1:
        one["head"] = rng.choice(("conv:999999", "hidden:999999", "conv:8192", "conv", 5, None))
    elif way == 2:
        name = rng.choice(("channels", "dims", "inner", "channels_last"))
        one[name] = rng.choice((10**9, 2**70, -1, 0, 1.5, True, "4", None, [4]))
    elif way == 3:
        config["exits"] = [one] * rng.choice((0, 3, 10**3, 10**6))
    elif way == 4:
        config["num_classes"] = rng.choice((10**9, 2**70, 1, 0, -4, 2.5, "4", True, None))
    elif way == 5:  # backbones in backbones
        for _ in range(rng.choice((1, 3, 14, 1000))):
            config["backbone"] = {"arch": EarlyExitNetwork.arch, "config": dict(config)}
    elif way == 6:
        config["backbone"]["arch"] = rng.choice(("factory", "resnet", "gfnet_dynn", "", 3, None))
    else:
        factory = rng.choice(("os:getcwd", "canary:make", 5, None, ["x"]))
        config["backbone"] = {
            "arch": "factory",
            "config": rng.choice(({"factory": factory}, [1], 1)),
        }


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _change_tensor(rng: random.Random, holder: dict[str, Any], name: str) -> None:
    tensor = holder[name]
    if not isinstance(tensor, Tensor):
        return
    way = rng.randrange(12)
    if way == 0:
        del holder[name]
    elif way == 1:
        holder[f"{name}.{rng.choice(('x', '', 'weight', '9'))}"] = holder.pop(name)
    else:
        holder[name] = _changed(rng, tensor, way)


def _changed(rng: random.Random, tensor: Tensor, way: int) -> Any:
    value = tensor.reshape(-1)[:1].reshape(()).clone() if tensor.numel() else torch.zeros(())
    shape = [rng.choice((0, 1, 2, 3, 2**14, 2**20)) for _ in range(rng.randrange(6))]
    return {
        2: lambda: value.half().expand(1 << 14, 1 << rng.randrange(16)),
        3: lambda: torch.empty(tensor.shape, device="meta"),
        4: lambda: tensor.flatten(),
        5: lambda: tensor[None],
        6: lambda: value,
        7: lambda: tensor.to(rng.choice((torch.int8, torch.bool, torch.float64, torch.complex64))),
        8: lambda: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else value,
        9: lambda: rng.choice((None, 1, "x", [tensor], {"a": tensor}, {})),
        10: lambda: value.expand(shape),
        11: lambda: torch.zeros([s for s in shape if s < 4]),
    }[way]()


def _mutate_safetensors(rng: random.Random, case: Path) -> None:
    path = case / SAFE_NAME
    content = path.read_bytes()
    if rng.random() < 0.3:
        path.write_bytes(damage_bytes(rng, content))
        return
    size = int.from_bytes(content[:8], "little")
    head = json.loads(content[8 : 8 + size])
    if rng.random() < 0.5 and "__metadata__" in head:
        own = json.loads(head["__metadata__"]["compress"])
        own.pop("tensors_sha256", None)
        head["__metadata__"]["compress"] = json.dumps(mutate_json(rng, own))
    else:
        head = mutate_json(rng, head)
    text = json.dumps(head).encode()
    length = len(text) if rng.random() < 0.9 else rng.choice((0, 2**40, 2**63, len(text) + 1))
    path.write_bytes(struct.pack("<Q", length) + text + content[8 + size :])


def _members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        return {member.filename: archive.read(member) for member in archive.infolist()}
