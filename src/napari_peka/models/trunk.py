"""A transformer cut in two: blocks that stay frozen, whose output can be kept, and the last ones, which learn."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn

from napari_peka.core.errors import SettingError
from napari_peka.models._torchvision import ensure_torchvision
from napari_peka.models.encoder import Encoder

#: parts of a timm transformer that a tile passes before its blocks
BEFORE = ("patch_embed", "pos_drop", "patch_drop", "norm_pre")


class Front(nn.Module):
    """The frozen half: normalised tiles ``(b, 3, px, px)`` to all tokens ``(b, n_tokens, width)`` before a block.

    Class and register tokens come first. The number format is the one computed in. No gradient is kept.
    """

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the tokens that the back half reads."""
        tokens: torch.Tensor = self.trunk.forward_features(x)
        return tokens


def split(encoder: nn.Module, last_blocks: int) -> tuple[Front, Encoder]:
    """Cut an encoder before its last blocks, so that ``back(front(x))`` is the encoder's own output, bit for bit.

    Both halves hold the encoder's own modules, not copies: what trains in `back` trains in the encoder. Each is the
    trunk itself with the other's parts blanked, so that timm's own code runs in both.

    Parameters
    ----------
    encoder
        An encoder whose adapter, if any, is already in.
    last_blocks
        Blocks in the back half, 1 to all.

    Returns
    -------
    front, back
        See :class:`Front`; ``back`` maps its tokens to the embedding ``(b, dim)``.

    Raises
    ------
    SettingError
        If the encoder is no plain row of blocks, has not so many, or something in the front half trains.
    """
    blocks = row_of_blocks(encoder)
    if not 1 <= last_blocks <= len(blocks):
        raise SettingError(f"this encoder has {len(blocks)} blocks: last_blocks must be 1 to that, got {last_blocks}")
    assert isinstance(encoder, Encoder)
    trunk: Any = encoder.trunk
    cut = len(blocks) - last_blocks
    first, rest = _alike(trunk), _alike(trunk)

    first.blocks = trunk.blocks[:cut]
    for name, _ in list(first.named_children()):
        if name not in (*BEFORE, "rope", "blocks"):
            setattr(first, name, nn.Identity())
    trains = [n for n, p in first.named_parameters() if p.requires_grad]
    if trains:
        raise SettingError(
            f"{trains[0]} trains and lies before the last {last_blocks} blocks; give the adapter the same last_blocks"
        )

    if encoder.blocks and min(encoder.blocks) < cut:
        raise SettingError(
            f"block {min(encoder.blocks)} is read and lies before the last {last_blocks} blocks; adapt more of them, "
            "or turn the trunk cache off"
        )
    rest.blocks = trunk.blocks[cut:]
    rest._parameters = {}  # class token and positions: the front half has them
    for name in BEFORE:
        if name in dict(rest.named_children()):
            setattr(rest, name, nn.Identity())
    rest._pos_embed = MethodType(_positions(trunk) or _as_they_are, rest)
    read = tuple(b - cut for b in encoder.blocks)
    return Front(first), Encoder(rest, encoder.pooling, encoder.pooler, read)


def row_of_blocks(encoder: nn.Module) -> nn.Sequential | nn.ModuleList:
    """Return the blocks of an encoder that is a plain row of them: timm's VisionTransformer and Eva.

    Raises
    ------
    SettingError
        If it is another network.
    """
    trunk: Any = getattr(encoder, "trunk", encoder)
    if _positions(trunk) is None:
        raise SettingError(
            f"a {type(trunk).__name__} of this kind cannot be cut before its last blocks (plain vision transformers "
            "and EVA can); leave last_blocks away"
        )
    blocks: nn.Sequential | nn.ModuleList = trunk.blocks
    return blocks


def checkpoint_gradients(encoder: nn.Module, on: bool = True) -> None:
    """Recompute activations in the backward pass instead of keeping them: less memory, about a third slower.

    Parameters
    ----------
    encoder
        An encoder or the back half of one; a half that was split off before does not follow its encoder.
    on
        Whether to.

    Raises
    ------
    SettingError
        If the architecture has no such switch.
    """
    trunk: Any = getattr(encoder, "trunk", encoder)
    try:
        trunk.set_grad_checkpointing(on)
    except (AttributeError, AssertionError) as e:
        raise SettingError(f"a {type(trunk).__name__} cannot recompute its activations; take smaller batches") from e


def drop_patches(encoder: nn.Module, share: float) -> None:
    """Leave out a random share of each tile's patches in training mode: several times faster, and it regularises.

    Source: Liu et al., "PatchDropout: Economizing Vision Transformers Using Patch Dropout", WACV 2023
    (arXiv 2208.07220), as timm has it.

    Parameters
    ----------
    encoder
        An encoder or the back half of one.
    share
        Of the patches, 0 (none) to below 1. Class and register tokens always stay.

    Raises
    ------
    SettingError
        If the architecture needs all of its patches.
    """
    ensure_torchvision()
    from timm.layers import PatchDropout
    from timm.models.vision_transformer import VisionTransformer

    trunk: Any = getattr(encoder, "trunk", encoder)
    if getattr(type(trunk), "forward_features", None) is not VisionTransformer.forward_features:
        raise SettingError(
            f"a {type(trunk).__name__} of this kind needs all patches of a tile (plain vision transformers do not); "
            "leave patch_dropout away"
        )
    dropping = PatchDropout(share, trunk.num_prefix_tokens) if share else nn.Identity()
    trunk.patch_drop = dropping.train(trunk.training)


def fuse_attention(encoder: nn.Module, on: bool = True) -> None:
    """Use torch's fused attention or plain matrix products: same values, but not the same speed.

    torch's fused backward pass on a CPU in bf16 takes longer than a plain one at the few hundred tokens of a tile; in
    fp32 it is the faster one (``benchmarks/train.py``).

    Parameters
    ----------
    encoder
        An encoder or the back half of one; networks without timm's attention stay as they are.
    on
        Whether to fuse, where timm does.
    """
    ensure_torchvision()
    from timm.layers import use_fused_attn

    for part in encoder.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = on and use_fused_attn()


def go_on_dropping(module: nn.Module) -> None:
    """Put what :func:`drop_patches` made into training mode, whatever mode the blocks around it are in."""
    ensure_torchvision()
    from timm.layers import PatchDropout

    for part in module.modules():
        if isinstance(part, PatchDropout):
            part.train()


def _alike(trunk: nn.Module) -> Any:
    """Return another module with the same parts, whose parts can be exchanged without touching the first."""
    twin = copy.copy(trunk)
    twin._modules = dict(trunk._modules)
    return twin


def _positions(trunk: Any) -> Callable[..., Any] | None:
    """Return what stands for timm's ``_pos_embed`` in the back half, None for networks that are not cut.

    A subclass with a ``forward_features`` of its own may do anything, so it is another network.
    """
    ensure_torchvision()
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    features = getattr(type(trunk), "forward_features", None)
    if features is VisionTransformer.forward_features:
        return _as_they_are
    # rotations that differ by block, or by which patches are kept, would need more than the tokens
    if features is Eva.forward_features and not getattr(trunk, "rope_mixed", False) and trunk.patch_drop is None:
        return _with_rotations
    return None


def _as_they_are(trunk: Any, tokens: torch.Tensor) -> torch.Tensor:
    return tokens


def _with_rotations(trunk: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return tokens and EVA's rotary embedding, which every block gets anew and which no tile changes."""
    rope = trunk.rope
    if rope is None:
        return tokens, None
    if hasattr(rope, "feat_shape") and not trunk.dynamic_img_size:
        return tokens, rope.get_embed()
    side = math.isqrt(tokens.shape[1] - trunk.num_prefix_tokens)  # tiles are square
    return tokens, rope.get_embed(shape=(side, side))
