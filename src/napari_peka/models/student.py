"""Encoder, adapter and translation as one module that turns tiles into the embeddings that a head reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from napari_peka.core.errors import BundleError
from napari_peka.models.backends import Compiled
from napari_peka.models.bundle import ADAPTER, TRANSLATE, Model
from napari_peka.models.encoder import Normaliser, complete, load_encoder, read_at
from napari_peka.models.reference import AXES, MEAN, RESIDUAL, VARIANCES

#: distances are kept in float16, which ends at 65504
FARTHEST = 60_000.0
#: tiles whose wide crops are resized at once: in float32 a crop of 896 px takes 10 MB
_RESIZED_AT_ONCE = 8


class Student(nn.Module):
    """What looks at a tile.

    Parameters
    ----------
    encoder
        Maps normalised tiles ``(b, 3, px, px)`` to ``(b, d)``.
    mean, std
        Per-channel normalisation of values in 0 to 1.
    translate
        Maps the image embedding ``(b, d * len(views))`` to the teacher's ``(b, d_teacher)``; None for a model
        without one.
    features
        What :meth:`forward` returns: ``"image"``, ``"peka"`` or ``"image+peka"`` (concatenated).
    rotations
        Images of a tile over which its embedding is averaged: 1, 4 (quarter turns) or 8 (and their mirror images).
    views
        Widths of the crops whose embeddings are concatenated, in multiples of the encoder's px. A tile must be as
        wide as the widest; each crop lies in its middle and is resized to px.
    reference
        Statistics of image embeddings, as :attr:`Model.image_reference`: the distance from them is then one more number
        of each tile. Empty: none.
    """

    def __init__(
        self,
        encoder: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        translate: nn.Module | None = None,
        features: str = "image",
        *,
        rotations: int = 1,
        views: Sequence[float] = (1.0,),
        reference: Mapping[str, npt.NDArray[np.float32]] | None = None,
    ) -> None:
        super().__init__()
        # no buffers: a module in bfloat16 must not measure distances in it
        self._reference = {k: torch.from_numpy(np.array(v, np.float32)) for k, v in (reference or {}).items()}
        self.encoder, self.translate, self.features = encoder, translate, features
        self.rotations, self.views = rotations, tuple(views)
        self.normalise = Normaliser(mean, std)

    def px(self, size: int) -> int:
        """Return the side of the images that the encoder is given, of tiles of `size` px."""
        return round(size / max(self.views))

    def embed(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return the image embedding of uint8 tiles ``(b, S, S, 3)``, shape ``(b, d * len(views))``.

        Images and crops are embedded one after another: they take time, not memory.
        """
        parts = [self._averaged(self._crop(tiles, width)) for width in self.views]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _averaged(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return the mean embedding of a crop's images, ``(b, d)``."""
        x = self.normalise(tiles)
        if self.rotations == 1:
            alone: torch.Tensor = self.encoder(x)
            return alone
        images = _dihedral(x, self.rotations)
        if isinstance(self.encoder, Compiled):  # whose streams wait for each other at the end of each call
            done = self.encoder(torch.cat(list(images))).unflatten(0, (self.rotations, -1))
            return done.mean(0)
        return torch.stack([self.encoder(image).float() for image in images]).mean(0)

    def _crop(self, tiles: torch.Tensor, width: float) -> torch.Tensor:
        """Return the middle of the tiles as the encoder takes it: ``(b, px, px, 3)``, uint8 or float32."""
        side = tiles.shape[1]
        px, crop = self.px(side), round(side * width / max(self.views))
        at = (side - crop) // 2
        middle = tiles[:, at : at + crop, at : at + crop]
        if crop == px:
            return middle
        return torch.cat([_resized(few, px, self.normalise.scale.device) for few in middle.split(_RESIZED_AT_ONCE)])

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return the features that the gene head reads, and the distance where it is measured, ``(b, seen_dims)``."""
        image = self.embed(tiles)
        features = self._features(image)
        return torch.cat([features.float(), self._distance(image)[:, None]], 1) if self._reference else features

    def _features(self, image: torch.Tensor) -> torch.Tensor:
        if self.features == "image" or self.translate is None:
            return image
        peka: torch.Tensor = self.translate(image.to(self.normalise.scale.dtype))  # an average is always float32
        return peka if self.features == "peka" else torch.cat([image, peka], 1)

    def _distance(self, image: torch.Tensor) -> torch.Tensor:
        """Return the distance of each image embedding from the reference, ``(b,)``, as `reference.distances` does."""
        names = (MEAN, AXES, VARIANCES, RESIDUAL)
        mean, axes, variances, residual = (self._reference[k].to(image.device) for k in names)
        with torch.autocast(image.device.type, enabled=False):
            x = image.float() - mean
            z = x @ axes.T
            rest = (x.square().sum(1) - z.square().sum(1)).clamp(min=0)
            squared = (z.square() / variances).sum(1) + rest / residual
        return squared.sqrt().clamp(max=FARTHEST)


def _dihedral(x: torch.Tensor, n: int) -> Iterator[torch.Tensor]:
    """Yield the first `n` of the eight images of ``(b, c, h, w)``: four quarter turns, then those of the mirror."""
    for i in range(n):
        yield torch.rot90(x.flip(3) if i >= 4 else x, i % 4, (2, 3))


def _resized(tiles: torch.Tensor, px: int, device: torch.device) -> torch.Tensor:
    x = tiles.to(device).permute(0, 3, 1, 2).float()
    small = nn.functional.interpolate(x, size=(px, px), mode="bilinear", antialias=True, align_corners=False)
    return small.permute(0, 2, 3, 1)


def translate_mlp(dims: list[int], activation: str = "none") -> nn.Module:
    """Return the MLP from the encoder's width to the teacher's: linear layers with ReLU between.

    Source: the shape that the PEKA paper gives (arXiv 2504.07061): one hidden layer of 512.

    Parameters
    ----------
    dims
        Widths, two or more.
    activation
        ``"relu"`` ends it with one: a gene head that reads it is then an MLP's last layer.
    """
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(dims)):
        layers += [nn.ReLU()] if i else []
        layers.append(nn.Linear(a, b))
    return nn.Sequential(*layers, *([nn.ReLU()] if activation == "relu" else []))


def build_student(
    model: Model, *, weights: str | Path | None = None, offline: bool = False, encoder: nn.Module | None = None
) -> Student:
    """Build what a bundle describes: encoder loaded, adapter merged into it, translation filled.

    Parameters
    ----------
    model
        The bundle.
    weights
        File or folder with the encoder's weights; None looks them up.
    offline
        Never use the network.
    encoder
        The encoder with its adapter, as an engine has it; None: it is loaded.

    Raises
    ------
    EncoderUnavailable
        If the encoder's weights cannot be had.
    BundleError
        If the encoder's weights are not those that the bundle was made with, or the bundle's tensors do not fit it.
    """
    p = model.spec.preprocessing
    encoder = encoder or _encoder(model, weights, offline)
    student = Student(
        encoder,
        p.mean,
        p.std,
        _translation(model),
        model.spec.head.features,
        rotations=p.rotations,
        views=p.views,
        reference=model.image_reference,
    )
    student.eval().requires_grad_(False)
    return student


def _encoder(model: Model, weights: str | Path | None, offline: bool) -> nn.Module:
    """Load a model's encoder, and merge its adapter into it."""
    spec, p = model.spec, model.spec.preprocessing
    card = read_at(complete(dataclasses.replace(model.card, px=p.tile_px)), p.blocks, p.pooling)
    if spec.encoder.sha256 and card.sha256 and spec.encoder.sha256 != card.sha256:
        raise BundleError(
            f"{model.name} was made with other weights of {card.name} (sha256 {spec.encoder.sha256[:12]}, here "
            f"{card.sha256[:12]}); its values would be wrong"
        )
    made_with = spec.encoder
    card = dataclasses.replace(
        card, sha256=made_with.sha256 or card.sha256, revision=made_with.revision or card.revision
    )
    image = card.dim * len(p.views)
    width = {"image": image, "peka": (spec.translate or [0])[-1]}
    width["image+peka"] = width["image"] + width["peka"]
    if spec.translate and spec.translate[0] != image:
        raise BundleError(f"{model.name}: the translation reads {spec.translate[0]} numbers, {card.name} gives {image}")
    if width[spec.head.features] != model.head.embedding_dims:
        raise BundleError(
            f"{model.name}: the gene head reads {model.head.embedding_dims} numbers, "
            f"{card.name} gives {width[spec.head.features]}"
        )
    encoder = load_encoder(card, weights=weights, offline=offline)
    if spec.adapter.kind != "none":
        # peft takes seconds to import
        from napari_peka.models.adapters import add_adapter, load_adapter_state, merge_adapter

        add_adapter(encoder, model.adapter)
        load_adapter_state(encoder, _torch(model, ADAPTER))
        encoder = merge_adapter(encoder)
    return encoder


def _translation(model: Model) -> nn.Module | None:
    if not model.spec.translate:
        return None
    translate = translate_mlp(model.spec.translate, model.spec.translate_activation)
    tensors = _torch(model, TRANSLATE)
    for i, layer in enumerate(m for m in translate if isinstance(m, nn.Linear)):
        layer.weight.data.copy_(tensors[f"{i}.weight"])
        layer.bias.data.copy_(tensors[f"{i}.bias"])
    return translate


def _torch(model: Model, prefix: str) -> dict[str, torch.Tensor]:
    return {
        k.removeprefix(prefix): torch.from_numpy(np.array(v)) for k, v in model.tensors.items() if k.startswith(prefix)
    }
