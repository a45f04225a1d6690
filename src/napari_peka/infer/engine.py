"""Read ahead → batch → forward → hand over, block by block."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter, thread_time
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from napari_peka.core.errors import DeviceError, Undecodable
from napari_peka.core.geometry import Block, Rect, TileTable
from napari_peka.core.progress import COMPUTING, NULL, READING, Cancelled, Progress
from napari_peka.infer.schedule import Schedule
from napari_peka.io.tiles import read_tiles
from napari_peka.models.backends import TORCH

Images = npt.NDArray[np.uint8]
OnBlock = Callable[[Block, npt.NDArray[np.float16], npt.NDArray[np.bool_]], None]

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
#: blocks over which it is said what a tile costs
COST_BLOCKS = 8


class BlockSource(Protocol):
    """What the engine asks of a slide."""

    def read_block(self, rect: Rect, mpp: float | None = None) -> Images:
        """See :meth:`napari_peka.io.slide.Slide.read_block`."""


class Tiles(Protocol):
    """Tiles of a block: an array, or what cuts them when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> Images: ...


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


class Brake:
    """Stops a module between two of its layers: a pass of a large encoder takes longer than a person waits.

    Attributes
    ----------
    asked
        Says whether somebody wants a stop.
    """

    def __init__(self) -> None:
        self.asked: Callable[[], bool] = _never

    def release(self) -> None:
        """Ask nobody any more."""
        self.asked = _never

    def __call__(self, *_: Any) -> None:
        """Raise :class:`Cancelled` if somebody wants a stop; called before each layer."""
        if self.asked():
            raise Cancelled("stopped within a block of tiles")


def _never() -> bool:
    return False


class Forward:
    """Runs a module over the tiles of a block on one device; halves the batch when memory runs out.

    It is built at the first pass and may serve many slides; the batch size that fitted is remembered.

    Parameters
    ----------
    build
        Returns the module: uint8 ``(b, S, S, 3)`` in, ``(b, d)`` out. It is moved and converted in place.
    device, dtype
        Where and in which number format.
    batch_size
        Tiles a pass; None: 32 on a CPU, 128 on an accelerator.
    digest
        What the module computes, in the words of :attr:`Model.embedding_digest`; empty: nobody asks.
    backend
        What runs the encoder inside the module; another than ``"torch"`` computes in `dtype` by itself, and the rest of
        the module stays in float32.
    """

    def __init__(
        self,
        build: Callable[[], torch.nn.Module],
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int | None = None,
        digest: str = "",
        backend: str = TORCH,
    ) -> None:
        self._build, self.device, self.dtype, self.digest, self.backend = build, device, dtype, digest, backend
        self.batch_size = batch_size or (32 if device.type == "cpu" else 128)
        self.brake = Brake()

    @property
    def precision(self) -> str:
        """Number format, and who computes in it where that is not PyTorch: what decides the last digits."""
        name = str(self.dtype).removeprefix("torch.")
        return name if self.backend == TORCH else f"{name}, {self.backend}"

    @cached_property
    def module(self) -> torch.nn.Module:
        """The module, on its device."""
        module = self._build().to(self.device).eval()
        if self.device.type == "cpu" and self.dtype == torch.bfloat16 and self.backend == TORCH:
            module = module.to(self.dtype)  # weights too: autocast would convert them at every pass
        for layer in module.modules():
            layer.register_forward_pre_hook(self.brake)
        return module

    def __call__(self, tiles: Tiles) -> npt.NDArray[np.float16]:
        """Return the embeddings of uint8 tiles ``(n, S, S, 3)``, float16 ``(n, d)``."""
        done: list[npt.NDArray[np.float16]] = []
        at = 0
        while at < len(tiles):
            try:
                done.append(self._pass(tiles[at : at + self.batch_size]))
            except RuntimeError as e:
                if not _out_of_memory(e):
                    raise
                if self.batch_size == 1:
                    raise DeviceError(
                        f"{self.device} has not enough memory for a single tile of this model; close other programs or "
                        "use --device cpu"
                    ) from e
                self.batch_size = max(1, min(self.batch_size, len(tiles) - at) // 2)
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            at += len(done[-1])
        return np.concatenate(done)

    @torch.inference_mode()
    def _pass(self, tiles: Images) -> npt.NDArray[np.float16]:
        batch = torch.from_numpy(tiles)
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        autocast = self.dtype != torch.float32 and self.device.type != "cpu"
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=autocast):
            out = self.module(batch)
        # float16 ends at 65504: an embedding never gets there, an overflow must not pass as a number
        values: npt.NDArray[np.float16] = out.to(torch.float32).to(torch.float16).cpu().numpy()
        return values


@dataclass
class _Read:
    block: Block
    tiles: Images | Uncut | None = None
    ok: npt.NDArray[np.bool_] | None = None
    error: BaseException | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes that reading it takes: while its tiles are cut, the image that they are cut from is there too."""
        assert self.tiles is not None
        return self.tiles.image.nbytes if isinstance(self.tiles, Uncut) else 2 * self.tiles.nbytes


class _Costs:
    """What a tile of the last blocks took, in seconds: to read, and to compute."""

    def __init__(self) -> None:
        self._last: deque[tuple[int, float, float]] = deque(maxlen=COST_BLOCKS)

    def add(self, tiles: int, reading: float, computing: float) -> dict[str, float]:
        """Count a block; returns the metrics to report."""
        self._last.append((tiles, reading, computing))
        n, read, compute = (sum(column) for column in zip(*self._last))
        return {READING: read / n, COMPUTING: compute / n}


def embed(
    slide: BlockSource,
    tiles: TileTable,
    forward: Forward,
    schedule: Schedule,
    on_block: OnBlock,
    *,
    readers: int = 1,
    more_readers: bool = False,
    progress: Progress = NULL,
) -> None:
    """Embed every block of `schedule`; reading overlaps computing.

    `on_block` is called in this thread after each block, with float16 ``(n, d)`` embeddings (NaN where a tile could
    not be decoded) and ``read_ok (n,)``. A block is always computed from its own tiles alone, so its numbers do not
    depend on the order in which blocks were done. `progress` hears what a tile takes to read (by one reader) and to
    compute.

    `readers` threads read. With `more_readers` others are begun while the model waits for blocks that wait for a disk;
    none where reading is limited by the processor, which they would only take from the model.

    Raises
    ------
    Cancelled
        From `progress`, or within a block when `progress` says that it is cancelled; blocks handed over before stay
        valid.
    """
    costs = _Costs()
    forward.brake.asked = lambda: getattr(progress, "cancelled", False) is True
    waiting: queue.Queue[_Read | None] = queue.Queue(maxsize=READ_AHEAD)
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def start(n: int) -> int:
        for i in range(len(threads), len(threads) + n):
            args = (slide, tiles, schedule, waiting, stop)
            threads.append(threading.Thread(target=_reader, args=args, name=f"peka-read-{i}", daemon=True))
            threads[-1].start()
        return max(n, 0)

    try:
        running, since, largest = start(readers), 0, 0
        while running:
            asked = perf_counter()
            item = waiting.get()
            waited = perf_counter() - asked
            if item is None:
                running -= 1
                continue
            if item.error is not None:
                raise item.error
            assert item.tiles is not None
            assert item.ok is not None
            began = perf_counter()
            embeddings = _embed_readable(forward, item.tiles, item.ok)
            computing = perf_counter() - began
            cost = costs.add(len(item.block), item.seconds, computing)
            since, largest = since + 1, max(largest, item.nbytes)
            # the first block of a new reader is always waited for
            starving = since > len(threads) and waited > _STARVING * computing
            if more_readers and starving and item.cpu_seconds < _WAITING * item.seconds:
                most = min(MOST_READERS, IN_FLIGHT // largest - READ_AHEAD)
                running, since = running + start(min(2 * len(threads), most) - len(threads)), 0
            on_block(item.block, embeddings, item.ok)
            progress.advance(len(item.block), **cost)
    finally:
        forward.brake.release()
        stop.set()
        while any(t.is_alive() for t in threads):  # a reader may be waiting for a place in the queue
            try:
                waiting.get(timeout=0.05)
            except queue.Empty:
                continue


def _embed_readable(forward: Forward, tiles: Images | Uncut, ok: npt.NDArray[np.bool_]) -> npt.NDArray[np.float16]:
    if ok.all() or isinstance(tiles, Uncut):
        return forward(tiles)
    if not ok.any():
        # the width is not known from no tile: one blank tile tells it, its values are thrown away
        width = forward(np.zeros_like(tiles[:1])).shape[1]
        return np.full((len(tiles), width), np.nan, np.float16)
    some = forward(tiles[ok])
    out = np.full((len(tiles), some.shape[1]), np.nan, np.float16)
    out[ok] = some
    return out


def _reader(
    slide: BlockSource,
    tiles: TileTable,
    schedule: Schedule,
    out: queue.Queue[_Read | None],
    stop: threading.Event,
) -> None:
    def put(item: _Read | None) -> None:
        while not stop.is_set():
            try:
                out.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    while not stop.is_set() and (block := schedule.take()) is not None:
        try:
            began, worked = perf_counter(), thread_time()
            item = _read(slide, tiles, block)
            item.seconds, item.cpu_seconds = perf_counter() - began, thread_time() - worked
            put(item)
        except BaseException as e:  # noqa: BLE001 - raised again in the caller's thread
            put(_Read(block, error=e))
            return
    put(None)


def _read(slide: BlockSource, tiles: TileTable, block: Block) -> _Read:
    size = tiles.spec.size_px
    if len(block) * size * size * 3 > CUT_AHEAD:
        try:
            uncut = Uncut(block, slide.read_block(block.rect, tiles.spec.mpp), size)
            return _Read(block, uncut, np.ones(len(block), bool))
        except Undecodable:
            pass
    return _Read(block, *read_tiles(slide, tiles, block))


def _out_of_memory(e: RuntimeError) -> bool:
    return isinstance(e, torch.OutOfMemoryError) or "not enough memory" in str(e) or "out of memory" in str(e)
