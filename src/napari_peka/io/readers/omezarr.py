"""OME-Zarr: metadata 0.4 (zarr v2) and 0.5 (zarr v3). Plane 0 of z and t; three channels are RGB."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from napari_peka.io.readers.base import (
    MAX_SEGMENT_BYTES,
    Claim,
    Refused,
    SegmentedReader,
    UInt8Array,
    Unsuitable,
    check_type,
    eight_bit,
    multichannel,
    over,
)
from napari_peka.io.readers.tiff_pages import side_name
from napari_peka.io.readers.units import unit_um

#: smaller chunks are read several at once
_LEAST_SEGMENT = 512
_MARKS = (".zattrs", ".zgroup", ".zarray", "zarr.json")


class OmeZarrReader(SegmentedReader):
    """A folder with OME-NGFF multiscales.

    A chunk that is not there is the fill value by the format's rules, so a lost chunk cannot be told from an
    empty one.

    Raises
    ------
    Refused
        If the folder is no OME-Zarr.
    Unsuitable
        If its pixels are no bright-field image.
    """

    name = "zarr"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if not any((path / mark).is_file() for mark in _MARKS):
            dicom = "; of a DICOM slide open one of its files" if next(path.glob("*.dcm"), None) else ""
            raise Refused(f"a folder that holds no zarr{dicom}")
        try:
            import zarr

            group = zarr.open_group(str(path), mode="r")
            if _multiscales(group) is None:
                group = _largest_image(group, path)
            scales = None if group is None else _multiscales(group)
            if scales is None:
                raise Refused("a zarr without OME-NGFF multiscales")
            self._describe(group, scales)
        except (Refused, MemoryError):
            raise
        except Exception as e:
            raise Refused(f"broken OME-Zarr metadata ({type(e).__name__}: {e})") from e

    def _describe(self, group: Any, scales: dict[str, Any]) -> None:
        self.vendor = "ome-zarr"
        # by the format the finest comes first; not every writer knows
        datasets = sorted(scales["datasets"], key=lambda d: -group[d["path"]].size)
        if not datasets:
            raise Refused("its OME-NGFF multiscales name no array")
        arrays = [group[d["path"]] for d in datasets]
        base = arrays[0]
        axes = [a if isinstance(a, dict) else {"name": a} for a in scales.get("axes", "tczyx"[-base.ndim :])]
        names = [str(a["name"]).lower() for a in axes]
        if len(names) != base.ndim or not {"y", "x"} <= set(names):
            raise Refused(f"axes {''.join(names)} do not fit an image of {base.ndim} dimensions")
        self._axes = names
        channels = base.shape[names.index("c")] if "c" in names else 1
        check_type(np.dtype(base.dtype), self.warnings)
        if channels not in (1, 3, 4):
            raise multichannel(channels)
        if channels == 3 and (names_of := _channel_names(group)):
            self.warnings.append(f"its channels {names_of} are taken for red, green and blue")
        if channels == 1:
            self.warnings.append("it is greyscale: shown as grey RGB; models expect H&E colours")
        if any(base.shape[i] > 1 for i, n in enumerate(names) if n not in "yxc"):
            self.warnings.append("it is a stack: only its first plane is read")
        iy, ix = names.index("y"), names.index("x")
        self._arrays = arrays
        self.level_shapes = [(int(a.shape[iy]), int(a.shape[ix])) for a in arrays]
        self.grids = [tuple(_segment(a.chunks[i]) for i in (iy, ix)) for a in arrays]  # type: ignore[misc]
        if max(h * w for h, w in self.grids) * channels > MAX_SEGMENT_BYTES:
            raise Unsuitable("its chunks are larger than 4 GiB; write it with smaller ones")
        self._claim([datasets[0], scales], axes, iy, ix)

    def _claim(self, places: list[dict[str, Any]], axes: list[dict[str, Any]], iy: int, ix: int) -> None:
        units = [unit_um(axes[i].get("unit")) for i in (iy, ix)]
        factors = [1.0, 1.0]
        found = False
        for place in places:
            for t in place.get("coordinateTransformations") or ():
                if t.get("type") == "scale" and "scale" in t:
                    factors = [factors[0] * float(t["scale"][iy]), factors[1] * float(t["scale"][ix])]
                    found = True
        if found and units[0] and units[1]:
            self.claims = [Claim((factors[0] * units[0], factors[1] * units[1]), "ome-zarr")]

    def decode(self, level: int, row: int, col: int) -> UInt8Array:
        """Return one chunk, or some small ones, uint8 ``(h, w, 3)``."""
        sh, sw = self.grids[level]
        pick: dict[str, Any] = {
            "y": slice(row * sh, (row + 1) * sh), "x": slice(col * sw, (col + 1) * sw), "c": slice(None)
        }  # fmt: skip
        pixels = np.asarray(self._arrays[level][tuple(pick.get(n, 0) for n in self._axes)])
        kept = [n for n in self._axes if n in "yxc"]
        if "c" not in kept:
            pixels, kept = pixels[..., None], [*kept, "c"]
        pixels = eight_bit(pixels.transpose([kept.index(n) for n in "yxc"]))
        if pixels.shape[2] == 1:
            return np.repeat(pixels, 3, axis=2)
        if pixels.shape[2] == 4:
            return over(pixels[..., :3], pixels[..., 3], self.background)
        return np.ascontiguousarray(pixels)


def _attributes(group: Any) -> dict[str, Any]:
    attrs = dict(group.attrs)
    return dict(attrs.get("ome") or attrs)


def _multiscales(group: Any) -> dict[str, Any] | None:
    found = _attributes(group).get("multiscales")
    return dict(found[0]) if found else None


def _largest_image(group: Any, path: Path) -> Any:
    """Return the largest of numbered images (as bioformats2raw lays out) that is no label or macro; None for none.

    The scan need not be the first: Leica's files begin with the macro image.
    """
    sides = _side_images(path / "OME" / "METADATA.ome.xml")
    sizes: dict[str, int] = {}
    for i in itertools.count():
        if (key := str(i)) not in group:
            break
        scales = _multiscales(group[key]) if i not in sides else None
        if scales and scales.get("datasets"):
            sizes[key] = group[key][scales["datasets"][0]["path"]].size
    return group[max(sizes, key=lambda k: sizes[k])] if sizes else None


def _side_images(path: Path) -> set[int]:
    """Return the indices of the images that an OME-XML file calls label, macro, overview or thumbnail."""
    from xml.etree import ElementTree  # nosec: a file the user opens; expat refuses entity bombs since 2.4.1

    try:
        images = ElementTree.parse(path).getroot().findall("{*}Image")  # noqa: S314
    except (OSError, ElementTree.ParseError):
        return set()
    return {i for i, image in enumerate(images) if side_name(image.get("Name", ""))}


def _channel_names(group: Any) -> str:
    """Return the labels of channels whose colours are said and are not red, green and blue, for a warning."""
    channels = (_attributes(group).get("omero") or {}).get("channels") or []
    colours = [str(c.get("color", "")).lstrip("#").upper() for c in channels]
    if not all(colours) or colours in ([], ["FF0000", "00FF00", "0000FF"]):
        return ""
    return ", ".join(str(c.get("label") or colour) for c, colour in zip(channels, colours))


def _segment(chunk: int) -> int:
    return int(chunk) * max(1, -(-_LEAST_SEGMENT // int(chunk)))
