"""Small trainable additions to a frozen encoder: put in, trained, counted, stored, and folded away again.

peft does the mathematics. It no longer has the Bone tuner that PEKA used; MiSS is its successor by the same authors,
and with ``init_weights=True`` its forward is Bone's (arXiv 2409.15371): the input is cut into pieces as wide as the
rank, the pieces are summed, and one matrix ``(rank, out)``, zero at first, maps the sum to the output. A rank that does
not divide the input width leaves a shorter last piece. ``bat`` is Bone's second form, the Weight Guide: each block of
``rank`` × ``rank`` weights W gains W B + B, with one B for all blocks that feed the same outputs.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn

from napari_peka.core.errors import BundleError, SettingError, TrainingError
from napari_peka.models._torchvision import ensure_torchvision
from napari_peka.models.registry import AdapterSpec
from napari_peka.models.targets import Layer, first_rank, narrowest, resolve_adapter, target_layers

#: peft names what it adds after the adapter; one is enough
NAME = "default"
#: AdaLoRA's plan of steps, which `start_training` fills in
PLAN = ("total_step", "tinit", "tfinal")
#: what AdaLoRA averages over steps to choose its ranks by
AVERAGES = ("exp_avg_ipt", "exp_avg_unc")
KEPT = "kept"


def add_adapter(encoder: nn.Module, spec: AdapterSpec, *, seed: int = 0) -> nn.Module:
    """Put an adapter into every target layer, in place, and make its weights the only trainable ones.

    Parameters
    ----------
    encoder
        An encoder without an adapter.
    spec
        Kind, rank and targets; what it leaves open is chosen as :func:`resolve_adapter` does. ``"full"`` makes all
        weights trainable, ``"none"`` none.
    seed
        Of the adapter's first weights, so that several processes begin with the same; torch's own dice stay alone.

    Raises
    ------
    SettingError
        If no layer matches the target, or the rank does not fit the layers.
    """
    spec = resolve_adapter(encoder, spec)
    module: Any = encoder
    module.requires_grad_(spec.kind == "full")
    module.peka_adapter = spec.kind
    if spec.kind in ("none", "full"):
        return encoder
    targets = target_layers(encoder, spec.target)
    config = _config(spec, targets)
    from peft import inject_adapter_in_model

    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # peft: unknown architectures, ranks that need padding
            torch.default_generator.manual_seed(seed)  # peft makes first weights on the CPU
            inject_adapter_in_model(config, encoder, adapter_name=NAME)
    except (ValueError, TypeError) as e:
        raise SettingError(f"the adapter {spec.kind} of rank {spec.rank} cannot be put in: {e}") from e
    for name in targets:
        _mend(encoder, name)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(_is_adapter(encoder, name))
    return encoder


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
    for leftover in ("peft_config", "_hf_peft_config_loaded", "peka_ranks"):
        if hasattr(module, leftover):
            delattr(module, leftover)
    return module.requires_grad_(False)


def trainable_share(module: nn.Module) -> float:
    """Return the share of weights that train, 0 to 1."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    total = sum(n for n, _ in sizes)
    return sum(n for n, trains in sizes if trains) / total if total else 0.0


def start_training(encoder: nn.Module, spec: AdapterSpec, total_steps: int) -> None:
    """Tell an adapter how long it will train. AdaLoRA plans its ranks over the whole; others need nothing.

    Until a tenth of the steps all ranks stay, then they shrink, and the second half trains those that are left, about
    as the authors do (arXiv 2303.10512); the options ``tinit`` and ``tfinal`` say otherwise.

    Parameters
    ----------
    encoder
        With the adapter in.
    spec
        The adapter's.
    total_steps
        Optimiser steps of the whole training, also of what a resumed run has behind it.

    Raises
    ------
    SettingError
        If the plan leaves no step to choose ranks in.
    """
    if _kind(encoder) != "adalora":
        return
    from peft.tuners.adalora import RankAllocator

    module: Any = encoder
    config = module.peft_config[NAME]
    config.total_step, config.rank_pattern = total_steps, None
    config.tinit = int(spec.options.get("tinit", total_steps // 10))
    config.tfinal = int(spec.options.get("tfinal", total_steps // 2))
    if not 0 <= config.tinit < total_steps - config.tfinal <= total_steps:
        raise SettingError(
            f"adalora has {total_steps} steps, of which {config.tinit} (tinit) come before it chooses ranks and "
            f"{config.tfinal} (tfinal) after: none is left; train longer or take fewer of both"
        )
    module.peka_ranks = RankAllocator(encoder, config, NAME)


def adapter_penalty(encoder: nn.Module) -> torch.Tensor | float:
    """Return what an adapter adds to the loss: AdaLoRA's pull towards orthogonal vectors, 0.0 for others.

    It is ``orth_reg_weight`` (0.5, an option) times the mean over all A and B of the Frobenius norm of A Aᵀ - I or
    Bᵀ B - I, as peft has it; the paper squares the norm (arXiv 2303.10512, equation 4).
    """
    if _kind(encoder) != "adalora":
        return 0.0
    module: Any = encoder
    vectors = [
        p.T if ".lora_B." in n else p for n, p in encoder.named_parameters() if ".lora_A." in n or ".lora_B." in n
    ]
    with torch.autocast(vectors[0].device.type, enabled=False):
        off = [torch.linalg.matrix_norm(v @ v.T - torch.eye(len(v), dtype=v.dtype, device=v.device)) for v in vectors]
        penalty: torch.Tensor = module.peft_config[NAME].orth_reg_weight * torch.stack(off).mean()
    return penalty


def after_step(encoder: nn.Module, step: int) -> None:
    """Let an adapter change itself after an optimiser step, before the gradients are cleared.

    Parameters
    ----------
    encoder
        With the adapter in, and :func:`start_training` called.
    step
        Steps taken before this one: 0 after the first.

    Raises
    ------
    TrainingError
        If a part of the adapter got no gradient in the first step, so that it would never learn.
    """
    if step == 0 and _kind(encoder) not in ("none", "full"):
        for name, parameter in encoder.named_parameters():
            if parameter.requires_grad and parameter.grad is None:
                raise TrainingError(
                    f"{name} got no gradient: the encoder's output does not depend on it; choose another target"
                )
    ranks: Any = getattr(encoder, "peka_ranks", None)
    if ranks is None:
        return
    plan = ranks.peft_config
    last = plan.total_step - plan.tfinal
    if step > last:  # Adam's momentum brings what was given up back
        if plan.rank_pattern is None:
            raise TrainingError("adalora has not chosen its ranks: the state of the resumed training was not loaded")
        ranks.mask_using_rank_pattern(encoder, plan.rank_pattern)
        return
    _, kept = ranks.update_and_allocate(encoder, step, force_mask=step == last)
    plan.rank_pattern = kept or plan.rank_pattern
    if step == last:
        ranks.reset_ipt()


def adapter_training_state(encoder: nn.Module) -> dict[str, torch.Tensor]:
    """Return what a resumed training needs of an adapter beside its weights; nothing but for AdaLoRA."""
    ranks: Any = getattr(encoder, "peka_ranks", None)
    if ranks is None:
        return {}
    state = {f"{a}/{n}": t.detach().cpu().clone() for a in AVERAGES for n, t in getattr(ranks, a).items()}
    kept = ranks.peft_config.rank_pattern or {}
    return state | {f"{KEPT}/{n}": torch.tensor(mask, dtype=torch.bool) for n, mask in kept.items()}


def load_adapter_training_state(encoder: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Fill in what :func:`adapter_training_state` gave; :func:`start_training` was called before.

    Raises
    ------
    TrainingError
        If it is the state of another adapter.
    """
    ranks: Any = getattr(encoder, "peka_ranks", None)
    own = dict(encoder.named_parameters()) if ranks is not None else {}
    for name, tensor in tensors.items():
        kind, _, parameter = name.partition("/")
        wanted = own.get(parameter)
        fits = wanted is not None and (tensor.shape == wanted.shape or (kind == KEPT and len(tensor) == len(wanted)))
        if not fits or kind not in (*AVERAGES, KEPT):
            raise TrainingError(f"the training that is to go on had another adapter: it knows {name}; start anew")
    if ranks is None:
        return
    ranks.reset_ipt()
    kept: dict[str, list[bool]] = {}
    for name, tensor in tensors.items():
        kind, _, parameter = name.partition("/")
        if kind == KEPT:
            kept[parameter] = tensor.tolist()
        else:
            getattr(ranks, kind)[parameter] = tensor.to(own[parameter])
            ranks.ipt.setdefault(parameter, torch.zeros_like(own[parameter]))  # peft: a sign that averages are there
    ranks.peft_config.rank_pattern = kept or None


def _config(spec: AdapterSpec, targets: dict[str, Layer]) -> Any:
    ensure_torchvision()
    import peft

    rank = int(spec.rank or 0)
    begins = first_rank(rank, narrowest(targets.values()))
    lora = {"r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0}
    kinds: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "bone": (peft.MissConfig, {"r": rank, "init_weights": True}),
        "bat": (peft.MissConfig, {"r": rank, "init_weights": "bat"}),
        "lora": (peft.LoraConfig, lora),
        "dora": (peft.LoraConfig, lora | {"use_dora": True}),
        "adalora": (peft.AdaLoraConfig, {"target_r": rank, "init_r": begins, "lora_alpha": 2 * begins,
                                         "total_step": 1}),
        "hra": (peft.HRAConfig, {"r": rank}),
    }  # fmt: skip
    build, settings = kinds[spec.kind]
    options = {k: v for k, v in spec.options.items() if spec.kind != "adalora" or k not in PLAN}
    names = "|".join(re.escape(n) for n in targets)  # no other layer of such a name, and peft matches the whole name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = build(target_modules=f"(?:{names})", **(settings | options))
    except (TypeError, ValueError) as e:
        raise SettingError(f"the options of the adapter {spec.kind} cannot be used: {e}") from e
    if spec.kind == "adalora" and config.init_r <= config.target_r:
        raise SettingError(f"adalora begins with rank {config.init_r} (init_r) and must end with less (target_r)")
    return config


def _mend(encoder: nn.Module, name: str) -> None:
    """Make a layer's adapter work where its surroundings, or peft, would not let it."""
    parent: Any = encoder.get_submodule(name.rpartition(".")[0])
    if getattr(parent, "q_bias", None) is not None and hasattr(parent, "qkv_bias_separate"):
        parent.qkv_bias_separate = True  # BEiT, EVA, Swin v2 else read the layer's weight past the adapter
    from peft.tuners.hra import HRALinear

    layer: Any = encoder.get_submodule(name)
    if isinstance(layer, HRALinear) and not layer.hra_apply_GS[NAME]:
        layer.get_delta_weight = MethodType(_reflections, layer)


def _reflections(layer: Any, adapter_name: str, reverse: bool = False) -> torch.Tensor:
    """Return the product of HRA's reflections, H_1 H_2 … H_r, all at once; in peft one after the other.

    With unit vectors as columns of U it is I - U T⁻¹ Uᵀ, where T is half the identity plus what lies above the diagonal
    of Uᵀ U (the UT transform: Joffrain et al., ACM TOMS 32, 2006). At 5 % of a ViT-S, batch of 4, one core: 27 s and
    5 GB with peft's loop.
    """
    with torch.autocast(layer.hra_u[adapter_name].device.type, enabled=False):
        u = layer.hra_u[adapter_name]
        u = u / u.norm(dim=0)
        t = torch.triu(u.T @ u, diagonal=1) + 0.5 * torch.eye(u.shape[1], dtype=u.dtype, device=u.device)
        product = torch.eye(len(u), dtype=u.dtype, device=u.device)
        product = product - u @ torch.linalg.solve_triangular(t, u.T, upper=True)
    return product.T if reverse else product


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
