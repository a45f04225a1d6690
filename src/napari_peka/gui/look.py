"""How a map looks: colours, contrast, scale. There is no Qt in here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.units import linear, linear_unit
from napari_peka.io.figure import COLORMAP, CONTRAST, OPACITY, contrast_limits

#: perceptually uniform and readable with colour-blind eyes; matplotlib's (van der Walt and Smith; cividis: Nuñez et
#: al. 2018) and Crameri's scientific colour maps (batlow, lajolla)
COLORMAPS = {
    "magma": "magma", "viridis": "viridis", "cividis": "cividis", "inferno": "inferno", "batlow": "crameri:batlow",
    "lajolla": "crameri:lajolla_r",
}  # fmt: skip
#: opacity of the lowest colour when low values fade, and the share of the scale from which on colours are full. Not
#: nothing: a low value still tints the tissue, no value does not
FADE_FROM, FADE_UNTIL = 0.15, 0.5


@dataclass(frozen=True)
class Look:
    """How a map looks.

    Parameters
    ----------
    colormap
        One of :data:`COLORMAPS`.
    fade
        Whether low values are nearly transparent, so that the tissue is seen there.
    percentiles
        Of a gene's values on the map, between which colours are spread.
    locked
        Whether the colours of the gene that was shown stay for the next one, so that genes can be compared.
    smooth
        Whether colours run from tile to tile; the values are one a tile either way.
    linear
        Whether values are shown without their logarithm.
    """

    colormap: str = COLORMAP
    fade: bool = True
    percentiles: tuple[float, float] = CONTRAST
    locked: bool = False
    smooth: bool = False
    linear: bool = False

    def values(self, values: npt.NDArray[Any], unit: str) -> npt.NDArray[np.float32]:
        """Return values as they are shown, float32, from values in the map's `unit`."""
        return linear(values, unit) if self.shows_linear(unit) else np.asarray(values, np.float32)

    def unit(self, unit: str) -> str:
        """Return the unit of what is shown."""
        return str(linear_unit(unit)) if self.shows_linear(unit) else unit

    def shows_linear(self, unit: str) -> bool:
        """Whether a logarithm is taken away: only from units of which it is known."""
        return self.linear and linear_unit(unit) is not None

    def limits(self, values: npt.NDArray[Any]) -> tuple[float, float]:
        """Return the values at both ends of the colours."""
        return contrast_limits(values, self.percentiles)

    def as_json(self) -> dict[str, Any]:
        """Return it fit for JSON."""
        return asdict(self) | {"percentiles": list(self.percentiles)}

    @classmethod
    def from_json(cls, given: Any) -> Look:
        """Return a look that was kept as JSON; what is not there, or cannot be used, is as usual."""
        look, given = cls(), given if isinstance(given, dict) else {}
        for field in fields(cls):
            value = given.get(field.name)
            if field.name == "colormap" and value not in COLORMAPS:
                continue
            if field.name == "percentiles":
                try:
                    low, high = map(float, value)
                except (TypeError, ValueError):
                    continue
                if not 0 <= low < high <= 100:
                    continue
                value = (low, high)
            elif not isinstance(value, type(getattr(look, field.name))):
                continue
            look = replace(look, **{field.name: value})
        return look

    def dress(self, layer: Any) -> None:
        """Give a map's layer this look, except for contrast."""
        layer.colormap = colours(self.colormap, self.fade)
        layer.interpolation2d = "linear" if self.smooth else "nearest"


@lru_cache(maxsize=32)
def colours(name: str, fade: bool) -> Any:
    """Return a colour map for napari, by a name of :data:`COLORMAPS`."""
    import cmap
    from napari.utils import Colormap

    lut = np.array(cmap.Colormap(COLORMAPS[name]).lut(256), np.float32)
    if fade:
        lut[:, 3] = np.interp(np.linspace(0, 1, 256), [0, FADE_UNTIL], [FADE_FROM, 1])
    title = f"{name}, low values fade" if fade else name
    return Colormap(lut, name=title, display_name=title)


def for_matplotlib(name: str, fade: bool) -> Any:
    """Return a colour map for a figure, by a name of :data:`COLORMAPS`; with opacities where low values fade."""
    from matplotlib.colors import ListedColormap

    return ListedColormap(np.asarray(colours(name, fade).colors) * [1, 1, 1, OPACITY], name=name)
