"""From a card to a module that turns tiles into embeddings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from napari_peka.core.errors import (
    BundleError,
    EncoderUnavailable,
    SettingError,
    UnknownName,
    near_names,
)
from napari_peka.models._torchvision import ensure_torchvision
from napari_peka.models.keymaps import to_encoder
from napari_peka.models.registry import POOLED, TIMM_PREFIX, EncoderCard
from napari_peka.models.weights import check_sha256, find_weights, read_shapes, read_tensors

SEED = 20260211
#: pooler widths of the layouts that bring their own: heads, and whether projections have a bias
POOLERS = {"conch": (8, True), "conch15": (8, False)}


class AttentionPooler(nn.Module):
    """One learnt query that attends to all tokens (CoCa's contrastive pooler, as CONCH uses it)."""

    def __init__(self, context: int, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(1, width))
        self.ln_q, self.ln_k, self.ln_out = nn.LayerNorm(width), nn.LayerNorm(context), nn.LayerNorm(width)
        self.q = nn.Linear(width, width, bias=bias)
        self.kv = nn.Linear(context, 2 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pool ``(b, n, context)`` to ``(b, width)``."""
        b = tokens.shape[0]
        q = self._split(self.q(self.ln_q(self.query)).expand(b, 1, -1))
        k, v = (self._split(t) for t in self.kv(self.ln_k(tokens)).chunk(2, dim=-1))
        pooled = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1)
        out: torch.Tensor = self.ln_out(self.out(pooled))
        return out

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Encoder(nn.Module):
    """A timm model and the pooling that its card asks for: normalised ``(b, 3, px, px)`` to ``(b, dim)``.

    Parameters
    ----------
    trunk
        The timm model.
    pooling, blocks
        See :class:`EncoderCard`; blocks of a network that is no row of them are its stages.
    pooler
        The checkpoint's own, for ``"attention"``.
    """

    def __init__(
        self, trunk: nn.Module, pooling: str, pooler: nn.Module | None = None, blocks: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        self.trunk, self.pooling, self.pooler, self.blocks = trunk, pooling, pooler, blocks
        self.n_prefix = int(getattr(trunk, "num_prefix_tokens", 0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the embedding of normalised tiles."""
        if self.pooling == "model":
            out: torch.Tensor = self.trunk(x)
            return out
        if not self.blocks:
            return self.pool(self.trunk.forward_features(x))
        return torch.cat([self.pool(tokens) for tokens in self._after_blocks(x)], dim=-1)

    def _after_blocks(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the tokens after each of the blocks that are read, class and register tokens first."""
        trunk: Any = self.trunk
        if not _is_row(trunk):
            maps = trunk.forward_intermediates(
                x, indices=list(self.blocks), norm=True, stop_early=True, intermediates_only=True
            )
            return [m.flatten(2).transpose(1, 2) for m in maps]
        seen: dict[int, torch.Tensor] = {}

        def keep(number: int, _: nn.Module, __: Any, tokens: torch.Tensor) -> None:
            seen[number] = tokens

        # timm's own functions return tokens of whole encoders only; this one may be the back half of one
        hooks = [trunk.blocks[i].register_forward_hook(partial(keep, i)) for i in self.blocks]
        try:
            trunk.forward_features(x)
        finally:
            for hook in hooks:
                hook.remove()
        return [trunk.norm(seen[i]) for i in self.blocks]

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return ``(b, dim)`` from all tokens ``(b, n, width)``, class and register tokens first."""
        if self.pooler is not None:
            pooled: torch.Tensor = self.pooler(tokens)
            return pooled
        patches = tokens[:, self.n_prefix :]
        parts = {
            "cls": lambda: tokens[:, 0],
            "mean": lambda: patches.mean(1),
            "std": lambda: patches.float().std(1, correction=0).to(tokens.dtype),
        }
        return torch.cat([parts[part]() for part in self.pooling.split("+")], dim=-1)


def complete(card: EncoderCard) -> EncoderCard:
    """Fill a ``timm:`` card with what timm knows of the model; other cards come back as they are.

    Raises
    ------
    UnknownName
        If timm has no such model.
    """
    if not card.name.startswith(TIMM_PREFIX) or card.dim:
        return card
    ensure_torchvision()
    import timm

    if not timm.is_model(card.arch.split(".")[0]):
        raise UnknownName(f"timm has no model {card.arch!r}{near_names(card.arch, timm.list_models())}")
    try:
        with torch.device("meta"):
            trunk = timm.create_model(card.arch, pretrained=False, num_classes=0)
    except RuntimeError as e:  # the model is known, the weights' tag behind the dot is not
        tags = timm.list_pretrained(card.arch.split(".")[0] + "*")
        raise UnknownName(f"timm has no model {card.arch!r}{near_names(card.arch, tags)}") from e
    cfg = trunk.pretrained_cfg
    hub = cfg.get("hf_hub_id")
    known: dict[str, Any] = {
        "px": card.px or int(cfg["input_size"][-1]),
        "dim": int(getattr(trunk, "head_hidden_size", 0) or trunk.num_features),
        "mean": tuple(cfg["mean"]),
        "std": tuple(cfg["std"]),
        "licence": cfg.get("license") or card.licence,
        "antialias": True,
    }
    if hub:
        known |= {"hub_id": hub, "page": f"https://huggingface.co/{hub}"}
        known |= {"weights_file": cfg.get("hf_hub_filename") or "model.safetensors"}
    return dataclasses.replace(card, **known)


def read_at(card: EncoderCard, blocks: Sequence[int] = (), pooling: str | None = None) -> EncoderCard:
    """Return the card of the same encoder, read elsewhere.

    Parameters
    ----------
    card
        As published.
    blocks, pooling
        See :class:`EncoderCard`; empty and None leave it as it is.

    Raises
    ------
    SettingError
        If the encoder has no such block, or cannot be pooled so.
    """
    if not blocks and pooling in (None, card.pooling):
        return card
    if card.pooling == "attention":
        raise SettingError(f"{card.name} is read through a pooler of its own; leave blocks and pooling away")
    card, pooling = complete(card), pooling or card.pooling
    if not set(pooling.split("+")) <= set(POOLED):
        raise SettingError(
            f"{card.name} is pooled by {pooling!r}, which speaks of its last block only; with blocks, say pooling = "
            "mean, cls, mean+std or the like"
        )
    with torch.device("meta"):
        encoder = build_encoder(dataclasses.replace(card, pooling=pooling))
    trunk: Any = encoder.trunk
    widths = [int(stage["num_chs"]) for stage in trunk.feature_info]
    wrong = [b for b in blocks if not 0 <= b < len(widths)]
    if wrong or list(blocks) != sorted(set(blocks)):
        raise SettingError(
            f"{card.name} has blocks 0 to {len(widths) - 1}, each of which can be read once, in ascending order; got "
            f"{list(blocks)}"
        )
    if "cls" in pooling.split("+") and not getattr(trunk, "num_prefix_tokens", 0):
        raise SettingError(f"{card.name} has no class token; say pooling = mean or mean+std")
    read = [widths[b] for b in blocks] or [int(trunk.num_features)]
    return dataclasses.replace(card, blocks=tuple(blocks), pooling=pooling, dim=sum(read) * len(pooling.split("+")))


def build_encoder(card: EncoderCard) -> Encoder:
    """Build the architecture of a card with timm's fresh weights, on torch's current default device.

    Raises
    ------
    SettingError
        If the card's tile size does not suit the architecture.
    """
    ensure_torchvision()
    import timm

    kwargs: dict[str, Any] = {k: _layer(k, v) for k, v in card.kwargs}
    eps = kwargs.pop("norm_eps", None)
    if card.pooling != "model":  # all tokens come out, and the norm sits in the trunk whatever the pooling
        kwargs |= {"global_pool": ""}
    try:
        trunk = timm.create_model(card.arch, pretrained=False, num_classes=0, img_size=card.px, **kwargs)
    except TypeError:  # a convolutional network takes tiles of any size
        trunk = timm.create_model(card.arch, pretrained=False, num_classes=0, **kwargs)
    _check_tile(card, trunk)
    if eps is not None:
        for module in trunk.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = eps
    pooler = None
    if card.pooling == "attention":
        pooler = AttentionPooler(trunk.num_features, card.dim, *POOLERS[card.layout])
    return Encoder(trunk, card.pooling, pooler, card.blocks)


def load_encoder(
    card: EncoderCard, *, weights: str | Path | None = None, offline: bool = False, random: bool = False
) -> Encoder:
    """Return an encoder ready for inference: eval mode, float32, on the CPU.

    Parameters
    ----------
    card
        Which encoder.
    weights
        File or folder to take the weights from; None looks them up (see `models.weights.find_weights`).
    offline
        Never use the network.
    random
        Random weights from a fixed seed instead of the encoder's own: for tests and for measuring speed.

    Raises
    ------
    EncoderUnavailable
        If the weights cannot be had.
    BundleError
        If the file is damaged, or is not of this encoder; the first tensor that differs is named.
    """
    card = complete(card)
    return _cut_behind(_load(card, weights, offline, random))


def shapes_of(card: EncoderCard) -> Encoder:
    """Return an encoder with all its parts and no weights worth having, on torch's current default device."""
    return _cut_behind(build_encoder(complete(card)))


def fetch_weights(card: EncoderCard) -> None:
    """Make sure that an encoder's weights are on this machine; they are downloaded where the card says from where.

    Raises
    ------
    EncoderUnavailable
        If they cannot be had.
    """
    card = complete(card)
    if not _has_none(card):
        find_weights(card)


def has_weights(card: EncoderCard) -> bool:
    """Whether an encoder can be loaded without the network."""
    card = complete(card)
    if _has_none(card):
        return True
    with suppress(EncoderUnavailable):
        find_weights(card, offline=True)
        return True
    return False


def _has_none(card: EncoderCard) -> bool:
    return card.hub_id is None and card.weights_file is None and not card.name.startswith(TIMM_PREFIX)


def _cut_behind(encoder: Encoder) -> Encoder:
    """Drop the blocks that nobody reads."""
    trunk: Any = encoder.trunk
    if encoder.blocks and _is_row(trunk):
        trunk.blocks = trunk.blocks[: max(encoder.blocks) + 1]
    return encoder


def _load(card: EncoderCard, weights: str | Path | None, offline: bool, random: bool) -> Encoder:
    if random or (weights is None and _has_none(card)):
        return _random(card)
    path = find_weights(card, weights, offline=offline)
    check_sha256(card, path)
    with torch.device("meta"):
        encoder = build_encoder(card)
    if path.suffix == ".safetensors":
        shapes = to_encoder(read_shapes(path), card.layout, encoder.trunk, antialias=card.antialias)
        _check(shapes, encoder, card, path)
    tensors = to_encoder(read_tensors(path), card.layout, encoder.trunk, antialias=card.antialias)
    _check(tensors, encoder, card, path)
    if _unsaved_buffers(encoder):  # their values come from the constructor, which had no memory to write to
        encoder = build_encoder(card)
    owned = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    encoder.load_state_dict(owned, strict=True, assign=True)
    encoder.eval().requires_grad_(False)
    return encoder


class Normaliser(nn.Module):
    """uint8 ``(b, h, w, 3)`` to normalised float ``(b, 3, h, w)`` on this module's device.

    Parameters
    ----------
    mean, std
        Per channel, of values in 0 to 1.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        m, s = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
        self.register_buffer("scale", 1 / (255 * s), persistent=False)
        self.register_buffer("shift", -m / s, persistent=False)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Normalise tiles."""
        x = tiles.to(self.scale.device, non_blocking=True).permute(0, 3, 1, 2).to(self.scale.dtype)
        return torch.addcmul(self.shift, x, self.scale)


def _random(card: EncoderCard) -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        encoder = build_encoder(card)
        encoder.float().eval().requires_grad_(False)
        return encoder


def _check_tile(card: EncoderCard, trunk: nn.Module) -> None:
    """Refuse a tile that the model's patches do not fill, or that it does not take; nearest good sizes are named."""
    embed: Any = getattr(trunk, "patch_embed", None)
    if not card.px or not hasattr(embed, "patch_size") or not hasattr(embed, "img_size"):
        return
    size = int(embed.patch_size[0])
    if card.px % size:
        low = card.px // size * size
        raise SettingError(
            f"tiles for {card.name} must be a multiple of its patch size ({size}) wide, got {card.px} px; "
            f"nearest valid: {', '.join(str(v) for v in (low, low + size) if v)}"
        )
    takes = embed.img_size
    if takes is not None and card.px != int(takes[0]):
        raise SettingError(f"tiles for {card.name} must be {takes[0]} px wide, got {card.px}")


def _is_row(trunk: nn.Module) -> bool:
    """Return whether a network is one row of transformer blocks with tokens between."""
    return hasattr(trunk, "num_prefix_tokens") and hasattr(trunk, "blocks") and hasattr(trunk, "norm")


def _layer(key: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    from timm.layers import SwiGLUPacked

    layers: dict[tuple[str, str], Any] = {
        ("mlp_layer", "SwiGLUPacked"): SwiGLUPacked,
        ("act_layer", "silu"): nn.SiLU,
    }
    return layers.get((key, value), value)


def _check(tensors: dict[str, torch.Tensor], encoder: nn.Module, card: EncoderCard, path: Path) -> None:
    """Refuse tensors that are not the encoder's, naming the first that differs."""
    wanted = {k: tuple(v.shape) for k, v in encoder.state_dict().items()}
    got = {k: tuple(v.shape) for k, v in tensors.items()}
    for name in sorted(wanted | got):
        if wanted.get(name) != got.get(name):
            there = got.get(name, "not there")
            asked = wanted.get(name, "none of that name")
            raise BundleError(
                f"{path} is not {card.name}: tensor {name} is {there}, wanted {asked}; "
                f"take the file from {card.page or 'where the encoder comes from'}"
            )


def _unsaved_buffers(encoder: nn.Module) -> bool:
    saved = encoder.state_dict().keys()
    return any(name not in saved for name, _ in encoder.named_buffers())
