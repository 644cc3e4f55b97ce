"""Plans, replay tables, device profiles, recipes: what one step writes and another reads."""

import io
import json
import random
import shutil
import zipfile
from pathlib import Path

import yaml

from compress.exits.replay import load_replay
from compress.planning.plan import read_plan
from compress.recipe.catalogue import shipped_recipes
from compress.recipe.schema import read_recipe
from compress.runtime.device_profile import read_device_profile, shipped_profiles
from tools.fuzzing.kind import Kind
from tools.fuzzing.mutations import (
    HOSTILE,
    damage_bytes,
    damage_file,
    mutate_json,
    mutate_json_file,
)

__all__ = ["plans", "profiles", "recipes", "replay_tables"]

YAML_WORDS = (
    *(
        "!!int abc",
        "!!float x",
        "!!bool q",
        "2023-99-99",
        "1" * 5000,
        "&a [*a]",
        "!!python/name:os",
    ),
    *("!!python/object/apply:os.mkdir [canary]", "[" * 200 + "]" * 200, "!!binary x", "? {}", "*b"),
    *("!!timestamp 1", "{a: 1, a: 2}", "0x" + "f" * 500, "<<: 3", "!!set {a}", "1e999999"),
    *(
        "!!omap [1]",
        "{[1]: 2}",
        "\ttab",
        "!!python/name:os",
        "'",
        "|",
        "190:20:30",
        "!!null x",
        "\ufeff",
        "%YAML 9",
    ),
)


def plans(folder: Path, plan: Path) -> Kind:
    """Return the kind of exit plans."""
    seed = folder / "plan"
    seed.mkdir()
    shutil.copy(plan, seed / "plan.json")
    return Kind(
        name="plan",
        seeds=(seed,),
        mutate=lambda rng, case: mutate_json_file(rng, case / "plan.json"),
        read=lambda case: _nothing(read_plan(case / "plan.json")),
    )


def profiles(folder: Path) -> Kind:
    """Return the kind of device profiles, those that are shipped."""
    seeds = []
    for name, path in shipped_profiles().items():
        seed = folder / f"profile_{name}"
        seed.mkdir()
        shutil.copy(path, seed / "profile.json")
        seeds.append(seed)
    return Kind(
        name="profile",
        seeds=tuple(seeds),
        mutate=lambda rng, case: mutate_json_file(rng, case / "profile.json"),
        read=lambda case: _nothing(read_device_profile(case / "profile.json")),
    )


def replay_tables(folder: Path, table: Path) -> Kind:
    """Return the kind of replay tables."""
    seed = folder / "replay"
    seed.mkdir()
    shutil.copy(table, seed / "table.npz")
    return Kind(
        name="replay",
        seeds=(seed,),
        mutate=_mutate_replay,
        read=lambda case: _nothing(load_replay(case / "table.npz")),
    )


def recipes(folder: Path) -> Kind:
    """Return the kind of recipes, those that are shipped, with options set on the command line."""
    seeds = []
    for recipe in shipped_recipes():
        seed = folder / f"recipe_{recipe.path.stem}"
        seed.mkdir()
        shutil.copy(recipe.path, seed / "recipe.yaml")
        (seed / "overrides.json").write_text("[]")
        seeds.append(seed)
    return Kind(name="recipe", seeds=tuple(seeds), mutate=_mutate_recipe, read=_read_recipe)


def _nothing(_value: object) -> None:
    return None


def _mutate_replay(rng: random.Random, case: Path) -> None:
    path = case / "table.npz"
    if rng.random() < 0.3:
        damage_file(rng, path)
        return
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    name = rng.choice(list(members))
    content = members[name]
    if rng.random() < 0.5:  # the header of an array: type, order, shape
        end = content.index(b"\n")
        shape = rng.choice((b"(0,)", b"(1099511627776,)", b"(-1,)", b"()", b"(2, 2)", b"(((((("))
        dtype = rng.choice((b"'|O'", b"'<f4'", b"'<i8'", b"'|V9'", b"'<U9'", b"[('a', '|O')]"))
        text = b"{'descr': %s, 'fortran_order': False, 'shape': %s, }" % (dtype, shape)
        head = text[: end - 11].ljust(end - 10)
        members[name] = content[:10] + head + content[end:]
    else:
        members[name] = damage_bytes(rng, content)
    way = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(path, "w", way) as archive:
        for member, data in members.items():
            archive.writestr(member, data)


def _mutate_recipe(rng: random.Random, case: Path) -> None:
    path = case / "recipe.yaml"
    text = path.read_text(encoding="utf-8")
    way = rng.randrange(5)
    if way == 0:
        damage_file(rng, path)
    elif way == 1:
        value = mutate_json(rng, json.loads(json.dumps(yaml.safe_load(text), default=str)))
        path.write_text(json.dumps(value), encoding="utf-8")  # JSON is YAML
    elif way == 2:
        lines = text.splitlines()
        places = [i for i, line in enumerate(lines) if ": " in line and not line.startswith("#")]
        place = rng.choice(places)
        lines[place] = f"{lines[place].split(': ')[0]}: {rng.choice(YAML_WORDS)}"
        path.write_text("\n".join(lines), encoding="utf-8")
    elif way == 3:
        path.write_text(_bomb(rng) + text, encoding="utf-8")
    else:
        keys = ("seed", "train.epochs", "finetune.lr", "slim.ratio", "data", "name", "x", "a.b.c.d")
        words = (*YAML_WORDS, *map(str, HOSTILE))
        chosen = [f"{rng.choice(keys)}={rng.choice(words)}" for _ in range(rng.randint(1, 3))]
        (case / "overrides.json").write_text(json.dumps(chosen))


def _bomb(rng: random.Random) -> str:
    doubling = "".join(f"l{i}: &l{i} [{f'*l{i - 1}, ' * 9}]\n" for i in range(1, 12))
    return rng.choice(
        (
            "l0: &l0 [lol]\n" + doubling,
            "x: &x {y: *x}\n",
            "deep: " + "[" * 3000 + "]" * 3000 + "\n",
            "x: " + "a" * (2 << 20) + "\n",
        )
    )


def _read_recipe(case: Path) -> None:
    overrides = json.loads((case / "overrides.json").read_text())
    read_recipe(case / "recipe.yaml", overrides)
