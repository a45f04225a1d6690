"""Where the tissue is, from a thumbnail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.geometry import Raster

if TYPE_CHECKING:
    from napari_peka.io.slide import Slide

#: Lab distance from the glass that is never tissue, and that always is: below 4 lies what an eye hardly tells apart
#: under changing light, above 22 even pale H&E
FLOOR, CEILING = 4.0, 22.0
#: smallest piece kept, as a share of the picture
MIN_PIECE = 2e-4


@dataclass(frozen=True, eq=False)
class Tissue:
    """Tissue of a slide.

    Parameters
    ----------
    mask
        bool map with its scale.
    mpp
        µm per level-0 pixel (y, x); None if unknown.
    """

    mask: Raster
    mpp: tuple[float, float] | None

    @property
    def area_mm2(self) -> float | None:
        """Area in mm²; None when the µm per pixel are unknown."""
        if self.mpp is None:
            return None
        (sy, sx), (my, mx) = self.mask.scale_yx, self.mpp
        return float(self.mask.data.sum() * sy * my * sx * mx / 1e6)

    def polygons(self) -> Any:
        """Return the outline as a shapely MultiPolygon in level-0 pixels, x first; holes are kept."""
        import shapely
        from skimage.measure import find_contours

        padded = np.pad(self.mask.data.astype(np.float32), 1)
        (sy, sx), (oy, ox) = self.mask.scale_yx, self.mask.origin_yx
        rings = []
        for contour in find_contours(padded, 0.5):
            if len(contour) >= 4:  # contour runs through pixel centres of the padded mask: -1 pad, +0.5 to edges
                rings.append(np.stack([(contour[:, 1] - 0.5) * sx + ox, (contour[:, 0] - 0.5) * sy + oy], 1))
        area = shapely.MultiPolygon()
        for ring in sorted(rings, key=len, reverse=True):  # a hole lies inside its outline: even-odd
            area = area.symmetric_difference(shapely.make_valid(shapely.Polygon(ring)))
        parts = [p for p in shapely.get_parts(area) if p.geom_type == "Polygon"]
        return shapely.MultiPolygon(parts)


def find_tissue(slide: Slide, *, max_px: int = 1024) -> Tissue:
    """Find the tissue of a slide.

    Parameters
    ----------
    slide
        Any slide; its µm per pixel need not be known.
    max_px
        Longer side of the thumbnail that is looked at.
    """
    image = slide.thumbnail(max_px)
    h, w = image.shape[:2]
    mask = Raster(tissue_mask(image), (slide.shape[0] / h, slide.shape[1] / w), units="tissue")
    return Tissue(mask, slide.resolution.mpp if slide.resolution else None)


def tissue_mask(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return where an RGB picture ``(h, w, 3)`` shows tissue, bool ``(h, w)``.

    The glass's colour is estimated, and tissue is what differs from it in Lab by more than Otsu's threshold, held
    between a floor that noise does not reach and a ceiling that pale stain exceeds. Pen and black marks are left out.
    """
    from scipy import ndimage as ndi
    from skimage.color import rgb2lab
    from skimage.filters import threshold_otsu
    from skimage.morphology import disk, remove_small_objects

    side = max(image.shape[:2])
    smooth = ndi.gaussian_filter(image.astype(np.float32) / 255, (max(side / 700, 0.5),) * 2 + (0,))
    lab = rgb2lab(smooth)
    glass = _glass(lab)
    delta = lab - glass
    # tissue is darker or more coloured than glass; brighter grey is glare
    distance = np.sqrt(np.minimum(delta[..., 0], 0) ** 2 * 0.5 + delta[..., 1] ** 2 + delta[..., 2] ** 2)
    if np.percentile(distance, 99.5) < FLOOR:
        return np.zeros(image.shape[:2], bool)
    threshold = float(np.clip(threshold_otsu(np.minimum(distance, 40)) * 0.7, FLOOR, CEILING))
    mask = (distance > threshold) & ~_marks(lab)
    mask = ndi.binary_closing(np.pad(mask, 8), disk(max(2, side // 256)))[8:-8, 8:-8]
    mask = ndi.binary_opening(mask, disk(max(1, side // 512)))
    smallest = max(16, int(MIN_PIECE * mask.size))
    mask = remove_small_objects(mask, max_size=smallest)
    return np.asarray(~remove_small_objects(~mask, max_size=smallest))


def _glass(lab: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return the colour of the glass: the commonest bright, even, nearly grey colour; white where there is none."""
    from scipy import ndimage as ndi

    light, chroma = lab[..., 0], np.hypot(lab[..., 1], lab[..., 2])
    even = ndi.gaussian_gradient_magnitude(light, 1.0) < 1.5
    candidate = even & (light > 60) & (chroma < 14)
    if candidate.mean() < 0.01:
        return np.array([96.0, 0.0, 0.0])
    values = lab[candidate]
    counts, edges = np.histogram(values[:, 0], bins=40, range=(60, 100))
    # among the common lightnesses the brightest is the glass: a large pale section may be commoner
    common = np.flatnonzero(counts > 0.25 * counts.max())[-1]
    near = np.abs(values[:, 0] - (edges[common] + edges[common + 1]) / 2) < 1.5
    return np.asarray(np.median(values[near], 0))


def _marks(lab: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Return where a pen or a black edge lies: colours that haematoxylin and eosin cannot make."""
    from scipy import ndimage as ndi

    light, a, b = np.moveaxis(lab, -1, 0)
    chroma = np.hypot(a, b)
    green = (a < -6) & (chroma > 10)
    blue = (b < -25) & (a < 18) & (chroma > 25)
    black = (light < 30) & (chroma < 12)
    return np.asarray(ndi.binary_dilation(green | blue | black, iterations=2))
