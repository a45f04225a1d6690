"""Files that are either whole or not there, on every platform."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from napari_peka.core.errors import StoreError

T = TypeVar("T")

#: a virus scanner or indexer on Windows holds a fresh file for up to a second or two
_RENAME_TRIES = 12


def replace(source: Path, target: Path) -> None:
    """Rename `source` to `target`, replacing a file there; retried while another process holds it."""
    for attempt in range(_RENAME_TRIES):
        try:
            source.replace(target)
            return
        except PermissionError:
            if sys.platform != "win32" or attempt == _RENAME_TRIES - 1:
                raise
            time.sleep(0.05 * 1.6**attempt)


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, push it to the disk and rename it into place.

    Raises
    ------
    StoreError
        If the folder cannot be written or the disk is full. Nothing is left under the final name.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with beside.open("xb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        replace(beside, path)
    except OSError as e:
        beside.unlink(missing_ok=True)
        raise cannot_write(path, e) from e


def write_beside(path: Path, write: Callable[[Path], T]) -> T:
    """Call ``write(temporary path)`` and rename what it wrote to `path`.

    The temporary file keeps the ending of `path`, since writers choose their format by it.
    """
    beside = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        result = write(beside)
        replace(beside, path)
        return result
    except OSError as e:
        raise cannot_write(path, e) from e
    finally:
        beside.unlink(missing_ok=True)


def make_folder(path: Path) -> Path:
    """Make a folder and its parents.

    Raises
    ------
    StoreError
        If it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".{uuid.uuid4().hex[:8]}.tmp"
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as e:
        raise cannot_write(path, e) from e
    return path


def remove_tree(path: Path) -> None:
    """Remove a folder and what is in it; nothing happens when it is not there."""
    if path.exists():
        shutil.rmtree(path)


def cannot_write(path: Path, e: OSError) -> StoreError:
    """Return the sentence for an operating system error met while writing `path`."""
    if e.errno == errno.ENOSPC:
        return StoreError(f"the disk is full: {path} could not be written; free some space and run again")
    reason = e.strerror or str(e)
    return StoreError(f"cannot write {path}: {reason}; choose a folder that you may write to")
