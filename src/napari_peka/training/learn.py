"""Teacher → pseudo-labels → student: one adapted encoder from one training part."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from napari_peka.config import TrainConfig
from napari_peka.core.errors import TrainingError
from napari_peka.core.geometry import TileSpec
from napari_peka.core.progress import NULL, Progress
from napari_peka.models import adapters
from napari_peka.models.encoder import Normaliser, complete, load_encoder, read_at, shapes_of
from napari_peka.models.registry import AdapterSpec, EncoderCard, encoder_card
from napari_peka.models.student import translate_mlp
from napari_peka.models.targets import resolve_adapter
from napari_peka.models.trunk import checkpoint_gradients, drop_patches, fuse_attention, split
from napari_peka.training import losses, splits
from napari_peka.training.augment import Augment
from napari_peka.training.batches import TileBatches, trunk_batches
from napari_peka.training.distill import fit
from napari_peka.training.learner import Batches, History, Learner, OnEpoch, OnLook, Pairs, Rows, Watch
from napari_peka.training.paired import Paired
from napari_peka.training.pseudo_labels import PseudoLabels, Scaling, centred_by_section, fit_pseudo_labels
from napari_peka.training.teacher import Expression, make_teacher

#: width of the hidden layer between encoder and teacher (arXiv 2504.07061)
HIDDEN = 512
#: genes that the gene terms of the loss look at; the most variable of them draw the learning curve
N_TERM_GENES, N_CURVE_GENES = 1000, 50


@dataclass(frozen=True, eq=False)
class Taught:
    """What the teacher says of every spot, learnt from the training part.

    Parameters
    ----------
    embedding
        Centred and divided by one number, that of the training spots, float32 ``(n, d)``.
    pseudo
        Labels and frozen classifier.
    record
        What made them.
    """

    embedding: npt.NDArray[np.float32]
    pseudo: PseudoLabels
    record: dict[str, Any]


@dataclass(eq=False)
class Learnt:
    """An adapted encoder.

    Parameters
    ----------
    encoder
        With the adapter folded in; eval mode, float32, CPU.
    translate
        To the teacher's width; None where nothing was trained.
    card, spec
        What the encoder and its adapter are.
    adapter
        The adapter's tensors as a bundle stores them.
    history
        How it went; empty where nothing was trained.
    record
        Settings that were chosen, shares, warnings; fit for JSON.
    """

    encoder: nn.Module
    translate: nn.Sequential | None
    card: EncoderCard
    spec: AdapterSpec
    adapter: dict[str, torch.Tensor]
    history: History
    record: dict[str, Any]


def card_of(config: TrainConfig) -> EncoderCard:
    """Return the encoder's card with the tile that the settings ask for."""
    card = encoder_card(config.encoder)
    card = dataclasses.replace(card, px=config.tile_px or card.px)
    card = complete(card)
    card = read_at(card, config.blocks, config.pooling)
    return dataclasses.replace(card, mpp=config.mpp or card.mpp)


def rehearse(config: TrainConfig) -> None:
    """Refuse what does not fit the encoder, by its shapes alone: no weights are read, nothing is computed.

    Raises
    ------
    SettingError
        If the adapter, its target or rank, the blocks that are read or trained, or a way to train more lightly does
        not suit it.
    """
    card = card_of(config)
    with torch.device("meta"):
        encoder = shapes_of(card)
    if resolve_adapter(encoder, wanted_adapter(config)).kind == "none":
        return
    if config.patch_dropout:
        drop_patches(encoder, config.patch_dropout)
    if config.checkpoint_gradients:
        checkpoint_gradients(encoder)
    if config.last_blocks is not None and config.trunk_cache:
        split(encoder.requires_grad_(False), config.last_blocks)


def untrained(config: TrainConfig) -> Learnt:
    """Return the encoder as it was published: what a training is to be better than."""
    card = card_of(config)
    return Learnt(load_encoder(card), None, card, AdapterSpec("none"), {}, History(), {})


def wanted_adapter(config: TrainConfig) -> AdapterSpec:
    """Return the adapter as the settings say it, with what they leave open."""
    return AdapterSpec(config.adapter, config.rank, config.target, dict(config.adapter_options), config.last_blocks)


def tile_spec(config: TrainConfig) -> TileSpec:
    """Return the tiles that are cut: as wide as the widest view."""
    card, widest = card_of(config), max(config.views)
    if widest == 1:
        return TileSpec(card.px, card.mpp)
    return TileSpec(round(card.px * widest), card.mpp, None, card.px)


def teach(paired: Paired, train: npt.NDArray[np.bool_], config: TrainConfig, *, progress: Progress = NULL) -> Taught:
    """Fit the teacher, the pseudo-labels and the frozen classifier on the training spots.

    Parameters
    ----------
    paired
        All spots; the teacher embeds them all, and is fitted on `train` alone.
    train
        bool ``(n,)``.
    config
        Settings.
    """
    teacher = make_teacher(config)
    everything = Expression(
        paired.counts, paired.genes, paired.totals, paired.spot_ids, paired.section,
        {s.section_id: s.adata for s in paired.sections}, paired.rows,
    )  # fmt: skip
    teacher.fit(everything.take(np.flatnonzero(train)), progress=progress)
    embedding = np.asarray(teacher.embed(everything), np.float32)
    if config.centre_sections:
        embedding = centred_by_section(embedding, paired.section, train)
    scaled = Scaling.of(embedding[train])(embedding)
    pseudo = fit_pseudo_labels(scaled, train, n_clusters=config.clusters, seed=config.seed, progress=progress)
    record = teacher.record() | {"centred_by_section": config.centre_sections}
    return Taught(scaled, pseudo, {"teacher": record, "pseudo_labels": pseudo.record})


def learn(
    paired: Paired,
    train: npt.NDArray[np.bool_],
    config: TrainConfig,
    expression: npt.NDArray[np.float32],
    variable: npt.NDArray[np.integer],
    columns: npt.NDArray[np.integer],
    *,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    taught: Taught | None = None,
    title: str = "",
    resume: bool = False,
    finish: bool = False,
    on_epoch: OnEpoch | None = None,
    watch: Watch | None = None,
    on_look: OnLook | None = None,
    progress: Progress = NULL,
) -> Learnt:
    """Adapt an encoder to the teacher on the training spots.

    Parameters
    ----------
    paired, train, config
        Spots, which of them train, settings.
    expression
        Expression of the genes that may be predicted, ``(n, g)``.
    variable
        Those genes, most variable over the training spots first.
    columns
        Where in ``paired.counts`` each column of `expression` is.
    folder
        Where checkpoint and trunk cache lie.
    device, dtype
        Where and in which number format.
    taught
        What :func:`teach` gave for the same spots and settings, where somebody has it; None: asked here.
    title
        What the stage's name ends in.
    resume, finish, on_epoch, watch, on_look, progress
        See :func:`napari_peka.training.distill.fit`.

    Returns
    -------
    Learnt
    """
    card = card_of(config)
    encoder = load_encoder(card)
    watch = watch if on_look is not None else None
    spec = resolve_adapter(encoder, wanted_adapter(config))
    record: dict[str, Any] = {"adapter": dataclasses.asdict(spec)}
    if spec.kind == "none":
        return Learnt(encoder, None, card, spec, {}, History(), record)
    taught = taught or teach(paired, train, config, progress=progress)
    pairs, inner = _pairs(paired, train, config, taught, expression, variable, columns)
    adapters.add_adapter(encoder, spec, seed=config.seed)
    steps = ceil(ceil(len(pairs.train) / config.batch_size) / config.accumulate) * config.epochs
    adapters.start_training(encoder, spec, steps)
    share = adapters.trainable_share(encoder)
    rank = f", rank {spec.rank}" if spec.rank else ""
    said = f"training ({spec.kind}{rank}, {share:.1%} of the weights of {card.name})"
    torch.manual_seed(config.seed)
    translate = translate_mlp([card.dim, HIDDEN, taught.embedding.shape[1]])
    shown = pairs.validation
    if watch is not None and watch.rows is not None:
        shown = np.union1d(shown, watch.rows)
    body, batches = _body(encoder, card, paired, config, pairs.train, shown, folder, device, dtype, progress)
    n_genes = pairs.targets.shape[1] if set(config.terms) & set(losses.GENE_TERMS) else 0
    learner = Learner(body, translate, taught.pseudo.classifier, card.dim, n_genes, counted="nb" in config.terms)
    history = fit(
        learner, encoder, batches, pairs, config, title=said + title, folder=folder, device=device, dtype=dtype,
        resume=resume, finish=finish, on_epoch=on_epoch, watch=watch, on_look=on_look, progress=progress,
    )  # fmt: skip
    learner.cpu()
    encoder.cpu()
    tensors = adapters.adapter_state(encoder)
    record |= taught.record | {
        "trained_share": share, "validation": inner, "kept_epoch": history.kept, "stopped": history.stopped,
    }  # fmt: skip
    _as_published(encoder, config)
    merged = adapters.merge_adapter(encoder).float().eval()
    translate = translate.float().eval().requires_grad_(False)
    return Learnt(merged, translate, card, spec, tensors, history, record)


def _pairs(
    paired: Paired, train: npt.NDArray[np.bool_], config: TrainConfig, taught: Taught,
    expression: npt.NDArray[np.float32], variable: npt.NDArray[np.integer], columns: npt.NDArray[np.integer],
) -> tuple[Pairs, dict[str, int]]:  # fmt: skip
    """Lay out what is to be learnt; part of the training spots stays out, to choose the epoch by."""
    rows, held = np.flatnonzero(train), np.empty(0, np.intp)
    if config.validation_share:
        inner = splits.validation(
            list(paired.section), paired.centre_um, train, min(config.validation_share, 0.5), seed=config.seed
        )
        rows, held = np.flatnonzero(inner.train), np.flatnonzero(inner.test)
    if len(rows) < config.batch_size // 4:
        raise TrainingError(f"{len(rows)} spots are too few to train on; give more sections, or a smaller batch_size")
    reads = set(config.terms) & set(losses.GENE_TERMS)
    chosen = variable[: N_TERM_GENES if reads else N_CURVE_GENES]
    y = expression[:, chosen]
    mean, sd = y[rows].mean(0), y[rows].std(0)
    counts = totals = None
    if reads & {"poisson", "nb"}:
        counts = np.asarray(paired.counts[:, columns[chosen]].todense(), np.float32)
        totals = paired.totals.astype(np.float32)
    pairs = Pairs(
        taught.embedding, taught.pseudo.labels, rows, held, paired.section,
        ((y - mean) / np.where(sd > 1e-8, sd, 1)).astype(np.float32), counts, totals,
    )  # fmt: skip
    return pairs, {"train_spots": len(rows), "validation_spots": len(held)}


def _body(
    encoder: nn.Module, card: EncoderCard, paired: Paired, config: TrainConfig, train: Rows, plain: Rows,
    folder: Path, device: torch.device, dtype: torch.dtype, progress: Progress,
) -> tuple[nn.Module, Batches]:  # fmt: skip
    """Return what turns a batch into image embeddings, and where batches come from."""
    augment = Augment(config.dihedral, config.stain, config.light)
    first = [CentreCrop(card.px)] if max(config.views) > 1 else []
    normalise = Normaliser(card.mean, card.std)
    if config.last_blocks is None or not config.trunk_cache:
        lighten(encoder, config, device, dtype)
        return nn.Sequential(*first, normalise, encoder), TileBatches(paired.bank, augment, device)
    front, back = split(encoder, config.last_blocks)
    identity = f"{card.name} {card.sha256 or card.revision} {card.px} {card.mpp} last {config.last_blocks}"
    fingerprints = " ".join(s.fingerprint for s in paired.sections)
    batches = trunk_batches(
        nn.Sequential(*first, normalise, front), paired.bank, train, plain,
        n_views=config.cached_views, augment=augment, seed=config.seed, device=device, dtype=dtype,
        batch_size=config.batch_size, folder=folder, identity=f"{identity} {fingerprints}", progress=progress,
    )  # fmt: skip
    front.cpu()
    lighten(back, config, device, dtype)
    return back, batches


def lighten(encoder: nn.Module, config: TrainConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Make an encoder, or the back half of one, train as fast or with as little memory as the settings ask."""
    if device.type == "cpu" and dtype != torch.float32:
        fuse_attention(encoder, False)
    if config.patch_dropout:
        drop_patches(encoder, config.patch_dropout)
    if config.checkpoint_gradients:
        checkpoint_gradients(encoder)


def _as_published(encoder: nn.Module, config: TrainConfig) -> None:
    """Undo :func:`lighten`: what predicts is the encoder as it was built."""
    fuse_attention(encoder)
    if config.patch_dropout:
        drop_patches(encoder, 0)
    if config.checkpoint_gradients:
        checkpoint_gradients(encoder, False)


class CentreCrop(nn.Module):
    """The middle of uint8 tiles, ``(b, S, S, 3)`` to ``(b, px, px, 3)``: an encoder is adapted at its own width."""

    def __init__(self, px: int) -> None:
        super().__init__()
        self.px = px

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Cut the middle out."""
        first = (tiles.shape[1] - self.px) // 2
        return tiles[:, first : first + self.px, first : first + self.px]
