"""Stain normalisation: a slide's colours towards those of the training spots, one map of colours for the whole slide.

Both sides are fitted by torchstain: Macenko et al. (A method for normalizing histology slides for quantitative
analysis, ISBI 2009) or Reinhard et al. (Color transfer between images, IEEE CG&A 2001). A fit of each tile by itself
would paint fat as tumour; one fit of many tiles keeps what differs within a slide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import NoTissue, SettingError
from napari_peka.core.geometry import Rect

if TYPE_CHECKING:
    from napari_peka.io.slide import Slide

Images = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Method = Literal["macenko", "reinhard"]

METHODS: tuple[Method, ...] = ("macenko", "reinhard")
#: of each method, the shape of what is fitted. Macenko: of haematoxylin and eosin the absorption of red, green and blue
#: and the 99th percentile of the concentration; Reinhard: mean and standard deviation of L, a and b
SHAPES: dict[str, tuple[int, int]] = {"macenko": (2, 4), "reinhard": (2, 3)}
#: the light that glass lets through, and the least absorption of stained tissue, as torchstain has them
_GLASS, _LEAST = 240.0, 0.15
#: pixels of a fit at most, and at least
_PIXELS, _FEW = 500_000, 5_000
#: two stains that differ by less of an angle (degrees) are one
_ANGLE = 3.0
#: pixels that are computed together: some MB of float32
_AT_ONCE = 1 << 18
#: digits that are kept of a fit: the last ones are the machine's
_DIGITS = 4
_DENSITY = (-np.log((np.arange(256) + 1) / _GLASS)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class StainMap:
    """Changes the colours of one slide.

    Parameters
    ----------
    method
        ``"macenko"`` or ``"reinhard"``.
    source, target
        What :func:`fit_stain` found on the slide and on the training spots.
    """

    method: Method
    source: Float32
    target: Float32

    def __call__(self, image: Images) -> Images:
        """Return an image, or tiles, uint8 ``(..., 3)``, in the other colours."""
        flat = np.ascontiguousarray(image).reshape(-1, 3)
        out = np.empty_like(flat)
        one = _macenko if self.method == "macenko" else _reinhard
        for at in range(0, len(flat), _AT_ONCE):
            out[at : at + _AT_ONCE] = one(flat[at : at + _AT_ONCE], self.source, self.target)
        return out.reshape(image.shape)

    def over(self, slide: Any) -> StainedSlide:
        """Return what reads a slide in these colours."""
        return StainedSlide(slide, self)


@dataclass(frozen=True, eq=False)
class StainedSlide:
    """Reads a slide in other colours; only what the model is shown is changed, never the file."""

    slide: Slide
    stain: StainMap

    def read_block(self, rect: Rect, mpp: float | None = None) -> Images:
        """See :meth:`napari_peka.io.slide.Slide.read_block`."""
        return self.stain(self.slide.read_block(rect, mpp))


def fit_stain(tiles: Images, method: Method) -> Float32:
    """Fit the stain of tiles, all together; float32 of the shape in :data:`SHAPES`.

    Parameters
    ----------
    tiles
        uint8 ``(n, S, S, 3)``; only what is stained counts.
    method
        ``"macenko"`` or ``"reinhard"``.

    Raises
    ------
    NoTissue
        If there is too little stained tissue, or Macenko finds one stain only.
    SettingError
        If torchstain is not installed.
    """
    pixels = tiles.reshape(-1, 3)[:: max(1, tiles.size // 3 // _PIXELS)]
    pixels = pixels[(_DENSITY[pixels] >= _LEAST).any(1)]
    if len(pixels) < _FEW:
        raise NoTissue("there is too little stained tissue to fit its stain; leave the stain as it is (stain = none)")
    image = np.ascontiguousarray(pixels[:, None])
    if method == "reinhard":
        lab = _torchstain().NumpyReinhardNormalizer()
        lab.fit(image)
        return np.round(np.stack([lab.target_means, lab.target_stds]), _DIGITS).astype(np.float32)
    if np.count_nonzero((_DENSITY[pixels] >= _LEAST).all(1)) < _FEW:
        raise NoTissue("the tissue is too pale to fit its stain by macenko; take stain = reinhard, or none")
    stains = _torchstain().NumpyMacenkoNormalizer()
    stains.fit(image)
    vectors, most = stains.HERef.T, stains.maxCRef
    cosine = abs(vectors[0] @ vectors[1]) / np.prod(np.linalg.norm(vectors, axis=1))
    if cosine > np.cos(np.radians(_ANGLE)) or not (most > 0).all():
        raise NoTissue("only one stain was found on this slide, not two; take stain = reinhard, or none")
    return np.round(np.column_stack([vectors, most]), _DIGITS).astype(np.float32)


def tensor_name(method: Method) -> str:
    """Return what a bundle calls the stain of its training tiles."""
    return f"reference.{method}"


def stain_reference(tiles: Images) -> dict[str, Float32]:
    """Return what a bundle keeps of the training tiles' stain, uint8 ``(n, S, S, 3)``.

    Returns
    -------
    dict
        ``reference.macenko (2, 4)`` and ``reference.reinhard (2, 3)``, see :data:`SHAPES`; without what cannot be
        fitted, and empty where torchstain is not installed.
    """
    found = {}
    for method in METHODS:
        try:
            found[tensor_name(method)] = fit_stain(tiles, method)
        except (NoTissue, SettingError):
            continue
    return found


def target_of(carried: Mapping[str, npt.NDArray[Any]], method: Method, model: str) -> Float32:
    """Return the stain that a model was trained on, from the tensors of its bundle.

    Raises
    ------
    SettingError
        If it says none.
    """
    target = carried.get(tensor_name(method))
    if target is None or np.shape(target) != SHAPES[method]:
        raise SettingError(
            f"the model {model} does not say what stain it was trained on, so none can be normalised to it: leave "
            "stain = none, or train the model again with this version"
        )
    return np.asarray(target, np.float32)


def stain_identity(target: Float32, method: Method) -> str:
    """Return what decides the colours that a model is shown, beside the slide: the method, and towards what."""
    return f"{method} {hashlib.sha256(np.ascontiguousarray(target).tobytes()).hexdigest()[:12]}"


def _torchstain() -> Any:
    try:
        from torchstain.numpy import normalizers
    except ImportError as e:
        raise SettingError(
            "normalising the stain needs torchstain: pip install 'napari-peka[stain]', or leave stain = none"
        ) from e
    return normalizers


def _macenko(pixels: Images, source: Float32, target: Float32) -> Images:
    """Unmix by the slide's stains, scale each to the other's strength, and mix by the other's."""
    scale = np.diag(target[:, 3] / source[:, 3])
    matrix = (np.linalg.pinv(source[:, :3]) @ scale @ target[:, :3]).astype(np.float32)
    light = _GLASS * np.exp(-(_DENSITY[pixels] @ matrix))
    return np.asarray(np.clip(light, 0, 255), np.uint8)


def _reinhard(pixels: Images, source: Float32, target: Float32) -> Images:
    """Shift and scale L, a and b; glass, of which the fit knows nothing, stays as it is, with a smooth passage."""
    from torchstain.numpy.utils import lab2rgb, rgb2lab

    lab = rgb2lab(pixels.astype(np.float32) / 255)
    unit = np.array([2.55, 1, 1], np.float32)  # torchstain's Lab is scaled as OpenCV's
    zero = np.array([0, 128, 128], np.float32)
    changed = ((lab - zero) / unit - source[0]) / np.maximum(source[1], 1e-3) * target[1] + target[0]
    rgb = lab2rgb(changed * unit + zero) * 255
    stained = np.clip(_DENSITY[pixels].max(1, keepdims=True) / _LEAST, 0, 1)
    return np.asarray(np.clip(stained * rgb + (1 - stained) * pixels, 0, 255), np.uint8)
