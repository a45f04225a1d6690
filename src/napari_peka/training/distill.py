"""Training a student, on one device or several."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import nn

from napari_peka.config import TrainConfig
from napari_peka.core.child import Relay, RemoteProgress
from napari_peka.core.errors import DeviceError, TrainingError
from napari_peka.core.progress import NULL, Progress
from napari_peka.models._torchvision import ensure_torchvision
from napari_peka.training import losses
from napari_peka.training.learner import Batches, History, Learner, Look, OnEpoch, OnLook, Pairs, Watch
from napari_peka.training.loop import Loop

#: weights stay float32 in all of them
_PRECISIONS: dict[torch.dtype, Any] = {
    torch.float32: "32-true", torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed",
}  # fmt: skip


def fit(
    learner: Learner,
    encoder: nn.Module,
    batches: Batches,
    pairs: Pairs,
    config: TrainConfig,
    *,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    title: str = "training",
    resume: bool = False,
    finish: bool = False,
    on_epoch: OnEpoch | None = None,
    watch: Watch | None = None,
    on_look: OnLook | None = None,
    progress: Progress = NULL,
) -> History:
    """Train the learner's trainable weights in place.

    Parameters
    ----------
    learner, encoder
        What is trained, and the encoder inside it that carries the adapter.
    batches, pairs
        Input and what is to be learnt.
    config
        Settings.
    folder
        Where the checkpoint lies.
    device, dtype
        Where and in which number format to compute; weights stay float32.
    title
        Name of the stage.
    resume
        Go on from the checkpoint in `folder`, if there is one.
    finish
        With `resume`: train no more, keep what the checkpoint has.
    on_epoch
        See :data:`OnEpoch`.
    watch, on_look
        Spots that are looked at before training and after each epoch, and who is shown what they say; it costs one more
        pass over these spots an epoch, and nothing where nobody watches.
    progress
        Counts tiles. When it raises :class:`Cancelled` the checkpoint of the last whole epoch stays.

    Raises
    ------
    TrainingError
        If the loss is not finite any more.
    OutputMismatch
        If the checkpoint is of other data or settings.
    StoreError
        If a checkpoint cannot be written; the one before it stays whole.
    """
    if config.devices > 1:
        _fit_on_many(
            config.devices, device, dtype, on_epoch, on_look, progress,
            (learner, encoder, batches, pairs, config, folder, watch if on_look else None),
            {"title": title, "resume": resume, "finish": finish},
        )  # fmt: skip
        resume = finish = True  # what the devices learnt is in the checkpoint
        watch = on_look = None  # and was looked at there
    loop = Loop(_fabric(device, dtype), learner, encoder, batches, pairs, config, folder, watch if on_look else None)
    return _train(loop, title, resume, finish, on_epoch, on_look, progress)


def _train(
    loop: Loop, title: str, resume: bool, finish: bool, on_epoch: OnEpoch | None, on_look: OnLook | None,
    progress: Progress,
) -> History:  # fmt: skip
    # of a run that goes on, what was seen is shown again
    seen = loop.looks(resume) if on_look is not None else []
    if on_look is not None and not seen and (before := loop.look_before(progress)) is not None:
        seen = [before]
        loop.keep_look(before)
    if resume:
        loop.load()
    for look in seen:
        if on_look is not None and look.epoch <= len(loop.history.epochs):
            on_look(replace(look, entry=loop.history.epochs[look.epoch - 1] if look.epoch else None))
    first, per_epoch, epochs = len(loop.history.epochs), len(loop.pairs.train), loop.config.epochs
    if not (finish and first):
        progress.stage(title, per_epoch * epochs, done=per_epoch * first)
        for epoch in range(first, epochs):
            if loop.history.stopped:
                break
            loop.epoch(epoch, progress)
            # the best and the reason to stop are in the checkpoint: a resumed run ends where this one would
            loop.judge(on_epoch)
            loop.save()
            if on_look is not None and loop.look is not None:
                loop.keep_look(loop.look)
                on_look(loop.look)
    loop.keep()
    return loop.history


def _fabric(device: torch.device, dtype: torch.dtype, **many: Any) -> Fabric:
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # which precision is used is said elsewhere
    where: dict[str, Any] = {"devices": [device.index or 0] if device.type == "cuda" else 1}
    return Fabric(accelerator=device.type, precision=_PRECISIONS[dtype], **(where | many))


def _fit_on_many(
    n: int, device: torch.device, dtype: torch.dtype, on_epoch: OnEpoch | None, on_look: OnLook | None,
    progress: Progress,
    parts: tuple[Any, ...], how: dict[str, Any],
) -> None:  # fmt: skip
    """Train in one process a device; what they learn comes back in the checkpoint."""
    there = torch.cuda.device_count() if device.type == "cuda" else n
    if n > there or device.type == "mps":
        raise DeviceError(
            f"{n} devices were asked for, there is {there if device.type == 'cuda' else 1}; ask for fewer"
        )
    remote = RemoteProgress(get_context("spawn"))
    config: TrainConfig = parts[4]
    unused = not {"kd", "ce"} & set(losses.weights(config.alpha, config.terms))
    strategy = DDPStrategy(start_method="spawn", find_unused_parameters=unused)
    fabric = _fabric(device, dtype, devices=n, strategy=strategy)

    def heard(event: Look | tuple[History, Any]) -> None:
        if isinstance(event, Look):
            if on_look is not None:
                on_look(event)
        elif on_epoch is not None and on_epoch(*event) is False:
            remote.end_asked.set()

    failure: BaseException | None = None
    with Relay(remote, progress, heard) as relay:
        try:
            fabric.launch(_one_of_many, remote, _Parcel(parts), how)
        except Exception as e:  # noqa: BLE001 - what the first device said of it is better
            failure = e
    if relay.error is not None:
        raise relay.error
    if relay.failed is not None:
        raise relay.failed
    if failure is not None:
        raise TrainingError(f"training on {n} devices failed ({type(failure).__name__}: {failure})") from failure


class _Timm:
    """Unpickled before what it stands in front of: makes sure that timm can be imported there."""

    def __reduce__(self) -> tuple[Any, ...]:
        return ensure_torchvision, ()


class _Parcel:
    """What goes to each process, in one piece that Fabric does not look into."""

    def __init__(self, parts: tuple[Any, ...]) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, (_Timm(), self.parts)


def _unpacked(_: object, parts: tuple[Any, ...]) -> _Parcel:
    return _Parcel(parts)


def _one_of_many(fabric: Fabric, remote: RemoteProgress, parcel: _Parcel, how: dict[str, Any]) -> None:
    # on a CPU the processes were given the same memory: each needs its own
    learner, encoder, *others = copy.deepcopy(parcel.parts)
    first = fabric.is_global_zero

    def tell(history: History, embeddings: Any) -> bool:
        remote.event((history, embeddings))
        return not remote.end_asked.is_set()

    try:
        loop = Loop(fabric, learner, encoder, *others)
        watched = first and loop.watch is not None
        _train(
            loop, how["title"], how["resume"], how["finish"], tell if first else None,
            remote.event if watched else None, remote if first else NULL,
        )  # fmt: skip
    except BaseException as e:
        if first:
            remote.fail(e)
        raise
