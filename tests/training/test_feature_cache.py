import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import compress.training.feature_cache as feature_cache
from compress.errors import CompressError, UserInputError
from compress.models.gfnet_dynn import GFNetDynn, gfnet_with_exits
from compress.training.feature_cache import FeatureData, backbone_sha256, cached_features
from tests.training.exit_fakes import exit_data, tiny_dynn
from tests.training.fakes import FakeData, FakeSplit


class Watched(FakeSplit):
    """Remembers which images were asked for, and may fail at one of them."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__(count, seed)
        self.seen: list[int] = []
        self.breaks_at: int | None = None

    def images(self, indices: Tensor) -> Tensor:
        if self.breaks_at in indices.tolist():
            raise KeyboardInterrupt
        if len(indices) > 1:  # a single one is looked at for its shape
            self.seen += indices.tolist()
        return super().images(indices)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "BLOCK_ROWS", 10)


def watched_data() -> FakeData:
    return FakeData(splits={"train": Watched(48, 1), "validation": Watched(30, 2)})


def cache(model: GFNetDynn, data: FakeData, folder: Path, **more: Any) -> FeatureData:
    given = {"batch_size": 4, "workers": 0, "progress": False, **more}
    return cached_features(model, data, folder, **given)


def computed(data: FakeData) -> list[int]:
    """Which training images went through the backbone since the last call."""
    seen = sorted(data.splits["train"].seen)
    data.splits["train"].seen.clear()
    return seen


def the_file(folder: Path, split: str = "train", suffix: str = "npy") -> Path:
    (path,) = folder.glob(f"{split}-*.{suffix}")
    return path


@pytest.mark.parametrize("distilled", [False, True])
def test_features_are_those_of_the_backbone(tmp_path: Path, distilled: bool) -> None:
    model, data = tiny_dynn(distilled=distilled), exit_data()
    found = cache(model, data, tmp_path)
    for name, split in found.splits.items():
        images = data.normalize(data.splits[name].pixels)
        expected = torch.cat([each.flatten(1) for each in model.head_inputs(images)], dim=1)
        got = found.normalize(split.images(torch.arange(len(split))))
        assert got.shape == (len(images), 3 * 2 * 8 if distilled else 3 * 8)
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)  # float16
        assert torch.equal(split.labels, data.splits[name].labels)
    order = torch.tensor([7, 0, 47, 7])
    assert torch.equal(
        found.splits["train"].images(order),
        found.splits["train"].images(torch.arange(48))[order],
    )


def test_what_is_there_is_not_computed_again(tmp_path: Path) -> None:
    model, data = tiny_dynn(), watched_data()
    first = cache(model, data, tmp_path)
    assert computed(data) == list(range(48))
    again = cache(model, data, tmp_path)
    assert computed(data) == []
    assert np.array_equal(again.splits["train"].features, first.splits["train"].features)


def test_heads_and_gates_do_not_count_but_the_backbone_the_positions_and_the_data_do(
    tmp_path: Path,
) -> None:
    model, data = tiny_dynn(), watched_data()
    cache(model, data, tmp_path)
    computed(data)
    for name, parameter in model.named_parameters():
        if name.startswith(("gates.", "intermediate_heads.", "head.")):
            torch.nn.init.ones_(parameter)
    cache(model, data, tmp_path)
    assert computed(data) == []

    torch.nn.init.ones_(model.blocks[2].mlp.fc2.bias)
    changed = cache(model, data, tmp_path)
    assert computed(data) == list(range(48))
    inputs = model.head_inputs(data.normalize(data.splits["train"].pixels))
    expected = torch.cat(inputs, dim=1)
    got = torch.from_numpy(np.array(changed.splits["train"].features)).float()
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)

    cache(gfnet_with_exits(model, [0]), data, tmp_path)
    assert computed(data) == list(range(48))
    data.sha256 = "1" * 64
    cache(model, data, tmp_path)
    assert computed(data) == list(range(48))


def test_every_tensor_of_the_backbone_decides_the_key() -> None:
    model = tiny_dynn(distilled=True)
    seen = {backbone_sha256(model)}
    backbone = [
        name for name, _ in model.named_parameters()
        if not name.startswith(("head", "intermediate_heads", "gates"))
    ]  # fmt: skip
    for name in backbone:
        with torch.no_grad():
            model.get_parameter(name).view(-1)[0] += 1
        seen.add(backbone_sha256(model))
    assert len(seen) == len(backbone) + 1


def test_an_interrupted_computation_goes_on_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    model, data = tiny_dynn(), watched_data()
    whole = cache(model, data, tmp_path / "whole").splits["train"].features
    computed(data)
    data.splits["train"].breaks_at = 27
    with pytest.raises(KeyboardInterrupt):
        cache(model, data, tmp_path / "cut")
    assert computed(data) == list(range(24))  # two whole blocks of ten, and four of the third
    data.splits["train"].breaks_at = None
    resumed = cache(model, data, tmp_path / "cut").splits["train"].features
    assert computed(data) == list(range(20, 48))
    assert np.array_equal(resumed, whole)


@pytest.mark.parametrize("moment", ["before the index", "after the index"])
def test_killed_while_the_index_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    model, data = tiny_dynn(), watched_data()
    whole = cache(model, data, tmp_path / "whole").splits["train"].features
    computed(data)
    write, calls = feature_cache.write_json, 0

    def killed(path: Path, value: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3 and moment == "before the index":
            raise KeyboardInterrupt
        write(path, value)
        if calls == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(feature_cache, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            cache(model, data, tmp_path / "cut")
    computed(data)
    resumed = cache(model, data, tmp_path / "cut").splits["train"].features
    first = 20 if moment == "before the index" else 30
    assert computed(data) == list(range(first, 48))
    assert np.array_equal(resumed, whole)


def damage_a_byte(folder: Path) -> list[int]:
    path = the_file(folder)
    content = bytearray(path.read_bytes())
    content[-1 - 48 * 9] ^= 1  # some byte of row 38, of 48 rows of 3 x 8 float16
    path.write_bytes(content)
    return list(range(30, 40))


def cut_the_file(folder: Path) -> list[int]:
    path = the_file(folder)
    path.write_bytes(path.read_bytes()[:-100])
    return list(range(40, 48))  # the file is filled up with zeros, and these rows disagree


def empty_the_file(folder: Path) -> list[int]:
    the_file(folder).write_bytes(b"")
    return list(range(48))


def put_another_shape(folder: Path) -> list[int]:
    np.save(the_file(folder), np.zeros((48, 2, 8), dtype=np.float16))
    return list(range(48))


def put_another_type(folder: Path) -> list[int]:
    np.save(the_file(folder), np.zeros((48, 3, 8), dtype=np.float32))
    return list(range(48))


def put_columns_first(folder: Path) -> list[int]:
    np.save(the_file(folder), np.asfortranarray(np.zeros((48, 3, 8), dtype=np.float16)))
    return list(range(48))


def put_zeros(folder: Path) -> list[int]:
    np.save(the_file(folder), np.zeros((48, 3, 8), dtype=np.float16))
    return list(range(48))


def cut_the_index(folder: Path) -> list[int]:
    path = the_file(folder, suffix="json")
    path.write_text(path.read_text()[:-30])
    return list(range(48))


def put_an_index_of_another_key(folder: Path) -> list[int]:
    path = the_file(folder, suffix="json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "key": "0" * 64}))
    return list(range(48))


def put_a_list_for_the_index(folder: Path) -> list[int]:
    the_file(folder, suffix="json").write_text("[1, 2]")
    return list(range(48))


def remove_the_index(folder: Path) -> list[int]:
    the_file(folder, suffix="json").unlink()
    return list(range(48))


@pytest.mark.parametrize(
    "harm",
    [
        damage_a_byte, cut_the_file, empty_the_file, put_another_shape, put_another_type,
        put_columns_first, put_zeros, cut_the_index, put_an_index_of_another_key,
        put_a_list_for_the_index, remove_the_index,
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_cache_is_made_again(tmp_path: Path, harm: Any) -> None:
    model, data = tiny_dynn(), watched_data()
    whole = np.array(cache(model, data, tmp_path).splits["train"].features)
    computed(data)
    lost = harm(tmp_path)
    mended = cache(model, data, tmp_path).splits["train"].features
    assert computed(data) == lost
    assert np.array_equal(mended, whole)


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("kind", ["object array", "pickle"])
def test_a_hostile_file_is_not_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    model, data = tiny_dynn(), watched_data()
    cache(model, data, tmp_path / "cache")
    computed(data)
    path = the_file(tmp_path / "cache")
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        array = np.empty((48, 3, 8), dtype=object)
        array[:] = Bomb()
        np.save(path, array, allow_pickle=True)
    with caplog.at_level(logging.WARNING):
        cache(model, data, tmp_path / "cache")
    assert computed(data) == list(range(48))
    assert "is no cache of these features" in caplog.text
    assert not (tmp_path / "exploded").exists()


def test_features_beyond_float16_are_told(tmp_path: Path) -> None:
    model = tiny_dynn()
    torch.nn.init.constant_(model.norm.weight, 1e6)
    with pytest.raises(CompressError, match="beyond the range of float16"):
        cache(model, exit_data(), tmp_path)


def test_an_empty_split_and_a_folder_that_is_a_file(tmp_path: Path) -> None:
    model = tiny_dynn()
    with pytest.raises(UserInputError, match="no images in the split 'validation'"):
        cache(model, exit_data(validation=0), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserInputError, match=r"cache folder .* cannot be written"):
        cache(model, exit_data(), tmp_path / "file")


def test_the_features_cannot_be_changed_and_the_modes_of_the_model_stay(tmp_path: Path) -> None:
    model = tiny_dynn().train()
    found = cache(model, exit_data(), tmp_path)
    assert model.training
    with pytest.raises(ValueError, match="read-only"):
        found.splits["train"].features[0] = 0
