"""The one training loop.

Draws (order of tiles, augmentation) are functions of seed, epoch and step, and a checkpoint is written after each
epoch, so a run that was killed and resumed ends at the weights of one that was not.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import nn

from napari_peka.config import HOW_TO_RUN, TrainConfig
from napari_peka.core import files
from napari_peka.core.errors import OutputMismatch, StoreError, TrainingError
from napari_peka.core.progress import Cancelled, Progress
from napari_peka.models.adapters import (
    adapter_penalty,
    adapter_training_state,
    after_step,
    load_adapter_training_state,
)
from napari_peka.models.trunk import go_on_dropping
from napari_peka.training import losses
from napari_peka.training.gene_head import fit_head, pearson
from napari_peka.training.learner import Batches, Epoch, History, Learner, Look, OnEpoch, Pairs, Rows, Watch

STATE_FILE = "state.pt"
#: components and penalty of the quick read-out that a learning curve is drawn from; not the head that is kept
_PROBE: dict[str, Any] = {"n_components": 64, "alpha": "gcv"}
#: settings that do not decide what is learnt
_FREE = HOW_TO_RUN | {
    "hold_out", "features", "rotations", "views", "context_um", "head", "n_components", "ridge_alpha",
}  # fmt: skip


class Loop:
    """The state of one training, on one of `fabric`'s devices; see :func:`napari_peka.training.distill.fit`."""

    def __init__(
        self, fabric: Fabric, learner: Learner, encoder: nn.Module, batches: Batches, pairs: Pairs,
        config: TrainConfig, folder: Path, watch: Watch | None = None,
    ) -> None:  # fmt: skip
        self.watch, self.look = watch, None  # type: tuple[Watch | None, Look | None]
        self.fabric, self.device = fabric, fabric.device
        self.learner, self.encoder, self.batches, self.pairs, self.config = learner, encoder, batches, pairs, config
        self.path = folder / STATE_FILE
        self.weights = losses.weights(config.alpha, config.terms)
        self.history, self.step = History(), 0
        self.best_state: dict[str, torch.Tensor] = {}
        self.validation_embeddings = np.zeros((0, 0), np.float32)
        steps = math.ceil(math.ceil(len(pairs.train) / config.batch_size) / config.accumulate)
        trains = [p for p in learner.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trains, lr=config.lr, weight_decay=config.weight_decay)
        self.scheduler = _scheduler(optimizer, config, steps)
        self.model, self.optimizer = fabric.setup(learner, optimizer)
        as_tensor = {"device": self.device}
        self.teacher = torch.as_tensor(pairs.teacher, **as_tensor)
        self.labels = torch.as_tensor(pairs.labels, **as_tensor)
        self.targets = torch.as_tensor(pairs.targets, **as_tensor)
        self.counts = None if pairs.counts is None else torch.as_tensor(pairs.counts, **as_tensor)
        self.totals = None if pairs.totals is None else torch.as_tensor(pairs.totals, **as_tensor)
        self.identity = {
            "data": pairs.digest,
            "settings": json.loads(config.model_dump_json(exclude=_FREE)),
        }

    # -- learning ---------------------------------------------------------------------------------------------

    def epoch(self, epoch: int, progress: Progress) -> None:
        """Go once over the training rows."""
        config, began = self.config, time.perf_counter()
        torch.manual_seed(config.seed * 1_000_003 + epoch)  # what a network itself may draw, such as drop path
        self.model.train()
        if config.adapter != "full":  # frozen layers stay as they are, also where they keep running statistics
            self.encoder.eval()
            go_on_dropping(self.learner)
        sums: dict[str, torch.Tensor] = {}
        seen: list[tuple[Rows, torch.Tensor]] = []
        parts = list(_shuffled(self.pairs.train, config.batch_size, config.seed, epoch))
        rank, world = self.fabric.global_rank, self.fabric.world_size
        mine = [part[rank::world] for part in parts]
        for i, (rows, x) in enumerate(self._read_ahead(mine, epoch)):
            ends = (i + 1) % config.accumulate == 0 or i + 1 == len(parts)
            if len(parts[i]) >= world:  # a last crumb that does not reach everyone is left out by all
                with self.fabric.no_backward_sync(self.model, enabled=not ends):
                    image, loss, values = self._loss(x, rows)
                    self.fabric.backward((loss + adapter_penalty(self.encoder)) / config.accumulate)
                    said = float(loss.detach())  # waits for a GPU, which has its backward pass to do meanwhile
                    self._alive(said, epoch, i)
                for name, value in {"loss": loss, **values}.items():
                    sums[name] = sums.get(name, 0.0) + value.detach() * len(rows)
                seen.append((rows, image.detach().float().cpu()))
            if ends:
                self._step()
            self._report(progress, len(parts[i]), epoch=epoch + 1, loss=said)
        seconds = time.perf_counter() - began
        means = {k: float(v) / sum(len(r) for r, _ in seen) for k, v in sums.items()}
        val_loss, self.validation_embeddings = self._validate()
        probe = self._probe(seen, self.validation_embeddings)
        rate = len(self.pairs.train) / seconds
        entry = Epoch(epoch + 1, means.pop("loss"), val_loss, probe, self._lr(), rate, means)
        # each device has seen its own tiles; what is decided by these figures must be decided alike
        self.history.epochs.append(self.fabric.broadcast(entry) if world > 1 else entry)
        self.look = self._look(seen, self.validation_embeddings, self.history.epochs[-1])

    def look_before(self, progress: Progress) -> Look | None:
        """Look at the watched spots with the encoder as it is before it learns; None where nobody watches."""
        if self.watch is None or not self.fabric.is_global_zero:
            return None
        self.model.eval()
        rng = np.random.default_rng([self.config.seed, self.config.epochs])  # a look at the tiles that no epoch has
        progress.stage("looking at the encoder as it is", len(self.pairs.train))
        seen = []
        for at in range(0, len(self.pairs.train), self.config.batch_size):
            rows = self.pairs.train[at : at + self.config.batch_size]
            seen.append((rows, self._embed(self.batches.training(rows, rng))))
            progress.advance(len(rows))
        return self._look(seen, self._embed_plain(self.pairs.validation), None)

    def _look(
        self, seen: list[tuple[Rows, torch.Tensor]], validation: npt.NDArray[np.float32], entry: Epoch | None
    ) -> Look | None:
        if self.watch is None or not self.fabric.is_global_zero:
            return None
        rows = self.pairs.validation if self.watch.rows is None else self.watch.rows
        if not len(rows):
            return None
        image = validation if self.watch.rows is None else self._embed_plain(rows)
        at = np.concatenate([r for r, _ in seen])
        head = fit_head(torch.cat([e for _, e in seen]).numpy(), self.watch.expression[at], **_PROBE)
        predicted = (image @ head.weights + head.bias).astype(np.float32)
        if entry is None:
            return Look(0, rows, predicted, self._probe(seen, validation))
        return Look(entry.epoch, rows, predicted, entry.val_pcc, entry)

    def looks(self, resume: bool) -> list[Look]:
        """Return what was seen of the same spots before an interruption, from the untrained encoder on; without curves.

        What cannot be read any more is not shown: it decides nothing.
        """
        found: list[Look] = []
        if self.watch is None or not resume or not self.fabric.is_global_zero:
            return found
        while (path := self._look_file(len(found))).exists():
            try:
                kept = load(path.read_bytes())
                found.append(
                    Look(len(found), kept["rows"], kept["predicted"].astype(np.float32), float(kept["val_pcc"]))
                )
            except (OSError, SafetensorError, KeyError, ValueError):
                break
        return found

    def keep_look(self, look: Look) -> None:
        """Keep what was seen, to be shown again after an interruption."""
        tensors = {
            "rows": np.ascontiguousarray(look.rows), "predicted": look.predicted.astype(np.float16),
            "val_pcc": np.array(look.val_pcc, np.float32),
        }  # fmt: skip
        files.make_folder(self.path.parent)
        files.write_whole(self._look_file(look.epoch), save(tensors))

    def _look_file(self, epoch: int) -> Path:
        return self.path.parent / f"look-{self._watched}-{epoch}.safetensors"

    @cached_property
    def _watched(self) -> str:
        """Digest of what is looked at."""
        watch = self.watch
        assert watch is not None
        known = hashlib.sha256(self.pairs.digest.encode())
        known.update(b"" if watch.rows is None else np.ascontiguousarray(watch.rows).tobytes())
        known.update(np.ascontiguousarray(watch.expression).tobytes())
        return known.hexdigest()[:12]

    def _embed_plain(self, rows: Rows) -> npt.NDArray[np.float32]:
        size = self.config.batch_size
        parts = [self._embed(self.batches.plain(rows[at : at + size])).numpy() for at in range(0, len(rows), size)]
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)

    @torch.no_grad()
    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        # not through the wrapper that several devices share: one of them looks, the others do not
        with self.fabric.autocast():
            return self.learner.body(x.to(self.device)).float().cpu()

    def _report(self, progress: Progress, n: int, **metrics: float) -> None:
        """Count tiles; when somebody asks the first device to stop, all of them do."""
        stop = None
        try:
            progress.advance(n, **metrics)
        except Cancelled as e:
            stop = e
        if self.fabric.world_size > 1:
            asked = self.fabric.all_reduce(torch.tensor(float(stop is not None), device=self.device), reduce_op="sum")
            stop = stop or (Cancelled("another device was stopped") if float(asked) else None)
        if stop:
            raise stop

    def _loss(self, x: torch.Tensor, rows: Rows) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        image, student, logits, genes = self.model(x)
        at = torch.as_tensor(rows, device=self.device)
        teacher = self.teacher[at]
        with torch.no_grad():
            teacher_logits = self.learner.classifier(teacher)
        given = losses.LossInput(
            student.float(), teacher, logits.float(), teacher_logits.float(), self.labels[at], self.config.temperature,
            None if genes is None else genes.float(), self.targets[at],
            None if self.counts is None else self.counts[at], None if self.totals is None else self.totals[at],
            self.learner.log_dispersion,
        )  # fmt: skip
        loss, values = losses.total(given, self.weights)
        return image, loss, values

    def _step(self) -> None:
        if self.config.clip is not None:
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.config.clip,
                                       error_if_nonfinite=False)  # fmt: skip
        self.optimizer.step()
        self.scheduler.step()
        after_step(self.encoder, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def _read_ahead(self, parts: list[Rows], epoch: int) -> Iterator[tuple[Rows, torch.Tensor]]:
        """Yield the input of each batch; the next is read and augmented while this one is learnt from."""

        def make(i: int) -> torch.Tensor:
            rng = np.random.default_rng([self.config.seed, epoch, i, self.fabric.global_rank])
            return self.batches.training(parts[i], rng)

        threads = torch.get_num_threads()
        with ThreadPoolExecutor(1, thread_name_prefix="peka-batch") as pool:
            # the reader keeps to one core: a second team of threads would wait for the cores of the one that learns
            pool.submit(torch.set_num_threads, 1).result()
            torch.set_num_threads(threads)  # threads that are yet to come take this one's number
            waiting = pool.submit(make, 0)
            for i, rows in enumerate(parts):
                x = waiting.result()
                if i + 1 < len(parts):
                    waiting = pool.submit(make, i + 1)
                yield rows, x.to(self.device, non_blocking=True)

    def _validate(self) -> tuple[float, npt.NDArray[np.float32]]:
        rows, size = self.pairs.validation, self.config.batch_size
        self.model.eval()
        total, images = 0.0, []
        with torch.no_grad():
            for at in range(0, len(rows), size):
                part = rows[at : at + size]
                image, loss, _ = self._loss(self.batches.plain(part).to(self.device), part)
                total += float(loss) * len(part)
                images.append(image.float().cpu().numpy())
        if not images:
            return math.nan, np.zeros((0, 0), np.float32)
        return total / len(rows), np.concatenate(images)

    def _probe(self, seen: list[tuple[Rows, torch.Tensor]], image: npt.NDArray[np.float32]) -> float:
        """Return the held-out PCC of a quick read-out from the embeddings that passed by: it costs no forward pass."""
        rows = self.pairs.validation
        if len(rows) < 3:
            return math.nan
        at = np.concatenate([r for r, _ in seen])
        head = fit_head(torch.cat([e for _, e in seen]).numpy(), self.pairs.targets[at], **_PROBE)
        predicted = image @ head.weights + head.bias
        section = self.pairs.section[rows]
        scores = [
            pearson(predicted[section == s], self.pairs.targets[rows][section == s])
            for s in np.unique(section)
            if (section == s).sum() >= 3
        ]
        finite = [v for score in scores for v in score.tolist() if math.isfinite(v)]
        return float(np.mean(finite)) if finite else math.nan

    def _alive(self, loss: float, epoch: int, i: int) -> None:
        if not math.isfinite(loss):
            kept = f"; the epochs before it are kept in {self.path.parent}" if self.history.epochs else ""
            raise TrainingError(
                f"training diverged in epoch {epoch + 1}, batch {i + 1}: the loss is {loss}; lower the learning "
                f"rate (now {self.config.lr:g}), or compute in fp32{kept}"
            )

    def _lr(self) -> float:
        return float(self.scheduler.get_last_lr()[0])

    # -- what is remembered -----------------------------------------------------------------------------------

    def judge(self, on_epoch: OnEpoch | None) -> None:
        """Keep the weights when they are the best so far, and decide whether to go on."""
        history, now = self.history, self.history.epochs[-1]
        best = history.epochs[history.best - 1].val_loss if history.best else math.inf
        if not math.isfinite(now.val_loss) or now.val_loss < best:
            history.best = now.epoch
        if history.best == now.epoch or self.config.keep == "last":
            history.kept, self.best_state = now.epoch, self._trained()
        goes_on = on_epoch is None or on_epoch(history, self.validation_embeddings) is not False
        if self.fabric.world_size > 1:
            goes_on = self.fabric.broadcast(goes_on)
        if not goes_on:
            history.stopped = f"asked to stop after epoch {now.epoch}"
        elif self.config.patience and now.epoch - history.best >= self.config.patience:
            history.stopped = f"no better held-out loss for {self.config.patience} epochs"

    def keep(self) -> None:
        """Put the kept weights in place."""
        if self.best_state:
            _fill(self.learner, self.best_state)

    def save(self) -> None:
        """Write the checkpoint; through memory, so that a full disk is said as such."""
        if not self.fabric.is_global_zero:
            return
        files.make_folder(self.path.parent)
        buffer = io.BytesIO()
        state = {
            "identity": json.dumps(self.identity, sort_keys=True),
            "trained": self._trained(),
            "kept": self.best_state,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "adapter": adapter_training_state(self.encoder),
            "step": self.step,
            "history": json.dumps(asdict(self.history)),
        }
        torch.save(state, buffer)
        files.write_whole(self.path, buffer.getvalue())

    def load(self) -> None:
        """Take up the checkpoint, if there is one."""
        if not self.path.exists():
            return
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            before = json.loads(state["identity"])
        except Exception as e:
            raise StoreError(
                f"the checkpoint {self.path} cannot be read ({type(e).__name__}); remove it, or start without --resume"
            ) from e
        _same_or_raise(before, self.identity, self.path)
        _fill(self.learner, state["trained"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        load_adapter_training_state(self.encoder, state["adapter"])
        self.best_state, self.step = state["kept"], state["step"]
        history = json.loads(state["history"])
        self.history = History(**history | {"epochs": [Epoch(**e) for e in history["epochs"]]})

    def _trained(self) -> dict[str, torch.Tensor]:
        names = {n for n, p in self.learner.named_parameters() if p.requires_grad}
        if self.config.adapter == "full":  # running statistics learn too
            names |= {n for n, _ in self.learner.named_buffers()}
        return {k: v.detach().cpu().clone() for k, v in self.learner.state_dict().items() if k in names}


def _shuffled(rows: Rows, size: int, seed: int, epoch: int) -> Iterator[Rows]:
    mixed = np.random.default_rng([seed, epoch]).permutation(rows)
    for at in range(0, len(mixed), size):
        yield mixed[at : at + size]


def _scheduler(optimizer: torch.optim.Optimizer, config: TrainConfig, per_epoch: int) -> Any:
    total = per_epoch * config.epochs
    lr = torch.optim.lr_scheduler
    if config.schedule == "one-cycle":
        return lr.OneCycleLR(optimizer, config.lr, total_steps=total + 1, pct_start=0.3)
    if config.schedule == "cosine":
        return lr.CosineAnnealingLR(optimizer, total)
    if config.schedule == "step":  # the paper's: a tenth after each third
        return lr.StepLR(optimizer, max(1, math.ceil(total / 3)), 0.1)
    return lr.ConstantLR(optimizer, 1.0)


def _fill(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    own = module.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)


def _same_or_raise(before: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    if before.get("data") != now["data"]:
        raise OutputMismatch(f"{where} is a checkpoint of other sections or another split; start without --resume")
    was, is_now = before.get("settings", {}), now["settings"]
    changed = [f"{k} was {was.get(k)}, now {v}" for k, v in is_now.items() if was.get(k) != v]
    if changed:
        raise OutputMismatch(f"{where} was made with other settings: {'; '.join(changed)}; start without --resume")
