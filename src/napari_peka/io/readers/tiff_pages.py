"""Which pages of a TIFF are the slide, which show its label, and what they say about its resolution."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from napari_peka.io.readers.base import Claim, Unsuitable
from napari_peka.io.readers.units import unit_um

#: how writers name what is not the scan: "label", "label image", "Macro", "case.svs [macro image]", "label 387x463"
_SIDE = re.compile(
    r"(?:.*[\s\[#:/|(-])?(label|macro|overview|thumbnail)(?: image)?[\])]?(?: \d+ ?x ?\d+)?\W*", re.IGNORECASE
)
#: these may show a patient's name
PRIVATE = {"label", "macro"}
_PAGE_NAME = 285
#: longer texts are descriptions, not names
_NAME_LENGTH = 200


def split_sides(series: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return the series that may be the scan, and those beside it by their names.

    Raises
    ------
    Unsuitable
        If there is nothing but a label or macro image.
    """
    named = [(s, side_name(s.name or "", *_names(s.keyframe))) for s in series]
    scans = [s for s, name in named if not name]
    if series and not scans:
        scans = [s for s, name in named if name not in PRIVATE]
        if not scans:
            raise Unsuitable("it holds a label or macro image and no scan")
    sides: dict[str, Any] = {}
    for s, name in named:
        if name and s not in scans:
            sides.setdefault(name, s)
    return scans, sides


def _names(page: Any) -> list[str]:
    tag = page.tags.get(_PAGE_NAME)
    return [str(tag.value) if tag else "", *(page.description or "")[:_NAME_LENGTH].splitlines()[:2]]


def side_name(*names: str) -> str:
    """Return label, macro, overview or thumbnail when one of an image's names says so, else an empty string."""
    hits = (_SIDE.fullmatch(n.strip()) for n in names)
    return next((h[1].lower() for h in hits if h), "")


def pyramid(flagged: list[Any], others: list[Any]) -> list[Any]:
    """Return the pages that are one image at falling sizes, finest first.

    Parameters
    ----------
    flagged
        Pages that the file calls levels; the first is the finest.
    others
        Pages on their own. Some writers put levels there, others a label that happens to have the slide's shape:
        only a whole factor below the slide counts, stored in the same way.
    """
    first = flagged[0]
    levels = [first]
    # tifffile takes whatever is a whole factor smaller for a level
    pages = [(p, True) for p in flagged[1:] if not side_name(*_names(p.keyframe))] + [(p, False) for p in others]
    for p, called in sorted(pages, key=lambda pair: -pair[0].imagewidth):
        last = levels[-1]
        smaller = p.imagewidth * 1.4 < last.imagewidth and p.imagelength < last.imagelength
        if smaller and _same_view(first, p) and _alike(first, p) and (called or _reduced(p) or _whole_factor(first, p)):
            levels.append(p)
    return levels


def _same_view(base: Any, page: Any) -> bool:
    # rounding of the shorter side is what weighs
    h0, w0, h, w = base.imagelength, base.imagewidth, page.imagelength, page.imagewidth
    return bool(abs(h * w0 - w * h0) <= 2 * max(h0, w0))


def _alike(base: Any, page: Any) -> bool:
    a, b = base.keyframe, page.keyframe
    return bool((a.samplesperpixel, a.photometric, a.dtype) == (b.samplesperpixel, b.photometric, b.dtype))


def _reduced(page: Any) -> bool:
    return bool(int(page.keyframe.subfiletype or 0) & 1)


def _whole_factor(base: Any, page: Any) -> bool:
    a, b = base.keyframe, page.keyframe
    n = round(base.imagewidth / page.imagewidth)
    sides = (base.imagelength, page.imagelength), (base.imagewidth, page.imagewidth)
    fits = all(abs(long / n - short) < 1 for long, short in sides)
    return bool(fits and (a.is_tiled, a.compression) == (b.is_tiled, b.compression))


def claims_of(tif: Any, page: Any, index: int) -> list[Claim]:
    """Return what a TIFF says about the resolution of its series `index`, whose first page is `page`."""
    claims = []
    if tif.is_ome and (claim := _ome_claim(tif.ome_metadata, index)):
        claims.append(claim)
    if tif.is_svs and (hit := re.search(r"MPP\s*=\s*(\d+(?:[.,]\d+)?)", page.description or "")):
        mpp = float(hit[1].replace(",", "."))
        claims.append(Claim((mpp, mpp), "aperio description"))
    per_um = {2: 25_400.0, 3: 10_000.0}.get(int(page.keyframe.resolutionunit or 1))  # 1: no unit, so no meaning
    tags = [page.keyframe.tags.get(n) for n in ("YResolution", "XResolution")]
    if per_um and all(tags):
        values = [_number(t.value) for t in tags]
        if min(values) > 0:
            claims.append(Claim((per_um / values[0], per_um / values[1]), "tiff resolution tag"))
    return claims


def _ome_claim(xml: str, index: int) -> Claim | None:
    from xml.etree import ElementTree  # nosec: a file the user opens; expat refuses entity bombs since 2.4.1

    try:
        root = ElementTree.fromstring(xml)  # noqa: S314
    except ElementTree.ParseError:
        return None
    pixels = root.findall(".//{*}Image/{*}Pixels")
    if index >= len(pixels):
        return None
    sizes = []
    for axis in "YX":
        size = pixels[index].get(f"PhysicalSize{axis}")
        um = unit_um(pixels[index].get(f"PhysicalSize{axis}Unit", "µm"))
        try:
            sizes.append(float(size or "") * (um or math.nan))
        except ValueError:
            return None
    return None if any(map(math.isnan, sizes)) else Claim((sizes[0], sizes[1]), "ome-xml")


def _number(value: Any) -> float:
    """Return a tag's number: a ratio by the standard, a plain one from some writers; 0 for anything else."""
    try:
        above, below = value if isinstance(value, tuple) and len(value) == 2 else (*np.atleast_1d(value), 1)
        return float(above / below)
    except (TypeError, ValueError, ZeroDivisionError, IndexError):
        return 0.0
