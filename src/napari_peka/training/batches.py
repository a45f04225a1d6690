"""What the training loop is fed with: tiles, or what a frozen trunk made of them once."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from napari_peka.core import files
from napari_peka.core.errors import StoreError
from napari_peka.core.progress import NULL, Progress
from napari_peka.io.tiles import TileBank
from napari_peka.training.augment import Augment

Rows = npt.NDArray[np.integer]


class TileBatches:
    """Tiles, augmented on the device that learns: uint8 ``(b, S, S, 3)``.

    Parameters
    ----------
    bank
        All tiles.
    augment
        How they are changed while training.
    device
        Where.
    """

    def __init__(self, bank: TileBank, augment: Augment, device: torch.device) -> None:
        self.bank, self.augment, self.device = bank, augment, device

    def training(self, rows: Rows, rng: np.random.Generator) -> torch.Tensor:
        """Return the augmented tiles of some spots."""
        return self.augment(self.plain(rows), rng)

    def plain(self, rows: Rows) -> torch.Tensor:
        """Return the tiles of some spots."""
        tiles = torch.from_numpy(self.bank.read(rows))
        if self.device.type == "cuda":
            tiles = tiles.pin_memory()
        return tiles.to(self.device, non_blocking=True)


class TrunkBatches:
    """Activations that the frozen blocks gave, read from a file: float ``(b, n_tokens, width)``.

    Each training tile has been looked at several times, augmented differently; an epoch draws one look a tile.

    Parameters
    ----------
    looks
        float16 ``(n_train * n_views + n, n_tokens, width)``: the views of the training rows, then one plain look at
        every row of `plain_rows`.
    train_rows, plain_rows
        Which spots these are.
    n_views
        Looks at each training tile.
    """

    def __init__(self, looks: npt.NDArray[np.float16], train_rows: Rows, plain_rows: Rows, n_views: int) -> None:
        self._looks, self._n_views, self._first_plain = looks, n_views, len(train_rows) * n_views
        last = int(max(train_rows.max(initial=-1), plain_rows.max(initial=-1)))
        self._train_at, self._plain_at = np.full(last + 1, -1), np.full(last + 1, -1)
        self._train_at[train_rows] = np.arange(len(train_rows))
        self._plain_at[plain_rows] = np.arange(len(plain_rows))

    def training(self, rows: Rows, rng: np.random.Generator) -> torch.Tensor:
        """Return one of the augmented looks at each spot."""
        at = self._train_at[rows]
        assert (at >= 0).all()
        return self._take(at * self._n_views + rng.integers(self._n_views, size=len(rows)))

    def plain(self, rows: Rows) -> torch.Tensor:
        """Return the plain look at each spot."""
        at = self._plain_at[rows]
        assert (at >= 0).all()
        return self._take(self._first_plain + at)

    def _take(self, at: npt.NDArray[np.integer]) -> torch.Tensor:
        return torch.from_numpy(self._looks[at]).float()


@torch.no_grad()
def trunk_batches(
    front: nn.Module,
    bank: TileBank,
    train_rows: Rows,
    plain_rows: Rows,
    *,
    n_views: int,
    augment: Augment,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
    folder: Path,
    identity: str,
    progress: Progress = NULL,
) -> TrunkBatches:
    """Compute the frozen blocks once for all looks at all tiles, or take them from `folder`.

    Parameters
    ----------
    front
        uint8 tiles to activations ``(b, n_tokens, width)``.
    bank, train_rows, plain_rows, n_views
        See :class:`TrunkBatches`.
    augment, seed
        How the looks differ.
    device, dtype, batch_size
        How to compute.
    folder
        Where the file lies.
    identity
        What `front` and the tiles are, in a word: a file of another front is not taken.

    Raises
    ------
    StoreError
        If the disk has not the room, which is said before hours of work.
    """
    front = front.to(device).eval()
    shape = _shape(front, bank, train_rows, plain_rows, n_views, device, dtype)
    said = json.dumps([identity, n_views, seed, str(augment), str(dtype), list(shape)])
    mark = hashlib.sha256(said.encode() + train_rows.tobytes() + plain_rows.tobytes()).hexdigest()[:16]
    path = files.make_folder(folder) / f"trunk-{mark}.npy"
    if not path.exists():
        size = int(np.prod(shape, dtype=np.int64)) * 2
        if (free := shutil.disk_usage(folder).free) < size * 1.05:
            raise StoreError(
                f"the trunk cache needs {size / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free; "
                "take fewer cached_views, or turn trunk_cache off"
            )
        beside = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
        try:
            out = np.lib.format.open_memmap(str(beside), mode="w+", dtype=np.float16, shape=shape)
            n_looks = len(train_rows) * n_views + len(plain_rows)
            progress.stage("computing the frozen blocks once", n_looks)
            repeated = np.repeat(train_rows, n_views)
            for first, rows, views in ((0, repeated, augment), (len(repeated), plain_rows, None)):
                at = first
                for i, (part, tiles) in enumerate(bank.batches(rows, batch_size)):
                    x = torch.from_numpy(tiles).to(device)
                    if views is not None:
                        x = views(x, np.random.default_rng([seed, i]))
                    out[at : at + len(part)] = _forward(front, x, device, dtype)
                    at += len(part)
                    progress.advance(len(part))
            out.flush()
            del out
            files.replace(beside, path)
        except OSError as e:
            raise files.cannot_write(path, e) from e
        finally:
            files.remove_tree(beside)
    return TrunkBatches(np.load(path, mmap_mode="r"), train_rows, plain_rows, n_views)


def _shape(
    front: nn.Module, bank: TileBank, train_rows: Rows, plain_rows: Rows, n_views: int, device: torch.device,
    dtype: torch.dtype,
) -> tuple[int, ...]:  # fmt: skip
    one = _forward(front, torch.from_numpy(bank.read(train_rows[:1])).to(device), device, dtype)
    return (len(train_rows) * n_views + len(plain_rows), *one.shape[1:])


def _forward(front: nn.Module, x: torch.Tensor, device: torch.device, dtype: torch.dtype) -> npt.NDArray[np.float16]:
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        out: npt.NDArray[np.float16] = front(x).to(torch.float16).cpu().numpy()
    return out
