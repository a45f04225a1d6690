"""Reads blocks ahead of whoever computes, in as many threads as the disk asks for."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from time import perf_counter, thread_time
from typing import Protocol

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import Undecodable
from napari_peka.core.geometry import Block, Rect, TileTable
from napari_peka.infer.forward import Images, Tiles
from napari_peka.infer.schedule import Schedule
from napari_peka.io.tiles import read_tiles

#: blocks decoded and waiting: two keep the model fed, more only cost memory (9.6 MB each at 64 tiles of 224 px)
READ_AHEAD = 2
#: threads that read at most, and bytes of decoded blocks that they may hold, where more are begun for a slow disk
MOST_READERS, IN_FLIGHT = 16, 256 << 20
#: reading waits for a disk while the processor works for less than this share of it
_WAITING = 1 / 3
#: the model starves when it waits for a block for more than this share of the time that it computes one
_STARVING = 0.1
#: bytes of a block's tiles that are cut as it is read. More, as tiles that overlap widely have, are cut by the batch:
#: 64 tiles of 896 px are 154 MB, the image that they are cut from is 18 MB
CUT_AHEAD = 64 << 20


class BlockSource(Protocol):
    """What reading asks of a slide."""

    def read_block(self, rect: Rect, mpp: float | None = None) -> Images:
        """See :meth:`napari_peka.io.slide.Slide.read_block`."""


@dataclass(frozen=True, eq=False)
class Uncut:
    """The tiles of a block, cut from its image when they are asked for."""

    block: Block
    image: Images
    size_px: int

    def __len__(self) -> int:
        return len(self.block)

    def __getitem__(self, rows: slice) -> Images:
        return self.block.cut(self.image, self.size_px, rows)


@dataclass(eq=False)
class ReadBlock:
    """A block that was read.

    Parameters
    ----------
    block
        Which.
    tiles
        Its tiles, zeros where one could not be decoded.
    ok
        Which could be, bool ``(n,)``.
    seconds, cpu_seconds
        What reading it took, and how much of that the processor worked.
    """

    block: Block
    tiles: Images | Uncut
    ok: npt.NDArray[np.bool_]
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def readable(self) -> Tiles:
        """The tiles that could be decoded; where there is none a blank one, which tells how wide embeddings are."""
        if isinstance(self.tiles, Uncut) or self.ok.all():
            return self.tiles
        return self.tiles[self.ok] if self.ok.any() else np.zeros_like(self.tiles[:1])

    @property
    def nbytes(self) -> int:
        """Bytes that reading it takes: while its tiles are cut, the image that they are cut from is there too."""
        return self.tiles.image.nbytes if isinstance(self.tiles, Uncut) else 2 * self.tiles.nbytes


class ReadAhead:
    """Threads that read the blocks of a schedule; iterate over it, and close it.

    Parameters
    ----------
    slide, tiles, schedule
        What is read.
    readers
        Threads to begin with.
    more
        Begin others while blocks are waited for: that wait for a disk themselves, or for longer than they are computed,
        so that cores are idle. None is begun that would only take the processor from whoever computes.
    """

    def __init__(
        self, slide: BlockSource, tiles: TileTable, schedule: Schedule, readers: int = 1, *, more: bool = False
    ) -> None:
        self._source = slide, tiles, schedule
        self._more = more
        self._waiting: queue.Queue[ReadBlock | BaseException | None] = queue.Queue(maxsize=READ_AHEAD)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._since, self._largest = 0, 0
        self._start(readers)

    def __iter__(self) -> Iterator[ReadBlock]:
        ended = 0
        while ended < len(self._threads):
            asked = perf_counter()
            item = self._waiting.get()
            waited = perf_counter() - asked
            if item is None:
                ended += 1
                continue
            if isinstance(item, BaseException):
                raise item
            began = perf_counter()
            yield item
            self._learn(item, waited, perf_counter() - began)

    def close(self) -> None:
        """Read no more, and wait for the threads."""
        self._stop.set()
        while any(t.is_alive() for t in self._threads):  # a reader may be waiting for a place in the queue
            try:
                self._waiting.get(timeout=0.05)
            except queue.Empty:
                continue

    def _start(self, n: int) -> None:
        for i in range(len(self._threads), len(self._threads) + n):
            self._threads.append(threading.Thread(target=self._read_all, name=f"peka-read-{i}", daemon=True))
            self._threads[-1].start()

    def _learn(self, item: ReadBlock, waited: float, computing: float) -> None:
        """Begin more readers where that helps."""
        self._since, self._largest = self._since + 1, max(self._largest, item.nbytes)
        n = len(self._threads)
        if not self._more or self._since <= n:  # the first block of a new reader is always waited for
            return
        if waited > _STARVING * computing and item.cpu_seconds < _WAITING * item.seconds:
            # as many as read a block in the time in which one is computed, and its pixels by the processor
            wanted, most = ceil(item.seconds / max(computing, item.cpu_seconds, 1e-3)), MOST_READERS
        elif waited > computing:
            wanted, most = 2 * n, min(MOST_READERS, os.cpu_count() or 1)
        else:
            return
        self._start(min(max(2 * n, wanted), most, IN_FLIGHT // self._largest - READ_AHEAD) - n)
        self._since = 0

    def _read_all(self) -> None:
        slide, tiles, schedule = self._source
        while not self._stop.is_set() and (block := schedule.take()) is not None:
            try:
                began, worked = perf_counter(), thread_time()
                item = _read(slide, tiles, block)
                item.seconds, item.cpu_seconds = perf_counter() - began, thread_time() - worked
                self._put(item)
            except BaseException as e:  # noqa: BLE001 - raised again in the thread that iterates
                self._put(e)
                return
        self._put(None)

    def _put(self, item: ReadBlock | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                self._waiting.put(item, timeout=0.1)
                return
            except queue.Full:
                continue


def _read(slide: BlockSource, tiles: TileTable, block: Block) -> ReadBlock:
    size = tiles.spec.size_px
    if len(block) * size * size * 3 > CUT_AHEAD:
        try:
            uncut = Uncut(block, slide.read_block(block.rect, tiles.spec.mpp), size)
            return ReadBlock(block, uncut, np.ones(len(block), bool))
        except Undecodable:
            pass
    return ReadBlock(block, *read_tiles(slide, tiles, block))
