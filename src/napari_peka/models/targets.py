"""Where in an encoder an adapter goes, and how wide it is there: told by shapes alone, before anything is built."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import TypeAlias

from torch import nn

from napari_peka.core.errors import SettingError
from napari_peka.models.registry import AdapterSpec
from napari_peka.models.trunk import row_of_blocks

Layer: TypeAlias = nn.Linear | nn.Conv2d

#: share of all weights that an adapter has when nobody says its rank: PEKA's Bone of rank 256 has 5.9 % of UNI's
SHARE = 0.05
#: AdaLoRA begins with so many times the rank that it ends with (Zhang et al., ICLR 2023, arXiv 2303.10512)
ADALORA_BEGINS = 1.5
#: every block's attention, as in PEKA: queries, keys and values
QKV = r".*\.attn\.qkv"
#: the layers taken when nobody says which, by the names that timm gives them; the first that an encoder has
USUAL = (
    QKV,
    r".*\.attn\.(?:q|k|v|kv|q_proj|k_proj|v_proj)",  # EVA-02, PVT: attention in separate layers
    r".*\.mlp(?:_channels)?\.fc[12]",  # ConvNeXt, mixers: no attention, but blocks
)
#: networks of nothing but convolutions: all of them except squeeze-and-excite, which is only a few channels wide
CONVOLUTIONS = r"(?!.*\.se\.).*"
#: what can carry an adapter
ABLE = "a linear layer or a plain convolution of 1×1 or 3×3"
#: kinds whose peft layers fold into a convolution without changing its outputs
CONVOLUTION_KINDS = ("lora", "dora")


def resolve_adapter(encoder: nn.Module, spec: AdapterSpec) -> AdapterSpec:
    """Return the spec with everything said that it leaves open, so that a stored one means the same for ever.

    Parameters
    ----------
    encoder
        An encoder without an adapter; one on the meta device will do.
    spec
        Where ``target`` is None it becomes the usual layers of such an encoder, where ``rank`` is None the one that
        makes the trainable share come nearest to 5 %; ``last_blocks`` becomes part of ``target``.

    Raises
    ------
    SettingError
        If no layer matches, the kind does not work on those that do, or the rank does not fit them.
    """
    if spec.kind in ("none", "full"):
        return dataclasses.replace(spec, rank=None, target=spec.target or QKV, last_blocks=None)
    target = usual_target(encoder) if spec.target is None else spec.target
    if spec.last_blocks is not None:
        target = _in_last_blocks(encoder, target, spec.last_blocks)
    layers = target_layers(encoder, target)
    convolution = next((n for n, m in layers.items() if isinstance(m, nn.Conv2d)), None)
    if convolution and spec.kind not in CONVOLUTION_KINDS:
        raise SettingError(
            f"the adapter {spec.kind} works on linear layers, and {convolution!r}, where it would go, is a "
            f"convolution; take {' or '.join(CONVOLUTION_KINDS)}, full, or another target than {target!r}"
        )
    rank = _usual_rank(encoder, layers.values(), spec) if spec.rank is None else spec.rank
    _check_rank(spec, rank, layers)
    return dataclasses.replace(spec, rank=rank, target=target, last_blocks=None)


def usual_target(encoder: nn.Module) -> str:
    """Return the expression for the layers that an adapter goes into when nobody says which.

    Raises
    ------
    SettingError
        If the encoder names its layers as none of the known families does.
    """
    names = [n for n, m in encoder.named_modules() if _can_carry(m)]
    for target in USUAL:
        if any(re.fullmatch(target, n) for n in names):
            return target
    if not any(isinstance(m, nn.Linear) for m in encoder.modules()) and names:
        return CONVOLUTIONS
    if not names:
        raise SettingError(f"this encoder has no layer that can carry an adapter ({ABLE}); take full or none")
    raise SettingError(
        "it is not known which layers of this encoder an adapter should go into; give a target, an expression that "
        f"matches whole names of its layers, such as {'.*' + re.escape(names[-1].rpartition('.')[2])!r}"
    )


def target_layers(encoder: nn.Module, target: str | None) -> dict[str, Layer]:
    """Return the layers whose whole name matches `target` (None: the usual one) and that can carry an adapter, by name.

    Linear layers can, and plain convolutions of 1×1 or 3×3 that do not see the pixels themselves (ungrouped,
    undilated): peft folds an adapter into others wrongly or not at all.

    Raises
    ------
    SettingError
        If there is none, or the expression is not one.
    """
    target = usual_target(encoder) if target is None else target
    try:
        pattern = re.compile(target)
    except re.error as e:
        raise SettingError(f"the adapter's target {target!r} is not a regular expression ({e})") from e
    able: dict[str, Layer] = {n: m for n, m in encoder.named_modules() if _can_carry(m)}
    found = {n: m for n, m in able.items() if pattern.fullmatch(n)}
    if not found:
        example = f"one is called {next(iter(able))!r}" if able else "this encoder has none"
        raise SettingError(f"the adapter's target {target!r} matches no layer that can carry it ({ABLE}); {example}")
    return found


def added_weights(kind: str, rank: int, layers: Iterable[Layer]) -> int:
    """Return how many weights an adapter of that rank adds; for AdaLoRA those that it ends with."""
    return sum(rank * slope + constant for slope, constant in (_cost(kind, m) for m in layers))


def first_rank(rank: int, narrowest: int) -> int:
    """Return the rank that AdaLoRA begins with to end with `rank`."""
    return min(math.ceil(ADALORA_BEGINS * rank), narrowest)


def narrowest(layers: Iterable[Layer]) -> int:
    """Return the smallest number of inputs or outputs among layers."""
    return min(min(_channels(m)) for m in layers)


def is_bat(spec: AdapterSpec) -> bool:
    """Return whether an adapter is Bone's second form, however that was said."""
    return spec.kind == "bat" or (spec.kind == "bone" and spec.options.get("init_weights") == "bat")


def _can_carry(m: nn.Module) -> bool:
    if isinstance(m, nn.Linear):
        return True
    return (
        type(m) is nn.Conv2d  # a subclass may standardise its weights or pad by itself
        and m.kernel_size in ((1, 1), (3, 3))
        and m.groups == 1
        and m.dilation == (1, 1)
        and m.in_channels > 3
    )


def _in_last_blocks(encoder: nn.Module, target: str, last: int) -> str:
    n = len(row_of_blocks(encoder))
    if not 1 <= last <= n:
        raise SettingError(f"this encoder has {n} blocks: last_blocks must be 1 to {n}, got {last}")
    kept = "|".join(str(i) for i in range(n - last, n))
    return rf"(?=trunk\.blocks\.(?:{kept})\.)(?:{target})"


def _usual_rank(encoder: nn.Module, layers: Iterable[Layer], spec: AdapterSpec) -> int:
    layers = list(layers)
    whole: int = sum(p.numel() for p in encoder.parameters())

    def off(rank: int) -> float:
        added = added_weights(spec.kind, rank, layers)
        return abs(added / (whole + added) - SHARE)

    return min(_ranks_that_fit(spec, layers), key=off)


def _ranks_that_fit(spec: AdapterSpec, layers: list[Layer]) -> list[int]:
    """Return the ranks to choose among; Bone's are those that cut every input into whole pieces, as Bone is defined."""
    most = narrowest(layers)
    if spec.kind in ("bone", "bat"):
        sides = [s for m in layers for s in (_channels(m) if is_bat(spec) else _channels(m)[:1])]
        common = math.gcd(*sides)
        return [r for r in range(1, most + 1) if common % r == 0]
    if spec.kind == "hra":
        return list(range(2, most + 1, 2))
    return list(range(1, most + (spec.kind != "adalora")))


def _check_rank(spec: AdapterSpec, rank: int, layers: dict[str, Layer]) -> None:
    most = narrowest(layers.values()) - (spec.kind == "adalora")  # which must have something to give up
    if rank > most:
        raise SettingError(
            f"the rank of {spec.kind} is {rank}, the narrowest target layer allows {most}: take at most that"
        )
    if spec.kind == "hra" and rank % 2:
        raise SettingError(f"the rank of hra must be even, so that it changes nothing at first; got {rank}")
    if is_bat(spec):
        for name, layer in layers.items():
            if any(side % rank for side in _channels(layer)):
                fit = [r for r in _ranks_that_fit(spec, list(layers.values())) if r > 1]
                raise SettingError(
                    f"the layer {name} of {' → '.join(map(str, _channels(layer)))} is not divisible into blocks of "
                    f"{rank} × {rank}; ranks that fit: {', '.join(map(str, fit)) or 'none above 1'}"
                )


def _cost(kind: str, layer: Layer) -> tuple[int, int]:
    """Return what an adapter adds to a layer: weights a rank, and weights in any case."""
    inputs, outputs = _channels(layer)
    seen = inputs * math.prod(layer.kernel_size) if isinstance(layer, nn.Conv2d) else inputs
    return {
        "bone": (outputs, 0),
        "bat": (outputs, 0),
        "lora": (seen + outputs, 0),
        "dora": (seen + outputs, outputs),
        "adalora": (seen + outputs + 1, 0),
        "hra": (seen, 0),
    }[kind]


def _channels(layer: Layer) -> tuple[int, int]:
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    return layer.in_features, layer.out_features
