"""Files that are there as a whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

__all__ = ["written_whole"]


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the name ``path`` when the block ends well; else it goes, and ``path`` is as it was.

    Raises:
        OSError: it cannot be written.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as target:
        aside = Path(target.name)
        try:
            yield cast(BinaryIO, cast(IO[bytes], target))
            target.flush()
            os.fsync(target.fileno())
            umask = os.umask(0)
            os.umask(umask)
            aside.chmod(0o666 & ~umask)  # a temporary file is private, a result is not
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
