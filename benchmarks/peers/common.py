"""What the runners of all tools share: options, the encoder, and what is told at the end.

A runner is started by ``benchmarks/peers.py`` in the environment of its tool. It loads the encoder, then measures from
opening the slide to results on the disk, and leaves its tiles and embeddings in the folder that it is given.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from pathlib import Path
from time import perf_counter

import numpy as np

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TILE_PX, MPP = 224, 0.5
ARCH = "vit_small_patch16_224"
#: in what the runners leave behind
TOLD, TILES = "told.json", "tiles.npz"


def options(**more) -> argparse.Namespace:
    """Read what ``peers.py`` passes; `more` are options of the runner's own, by name with their defaults."""
    parser = argparse.ArgumentParser()
    parser.add_argument("slide", type=Path)
    parser.add_argument("--encoder", choices=["vit", "noop"], default="vit")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    parser.add_argument("--only-load", action="store_true", help="load the model and no more")
    for name, default in more.items():
        parser.add_argument(f"--{name}", default=default)
    return parser.parse_args()


def encoder(name: str):
    """Return the encoder, normalised ``(b, 3, 224, 224)`` to ``(b, d)``: the same weights in every tool."""
    import torch

    suit_torchvision()
    if name == "noop":

        class Nothing(torch.nn.Module):
            def forward(self, images):
                return images[:, :, ::16, ::16].mean((2, 3))

        return Nothing().eval()
    import timm

    torch.manual_seed(0)
    return timm.create_model(ARCH, pretrained=False, num_classes=0).eval().requires_grad_(False)


def suit_torchvision() -> None:
    """Let torchvision be imported beside a torch without CUDA that its binary was not built for."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        suit_torchvision.kept = library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


class Watch:
    """Measures from when it is made until :meth:`tell`."""

    def __init__(self) -> None:
        self._cpu, self._began = cpu_seconds(), perf_counter()

    def stop(self) -> None:
        """Results are on the disk."""
        self.seconds, self.cpu = perf_counter() - self._began, cpu_seconds() - self._cpu

    def tell(self, out: Path, left_yx: np.ndarray, embeddings: np.ndarray) -> None:
        """Leave what was measured, the upper left corners of the tiles in level-0 px, and their embeddings."""
        np.savez(out / TILES, left_yx=np.asarray(left_yx), embeddings=np.asarray(embeddings, np.float32))
        told = {"tiles": len(left_yx), "seconds": round(self.seconds, 2), "cpu_s": round(self.cpu, 1)}
        (out / TOLD).write_text(json.dumps(told))


def cpu_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


os.environ.setdefault("HF_HUB_OFFLINE", "1")
