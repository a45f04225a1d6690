"""What a model saw in the tiles of a slide, kept by place: a new gene head, gene panel or region needs no encoder.

One file in the cache holds all tiles that one encoder and adapter have seen of one slide on one grid. It is read whole
and replaced whole; of two runs that end at the same time the later one's tiles stay.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_peka.core import files
from napari_peka.core.errors import SettingError
from napari_peka.core.geometry import TileTable
from napari_peka.io.cache import EMBEDDINGS, cache_folder, kept_in, room_gb, tidy, touch

ENVIRONMENT = "NAPARI_PEKA_REUSE"
_PLACE, _EMBEDDINGS = "grid_yx", "embeddings"
#: of a run's identity, what does not decide the embedding of a tile at a place of the grid
_BESIDE = {"model", "region or tissue"}


@dataclass(frozen=True, eq=False)
class KeptTiles:
    """The file of one slide, encoder and grid.

    Parameters
    ----------
    path
        Where it is, or will be.
    n_dims
        Width of an embedding.
    """

    path: Path
    n_dims: int

    @classmethod
    def of(cls, record: dict[str, Any], tiles: TileTable, n_dims: int) -> KeptTiles | None:
        """Return the file for a run; None where nothing is kept: tiles without a grid, or ``$NAPARI_PEKA_REUSE`` is 0.

        Parameters
        ----------
        record
            Of the run; its identity and the model's ``seen_digest`` name the file.
        tiles, n_dims
            Its tiles, and the width of an embedding.

        Raises
        ------
        SettingError
            If that variable, or the one for the cache's room, is nonsense: told before anything is computed.
        """
        said = os.environ.get(ENVIRONMENT) or "1"
        if said not in ("0", "1"):
            raise SettingError(f"the environment variable {ENVIRONMENT} must be 0 or 1, got {said!r}")
        room_gb()
        if tiles.grid_yx is None or said == "0":
            return None
        decides = {k: v for k, v in record["identity"].items() if k not in _BESIDE}
        decides["encoder"] = record["model"]["seen_digest"]
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
        return cls(cache_folder() / EMBEDDINGS / f"{record['slide']['name']}-{digest}.safetensors", n_dims)

    def read(self, tiles: TileTable) -> npt.NDArray[np.float16] | None:
        """Return the embeddings of those of the tiles that were seen before, float16 ``(n, d)``, NaN for the others.

        None where none was seen, or what is kept is damaged: it is made again.
        """
        kept = self._load()
        if kept is None:
            return None
        place, embeddings = kept
        row, seen = _find(place, tiles)
        if not seen.any():
            return None
        touch(self.path)
        out = np.full((len(tiles), self.n_dims), np.nan, np.float16)
        out[seen] = embeddings[row[seen]]
        return out

    def seen(self, tiles: TileTable) -> npt.NDArray[np.bool_]:
        """Return which of the tiles were seen before, bool ``(n,)``; cheap, no embedding is read."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "numpy") as file:
                place = file.get_tensor(_PLACE)
        except (OSError, SafetensorError):
            return np.zeros(len(tiles), bool)
        return _find(place, tiles)[1] if len(place) else np.zeros(len(tiles), bool)

    def add(self, tiles: TileTable, embeddings: npt.NDArray[np.float16]) -> None:
        """Keep the embeddings of tiles, float16 ``(n, d)``, beside those that are kept; rows of NaN are left out.

        Raises
        ------
        StoreError
            If the cache cannot be written.
        """
        from safetensors.numpy import save

        assert tiles.grid_yx is not None
        new = ~np.isnan(embeddings[:, 0])
        place, values = tiles.grid_yx[new], embeddings[new]
        if (before := self._load()) is not None:
            other = ~np.isin(_key(before[0]), _key(place))
            place = np.concatenate([before[0][other], place])
            values = np.concatenate([before[1][other], values])
        if len(place):
            data = {_PLACE: np.ascontiguousarray(place, np.int32), _EMBEDDINGS: np.ascontiguousarray(values)}
            files.write_whole(kept_in(EMBEDDINGS) / self.path.name, save(data))
            tidy()

    def _load(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float16]] | None:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            data = load(self.path.read_bytes())
            place, embeddings = data[_PLACE], data[_EMBEDDINGS]
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        fits = embeddings.ndim == 2 and embeddings.shape[1] == self.n_dims and place.shape == (len(embeddings), 2)
        return (place, embeddings) if fits and len(place) else None


def _find(place: npt.NDArray[np.int32], tiles: TileTable) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Return for each tile a row of `place`, and whether it is the tile's."""
    assert tiles.grid_yx is not None
    key = _key(place)
    order = np.argsort(key)
    row = order[np.searchsorted(key[order], _key(tiles.grid_yx)).clip(max=len(order) - 1)]
    return row, (place[row] == tiles.grid_yx).all(1)


def _key(grid_yx: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Return one number a place of the grid."""
    return grid_yx[:, 0].astype(np.int64) << 32 | grid_yx[:, 1].astype(np.int64)
