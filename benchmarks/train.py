#!/usr/bin/env python3
"""Training images per second of the whole loop against bare forward, backward and step; what the trunk cache saves.

    python benchmarks/train.py [--encoder dinov2-vits14-demo] [--precision fp32 bf16] [--tiles 96] [--rounds 3]

The adapter is MiSS (Bone) at 5 % of the encoder in all blocks. ``loop`` reads made-up tiles from a bank, augments them
and trains with all that training does in an epoch; ``bare`` is given the same batches as tensors that lie ready. Both
train the same module, in turn in one process, so that a noisy machine is noisy for both; the ratio of the medians is
what counts. ``cpu_ratio`` is that of the processor's seconds over all threads, reading, augmenting and the checkpoint
included: on a busy machine it says more, on a GPU nothing.

Then the same adapter in the last four blocks alone, with their input computed once (``trunk cache``) and without.
``lighter`` is the bare speed with plain in place of fused attention, and with patches left out (attention as training
has it), as a multiple of that with fused attention and all patches. ``augmentation_ms`` is a batch's, alone, on one
thread, in the processor's time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import torch
from torch import nn

from napari_peka.config import TrainConfig
from napari_peka.io.tiles import SpotTiles, TileBank
from napari_peka.models.adapters import add_adapter, start_training, trainable_share
from napari_peka.models.devices import choose_device, choose_precision
from napari_peka.models.encoder import Normaliser, load_encoder
from napari_peka.models.registry import AdapterSpec
from napari_peka.models.student import translate_mlp
from napari_peka.models.targets import resolve_adapter
from napari_peka.models.trunk import fuse_attention, go_on_dropping, split
from napari_peka.training.augment import Augment
from napari_peka.training.batches import TileBatches, trunk_batches
from napari_peka.training.distill import fit
from napari_peka.training.learn import HIDDEN, card_of, lighten
from napari_peka.training.learner import Learner, Pairs

TEACHER, CLUSTERS, LAST_BLOCKS = 50, 100, 4


class Work:
    """An adapted encoder and made-up pairs to train it on."""

    def __init__(
        self, args: argparse.Namespace, precision: str, folder: Path, *, last_blocks: int | None = None,
        cache: bool = False, patch_dropout: float = 0.0,
    ) -> None:  # fmt: skip
        self.config = TrainConfig(
            encoder=args.encoder, batch_size=args.batch_size, epochs=1, last_blocks=last_blocks, device=args.device,
            patch_dropout=patch_dropout,
        )  # fmt: skip
        self.folder, self.device = folder, choose_device(args.device)
        self.dtype = choose_precision(precision, self.device)
        card = card_of(self.config)
        self.encoder = load_encoder(card)
        spec = resolve_adapter(self.encoder, AdapterSpec("bone", last_blocks=last_blocks))
        add_adapter(self.encoder, spec, seed=0)
        start_training(self.encoder, spec, 10)
        self.share = trainable_share(self.encoder)
        rng = np.random.default_rng(0)
        n = args.tiles
        images = rng.integers(0, 256, (n, card.px, card.px, 3), np.uint8)
        bank = TileBank([SpotTiles(images, np.arange(n), np.ones(n, bool))])
        self.pairs = Pairs(
            rng.standard_normal((n, TEACHER), np.float32), rng.integers(CLUSTERS, size=n), np.arange(n),
            np.arange(0), np.zeros(n), rng.standard_normal((n, 50), np.float32),
        )  # fmt: skip
        augment, normalise = Augment(), Normaliser(card.mean, card.std)
        body: nn.Module = nn.Sequential(normalise, self.encoder)
        self.batches = TileBatches(bank, augment, self.device)
        began = process_time()
        if cache:
            front, body = split(self.encoder, last_blocks)
            self.batches = trunk_batches(
                nn.Sequential(normalise, front), bank, self.pairs.train, self.pairs.validation,
                n_views=self.config.cached_views, augment=augment, seed=0, device=self.device, dtype=self.dtype,
                batch_size=args.batch_size, folder=folder, identity="benchmark",
            )  # fmt: skip
        self.once = process_time() - began
        lighten(body if cache else self.encoder, self.config, self.device, self.dtype)
        classifier = nn.Linear(TEACHER, CLUSTERS)
        self.learner = Learner(body, translate_mlp([card.dim, HIDDEN, TEACHER]), classifier, card.dim)

    def loop(self) -> tuple[float, float]:
        """Return seconds of one epoch of the loop, and the processor's seconds of all of it."""
        began = process_time()
        history = fit(
            self.learner, self.encoder, self.batches, self.pairs, self.config, folder=self.folder, device=self.device,
            dtype=self.dtype,
        )  # fmt: skip
        return len(self.pairs.train) / history.epochs[0].images_per_second, process_time() - began

    def bare(self) -> tuple[float, float]:
        """Return seconds and the processor's seconds of forward, backward and step on batches that lie ready."""
        rows, size = self.pairs.train, self.config.batch_size
        parts = [rows[at : at + size] for at in range(0, len(rows), size)]
        ready = [self.batches.training(part, np.random.default_rng(0)) for part in parts]
        teacher = [torch.as_tensor(self.pairs.teacher[part], device=self.device) for part in parts]
        labels = [torch.as_tensor(self.pairs.labels[part], device=self.device) for part in parts]
        self.learner.to(self.device).train()
        self.encoder.eval()
        go_on_dropping(self.learner)
        optimizer = torch.optim.AdamW([p for p in self.learner.parameters() if p.requires_grad], self.config.lr)
        self.wait()
        began = perf_counter(), process_time()
        for x, wanted, label in zip(ready, teacher, labels):
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                _, student, logits, _ = self.learner(x)
                loss = nn.functional.mse_loss(student, wanted) + nn.functional.cross_entropy(logits, label)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.wait()
        return perf_counter() - began[0], process_time() - began[1]

    def wait(self) -> None:
        """Wait for a GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def main() -> None:
    args = arguments()
    out = {"encoder": args.encoder, "threads": torch.get_num_threads(), "tiles": args.tiles, "batch": args.batch_size}
    out["augmentation_ms"] = round(1e3 * augmentation(args.batch_size), 1)
    for precision in args.precision:
        with tempfile.TemporaryDirectory() as folder:
            out[precision] = {"all blocks": all_blocks(args, precision, Path(folder))}
            out[precision][f"last {LAST_BLOCKS} blocks"] = trunk_cache(args, precision, Path(folder))
            out[precision]["lighter"] = lighter(args, precision, Path(folder))
    print(json.dumps(out, indent=1))


def all_blocks(args: argparse.Namespace, precision: str, folder: Path) -> dict:
    work = Work(args, precision, folder)
    bare, loop = in_turn(work.bare, work.loop, args.rounds)
    return {
        "device": work.device.type,
        "trained_share": round(work.share, 3),
        "loop_images_per_second": round(args.tiles / statistics.median(s for s, _ in loop), 2),
        "bare_images_per_second": round(args.tiles / statistics.median(s for s, _ in bare), 2),
        **ratios("", bare, loop),
    }


def trunk_cache(args: argparse.Namespace, precision: str, folder: Path) -> dict:
    plain, cached = (Work(args, precision, folder, last_blocks=LAST_BLOCKS, cache=c) for c in (False, True))
    slow, fast = in_turn(plain.loop, cached.loop, args.rounds)
    saved = statistics.median(c for _, c in slow) - statistics.median(c for _, c in fast)
    return {
        "trained_share": round(plain.share, 3),
        "looks": cached.config.cached_views,
        **ratios("speed_up_", slow, fast),
        "once_in_epochs_saved": round(cached.once / saved, 1),
    }


def lighter(args: argparse.Namespace, precision: str, folder: Path) -> dict:
    """Return how many times the speed of fused attention on all patches other ways to train have."""
    work = Work(args, precision, folder)

    def fused() -> tuple[float, float]:
        fuse_attention(work.encoder)
        return work.bare()

    def plain() -> tuple[float, float]:
        fuse_attention(work.encoder, False)
        return work.bare()

    out = {"plain attention": ratios("", *in_turn(fused, plain, args.rounds))}
    for share in (0.5, 0.75):
        fewer = Work(args, precision, folder, patch_dropout=share)
        out[f"patch_dropout {share}"] = ratios("", *in_turn(fused, fewer.bare, args.rounds))
    return out


def in_turn(one, other, rounds: int) -> tuple[list, list]:
    """Return what both measure, each once before to warm up."""
    one(), other()
    pairs = [(one(), other()) for _ in range(rounds)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def ratios(name: str, slow: list, fast: list) -> dict:
    """Return the ratios of medians of seconds and of the processor's seconds, and of each round's."""
    out = {}
    for k, kind in enumerate(("ratio", "cpu_ratio")):
        a, b = ([m[k] for m in part] for part in (slow, fast))
        out[f"{name}{kind}"] = round(statistics.median(a) / statistics.median(b), 3)
        out[f"{name}{kind}s_by_round"] = [round(x / y, 3) for x, y in zip(a, b)]
    return out


def augmentation(n: int) -> float:
    """Return the processor's seconds for a batch of 224 px on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tiles = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 224, 224, 3), np.uint8))
    took = []
    for i in range(11):
        began = process_time()
        Augment()(tiles, np.random.default_rng(i))
        took.append(process_time() - began)
    torch.set_num_threads(threads)
    return statistics.median(took)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="dinov2-vits14-demo")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiles", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
