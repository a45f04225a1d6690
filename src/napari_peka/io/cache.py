"""What is kept on this machine to save time. All of it can go: it is made again when it is needed.

Cut tiles, what a model saw in them, and images that exist only inside a file.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from napari_peka.core import files
from napari_peka.core.errors import SettingError, StoreError

ENVIRONMENT = "NAPARI_PEKA_CACHE"
#: names the room for all of it, in GB; 0: no limit
ROOM_ENVIRONMENT = "NAPARI_PEKA_CACHE_GB"
ROOM_GB = 20.0
TILES, EMBEDDINGS, IMAGES, COMPILED = "tiles", "embeddings", "images", "compiled"
_KINDS = {TILES: "tiles", EMBEDDINGS: "embeddings", IMAGES: "image", COMPILED: "compiled encoder"}
#: names that this package gives; anything else in the folders is somebody's own and never touched
_NAMES = {
    TILES: re.compile(r".*-[0-9a-f]{16}\.zarr", re.DOTALL),
    EMBEDDINGS: re.compile(r".*-[0-9a-f]{16}\.safetensors", re.DOTALL),
    IMAGES: re.compile(r"[0-9a-f]{32}\.png"),
    COMPILED: re.compile(r"[a-z]+-[0-9a-f]{16}(-[0-9a-f]{8})?\.[a-z]+"),
}
#: what a killed run left half-written
_UNFINISHED = {
    TILES: re.compile(r"\.[0-9a-f]{8}\..*-[0-9a-f]{16}\.zarr", re.DOTALL),
    EMBEDDINGS: re.compile(r"\..*-[0-9a-f]{16}\.safetensors\.[0-9a-f]{8}\.tmp", re.DOTALL),
    IMAGES: re.compile(r"\.[0-9a-f]{32}\.png\.[0-9a-f]{8}\.tmp"),
    COMPILED: re.compile(r"\.[a-z]+-[0-9a-f]{16}(-[0-9a-f]{8})?\.[a-z]+\.[0-9a-f]{8}\.tmp"),
}
_DAY_S = 86_400.0
#: days after which nobody is still writing something unfinished
_ABANDONED_DAYS = 1.0


@dataclass(frozen=True)
class Cached:
    """Something that is kept.

    Parameters
    ----------
    name
        File or folder name.
    kind
        "tiles" (one section's, cut at one size), "embeddings" (of a section's spots or a slide's tiles, by one model),
        "image" (out of a file), "compiled encoder" (by another engine than PyTorch), or "unfinished" (of a killed run,
        or of one that is writing it now).
    size_bytes
        Bytes on the disk.
    age_days
        Days since it was written.
    path
        Where.
    """

    name: str
    kind: str
    size_bytes: int
    age_days: float
    path: Path


def cache_folder() -> Path:
    """Return the folder of what is kept to save time: ``$NAPARI_PEKA_CACHE``, or the platform's cache folder.

    It need not exist and is not created here.
    """
    said = os.environ.get(ENVIRONMENT)
    return Path(said).expanduser() if said else platformdirs.user_cache_path("napari-peka", appauthor=False)


def kept_in(kind: str, cache: Path | None = None) -> Path:
    """Return the folder of one kind, made if needed.

    Parameters
    ----------
    kind
        :data:`TILES`, :data:`EMBEDDINGS`, :data:`IMAGES` or :data:`COMPILED`.
    cache
        The cache; None: :func:`cache_folder`.

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    folder = (cache or cache_folder()) / kind
    try:
        return files.make_folder(folder)
    except StoreError as e:
        raise StoreError(f"{e}; the environment variable {ENVIRONMENT} names another for what is kept") from e


def touch(path: Path) -> None:
    """Say that something kept was just used: what was not used for longest goes first."""
    with suppress(OSError):  # a cache that one may only read
        os.utime(path)


def room_gb() -> float:
    """Return the room for all that is kept, in GB: ``$NAPARI_PEKA_CACHE_GB`` or 20; 0: no limit.

    Raises
    ------
    SettingError
        If the variable is no such number.
    """
    said = os.environ.get(ROOM_ENVIRONMENT, "")
    try:
        gb = float(said or ROOM_GB)
    except ValueError:
        gb = math.nan
    if not 0 <= gb < math.inf:
        raise SettingError(f"the environment variable {ROOM_ENVIRONMENT} must be GB from 0 up, got {said!r}")
    return gb


def tidy() -> None:
    """Remove what was not used for longest until all fits the :func:`room_gb`.

    Nothing that was used within a day goes: a job may be at work with it.
    """
    # nothing is lost where it cannot be tidied, and a wrong wish was told before the job
    with suppress(StoreError, SettingError):
        if gb := room_gb():
            prune(older_than_days=1.0, keep_bytes=round(gb * 1e9))


def listing(*, older_than_days: float = 0.0) -> list[Cached]:
    """Return what is kept, largest first.

    Parameters
    ----------
    older_than_days
        Only what is at least this old.

    Raises
    ------
    StoreError
        If a folder cannot be read, or leads elsewhere.
    """
    now = time.time()
    found = [entry for kind in _KINDS for entry in _entries(kind, now)]
    return sorted((e for e in found if e.age_days >= older_than_days), key=lambda e: (-e.size_bytes, e.name))


def prune(*, older_than_days: float = 0.0, keep_bytes: int | None = None) -> list[Cached]:
    """Remove what is kept, and return what was removed, largest first.

    What is needed again is made again. Files under other names are never touched, nor is what somebody may be writing:
    unfinished entries go when they are a day old.

    Parameters
    ----------
    older_than_days
        Only what is at least this old.
    keep_bytes
        Only what was not used for longest, until what is left takes no more than this; None: all.

    Raises
    ------
    StoreError
        If something cannot be read or removed, or a folder leads elsewhere.
    """
    removed: list[Cached] = []
    entries = listing(older_than_days=older_than_days)
    room = None if keep_bytes is None else sum(e.size_bytes for e in listing()) - keep_bytes
    if room is not None:
        entries = sorted(entries, key=lambda e: -e.age_days)
    for entry in entries:
        if room is not None and sum(e.size_bytes for e in removed) >= room:
            break
        if entry.kind == "unfinished" and entry.age_days < _ABANDONED_DAYS:
            continue
        files.remove_tree(entry.path)
        removed.append(entry)
    return removed


def _entries(kind: str, now: float) -> Iterator[Cached]:
    folder = cache_folder() / kind
    if folder.is_symlink():  # what lies there is not in the cache folder
        raise StoreError(f"{folder} is a link to elsewhere; remove the link, and move the cache with {ENVIRONMENT}")
    try:
        inside = sorted(folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as e:
        raise StoreError(f"cannot read {folder}: {e.strerror or e}") from e
    for path in inside:
        ours, unfinished = _NAMES[kind].fullmatch(path.name), _UNFINISHED[kind].fullmatch(path.name)
        if path.is_symlink() or not (ours or unfinished):
            continue
        try:
            size, written = _size(path), path.stat().st_mtime
        except FileNotFoundError:  # somebody else removed or renamed it just now
            continue
        name = "unfinished" if unfinished else _KINDS[kind]
        yield Cached(path.name, name, size, max(now - written, 0.0) / _DAY_S, path)


def _size(path: Path) -> int:
    inside = path.rglob("*") if path.is_dir() else (path,)
    return sum(p.lstat().st_size for p in inside if not p.is_dir())
