"""A bundle's two files as bytes, from its folder or from a ``.zip`` of it that may mean harm.

Nothing is unpacked to the disk: a zip's members are checked and read in memory.
"""

from __future__ import annotations

import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from napari_peka.core.errors import BundleError
from napari_peka.models.spec import SPEC_FILE

TENSOR_FILE = "model.safetensors"
#: a bundle holds adapters and heads, never an encoder: 4 GiB is far above the largest honest one
MAX_BYTES = 4 << 30
MAX_SPEC_BYTES = 64 << 20
#: a zip's member that inflates more than this is a bomb, unless it is small anyway
MAX_RATIO, SMALL_BYTES = 200, 16 << 20
ALLOWED_ENDINGS = {".json", ".safetensors", ".md", ".txt", ".csv", ".html", ".png", ".svg", ".yaml", ""}

MAX_BYTES_OF = {SPEC_FILE: MAX_SPEC_BYTES, TENSOR_FILE: MAX_BYTES}


def read_files(path: Path) -> dict[str, bytes]:
    """Return the bytes of a bundle's files by name.

    Parameters
    ----------
    path
        A folder, or a ``.zip`` with the files at its top or in its one folder.

    Raises
    ------
    BundleError
        If one is missing, too large, or the zip is damaged or unsafe.
    """
    if path.is_dir():
        return {n: _read_file(path / n, limit) for n, limit in MAX_BYTES_OF.items()}
    if path.is_file():
        return _read_zip(path)
    raise BundleError(f"there is no model bundle at {path}; give a folder that holds {SPEC_FILE}, or a .zip of it")


def _read_file(path: Path, limit: int) -> bytes:
    try:
        if path.stat().st_size > limit:
            raise BundleError(f"{path} is larger than {limit >> 20} MiB, too large for a bundle")
        return path.read_bytes()
    except FileNotFoundError as e:
        raise BundleError(f"{path.parent} is no model bundle: {path.name} is missing") from e
    except OSError as e:
        raise BundleError(f"cannot read {path}: {e.strerror or e}") from e


def _read_zip(path: Path) -> dict[str, bytes]:
    """Return the two files of a zipped bundle after checking names, links and sizes of every member."""
    if not zipfile.is_zipfile(path):
        raise BundleError(f"{path} is neither a bundle folder nor a .zip of one")
    found: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(path) as z:
            members = [m for m in z.infolist() if not m.is_dir()]
            if len(members) > 1000 or sum(m.file_size for m in members) > MAX_BYTES:
                raise BundleError(f"{path.name} is too large for a bundle (over 1000 files or {MAX_BYTES >> 30} GiB)")
            for m in members:
                _check_member(m, path.name)
                name = PurePosixPath(m.filename)
                if name.name in MAX_BYTES_OF and len(name.parts) <= 2:
                    if name.name in found:
                        raise BundleError(f"{path.name} holds {name.name} twice")
                    found[name.name] = _inflate(z, m, MAX_BYTES_OF[name.name], path.name)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError) as e:
        if isinstance(e, BundleError):
            raise
        raise BundleError(f"{path.name} is a damaged .zip ({e}); get the bundle again") from e
    missing = [n for n in MAX_BYTES_OF if n not in found]
    if missing:
        raise BundleError(f"{path.name} is no model bundle: {missing[0]} is missing at its top or in its one folder")
    return found


def _inflate(z: zipfile.ZipFile, m: zipfile.ZipInfo, limit: int, where: str) -> bytes:
    """Return a member's bytes; never more than it claims are inflated, whatever the stream holds."""
    if m.file_size > limit:
        raise BundleError(f"{where}: {m.filename} is absurdly large ({m.file_size >> 20} MiB)")
    if m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others inflate without a bound
        raise BundleError(f"{where}: {m.filename} is packed in a way that no bundle is; zip it again")
    if m.file_size > max(SMALL_BYTES, MAX_RATIO * m.compress_size):
        raise BundleError(f"{where}: {m.filename} claims to inflate to {m.file_size >> 20} MiB; do not use this file")
    with z.open(m) as f:
        data = f.read(m.file_size)  # with a number, zlib is asked for no more; without, it inflates all there is
        if len(data) != m.file_size:
            raise BundleError(f"{where}: {m.filename} is shorter than it claims; get the bundle again")
    return data


def _check_member(m: zipfile.ZipInfo, where: str) -> None:
    name = m.filename.replace("\\", "/")
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or ":" in name or "\0" in name or len(parts) > 3:
        raise BundleError(f"{where} holds the unsafe name {m.filename!r}; do not use this file")
    if m.flag_bits & 0x1:
        raise BundleError(f"{where}: {m.filename!r} is encrypted, which no bundle is; unpack it and zip it again")
    if stat.S_ISLNK(m.external_attr >> 16):
        raise BundleError(f"{where} holds a link ({m.filename!r}); do not use this file")
    if PurePosixPath(name).suffix.lower() not in ALLOWED_ENDINGS:
        raise BundleError(f"{where} holds {m.filename!r}, a kind of file that no bundle has; do not use this file")
