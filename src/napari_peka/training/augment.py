"""What a tile could have looked like as well: turned, mirrored, stained a little differently.

Every draw is a function of seed, epoch and tile, so that a resumed run sees what an uninterrupted one would have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

#: red, green and blue that haematoxylin, eosin and a residual absorb (Ruifrok & Johnston 2001, as in scikit-image)
HED = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105), (0.268, 0.570, 0.776))


@dataclass(frozen=True)
class Augment:
    """How strongly tiles are changed.

    Parameters
    ----------
    dihedral
        Turn by quarters and mirror: tissue has no up.
    stain
        Spread of the strength of haematoxylin and eosin: each is multiplied by ``1 ± stain`` and shifted by
        ``± stain / 4`` in optical density (after Tellez et al. 2019, their "HED-light" is about 0.05).
    light
        Spread of brightness and contrast, ``1 ± light``.
    """

    dihedral: bool = True
    stain: float = 0.05
    light: float = 0.1

    def __call__(self, tiles: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Return changed tiles, uint8 ``(b, S, S, 3)`` in and out, on the tiles' device."""
        if self.dihedral:
            tiles = dihedral(tiles, rng.integers(8, size=len(tiles)))
        if self.stain or self.light:
            tiles = recolour(tiles, self._colours(rng, len(tiles)))
        return tiles

    def _colours(self, rng: np.random.Generator, n: int) -> Colours:
        spread = self.stain * np.array([1.0, 1.0, 0.5])  # the residual is mostly noise: half as much
        return Colours(
            1 + spread * rng.uniform(-1, 1, (n, 3)),
            spread / 4 * rng.uniform(-1, 1, (n, 3)),
            1 + self.light * rng.uniform(-1, 1, n),
            1 + self.light * rng.uniform(-1, 1, n),
        )


@dataclass(frozen=True, eq=False)
class Colours:
    """How tiles are recoloured: factor and shift of the stains ``(n, 3)``, brightness and contrast ``(n,)``."""

    factor: npt.NDArray[np.float64]
    shift: npt.NDArray[np.float64]
    brightness: npt.NDArray[np.float64]
    contrast: npt.NDArray[np.float64]


def dihedral(tiles: torch.Tensor, which: npt.NDArray[np.integer]) -> torch.Tensor:
    """Turn each tile ``which % 4`` quarters, and mirror it first where ``which >= 4``; ``(b, S, S, 3)``."""
    out = torch.empty_like(tiles)
    for k in np.unique(which).tolist():
        rows = torch.from_numpy(np.flatnonzero(which == k)).to(tiles.device)
        part = tiles[rows]
        part = part.flip(2) if k >= 4 else part
        out[rows] = torch.rot90(part, k % 4, (1, 2))
    return out


def recolour(tiles: torch.Tensor, colours: Colours) -> torch.Tensor:
    """Change stains in optical density, then contrast and brightness; uint8 ``(b, S, S, 3)`` in and out.

    The three stains are linear in optical density, so factor and shift are one matrix and one vector a tile.
    """
    stains = np.array(HED)
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    unmix = np.linalg.inv(stains)
    matrix = unmix @ (colours.factor[:, :, None] * stains)  # (n, 3, 3): density -> stains -> changed -> density
    # 256 exp(-density) as one exponential of a linear map of log(1 + pixel)
    offset = np.log(256) * (1 - matrix.sum(1)) - colours.shift @ stains
    as_tensor = {"device": tiles.device, "dtype": torch.float32}
    m, v = (torch.as_tensor(a, **as_tensor) for a in (matrix.transpose(0, 2, 1), offset[:, :, None]))
    b, c = (torch.as_tensor(a, **as_tensor).view(-1, 1, 1) for a in (colours.brightness, colours.contrast))
    out = torch.empty_like(tiles)
    step = 1 if tiles.device.type == "cpu" else max(1, len(tiles))  # one tile stays in a CPU's cache: a third the time
    for at in range(0, len(tiles), step):
        part = slice(at, at + step)
        planes = tiles[part].permute(0, 3, 1, 2)
        x = planes.to(torch.float32, memory_format=torch.contiguous_format).flatten(2)
        light = torch.baddbmm(v[part], m[part], x.log1p_()).exp_()  # pixel + 1
        mean = light.mean((1, 2), keepdim=True) - 1
        both = b[part] * c[part]
        light.mul_(both).add_(b[part] * (1 - c[part]) * mean - both)
        out[part] = light.round_().clamp_(0, 255).view_as(planes).permute(0, 2, 3, 1)
    return out
