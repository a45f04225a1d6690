"""Finished blocks of an unfinished map: what a run resumes from, and what workers write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from napari_peka.core import files


@dataclass(frozen=True)
class BlockFiles:
    """Finished blocks of an unfinished map, a file each, whole or not there.

    Parameters
    ----------
    folder
        Where they are.
    n_dims
        Width of an embedding.
    """

    folder: Path
    n_dims: int

    def path(self, index: int) -> Path:
        """Return where a finished block is kept."""
        return self.folder / f"{index:06d}.safetensors"

    def read(self, index: int, n: int) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.bool_]] | None:
        """Return ``(embeddings, read_ok)`` of a finished block of `n` tiles, or None."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            data = load(self.path(index).read_bytes())
            embeddings, ok = data["embeddings"], data["read_ok"]
        except (FileNotFoundError, SafetensorError, KeyError):
            return None
        if embeddings.shape != (n, self.n_dims) or ok.shape != (n,):
            return None
        return embeddings, ok.astype(bool)

    def write(self, index: int, embeddings: npt.NDArray[np.float16], ok: npt.NDArray[np.bool_]) -> None:
        """Keep a finished block: ``embeddings (n, d)`` and ``read_ok (n,)``."""
        from safetensors.numpy import save

        data = {
            "embeddings": np.ascontiguousarray(embeddings, np.float16),
            "read_ok": np.ascontiguousarray(ok),
        }
        files.write_whole(self.path(index), save(data))
