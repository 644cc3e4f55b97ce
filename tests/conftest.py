import logging
import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_folders(tmp_path_factory):
    """Keep images and keys of tests, and of the processes that they start, out of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def _fresh_logging(monkeypatch):
    """A door that was run with `-q` in this process must not silence the tests after it."""
    logger = logging.getLogger("compress")
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger._cache.clear()
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    yield
    logger._cache.clear()
    os.environ.pop("TQDM_DISABLE", None)
