"""Write files whole or not at all: beside the target first, then renamed over it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fxprune.errors import ConfigError

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block succeeds, it takes the place of `path`.

    Raises
    ------
    ConfigError
        If `path` is a directory or its directory cannot be written. A file that was there is
        untouched then, and after any error in the block.
    """
    target = Path(path)
    if target.is_dir():
        raise ConfigError(f"{target} is a directory.", hint="give the path of a file")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise ConfigError(
            f"{target} cannot be written: {error.strerror}.",
            hint="the directory must exist and be writable",
        ) from error
    os.close(handle)
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(name, 0o666 & ~mask)  # mkstemp makes it readable by its owner only
    temporary = Path(name)
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
