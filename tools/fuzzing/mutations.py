"""Mutations that know no format, and those of JSON values."""

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["HOSTILE", "damage_bytes", "damage_file", "mutate_json", "mutate_json_file"]

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**40, 2**63, 2**70, -(2**63), 10**400),
    *(0.0, -0.5, 1.5, 1e-300, 1e300, float("nan"), float("inf"), -float("inf")),
    *("", "a", "0", "\x00", "\n# heading", "<script>alert(1)</script>", "\u202e", "é" * 100),
    *("../../etc/passwd", "/etc/passwd", "..", ".", "/dev/zero", "file\nname", "a" * 10_000),
    *([], {}, [[]], [None], {"": None}, [0] * 1000),
)


def damage_bytes(rng: random.Random, content: bytes) -> bytes:
    """Return the bytes with one to three changes: flips, cuts, copies, zeros."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        if not changed:
            return b""
        place = rng.randrange(len(changed))
        length = rng.choice((1, 4, 64, 512, 4096))
        way = rng.randrange(7)
        if way <= 1:
            changed[place] ^= 1 << rng.randrange(8)
        elif way == 2:
            del changed[place:]
        elif way == 3:
            changed[place : place + length] = bytes(len(changed[place : place + length]))
        elif way == 4:
            changed[place:place] = rng.randbytes(length)
        elif way == 5:
            del changed[place : place + length]
        else:
            changed[place : place + length] = b"\xff" * len(changed[place : place + length])
    return bytes(changed)


def damage_file(rng: random.Random, path: Path) -> None:
    """Damage a file in place."""
    path.write_bytes(damage_bytes(rng, path.read_bytes()))


def mutate_json(rng: random.Random, value: Any) -> Any:
    """Return JSON values with one to three entries replaced, removed, copied or nested."""
    for _ in range(rng.randint(1, 3)):
        value = _once(rng, value)
    return value


def mutate_json_file(rng: random.Random, path: Path) -> None:
    """Mutate a JSON file: mostly its values, sometimes its bytes."""
    if rng.random() < 0.2:
        damage_file(rng, path)
        return
    if rng.random() < 0.05:
        path.write_text("[" * 50_000 + "]" * 50_000, encoding="utf-8")
        return
    value = mutate_json(rng, json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(value), encoding="utf-8")


def _once(rng: random.Random, value: Any) -> Any:
    places = list(_places(value)) if isinstance(value, dict | list) else []
    if not places or rng.random() < 0.02:
        return copy.deepcopy(rng.choice(HOSTILE))
    holder, key = rng.choice(places)
    way = rng.randrange(6)
    if way <= 2:
        holder[key] = copy.deepcopy(rng.choice(HOSTILE))
    elif way == 3:
        del holder[key]
    elif way == 4:
        other, its = rng.choice(places)
        holder[key] = json.loads(json.dumps(other.get(its) if isinstance(other, dict) else None))
    else:
        inner = holder[key]
        for _ in range(rng.choice((1, 5, 100))):
            inner = [inner] if rng.random() < 0.5 else {"a": inner}
        holder[key] = inner
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    pending = [value]
    while pending:
        holder = pending.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            yield holder, key
            if isinstance(holder[key], dict | list):
                pending.append(holder[key])
