"""Files that are either whole or not there, on every platform."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

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


def take_lock(path: Path) -> Any:
    """Return a lock on what will be written at `path`, so that no other process writes it at the same time.

    Raises
    ------
    StoreError
        If another holds it, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    make_folder(path.parent)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as e:
        raise StoreError(f"another run is writing {path}; wait for it, or choose another output") from e
    except OSError as e:
        raise cannot_write(path, e) from e
    return lock


def drop_lock(lock: Any) -> None:
    """Release a lock and leave no file behind.

    The file goes while the lock is still held: filelock asks after locking whether the name is still that of the file
    that it locked. Windows has none to remove before, and filelock removes it after.
    """
    if sys.platform != "win32":
        _drop(Path(lock.lock_file))
    lock.release()


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
        raise cannot_write(path, e) from e
    finally:
        _drop(beside)


def write_beside(path: Path, write: Callable[[Path], T]) -> T:
    """Call ``write(temporary path)``, push the file or folder that it wrote to the disk and rename it to `path`.

    The temporary path keeps the ending of `path`, since writers choose their format by it. What is at `path` is
    replaced.

    Raises
    ------
    StoreError
        As :func:`write_whole`.
    """
    beside, old = (path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}") for _ in range(2))
    try:
        result = write(beside)
        if beside.is_dir():
            sync_tree(beside)
            if path.exists():  # a folder cannot be renamed onto another
                replace(path, old)
        else:
            with beside.open("rb+") as f:  # an empty file must not take the final name when the power goes
                os.fsync(f.fileno())
        replace(beside, path)
        return result
    except OSError as e:
        if isinstance(e, StoreError):
            raise
        raise cannot_write(path, e) from e
    finally:
        for left in (beside, old):
            with suppress(StoreError):
                remove_tree(left)


def sync_tree(folder: Path) -> None:
    """Push all files of a folder to the disk: a rename must not outlive what it names when the power goes."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb+") as f:
                os.fsync(f.fileno())


def _drop(beside: Path) -> None:
    # where nothing can be written nothing can be removed, and what stopped the writing is the better error
    with suppress(OSError):
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


def check_writable(path: Path) -> None:
    """Refuse a folder that is not there and cannot be made, or cannot be written, without making it.

    Raises
    ------
    StoreError
        As :func:`make_folder`.
    """
    there = next((p for p in (path, *path.parents) if p.exists()), Path())
    if there.is_file():
        raise cannot_write(path, NotADirectoryError(errno.ENOTDIR, "not a folder"))
    make_folder(there)


def check_room(path: Path, size: int, instead: str = "or choose another output") -> None:
    """Refuse what will not fit on its disk, before it is begun.

    Parameters
    ----------
    path
        What will be written; its folder need not be there.
    size
        Bytes that it will take, about.
    instead
        What a person may do other than free some space.

    Raises
    ------
    StoreError
        If less is free.
    """
    there = next(p for p in path.absolute().parents if p.is_dir())
    if (free := shutil.disk_usage(there).free) < size:
        raise StoreError(
            f"{path} takes about {bytes_text(size)}, and {bytes_text(free)} are free there; free some space, {instead}"
        )


def bytes_text(n: int) -> str:
    """Return a number of bytes as people write it, such as ``3.2 MB``."""
    size = float(n)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def remove_tree(path: Path) -> None:
    """Remove a folder and what is in it, a file or a link; nothing happens when it is not there.

    Raises
    ------
    StoreError
        If it cannot be removed.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as e:
        reason = e.strerror or str(e)
        raise StoreError(f"cannot remove {path}: {reason}; remove it yourself, or choose another output") from e


def cannot_write(path: Path, e: OSError) -> StoreError:
    """Return the sentence for an operating system error met while writing `path`."""
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"the disk is full: {path} could not be written; free some space and run again")
    file = next((p for p in (path, *path.parents) if p.is_file()), None)
    if file and e.errno in (errno.EEXIST, errno.ENOTDIR, errno.ENOENT):  # ENOENT: Windows, below a file
        return StoreError(f"cannot write {path}: {file} is a file, not a folder; choose another output")
    reason = e.strerror or str(e)
    if e.errno == errno.ENAMETOOLONG:
        return StoreError(f"cannot write {path}: {reason}; rename the slide, or choose a shorter path")
    return StoreError(f"cannot write {path}: {reason}; choose a folder that you may write to")
