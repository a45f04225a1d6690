"""Encoder, adapter and translation as one module that turns tiles into the embeddings that a head reads."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from napari_peka.core.errors import BundleError
from napari_peka.models.bundle import ADAPTER, TRANSLATE, Model
from napari_peka.models.encoder import Normaliser, complete, load_encoder


class Student(nn.Module):
    """What looks at a tile.

    Parameters
    ----------
    encoder
        Maps normalised tiles ``(b, 3, S, S)`` to ``(b, d)``.
    mean, std
        Per-channel normalisation of values in 0 to 1.
    translate
        Maps ``(b, d)`` to the teacher's ``(b, d_teacher)``; None for a model without one.
    features
        What :meth:`forward` returns: ``"image"``, ``"peka"`` or ``"image+peka"`` (concatenated).
    """

    def __init__(
        self,
        encoder: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        translate: nn.Module | None = None,
        features: str = "image",
    ) -> None:
        super().__init__()
        self.encoder, self.translate, self.features = encoder, translate, features
        self.normalise = Normaliser(mean, std)

    def embed(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return the encoder's embedding of uint8 tiles ``(b, S, S, 3)``, shape ``(b, d)``."""
        out: torch.Tensor = self.encoder(self.normalise(tiles))
        return out

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return the features that the gene head reads, shape ``(b, n_dims)``."""
        image = self.embed(tiles)
        if self.features == "image" or self.translate is None:
            return image
        peka: torch.Tensor = self.translate(image)
        return peka if self.features == "peka" else torch.cat([image, peka], 1)


def translate_mlp(dims: list[int]) -> nn.Module:
    """Return the MLP from the encoder's width to the teacher's: linear layers with ReLU between.

    Source: the shape that the PEKA paper gives (arXiv 2504.07061): one hidden layer of 512.
    """
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(dims)):
        layers += [nn.ReLU()] if i else []
        layers.append(nn.Linear(a, b))
    return nn.Sequential(*layers)


def build_student(model: Model, *, weights: str | Path | None = None, offline: bool = False) -> Student:
    """Build what a bundle describes: encoder loaded, adapter merged into it, translation filled.

    Parameters
    ----------
    model
        The bundle.
    weights
        File or folder with the encoder's weights; None looks them up.
    offline
        Never use the network.

    Raises
    ------
    EncoderUnavailable
        If the encoder's weights cannot be had.
    BundleError
        If the encoder's weights are not those that the bundle was made with, or the bundle's tensors do not fit it.
    """
    spec, p = model.spec, model.spec.preprocessing
    card = complete(dataclasses.replace(model.card, px=p.tile_px))
    if spec.encoder.sha256 and card.sha256 and spec.encoder.sha256 != card.sha256:
        raise BundleError(
            f"{model.name} was made with other weights of {card.name} (sha256 {spec.encoder.sha256[:12]}, here "
            f"{card.sha256[:12]}); its values would be wrong"
        )
    made_with = spec.encoder
    card = dataclasses.replace(
        card, sha256=made_with.sha256 or card.sha256, revision=made_with.revision or card.revision
    )
    width = {"image": card.dim, "peka": (spec.translate or [0])[-1]}
    width["image+peka"] = width["image"] + width["peka"]
    if spec.translate and spec.translate[0] != card.dim:
        raise BundleError(
            f"{model.name}: the translation reads {spec.translate[0]} numbers, {card.name} gives {card.dim}"
        )
    if width[spec.head.features] != model.head.n_dims:
        raise BundleError(
            f"{model.name}: the gene head reads {model.head.n_dims} numbers, "
            f"{card.name} gives {width[spec.head.features]}"
        )
    encoder = load_encoder(card, weights=weights, offline=offline)
    if spec.adapter.kind != "none":
        # peft takes seconds to import
        from napari_peka.models.adapters import add_adapter, load_adapter_state, merge_adapter

        add_adapter(encoder, model.adapter)
        load_adapter_state(encoder, _torch(model, ADAPTER))
        encoder = merge_adapter(encoder)
    student = Student(encoder, p.mean, p.std, _translation(model), spec.head.features)
    student.eval().requires_grad_(False)
    return student


def _translation(model: Model) -> nn.Module | None:
    if not model.spec.translate:
        return None
    translate = translate_mlp(model.spec.translate)
    tensors = _torch(model, TRANSLATE)
    for i, layer in enumerate(m for m in translate if isinstance(m, nn.Linear)):
        layer.weight.data.copy_(tensors[f"{i}.weight"])
        layer.bias.data.copy_(tensors[f"{i}.bias"])
    return translate


def _torch(model: Model, prefix: str) -> dict[str, torch.Tensor]:
    return {
        k.removeprefix(prefix): torch.from_numpy(np.array(v)) for k, v in model.tensors.items() if k.startswith(prefix)
    }
