"""Several maps in one picture: each lends its colour by its value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

#: three colours that add up to white or nearly so, RGB 0 to 1, by name
PALETTES: dict[str, tuple[tuple[float, float, float], ...]] = {
    # two of them never look alike to colour-blind eyes, for they differ in lightness as well
    "cyan, magenta, yellow": ((0.0, 0.75, 1.0), (1.0, 0.0, 0.75), (1.0, 0.85, 0.0)),
    "red, green, blue": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
}
#: opacity where all maps are at their lowest: less than full, more than nothing
_LEAST = 0.15


def blend(
    maps: Sequence[npt.NDArray[np.floating]],
    limits: Sequence[tuple[float, float]],
    colours: Sequence[tuple[float, float, float]],
) -> npt.NDArray[np.uint8]:
    """Return one picture of several maps, uint8 RGBA ``(h, w, 4)``.

    Parameters
    ----------
    maps
        Values ``(h, w)``, NaN where there are none; there the picture is transparent.
    limits
        Of each map the values of no colour and of full colour.
    colours
        Of each map, RGB 0 to 1. They are added; the opacity is that of the strongest.

    Raises
    ------
    ValueError
        If there are not as many limits and colours as maps, or none.
    """
    if not maps or not len(maps) == len(limits) <= len(colours):
        raise ValueError(f"{len(maps)} maps need as many limits and colours, got {len(limits)} and {len(colours)}")
    shape = maps[0].shape
    rgb, most = np.zeros((*shape, 3), np.float32), np.zeros(shape, np.float32)
    known = np.zeros(shape, bool)
    for values, (low, high), colour in zip(maps, limits, colours):
        finite = np.isfinite(values)
        share = np.clip((np.where(finite, values, low) - low) / max(high - low, 1e-12), 0, 1).astype(np.float32)
        rgb += share[..., None] * np.asarray(colour, np.float32)
        most, known = np.maximum(most, share), known | finite
    out = np.zeros((*shape, 4), np.float32)
    out[..., :3] = np.minimum(rgb, 1)
    out[..., 3] = np.where(known, np.maximum(most, _LEAST), 0)
    return np.asarray(np.rint(out * 255), np.uint8)
