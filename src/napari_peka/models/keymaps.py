"""How checkpoints of other houses name their tensors, and what timm calls the same ones.

Every map takes and gives plain dictionaries of tensors, and works on meta tensors as well: shapes are checked that
way before a byte of weights is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]

_ATTENTION = {
    "attention.output.dense": "attn.proj",
    "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.attention.value": "attn.v",
}
_HF_EMBEDDINGS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "reg_token",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
_HF_VIT_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    **_ATTENTION,
}
_HF_DINOV2_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1",  # SwiGLU: gate and value side by side, as in timm's SwiGLUPacked
    "mlp.weights_out": "mlp.fc2",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    **_ATTENTION,
}
#: tensors that training needed and an embedding does not
_HF_DROPPED = ("embeddings.mask_token", "pooler.", "classifier.")
_POOLER_V15 = {"query": "query", "ln_q": "ln_q", "ln_k": "ln_k", "to_q": "q", "to_kv": "kv", "to_out": "out"}


def from_timm(tensors: Tensors) -> Tensors:
    """Prefix timm's own names."""
    return {f"trunk.{k}": v for k, v in tensors.items() if k != "mask_token"}


def from_hf_vit(tensors: Tensors) -> Tensors:
    """Map transformers' ``ViTModel`` (Phikon)."""
    return _from_hf(tensors, _HF_VIT_BLOCK, "vit.")


def from_hf_dinov2(tensors: Tensors) -> Tensors:
    """Map transformers' ``Dinov2Model`` and ``Dinov2WithRegistersModel`` (Phikon-v2, Midnight, Hibou)."""
    return _from_hf(tensors, _HF_DINOV2_BLOCK, "dinov2.", "dinov2_with_registers.")


def from_conch(tensors: Tensors) -> Tensors:
    """Map the image tower of CONCH's CoCa and its contrastive pooler; text and captioning are left out.

    The pooler's ``nn.MultiheadAttention`` has keys of another width than its queries, hence three matrices and
    one bias.
    """
    out = {k.removeprefix("visual."): v for k, v in tensors.items() if k.startswith("visual.trunk.")}
    pool = _under(tensors, "visual.attn_pool_contrast.")
    out |= _renamed(pool, "pooler.", {"query": "query", "ln_q": "ln_q", "ln_k": "ln_k", "attn.out_proj": "out"})
    if "attn.q_proj_weight" in pool:
        out["pooler.q.weight"] = pool["attn.q_proj_weight"]
        out["pooler.kv.weight"] = torch.cat([pool["attn.k_proj_weight"], pool["attn.v_proj_weight"]])
        width = pool["attn.q_proj_weight"].shape[0]
        out["pooler.q.bias"] = pool["attn.in_proj_bias"][:width]
        out["pooler.kv.bias"] = pool["attn.in_proj_bias"][width:]
    return out | _renamed(
        _under(tensors, "visual.ln_contrast."), "pooler.ln_out.", {"weight": "weight", "bias": "bias"}
    )


def from_conch15(tensors: Tensors) -> Tensors:
    """Map CONCH v1.5 (TITAN's tile encoder) and its pooler, whose projections have no bias."""
    out = {k: v for k, v in tensors.items() if k.startswith("trunk.")}
    out |= _renamed(_under(tensors, "attn_pool_contrast."), "pooler.", _POOLER_V15)
    return out | _renamed(_under(tensors, "ln_contrast."), "pooler.ln_out.", {"weight": "weight", "bias": "bias"})


LAYOUT_MAPS: dict[str, Callable[[Tensors], Tensors]] = {
    "timm": from_timm,
    "hf-vit": from_hf_vit,
    "hf-dinov2": from_hf_dinov2,
    "conch": from_conch,
    "conch15": from_conch15,
}


def to_encoder(tensors: Tensors, layout: str, trunk: Any, *, antialias: bool = False) -> Tensors:
    """Return `tensors` under the names and in the shapes of an `Encoder` around `trunk`; the classifier is left out."""
    mapped = LAYOUT_MAPS[layout]({k.removeprefix("module."): v for k, v in tensors.items()})
    classifier = tuple(f"trunk.{name}." for name in _classifier(trunk))
    kept = {k: v for k, v in mapped.items() if not k.startswith(classifier)}
    return fit_positions(kept, trunk, antialias=antialias)


def fit_positions(tensors: Tensors, trunk: Any, *, antialias: bool = False) -> Tensors:
    """Resample the position embedding to the tile size that `trunk` was built for.

    DINOv2 and transformers do so without antialiasing, timm with it. Where timm keeps no position for the class token
    (models with registers), the checkpoint's own is added to the class token, which is the same sum earlier.
    """
    key = "trunk.pos_embed"
    wanted = getattr(trunk, "pos_embed", None)
    if key not in tensors or wanted is None or tensors[key].shape == wanted.shape or tensors[key].ndim != 3:
        return tensors
    pos, out = tensors[key], dict(tensors)
    prefix = 0 if getattr(trunk, "no_embed_class", False) else int(trunk.num_prefix_tokens)
    if prefix == 0 and "trunk.cls_token" in out and _is_square(pos.shape[1] - 1) and not _is_square(pos.shape[1]):
        out["trunk.cls_token"] = out["trunk.cls_token"] + pos[:, :1]
        pos = pos[:, 1:]
    if pos.shape[1] != wanted.shape[1] and _is_square(pos.shape[1] - prefix):
        from timm.layers import resample_abs_pos_embed

        pos = resample_abs_pos_embed(
            pos, new_size=list(trunk.patch_embed.grid_size), num_prefix_tokens=prefix, antialias=antialias
        )
    return out | {key: pos}


def _classifier(trunk: Any) -> tuple[str, ...]:
    """Return the names of the layers that a model was trained to classify with, as timm records them."""
    name = getattr(trunk, "default_cfg", {}).get("classifier") or ()
    return (name,) if isinstance(name, str) else tuple(name)


def _from_hf(tensors: Tensors, block: dict[str, str], *prefixes: str) -> Tensors:
    out: Tensors = {}
    for name, tensor in tensors.items():
        for prefix in prefixes:
            name = name.removeprefix(prefix)
        if name.startswith(_HF_DROPPED):
            continue
        inside = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", name)
        if inside:
            out[f"trunk.blocks.{inside[1]}.{_rename(inside[2], block)}"] = tensor
        else:
            out[f"trunk.{_rename(name, _HF_EMBEDDINGS)}"] = tensor
    return _join_qkv(out)


def _join_qkv(tensors: Tensors) -> Tensors:
    """Concatenate separate query, key and value projections, as timm's ``attn.qkv`` holds them."""
    out = {k: v for k, v in tensors.items() if not re.search(r"\.attn\.[qkv]\.", k)}
    for name in tensors:
        if ".attn.q." in name:
            parts = [tensors.get(name.replace(".attn.q.", f".attn.{part}.")) for part in "qkv"]
            if all(p is not None for p in parts):
                out[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([p for p in parts if p is not None])
    return out


def _rename(name: str, table: dict[str, str]) -> str:
    if name in table:
        return table[name]
    stem, _, leaf = name.rpartition(".")
    return f"{table[stem]}.{leaf}" if stem in table else name


def _renamed(tensors: Tensors, prefix: str, table: dict[str, str]) -> Tensors:
    """Rename what `table` knows, even where the name stays, and leave the rest out."""
    return {prefix + _rename(k, table): v for k, v in tensors.items() if k in table or k.rpartition(".")[0] in table}


def _under(tensors: Tensors, prefix: str) -> Tensors:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _is_square(n: int) -> bool:
    return n > 0 and math.isqrt(n) ** 2 == n
