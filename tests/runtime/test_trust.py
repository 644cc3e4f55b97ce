"""Engines are machine code: only those that this user built on this machine are loaded unasked."""

import json
import stat

import pytest

from compress.errors import UserInputError
from compress.runtime.engines import ENGINES, check_trust, read_engines
from compress.runtime.manifest import read_manifest
from compress.runtime.trust import key_path
from tests.runtime.engine_bundles import FakeDevice, assert_decides, opened, sample_images
from tests.runtime.engine_bundles import write_bundle as write_engine_bundle


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def bundle(home, tmp_path):
    return write_engine_bundle(tmp_path / "bundle")


def is_ours(bundle):
    return read_engines(bundle, read_manifest(bundle)).is_ours


def test_engines_that_were_built_here_run(bundle):
    assert is_ours(bundle)
    with opened(bundle) as (backend, _):
        assert_decides(backend, bundle, sample_images(8))


def test_a_strangers_engines_never_reach_tensorrt(bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
    device = FakeDevice()
    message = "not built here, by this user.*build_engines --force .*, or give --trust-engines"
    with pytest.raises(UserInputError, match=message), opened(bundle, device=device):
        pass
    assert "context" not in device.log
    assert "cudaStreamCreateWithFlags" not in device.log
    with opened(bundle, trust_engines=True) as (backend, _):
        assert_decides(backend, bundle, sample_images(8))


def test_the_mark_says_nothing_to_a_machine_with_a_key_of_its_own(bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
    write_engine_bundle(tmp_path / "its own")
    assert is_ours(tmp_path / "its own")
    assert not is_ours(bundle)


def altered(bundle, change):
    value = json.loads((bundle / ENGINES).read_text())
    change(value)
    (bundle / ENGINES).write_text(json.dumps(value))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda value: value.pop("mark"), id="no mark"),
        pytest.param(lambda value: value.update(mark="0" * 64), id="another mark"),
        pytest.param(lambda value: value.update(mark=7), id="no text"),
        pytest.param(lambda value: value.update(mark="\ud800ä"), id="no mark at all"),
        pytest.param(lambda value: value.update(tensorrt_version="10.3.1"), id="another version"),
        pytest.param(lambda value: value.update(more=[1]), id="something beside it"),
    ],
)
def test_a_list_that_was_altered_is_not_ours(bundle, change):
    altered(bundle, change)
    assert not is_ours(bundle)


def test_laid_out_anew_it_is_the_same_list(bundle):
    altered(bundle, lambda value: value.update(device_name=value.pop("device_name")))
    assert is_ours(bundle)


def test_the_key_is_of_the_user_alone(bundle):
    assert stat.S_IMODE(key_path().stat().st_mode) == 0o600
    assert len(key_path().read_bytes()) == 32
    key_path().chmod(0o644)
    assert not is_ours(bundle)


def test_a_key_stays_for_all_bundles(bundle, tmp_path):
    before = key_path().read_bytes()
    write_engine_bundle(tmp_path / "second")
    assert key_path().read_bytes() == before
    assert is_ours(bundle)


@pytest.mark.parametrize("content", [b"", b"short"])
def test_a_damaged_key_trusts_nothing(bundle, content, caplog):
    key_path().write_bytes(content)
    assert not is_ours(bundle)
    assert "damaged" in caplog.text


def test_where_no_key_can_be_written_engines_are_built_without_a_mark(home, tmp_path, caplog):
    home.write_text("a file in the place of the folder")
    bundle = write_engine_bundle(tmp_path / "bundle")
    assert "not marked as built here" in caplog.text
    with pytest.raises(UserInputError, match="not built here"):
        check_trust(read_engines(bundle, read_manifest(bundle)), bundle)
