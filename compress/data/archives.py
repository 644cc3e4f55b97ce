"""Read wanted files out of a gzipped tarball in one pass, in memory: nothing is unpacked.

Headers decide: a file that says it is larger than any of the data set stops the reading before it
is decompressed, and so does an archive that goes on for longer than the data set is.
"""

import gzip
import io
import tarfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from compress.errors import UserInputError

__all__ = ["archive_files"]


def archive_files(
    archive: Path, wanted: Collection[str], *, limit: int
) -> Iterator[tuple[str, bytes]]:
    """Yield the name, without folders, and the content of every wanted file.

    Args:
        archive: ends with .tar.gz.
        wanted: names without folders.
        limit: bytes that the whole archive may unpack to.

    Raises:
        UserInputError: it is no such archive, is damaged, or would unpack to more.
    """
    try:
        with (
            gzip.open(archive) as packed,
            _Bounded(packed, archive, limit) as stream,
            tarfile.open(fileobj=stream, mode="r|") as tar,
        ):
            for member in tar:
                if member.size > limit:
                    raise UserInputError(
                        f"{member.name[:99]} in {archive} would unpack to {member.size} bytes; "
                        f"expected at most {limit} in the whole archive; fetch it again"
                    )
                name = PurePosixPath(member.name).name
                file = tar.extractfile(member) if name in wanted else None
                if file is not None:
                    yield name, file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as err:
        raise UserInputError(
            f"{archive} cannot be read as a gzipped tarball ({err}); fetch it again"
        ) from err


class _Bounded(io.RawIOBase):
    """Pass bytes on until there are more than `limit`."""

    def __init__(self, stream: gzip.GzipFile, archive: Path, limit: int) -> None:
        self.stream, self.archive, self.limit, self.given = stream, archive, limit, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        content = self.stream.read(size if 0 <= size <= self.limit else self.limit + 1)
        self.given += len(content)
        if self.given > self.limit:
            raise UserInputError(
                f"{self.archive} unpacks to more than {self.limit} bytes, which this data set has "
                "not; fetch it again"
            )
        return content
