"""Which readers open a file, and which of them gives its pixels."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from napari_peka.core.errors import SlideError
from napari_peka.io.readers.base import Reader, Refused, Truncated, UInt8Array, Unsuitable
from napari_peka.io.readers.jpeg import AGREE

#: side of the probe's blocks
_PROBE_PX = 384


def _openslide(path: Path) -> Reader:
    from napari_peka.io.readers.openslide_reader import OpenSlideReader

    return OpenSlideReader(path)


def _tiff(path: Path) -> Reader:
    from napari_peka.io.readers.tiff import TiffReader

    return TiffReader(path)


def _image(path: Path) -> Reader:
    from napari_peka.io.readers.image import ImageReader

    return ImageReader(path)


def _zarr(path: Path) -> Reader:
    from napari_peka.io.readers.omezarr import OmeZarrReader

    return OmeZarrReader(path)


_FILE_READERS: dict[str, Callable[[Path], Reader]] = {"openslide": _openslide, "tifffile": _tiff, "pillow": _image}


def candidates(path: Path) -> list[Reader]:
    """Return the readers that open a path; metadata come from the first.

    Each looks at the content, never at the name's ending.

    Raises
    ------
    SlideError
        If there is none; it names each reader and its reason.
    """
    makers = _FILE_READERS
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            makers = {"zarr": _zarr}
        elif not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
            raise SlideError(f"{path} is a pipe or a device; a slide is a file or a folder")
        elif found.st_size == 0:
            raise SlideError(f"{path} is empty (0 bytes); copy it again")
        else:
            path.open("rb").close()
    except SlideError:
        raise
    except (FileNotFoundError, NotADirectoryError, ValueError) as e:  # ValueError: a NUL in the name
        raise SlideError(f"there is no file {path}") from e
    except PermissionError as e:
        raise SlideError(f"{path} may not be read: {e.strerror}; ask for the right to read it") from e
    except OSError as e:
        raise SlideError(f"{path} cannot be opened: {e.strerror or e}; check the path") from e
    opened: list[Reader] = []
    reasons: dict[str, str] = {}
    for name, make in makers.items():
        if name == "pillow" and opened:  # a MIRAX slide is named by its thumbnail, a JPEG
            break
        try:
            reader = make(path)
            if min(map(min, reader.level_shapes)) < 1:
                reader.close()
                raise Refused("it claims a level without pixels")
            opened.append(reader)
        except Unsuitable as e:
            if opened and opened[0].vendor != "generic-tiff" and not isinstance(e, Truncated):
                continue  # OpenSlide knows this vendor's dialect better
            _close(opened)
            raise SlideError(f"{path.name} cannot be used: {e}") from e
        except Refused as e:
            reasons[name] = str(e)
        except OSError as e:
            reasons[name] = e.strerror or str(e)
    if not opened:
        why = "; ".join(f"{n}: {r}" for n, r in reasons.items())
        raise SlideError(f"{path.name} is no slide or image that can be read here ({why})")
    # OpenSlide knows vendors' metadata best; of a plain TIFF it sees only part (no SubIFDs, no OME-XML)
    opened.sort(key=lambda r: r.vendor == "generic-tiff")
    return opened


def _close(readers: list[Reader]) -> None:
    for reader in readers:
        reader.close()


def fastest(readers: list[Reader]) -> Reader:
    """Return the reader to take pixels from: the surest, else the fastest, of those that agree with the first.

    A few small blocks are read by each; a block that one of them cannot decode is left out of the comparison.
    """
    first = readers[0]
    rivals = [r for r in readers if r.level_shapes == first.level_shapes]
    if len(rivals) == 1:
        return first
    blocks = _probe_blocks(first)
    seen = {r: [_timed(r, *b) for b in blocks] for r in rivals}
    able = [r for r in rivals if any(p is not None for p, _ in seen[r])]
    if not able:
        return first
    judge = able[0]
    good = [judge]
    for rival in able[1:]:
        pairs = [(a, b) for (a, _), (b, _) in zip(seen[judge], seen[rival]) if a is not None and b is not None]
        if pairs and all(np.abs(a.astype(np.int16) - b).mean() <= AGREE for a, b in pairs):
            good.append(rival)
    good = [r for r in good if r.surest] or good
    # only blocks that all decoded are timed: a refusal is quick
    both = [i for i in range(len(blocks)) if all(seen[r][i][0] is not None for r in good)]
    return min(good, key=lambda r: sum(seen[r][i][1] for i in both))


def _probe_blocks(reader: Reader) -> list[tuple[int, int, int, int, int]]:
    last = len(reader.level_shapes) - 1
    blocks = []
    for level, at in ((0, 0.5), (0, 0.5), (0, 0.3), (0, 0.7), (last // 2, 0.4), (last, 0.5)):
        h, w = reader.level_shapes[level]
        # apart from each other on a small slide too, or one damaged tile would be in all of them
        bh, bw = (min(n, _PROBE_PX, max(64, n // 4)) for n in (h, w))
        blocks.append((level, int((h - bh) * at), int((w - bw) * at), bh, bw))
    return blocks


def _timed(reader: Reader, *block: int) -> tuple[UInt8Array | None, float]:
    start = time.perf_counter()
    try:
        pixels = reader.read(*block)
    except Exception:  # noqa: BLE001 - whatever it is, this reader cannot read this block
        reader.fresh()
        return None, 0.0
    return pixels, time.perf_counter() - start
