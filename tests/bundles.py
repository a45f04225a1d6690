"""Bundles on the tiny encoder with whatever a bundle may ask for: options, adapters, translations, heads."""

from __future__ import annotations

import dataclasses

import numpy as np

from napari_peka.models.bundle import BundleSpec, save_bundle
from napari_peka.models.registry import AdapterSpec, encoder_card

GENES = ("A", "B", "C")


def made(
    tmp_path, name="made", *, adapter=None, translate=(), activation="none", features="image", encoder=None, px=64,
    seed=3, rotations=1, views=(1.0,), context_um=None, tensors=(), **head,
):  # fmt: skip
    """Save a bundle whose adapter and translation change the numbers; return it and the module as it was trained."""
    import torch

    from napari_peka.models import adapters
    from napari_peka.models.encoder import load_encoder
    from napari_peka.models.student import Student, translate_mlp

    card, spec = encoder_card("tiny-random"), adapter or AdapterSpec()
    torch.manual_seed(seed)
    module = adapters.add_adapter(load_encoder(dataclasses.replace(card, px=px)), spec)
    mlp = translate_mlp(list(translate), activation) if translate else None
    with torch.no_grad():
        for p in [*module.parameters(), *(mlp.parameters() if mlp else ())]:
            if p.requires_grad:
                p.add_(0.2 * torch.randn_like(p))
    student = Student(module, card.mean, card.std, mlp, features, rotations=rotations, views=views).eval()
    width = {"image": 48 * len(views), "peka": (list(translate) or [0])[-1]}
    width["image+peka"] = width["image"] + width["peka"]
    n_dims = width[features] * (1 if context_um is None else 2)
    arrays = {
        "head.weights": np.random.default_rng(seed).normal(size=(n_dims, len(GENES))).astype(np.float32),
        "head.bias": np.arange(len(GENES), dtype=np.float32),
        **dict(tensors),
    }
    arrays |= {f"adapter.{k}": v.numpy() for k, v in adapters.adapter_state(module).items()}
    linear = [m for m in mlp if isinstance(m, torch.nn.Linear)] if mlp is not None else []
    for i, layer in enumerate(linear):
        arrays |= {f"translate.{i}.weight": layer.weight.detach().numpy()}
        arrays |= {f"translate.{i}.bias": layer.bias.detach().numpy()}
    record = BundleSpec(
        schema=1, name=name, encoder=encoder or {"name": card.name}, translate=list(translate),
        translate_activation=activation,
        preprocessing={
            "tile_px": px, "mpp": 1.0, "mean": card.mean, "std": card.std, "rotations": rotations, "views": views
        },
        adapter={"kind": spec.kind, "rank": spec.rank, "options": spec.options},
        head={
            "features": features, "n_dims": n_dims, "genes": list(GENES), "unit": "log1p CP10K",
            "context_um": context_um, **head,
        },
    )  # fmt: skip
    return save_bundle(tmp_path / name, record, arrays), student
