"""A map while it is made: what is there of it, what is still to be computed, and where what is done goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from napari_peka.config import PredictConfig
from napari_peka.core.errors import StoreError
from napari_peka.core.geometry import Block, TileTable
from napari_peka.infer.schedule import Schedule
from napari_peka.io.kept_tiles import KeptTiles
from napari_peka.io.prediction import Prediction
from napari_peka.io.store import RunStore

if TYPE_CHECKING:
    from napari_peka.infer.read_ahead import BlockSource
    from napari_peka.io.slide import Slide
    from napari_peka.models.bundle import Model
    from napari_peka.trust.stain import StainMap
    from napari_peka.workflows.sampling import Sampler

Embeddings = npt.NDArray[np.float16]
OnStart = Callable[[Prediction, Schedule], None]
OnBlock = Callable[[Block, Embeddings, npt.NDArray[np.bool_]], None]
OnPart = Callable[[Block, Embeddings], None]


@dataclass(eq=False)
class Growing:
    """A growing map.

    Parameters
    ----------
    slide, model, config
        What is predicted on, with what, and how.
    store
        Where finished blocks are kept.
    live
        The map, NaN where it is not done.
    kept
        What the same encoder has seen of the slide before; None: nothing is kept.
    on_block, on_part
        Hear of each finished block, and of a block in work; see :func:`napari_peka.predict`.
    stain
        What changes the colours that the model is shown; None: they stay.
    sampler
        Keeps some of the tiles that are read; None: none are kept.
    """

    slide: Slide
    model: Model
    config: PredictConfig
    store: RunStore
    live: Prediction
    kept: KeptTiles | None
    on_block: OnBlock | None
    on_part: OnPart | None
    stain: StainMap | None = None
    sampler: Sampler | None = None

    def __post_init__(self) -> None:
        self.blocks = self.tiles.blocks()
        self.schedule = Schedule([])
        self._anything_new = False
        self._in_parts: Block | None = None
        # the last number that the encoder gave each tile: its distance, where that is measured
        self._last = np.full(len(self.tiles), np.nan, np.float16)

    @property
    def source(self) -> BlockSource:
        """What tiles are read from."""
        read = self.sampler or self.slide
        return read if self.stain is None else self.stain.over(read)

    @property
    def tiles(self) -> TileTable:
        """The tiles of the map."""
        return self.live.tiles

    def take(self, known: Prediction | None) -> list[Block]:
        """Put in what is there already, schedule the rest, and return the blocks that are there.

        Parameters
        ----------
        known
            A result of the same tiles and encoder, of which all is taken; None: there is none.
        """
        seen = self.kept.read(self.tiles) if self.kept and known is None else None
        there = []
        for block in self.blocks:
            rows = slice(block.start, block.stop)
            if known is not None:
                self._take_over(block, known)
            elif (data := self.store.read_block(block)) is not None:
                self._put(block, *data)
            elif seen is not None and not np.isnan(seen[rows, 0]).any():
                self._put(block, seen[rows], np.ones(len(block), bool))
            else:
                continue
            there.append(block)
        self.schedule = Schedule(self.blocks, [b.index for b in there])
        return there

    def keep(self, block: Block, embeddings: Embeddings, ok: npt.NDArray[np.bool_]) -> None:
        """Write a finished block, and show it."""
        self.store.write_block(block, embeddings, ok)
        self.show(block, embeddings, ok)

    def show(self, block: Block, embeddings: Embeddings, ok: npt.NDArray[np.bool_]) -> None:
        """Put a block that was computed just now into the map, and tell of it."""
        self._anything_new, self._in_parts = True, None
        self._put(block, embeddings, ok)
        self.tell(block)

    def tell(self, block: Block) -> None:
        """Tell of a block that is in the map."""
        if self.on_block:
            rows = slice(block.start, block.stop)
            self.on_block(block, self.live.embeddings[rows], self.live.read_ok[rows])

    def show_part(self, block: Block, embeddings: Embeddings) -> None:
        """Put what is done of a block into the map, and tell of it."""
        self._in_parts = block
        self._show(block, embeddings)
        if self.on_part:
            self.on_part(block, self.live.embeddings[block.start : block.stop])

    def _put(self, block: Block, embeddings: Embeddings, ok: npt.NDArray[np.bool_]) -> None:
        self._show(block, embeddings)
        self.live.read_ok[block.start : block.stop] = ok

    def _show(self, block: Block, seen: Embeddings) -> None:
        rows = slice(block.start, block.stop)
        show(self.live, self.model, rows, seen)
        self._last[rows] = seen[:, -1]

    def _take_over(self, block: Block, known: Prediction) -> None:
        """Put in a block of a result that another head has read."""
        rows, live = slice(block.start, block.stop), self.live
        live.embeddings[rows], live.read_ok[rows] = known.embeddings[rows], known.read_ok[rows]
        ood, spread = doubt_of(known, self.model, rows)
        if live.spread is not None and spread is not None:
            live.spread[rows] = spread
        if live.ood is not None and ood is not None:
            live.ood[rows] = ood

    @property
    def _seen(self) -> Embeddings:
        """What the encoder gave each tile, ``(n, seen_dims)``; NaN where it is missing."""
        own = self.live.embeddings
        return own if self.model.seen_dims == own.shape[1] else np.concatenate([own, self._last[:, None]], 1)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Let the map's record say how far it is until the block ends well; what was seen is kept however it ends."""
        self.live.record["partial"] = self.live.done_in_words
        try:
            yield
        finally:
            if (block := self._in_parts) is not None:  # what is not kept is not shown as done
                self.show_part(block, np.full((len(block), self.model.seen_dims), np.nan, np.float16))
            self.live.record["partial"] = self.live.done_in_words
            if self.kept and self._anything_new:
                with suppress(StoreError):  # a cache that cannot be written costs time, nothing else
                    self.kept.add(self.tiles, self._seen)
        del self.live.record["partial"]


def empty_prediction(tiles: TileTable, model: Model, record: dict[str, object]) -> Prediction:
    """Return a map of which nothing is done."""
    embeddings = np.full((len(tiles), model.head.embedding_dims), np.nan, np.float16)
    made = Prediction(tiles, embeddings, model.head, np.ones(len(tiles), bool), record, intervals=model.intervals)
    if model.likeness is not None:
        made.ood, made.spread = (np.full(len(tiles), np.nan, np.float32) for _ in range(2))
    return made


def doubt_of(
    known: Prediction, model: Model, rows: slice = slice(None)
) -> tuple[npt.NDArray[np.float32] | None, npt.NDArray[np.float32] | None]:
    """Return ``ood`` and ``spread`` of a map's tiles as another model has them, from what is kept of each tile.

    Parameters
    ----------
    known
        A map whose tiles were embedded as `model` embeds them.
    model
        Whose head is to read it.
    rows
        Which tiles.

    Returns
    -------
    ood, spread
        None where the model cannot tell, or only by what the encoder saw, which `known` does not keep.
    """
    if model.likeness is None:
        return None, None
    own = known.embeddings[rows]
    if not model.image_reference:
        return model.doubt(own)
    same = known.record.get("model", {}).get("seen_digest") == model.seen_digest
    return known.ood[rows] if same and known.ood is not None else None, model.spread(own)


def show(live: Prediction, model: Model, rows: slice, seen: Embeddings) -> None:
    """Put what the encoder gave some tiles, ``(n, seen_dims)``, into a growing map."""
    embeddings = seen[:, : live.embeddings.shape[1]]
    live.embeddings[rows] = embeddings
    if live.ood is not None and live.spread is not None:
        live.ood[rows], live.spread[rows] = model.doubt(seen)
