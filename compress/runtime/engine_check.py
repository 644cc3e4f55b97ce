"""Try the engines of a bundle on its probe, on the machine that built them.

Engines that compute something else than the graphs they were built from are taken out of use: the
list of engines goes, so the dispatcher does not take them.
"""

import logging
from pathlib import Path
from typing import Optional

from compress.errors import ToolchainError
from compress.files import remove
from compress.runtime.cuda import probe_cuda
from compress.runtime.dispatcher import Dispatcher
from compress.runtime.engines import ENGINES, EngineSet
from compress.runtime.manifest import read_manifest
from compress.runtime.probe import read_probe
from compress.runtime.self_test import SelfTest, self_test
from compress.runtime.tensorrt_engine import import_tensorrt

__all__ = ["check_engines"]

log = logging.getLogger(__name__)


def check_engines(bundle: Path, engines: EngineSet) -> Optional[SelfTest]:
    """Run the engines of a bundle on its probe; None where there is no probe, or nothing to run on.

    Raises:
        AccuracyError: they are too far from the exported graphs; the list of engines is removed.
        ToolchainError: they cannot be run.
    """
    manifest = read_manifest(bundle)
    if manifest.probe is None:
        log.info("the bundle carries no probe, so its engines were not tried; export it again")
        return None
    try:
        probe_cuda()
        import_tensorrt(engines.builder)
    except ToolchainError as err:
        log.warning("the engines were built and not tried, as nothing here runs them (%s)", err)
        return None
    probe = read_probe(bundle, manifest)
    with Dispatcher(bundle, "tensorrt") as dispatcher:
        tested = self_test(dispatcher, probe)
    if not tested.passed:
        remove(Path(bundle) / ENGINES, is_ours=lambda path: True)
    tested.check(bundle)
    return tested
