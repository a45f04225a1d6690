"""What is known of each encoder, and of each adapter kind: data only, no torch.

Each entry was compared with the model's page, or with code by others that loads the same file strictly; which facts
rest on what, and which could not be checked, is in ``docs/models.md``. ``revision`` is filled only where the full
commit was found in a public record of that very repository; None means that the newest commit is taken.
``sha256`` is filled only for files that this package itself carries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from napari_peka.core.errors import SettingError, UnknownName, near_names

RGB = tuple[float, float, float]
Kwargs = tuple[tuple[str, Any], ...]

IMAGENET: tuple[RGB, RGB] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI_CLIP: tuple[RGB, RGB] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALVES: tuple[RGB, RGB] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
BIOPTIMUS: tuple[RGB, RGB] = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
HIBOU: tuple[RGB, RGB] = ((0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816))
LUNIT: tuple[RGB, RGB] = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))

#: numbers that a block's tokens are summed up in: class token, mean and standard deviation of the patch tokens
POOLED = ("cls", "mean", "std")
POOLINGS = ("cls", "mean", "cls+mean", "mean+std", "cls+mean+std", "attention", "model")
LAYOUTS = ("timm", "hf-vit", "hf-dinov2", "conch", "conch15")
ADAPTER_KINDS = ("none", "bone", "bat", "lora", "adalora", "hra", "dora", "full")
#: prefix of a name that means "this timm model as timm describes it"
TIMM_PREFIX = "timm:"


@dataclass(frozen=True)
class EncoderCard:
    """What an encoder is and needs.

    Parameters
    ----------
    name
        Name in this package.
    arch
        timm architecture.
    dim
        Numbers in one embedding, after pooling. 0 in a ``timm:`` card until `models.encoder.complete` filled it.
    px, mpp
        Side of a tile in pixels, and µm per pixel that the encoder was trained at (or is commonly used at).
    mean, std
        Per-channel normalisation of values in 0 to 1.
    pooling
        ``"cls"``; ``"mean"`` or ``"std"`` (standard deviation) of patch tokens; several of these, concatenated, such as
        ``"cls+mean"``; ``"attention"``: the checkpoint's own attentional pooler; ``"model"``: the module's own output.
    blocks
        Blocks after which tokens are taken (counted from 0; through the encoder's last normalisation), each pooled,
        concatenated; later blocks are not computed. Empty: after the last one, as published.
    licence, gated
        SPDX name or the owner's words; whether its page asks for consent before a download.
    hub_id, revision, weights_file, sha256
        Where the weights are; None where unknown or not needed.
    layout
        How the checkpoint names its tensors; see `models.keymaps`.
    antialias
        Whether position embeddings stored for larger tiles are shrunk with antialiasing, as the model's users do.
    kwargs
        Extra timm arguments as pairs; layers by name (see `models.encoder.LAYERS`).
    page
        Page to visit for access, licence and citation.
    note
        What a person should know before using it.
    """

    name: str
    arch: str
    dim: int
    px: int
    mpp: float
    mean: RGB
    std: RGB
    pooling: str
    licence: str
    gated: bool = False
    hub_id: str | None = None
    revision: str | None = None
    weights_file: str | None = None
    sha256: str | None = None
    layout: str = "timm"
    antialias: bool = False
    kwargs: Kwargs = ()
    blocks: tuple[int, ...] = ()
    page: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise SettingError(f"{self.name}: pooling is {self.pooling!r}, wanted one of {', '.join(POOLINGS)}")
        if self.layout not in LAYOUTS:
            raise SettingError(f"{self.name}: layout is {self.layout!r}, wanted one of {', '.join(LAYOUTS)}")
        if self.dim < 0 or self.px < 0 or not 0 < self.mpp < 20:
            raise SettingError(f"{self.name}: dim {self.dim}, px {self.px} and mpp {self.mpp} must be positive")


@dataclass(frozen=True)
class AdapterSpec:
    """Which adapter is put where.

    Parameters
    ----------
    kind
        ``"none"``, ``"bone"``, ``"bat"`` (Bone's second form), ``"lora"``, ``"adalora"``, ``"hra"``, ``"dora"`` or
        ``"full"`` (all weights train).
    rank
        Rank; None for the one at which about 5 % of all weights train. Meaningless for ``"none"`` and ``"full"``.
    target
        Regular expression that must match the whole name of a layer; None for every block's attention, or what such
        an encoder has instead (see `models.targets`).
    options
        More arguments of the kind, as peft names them.
    last_blocks
        Only layers in so many last blocks; None for all. For encoders that are one row of blocks.
    """

    kind: str = "none"
    rank: int | None = None
    target: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    last_blocks: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ADAPTER_KINDS:
            raise SettingError(
                f"there is no adapter {self.kind!r}{near_names(self.kind, ADAPTER_KINDS)}; "
                f"one of {', '.join(ADAPTER_KINDS)}"
            )
        if self.rank is not None and self.rank < 1:
            raise SettingError(f"the rank of an adapter must be 1 or more, got {self.rank}")
        if self.kind == "full" and self.last_blocks is not None:
            raise SettingError("full trains all blocks: leave last_blocks away, or take another adapter")


def _card(name: str, arch: str, dim: int, norm: tuple[RGB, RGB], licence: str, **more: Any) -> EncoderCard:
    kwargs = tuple(sorted(more.pop("kwargs", {}).items()))
    hub = more.get("hub_id")
    defaults: dict[str, Any] = {
        "px": 224,
        "mpp": 0.5,
        "pooling": "cls",
        "page": f"https://huggingface.co/{hub}" if hub else "",
    }
    return EncoderCard(
        name=name, arch=arch, dim=dim, mean=norm[0], std=norm[1], licence=licence, kwargs=kwargs, **(defaults | more)
    )  # fmt: skip


NC = "CC-BY-NC-ND-4.0"
BIN, SAFE = "pytorch_model.bin", "model.safetensors"
SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
LAYER_SCALE = {"init_values": 1e-5}
KAIKO = "kaiko_ai_towards_large_pathology_fms"


def _mahmood() -> list[EncoderCard]:
    uni2 = {
        "patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536, "mlp_ratio": 2.66667 * 2,
        "no_embed_class": True, "reg_tokens": 8, **SWIGLU, **LAYER_SCALE,
    }  # fmt: skip
    return [
        _card("UNI", "vit_large_patch16_224", 1024, IMAGENET, NC, gated=True, hub_id="MahmoodLab/UNI",
              revision="b55a5ec6cade1a39edfe6534189a9b8ca7a022f0", weights_file=BIN, kwargs=LAYER_SCALE),
        _card("UNI2-h", "vit_giant_patch14_224", 1536, IMAGENET, NC, gated=True, hub_id="MahmoodLab/UNI2-h",
              revision="d517a8dd47902dd7c308b3c36f63bce47e7b9a43", weights_file=BIN, kwargs=uni2),
        _card("CONCH", "vit_base_patch16_224", 512, OPENAI_CLIP, NC, gated=True, hub_id="MahmoodLab/CONCH",
              revision="f9ca9f877171a28ade80228fb195ac5d79003357", weights_file=BIN, px=448, pooling="attention",
              layout="conch", note="image tower with its attentional pooler, before the contrastive projection; "
              "often fed 512 px at 0.5 µm/px, resized to 448"),
        _card("CONCH-v1.5", "vit_large_patch16_224", 768, IMAGENET, NC, gated=True, hub_id="MahmoodLab/conchv1_5",
              revision="3e5766a5d1500d53c73c03005e24c30c1f27be13", weights_file="pytorch_model_vision.bin", px=448,
              pooling="attention", layout="conch15", kwargs={"init_values": 1.0},
              note="tile encoder of TITAN, which feeds it 512 px at 0.5 µm/px, resized to 448"),
    ]  # fmt: skip


def _companies() -> list[EncoderCard]:
    giant = "vit_giant_patch14_reg4_dinov2"
    virchow = {"mlp_ratio": 5.3375, **SWIGLU, **LAYER_SCALE}
    gigapath = {"patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24, "mlp_ratio": 5.33334}
    return [
        _card("H-optimus-0", giant, 1536, BIOPTIMUS, "Apache-2.0", gated=True, hub_id="bioptimus/H-optimus-0",
              revision="b145cc1e6c6b30d3251aa8b1f844e6974188a743", weights_file=BIN, kwargs=LAYER_SCALE),
        _card("H-optimus-1", giant, 1536, BIOPTIMUS, NC, gated=True, hub_id="bioptimus/H-optimus-1",
              revision="3592cb220dec7a150c5d7813fb56e68bd57473b9", weights_file=SAFE, kwargs=LAYER_SCALE),
        _card("H0-mini", "vit_base_patch14_reg4_dinov2", 768, BIOPTIMUS, NC, gated=True,
              hub_id="bioptimus/H0-mini", revision="5b5cc0505d19ae558270045eb0df8c34df4d9609", weights_file=SAFE,
              kwargs={"mlp_ratio": 5.33334, **SWIGLU, **LAYER_SCALE},
              note="some users append the mean of the patch tokens (1536 numbers)"),
        _card("Virchow", "vit_huge_patch14_224", 2560, IMAGENET, "Apache-2.0", gated=True,
              hub_id="paige-ai/Virchow", revision="19eebc84ae33e79f1b2d866e6ff90ae50e522f9a", weights_file=BIN,
              pooling="cls+mean", kwargs=virchow),
        _card("Virchow2", "vit_huge_patch14_224", 2560, IMAGENET, NC, gated=True, hub_id="paige-ai/Virchow2",
              revision="3158645804b69e3f3bc4439d4116edddf0840a72", weights_file=SAFE, pooling="cls+mean",
              kwargs={"reg_tokens": 4, **virchow}),
        _card("Prov-GigaPath", "vit_giant_patch14_dinov2", 1536, IMAGENET, "Apache-2.0", gated=True,
              hub_id="prov-gigapath/prov-gigapath", revision="64f9e26c15019f2d4f6d9113c6822f88bb16b01b",
              weights_file=BIN, kwargs=gigapath,
              note="its page resizes tiles to 256 px and crops the middle 224"),
        _card("Phikon", "vit_base_patch16_224", 768, IMAGENET, "Owkin non-commercial", hub_id="owkin/phikon",
              revision="057cc0295895c2df3dd7681a89680da6015cbefe", weights_file=SAFE, layout="hf-vit",
              kwargs={"norm_eps": 1e-12}),
        _card("Phikon-v2", "vit_large_patch16_224", 1024, IMAGENET, "Owkin non-commercial",
              hub_id="owkin/phikon-v2", revision="2ae989a9c40cffaa27f0a6cb29cc94d1d6f9a5fd", weights_file=SAFE,
              layout="hf-dinov2", kwargs={"init_values": 1.0}),
        _card("Hibou-B", "vit_base_patch14_reg4_dinov2", 768, HIBOU, "Apache-2.0", gated=True,
              hub_id="histai/hibou-b", revision="7fdc8cce365ebfd9e7e60ee6ee9a8d4d59388f3c", weights_file=SAFE,
              layout="hf-dinov2", kwargs={"mlp_ratio": 5.33334, **SWIGLU}),
        _card("Hibou-L", "vit_large_patch14_reg4_dinov2", 1024, HIBOU, "Apache-2.0", gated=True,
              hub_id="histai/hibou-L", weights_file=SAFE, layout="hf-dinov2", kwargs={"mlp_ratio": 5.34375, **SWIGLU}),
        _card("Midnight-12k", "vit_giant_patch14_dinov2", 3072, HALVES, "MIT", hub_id="kaiko-ai/midnight",
              revision="adc6b15679c981cce6f9b018bbad09d16eeeda9f", weights_file=SAFE, layout="hf-dinov2",
              pooling="cls+mean"),
    ]  # fmt: skip


def _conversions() -> list[EncoderCard]:
    """Models that A. Laurent converted to timm (`1aurent` on the hub)."""
    kaiko = [
        ("ViT-S16", "vit_small_patch16_224", 384, "48560ea39969fe44b7b2ab057de01484243a7d43"),
        ("ViT-S8", "vit_small_patch8_224", 384, "003775444da0119f90ca63e2b86e454fd06ba797"),
        ("ViT-B16", "vit_base_patch16_224", 768, "797c524a94c7fdae8ea33064d0ac6966ed8956bb"),
        ("ViT-B8", "vit_base_patch8_224", 768, "a4eb74de76274a5f3fe8260841a1b07a90930f43"),
        ("ViT-L14", "vit_large_patch14_reg4_dinov2", 1024, "d86df45eccdb957aa7869bab7d11f8e158dcbda2"),
    ]  # fmt: skip
    cards = [
        _card(f"Kaiko-{size}", arch, dim, HALVES, "Kaiko non-commercial", weights_file=SAFE, revision=revision,
              hub_id=f"1aurent/{arch.replace('reg4_dinov2', 'reg4_224')}.{KAIKO}", antialias=size == "ViT-L14")
        for size, arch, dim, revision in kaiko
    ]  # fmt: skip
    lunit = [
        ("Lunit-ViT-S16", "vit_small_patch16_224", None),
        ("Lunit-ViT-S8", "vit_small_patch8_224", "c23bc01cfbe022bc1f2a8a9306125a07818e4eb4"),
    ]  # fmt: skip
    return cards + [
        _card(name, arch, 384, LUNIT, "Lunit non-commercial", hub_id=f"1aurent/{arch}.lunit_dino", weights_file=SAFE,
              revision=revision, note="mean and std of Lunit's release; the converted file's own config seems to say "
              "ImageNet's")
        for name, arch, revision in lunit
    ]  # fmt: skip


def _general() -> list[EncoderCard]:
    sizes = [
        ("S", "small", 384, "4610ca143709d58a633b6397a74412c2c3842454"), ("B", "base", 768, None),
        ("L", "large", 1024, "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c"), ("g", "giant", 1536, None),
    ]  # fmt: skip
    dino = [
        _card(f"DINOv2-ViT-{letter}14", f"vit_{size}_patch14_dinov2", dim, IMAGENET, "Apache-2.0", revision=revision,
              hub_id=f"timm/vit_{size}_patch14_dinov2.lvd142m", weights_file=SAFE, note="natural images")
        for letter, size, dim, revision in sizes
    ]  # fmt: skip
    tiny = {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 16}
    return [
        *dino,
        _card("ResNet50", "resnet50", 2048, IMAGENET, "BSD-3-Clause", hub_id="timm/resnet50.tv_in1k",
              revision="78f3ecfdb38e06d9b8397f662e7ab8fee96026fa", weights_file=SAFE, pooling="model",
              note="natural images"),
        _card("dinov2-vits14-demo", "vit_small_patch14_dinov2", 384, IMAGENET, "Apache-2.0", mpp=0.7,
              weights_file="dinov2_vits14.safetensors",
              sha256="3a01be8a58b264387e498706c2c0b626b95b2ed994fb7fdfd576530e020f39f4",
              page="https://github.com/facebookresearch/dinov2",
              note="carried by this package; natural images; works offline"),
        _card("tiny-random", "vit_tiny_patch16_224", 48, HALVES, "BSD-3-Clause", px=64, kwargs=tiny,
              note="random weights from a fixed seed, for tests and first steps; knows nothing"),
    ]  # fmt: skip


ENCODERS: dict[str, EncoderCard] = {c.name: c for c in [*_mahmood(), *_companies(), *_conversions(), *_general()]}


def encoder_card(name: str) -> EncoderCard:
    """Return the card of an encoder.

    Parameters
    ----------
    name
        A name in :data:`ENCODERS` (capitals do not matter) or ``"timm:<model>"`` for any timm model with its own
        weights; that card is completed by `models.encoder.complete`, since timm must be asked.

    Raises
    ------
    UnknownName
        If there is none; near names are offered.
    """
    if name in ENCODERS:
        return ENCODERS[name]
    folded = {k.casefold(): card for k, card in ENCODERS.items()}
    if name.casefold() in folded:
        return folded[name.casefold()]
    if name.startswith(TIMM_PREFIX) and len(name) > len(TIMM_PREFIX):
        arch = name.removeprefix(TIMM_PREFIX)
        return EncoderCard(
            name, arch, 0, 0, 0.5, *IMAGENET, "model", "see the page", page=f"https://huggingface.co/timm/{arch}",
            note="as timm describes it; µm per pixel are a guess",
        )  # fmt: skip
    raise UnknownName(
        f"there is no encoder {name!r}{near_names(name, ENCODERS)}; "
        "`napari-peka models` lists them, and timm:<model> takes any timm model"
    )
