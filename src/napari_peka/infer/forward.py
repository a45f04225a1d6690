"""Runs an encoder over tiles on one device: passes as large as fit, and none waited for that need not be."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from napari_peka.core.errors import DeviceError
from napari_peka.core.progress import Cancelled, Progress, is_cancelled
from napari_peka.models.backends import TORCH

K = TypeVar("K")
Images = npt.NDArray[np.uint8]
Embeddings = npt.NDArray[np.float16]
#: asks for what a pass gives, and waits for it
Fetch = Callable[[], Embeddings]


class Tiles(Protocol):
    """Tiles of a block: an array, or what cuts them when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> Images: ...


class Brake:
    """Stops a module between two of its layers: a pass of a large encoder takes longer than a person waits.

    Attributes
    ----------
    asked
        Says whether somebody wants a stop.
    """

    def __init__(self) -> None:
        self.asked: Callable[[], bool] = _never

    @contextmanager
    def heeding(self, progress: Progress) -> Iterator[None]:
        """Stop when `progress` says that it is cancelled, as long as the ``with`` block lasts."""
        self.asked = lambda: is_cancelled(progress)
        try:
            yield
        finally:
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
        Tiles a pass; None: 128 on an accelerator, on a CPU a few a thread. A pass holds tiles of one block.
    digest
        What the module computes, in the words of :attr:`Model.seen_digest`; empty: nobody asks.
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
        self.batch_size = batch_size or (_few(dtype) if device.type == "cpu" else 128)
        #: passes that are begun before the results of the first are asked for: a GPU never waits, nor does a stream of
        #: an engine for the others
        self.ahead = 1 if device.type == "cuda" or backend != TORCH else 0
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

    def __call__(self, tiles: Tiles) -> Embeddings:
        """Return the embeddings of uint8 tiles ``(n, S, S, 3)``, float16 ``(n, d)``."""
        return np.concatenate([values for _, _, values in self.stream([(None, tiles)])])

    def stream(self, groups: Iterable[tuple[K, Tiles]]) -> Iterator[tuple[K, slice, Embeddings]]:
        """Embed groups of tiles one after another, and yield group, rows of it and their embeddings, pass by pass.

        Parameters
        ----------
        groups
            What each group is called, and its tiles. The next one is asked for while a GPU still computes.
        """
        _ = self.module  # passes that are begun together must not build it each
        begun: deque[tuple[K, int, Images, Fetch]] = deque()
        for name, tiles in groups:
            at = 0
            while at < len(tiles):
                part = tiles[at : at + self.batch_size]
                begun.append((name, at, part, self._begin(part)))
                at += len(part)
                while len(begun) > self.ahead:
                    yield from self._fetched(*begun.popleft())
        while begun:
            yield from self._fetched(*begun.popleft())

    def _begin(self, part: Images) -> Fetch:
        """Begin a pass, as far as it can be computed while others are; what goes wrong is told by who fetches it."""
        if self.device.type == "cuda":
            try:
                begun: _Queued = self._pass(part)
                return begun.fetch
            except RuntimeError as e:
                return partial(_raise, e)
        if self.ahead and self.backend != TORCH:
            queued: Fetch = self._threads.submit(lambda: self._pass(part).fetch()).result
            return queued
        return lambda: self._pass(part).fetch()

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1 + self.ahead, thread_name_prefix="peka-pass")

    def _fetched(self, name: K, at: int, part: Images, fetch: Fetch) -> Iterator[tuple[K, slice, Embeddings]]:
        """Yield what a pass gives; in smaller passes where its memory did not do."""
        try:
            values = fetch()
        except RuntimeError as e:
            if not _out_of_memory(e):
                raise
            self._take_fewer(len(part), e)
            first = 0
            while first < len(part):
                fewer = part[first : first + self.batch_size]  # which may become smaller within this loop
                yield from self._fetched(name, at + first, fewer, self._begin(fewer))
                first += len(fewer)
            return
        yield name, slice(at, at + len(part)), values

    def _take_fewer(self, tiles: int, e: RuntimeError) -> None:
        if self.batch_size == 1:
            raise DeviceError(
                f"{self.device} has not enough memory for a single tile of this model; close other programs or use "
                "--device cpu"
            ) from e
        self.batch_size = max(1, tiles // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _pass(self, tiles: Images) -> _Queued:
        batch = torch.from_numpy(tiles)
        cuda = self.device.type == "cuda"
        if cuda:
            batch = batch.pin_memory()
        autocast = self.dtype != torch.float32 and self.device.type != "cpu"
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=autocast):
            out = self.module(batch)
        # float16 ends at 65504: an embedding never gets there, an overflow must not pass as a number
        values = out.to(torch.float32).to(torch.float16)
        if not cuda:
            return _Queued(values.cpu())
        # queued behind this pass: asked for later, the copy would wait for the next pass too
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        there = torch.cuda.Event()
        there.record()
        return _Queued(host, there)


class _Queued(NamedTuple):
    """Embeddings that are there, or will be when the device has come to `there`."""

    values: torch.Tensor
    there: torch.cuda.Event | None = None

    def fetch(self) -> Embeddings:
        """Wait for them."""
        if self.there is not None:
            self.there.synchronize()
        values: Embeddings = self.values.numpy()
        return values


def _raise(e: RuntimeError) -> Embeddings:
    raise e


def _few(dtype: torch.dtype) -> int:
    """Return the tiles of a pass on a CPU: what lies between two layers should stay in its caches.

    Of ViT-S/14 on two threads passes of 32 took 1.25 of the time of these (``docs/performance.md``).
    """
    a_thread = 8 if dtype == torch.bfloat16 else 4
    threads: int = torch.get_num_threads()
    return min(a_thread * threads, 64)


def _out_of_memory(e: RuntimeError) -> bool:
    return isinstance(e, torch.OutOfMemoryError) or "not enough memory" in str(e) or "out of memory" in str(e)
