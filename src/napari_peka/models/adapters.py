"""Small trainable additions to a frozen encoder: put in, counted, stored, and folded away again.

peft does the mathematics. It no longer has the Bone tuner that PEKA used; MiSS is its successor by the same authors,
and with ``init_weights=True`` its forward is Bone's: the input is cut into pieces as wide as the rank, the pieces are
summed, and one matrix ``(rank, out)``, zero at first, maps the sum to the output. Only where the rank does not divide
the input width do they differ (MiSS pads). ``{"init_weights": "bat"}`` is Bone's second form, the Weight Guide.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from napari_peka.core.errors import BundleError, SettingError
from napari_peka.models._torchvision import ensure_torchvision
from napari_peka.models.registry import AdapterSpec

#: peft names what it adds after the adapter; one is enough
NAME = "default"
#: ranks that the authors, or peft, use when nobody says one
RANKS = {"bone": 64, "lora": 8, "dora": 8, "adalora": 8, "hra": 8}
#: AdaLoRA plans its ranks over a whole training: a trainer says its length with ``{"total_step": n}``
ADALORA_STEPS = 1000


def add_adapter(encoder: nn.Module, spec: AdapterSpec) -> nn.Module:
    """Put an adapter into every target layer, in place, and make its weights the only trainable ones.

    Parameters
    ----------
    encoder
        An encoder without an adapter.
    spec
        Kind, rank and targets. ``"full"`` makes all weights trainable, ``"none"`` none.

    Raises
    ------
    SettingError
        If no layer matches the target, or the rank does not fit the layers.
    """
    encoder.requires_grad_(spec.kind == "full")
    encoder.peka_adapter = spec.kind
    if spec.kind in ("none", "full"):
        return encoder
    targets = target_layers(encoder, spec.target)
    config = _config(spec, targets)
    from peft import inject_adapter_in_model

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft: unknown architectures, ranks that need padding
            inject_adapter_in_model(config, encoder, adapter_name=NAME)
    except (ValueError, TypeError) as e:
        raise SettingError(f"the adapter {spec.kind} of rank {config_rank(spec)} cannot be put in: {e}") from e
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(_is_adapter(encoder, name))
    return encoder


def target_layers(encoder: nn.Module, target: str) -> dict[str, nn.Linear]:
    """Return the linear layers whose whole name matches `target`.

    Raises
    ------
    SettingError
        If there is none, or the expression is not one.
    """
    try:
        pattern = re.compile(target)
    except re.error as e:
        raise SettingError(f"the adapter's target {target!r} is not a regular expression ({e})") from e
    found = {n: m for n, m in encoder.named_modules() if isinstance(m, nn.Linear) and pattern.fullmatch(n)}
    if not found:
        linear = [n for n, m in encoder.named_modules() if isinstance(m, nn.Linear)]
        example = f"; one is called {linear[0]!r}" if linear else ": this encoder has none"
        raise SettingError(f"the adapter's target {target!r} matches no linear layer{example}")
    return found


def config_rank(spec: AdapterSpec) -> int:
    """Return the rank of an adapter, the kind's usual one where none is said."""
    return spec.rank if spec.rank is not None else RANKS.get(spec.kind, 0)


def adapter_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return what must be stored to have the adapter again; all weights where the kind is ``"full"``."""
    kind = _kind(module)
    return {
        k: v.detach().cpu().contiguous().clone()
        for k, v in module.state_dict().items()
        if kind == "full" or _is_adapter(module, k)
    }


def load_adapter_state(module: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Fill the adapter of `module` with stored tensors; nothing is left out and nothing is ignored.

    Raises
    ------
    BundleError
        If names or shapes differ from what the adapter needs; the first one is named.
    """
    own = module.state_dict()
    wanted = {k: tuple(own[k].shape) for k in adapter_state(module)}
    got = {k: tuple(v.shape) for k, v in tensors.items()}
    for name in sorted(wanted | got):
        if wanted.get(name) != got.get(name):
            raise BundleError(
                f"adapter tensor {name} is {got.get(name, 'not there')}, "
                f"wanted {wanted.get(name, 'none of that name')}; the bundle was made for another encoder or rank"
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def merge_adapter(module: nn.Module) -> nn.Module:
    """Fold the adapter into the weights: the plain encoder again, with the adapter's outputs and no extra cost."""
    if _kind(module) in ("none", "full"):
        module.peka_adapter = "none"
        return module.requires_grad_(False)
    for name, layer in list(module.named_modules()):
        if _is_tuner(layer):
            layer.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, layer.get_base_layer())
    module.peka_adapter = "none"
    for leftover in ("peft_config", "_hf_peft_config_loaded"):
        if hasattr(module, leftover):
            delattr(module, leftover)
    return module.requires_grad_(False)


def trainable_share(module: nn.Module) -> float:
    """Return the share of weights that train, 0 to 1."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    total = sum(n for n, _ in sizes)
    return sum(n for n, trains in sizes if trains) / total if total else 0.0


def _config(spec: AdapterSpec, targets: dict[str, nn.Linear]) -> Any:
    ensure_torchvision()
    import peft

    rank = config_rank(spec)
    narrow = min(min(layer.in_features, layer.out_features) for layer in targets.values())
    if rank > narrow:
        raise SettingError(f"the rank of {spec.kind} is {rank}, the narrowest target layer {narrow}: take at most that")
    lora = {"r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0}
    kinds: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "bone": (peft.MissConfig, {"r": rank, "init_weights": True}),
        "lora": (peft.LoraConfig, lora),
        "dora": (peft.LoraConfig, lora | {"use_dora": True}),
        "adalora": (peft.AdaLoraConfig, {"target_r": rank, "init_r": rank, "lora_alpha": 2 * rank,
                                         "total_step": ADALORA_STEPS}),
        "hra": (peft.HRAConfig, {"r": rank}),
    }  # fmt: skip
    if spec.kind == "hra" and rank % 2:
        raise SettingError(f"the rank of hra must be even, so that it changes nothing at first; got {rank}")
    build, settings = kinds[spec.kind]
    names = "|".join(re.escape(n) for n in targets)  # linear layers only, and peft matches the whole name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return build(target_modules=f"(?:{names})", **(settings | spec.options))
    except (TypeError, ValueError) as e:
        raise SettingError(f"the options of the adapter {spec.kind} cannot be used: {e}") from e


def _kind(module: nn.Module) -> str:
    return str(getattr(module, "peka_adapter", "none"))


def _is_tuner(layer: nn.Module) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(layer, BaseTunerLayer)


def _is_adapter(module: nn.Module, name: str) -> bool:
    """Return whether a tensor belongs to an adapter: to what a tuner's layer added to the layer it wraps."""
    if _kind(module) in ("none", "full"):
        return False
    parts = name.split(".")
    for i in range(len(parts) - 1, 0, -1):
        layer = module.get_submodule(".".join(parts[:i]))
        if _is_tuner(layer):
            return parts[i] in layer.adapter_layer_names
    return False
