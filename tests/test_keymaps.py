"""Checkpoints of other houses: each layout is made by the code that owns it, and must give the same numbers here."""

from __future__ import annotations

import dataclasses

import pytest

from napari_peka.core.errors import BundleError
from napari_peka.models.registry import ENCODERS, HALVES, LAYOUTS, EncoderCard

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file
from torch import nn

from napari_peka.models._torchvision import ensure_torchvision
from napari_peka.models.encoder import build_encoder, load_encoder
from napari_peka.models.keymaps import LAYOUT_MAPS, fit_positions, to_encoder

ensure_torchvision()

WIDTH, HEADS, DEPTH, PATCH, PX = 24, 3, 2, 8, 32
TINY = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "patch_size": PATCH}


def card_of(layout, pooling="cls", dim=WIDTH, px=PX, **kwargs) -> EncoderCard:
    kwargs = tuple((TINY | kwargs).items())
    return EncoderCard(
        "tiny", "vit_tiny_patch16_224", dim, px, 0.5, *HALVES, pooling, "x", layout=layout, kwargs=kwargs
    )


@pytest.fixture(scope="module")
def tiles():
    return torch.randn(2, 3, PX, PX, generator=torch.Generator().manual_seed(1))


def shaken(module: nn.Module) -> nn.Module:
    """Give every tensor values of its own: fresh models have zeros and ones where a mix-up would not show."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator) + (p == 1))
    return module.eval()


def transformers_model(kind, image_size=PX, **more):
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, patch_size=PATCH, image_size=image_size,
        **more,
    )  # fmt: skip
    return shaken(getattr(transformers, f"{kind}Model")(config))


def saved(model, folder):
    model.save_pretrained(folder)  # writes the names that files on the hub have, whatever the class calls them inside
    return folder / "model.safetensors"


SWIGLU = {"mlp_ratio": 128 / WIDTH, "mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
FOREIGN = {
    "Phikon": ("ViT", {"intermediate_size": 4 * WIDTH}, card_of("hf-vit", norm_eps=1e-12)),
    "Phikon-v2": ("Dinov2", {}, card_of("hf-dinov2", init_values=1.0)),
    "Midnight": ("Dinov2", {"use_swiglu_ffn": True},
                 card_of("hf-dinov2", "cls+mean", 2 * WIDTH, init_values=1.0, **SWIGLU)),
    "Hibou": ("Dinov2WithRegisters", {"use_swiglu_ffn": True, "num_register_tokens": 4},
              card_of("hf-dinov2", init_values=1.0, reg_tokens=4, no_embed_class=True, **SWIGLU)),
    "registers": ("Dinov2WithRegisters", {"num_register_tokens": 4},
                  card_of("hf-dinov2", init_values=1.0, reg_tokens=4, no_embed_class=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_a_transformers_checkpoint_gives_transformers_numbers(name, tiles, tmp_path):
    kind, more, card = FOREIGN[name]
    model = transformers_model(kind, **more)
    with torch.inference_mode():
        hidden = model(pixel_values=tiles).last_hidden_state
        wanted = hidden[:, 0]
        if card.pooling == "cls+mean":
            wanted = torch.cat([wanted, hidden[:, 1:].mean(1)], 1)
        got = load_encoder(card, weights=saved(model, tmp_path))(tiles)
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["Phikon-v2", "Midnight"])
def test_positions_of_larger_tiles_are_shrunk_as_transformers_does(name, tiles, tmp_path):
    kind, more, card = FOREIGN[name]
    model = transformers_model(kind, image_size=72, **more)
    with torch.inference_mode():
        wanted = model(pixel_values=tiles).last_hidden_state[:, 0]
        got = load_encoder(card, weights=saved(model, tmp_path))(tiles)[:, :WIDTH]
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-4)


def test_prefixes_of_heads_and_wrappers_are_taken_off(tiles, tmp_path):
    kind, more, card = FOREIGN["Phikon-v2"]
    path = saved(transformers_model(kind, **more), tmp_path)
    plain = load_encoder(card, weights=path)(tiles)
    tensors = load_file(path)
    wrapped = {f"module.dinov2.{k}": v for k, v in tensors.items()} | {"classifier.weight": torch.ones(2, 2)}
    save_file(wrapped, tmp_path / "wrapped.safetensors")
    assert torch.equal(load_encoder(card, weights=tmp_path / "wrapped.safetensors")(tiles), plain)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("more", [{}, {"reg_tokens": 4, "no_embed_class": True}, {"reg_tokens": 4}])
def test_a_timm_checkpoint_is_shrunk_as_timm_does(antialias, more, tiles, tmp_path):
    import timm
    from timm.models.vision_transformer import checkpoint_filter_fn

    large = shaken(timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=72, **TINY, **more))
    save_file(large.state_dict(), tmp_path / "w.safetensors")
    small = timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=PX, **TINY, **more).eval()
    small.load_state_dict(checkpoint_filter_fn(large.state_dict(), small, antialias=antialias))
    card = dataclasses.replace(card_of("timm", **more), antialias=antialias)
    with torch.inference_mode():
        got = load_encoder(card, weights=tmp_path / "w.safetensors")(tiles)
        wanted = small.forward_features(tiles)[:, 0]
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


class Coca(nn.Module):
    """The image side of CONCH by the description of its repository: names, and torch's own attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.visual = nn.Module()
        self.visual.trunk = build_encoder(card_of("timm")).trunk
        for name, queries in (("attn_pool_contrast", 1), ("attn_pool_caption", 5)):
            pool = nn.Module()
            pool.query = nn.Parameter(torch.zeros(queries, width))
            pool.attn = nn.MultiheadAttention(width, 8, kdim=WIDTH, vdim=WIDTH)
            pool.ln_q, pool.ln_k = nn.LayerNorm(width), nn.LayerNorm(WIDTH)
            setattr(self.visual, name, pool)
        self.visual.ln_contrast, self.visual.ln_caption = nn.LayerNorm(width), nn.LayerNorm(width)
        self.visual.proj_contrast = nn.Parameter(torch.zeros(width, width))
        self.text = nn.Linear(2, 2)
        self.logit_scale = nn.Parameter(torch.ones([]))

    def forward(self, x):
        pool = self.visual.attn_pool_contrast
        k = pool.ln_k(self.visual.trunk.forward_features(x)).transpose(0, 1)
        q = pool.ln_q(pool.query)[:, None].expand(-1, len(x), -1)
        return self.visual.ln_contrast(pool.attn(q, k, k, need_weights=False)[0][0])


class Conch15(nn.Module):
    """CONCH v1.5 by the same: one key-value matrix, no bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.trunk = build_encoder(card_of("timm", init_values=1.0)).trunk
        self.attn_pool_contrast = nn.Module()
        self.attn_pool_contrast.query = nn.Parameter(torch.zeros(1, width))
        for name, a, b in (("to_q", width, width), ("to_kv", WIDTH, 2 * width), ("to_out", width, width)):
            setattr(self.attn_pool_contrast, name, nn.Linear(a, b, bias=False))
        self.attn_pool_contrast.ln_q, self.attn_pool_contrast.ln_k = nn.LayerNorm(width), nn.LayerNorm(WIDTH)
        self.ln_contrast = nn.LayerNorm(width)

    def forward(self, x):
        pool, b = self.attn_pool_contrast, len(x)
        k, v = pool.to_kv(pool.ln_k(self.trunk.forward_features(x))).chunk(2, -1)
        q = pool.to_q(pool.ln_q(pool.query)).view(1, 1, 8, -1).transpose(1, 2)
        k, v = (t.view(b, t.shape[1], 8, -1).transpose(1, 2) for t in (k, v))
        share = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
        return self.ln_contrast(pool.to_out((share @ v).transpose(1, 2).reshape(b, -1)))


@pytest.mark.parametrize(("layout", "made_by"), [("conch", Coca), ("conch15", Conch15)])
def test_conch_is_pooled_as_conch_pools(layout, made_by, tiles, tmp_path):
    model = shaken(made_by(16))
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    more = {"init_values": 1.0} if layout == "conch15" else {}
    card = card_of(layout, "attention", 16, **more)
    with torch.inference_mode():
        got = load_encoder(card, weights=tmp_path)(tiles)
        torch.testing.assert_close(got, model(tiles), atol=2e-5, rtol=1e-4)


def test_every_layout_has_a_map_and_is_used():
    assert set(LAYOUT_MAPS) == set(LAYOUTS) == {c.layout for c in ENCODERS.values()}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_checkpoint_of_another_model_is_refused_by_the_first_tensor_that_differs(name, tmp_path):
    kind, more, card = FOREIGN[name]
    path = saved(transformers_model(kind, **more), tmp_path)
    tensors = load_file(path)
    victim = "encoder.layer.1.attention.attention.key.weight"
    save_file({k: v for k, v in tensors.items() if k != victim}, tmp_path / "less.safetensors")
    with pytest.raises(BundleError, match=r"tensor trunk\.blocks\.1\.attn\.qkv\.weight is not there"):
        load_encoder(card, weights=tmp_path / "less.safetensors")
    save_file(tensors | {"encoder.layer.9.norm1.weight": torch.ones(3)}, tmp_path / "more.safetensors")
    with pytest.raises(BundleError, match=r"trunk\.blocks\.9\.norm1\.weight is \(3,\), wanted none of that name"):
        load_encoder(card, weights=tmp_path / "more.safetensors")
    with pytest.raises(BundleError, match="is not tiny"):
        load_encoder(dataclasses.replace(card, layout="timm"), weights=path)


def test_maps_work_on_meta_tensors_and_leave_what_they_are_given_alone():
    trunk = build_encoder(card_of("timm")).trunk
    given = {f"module.{k}": torch.empty_like(v, device="meta") for k, v in trunk.state_dict().items()}
    given["module.pos_embed"] = torch.empty(1, 82, WIDTH, device="meta")
    names = list(given)
    out = to_encoder(given, "timm", trunk)
    assert list(given) == names
    assert out["trunk.pos_embed"].shape == trunk.pos_embed.shape
    assert all(t.is_meta for t in out.values())


def test_positions_that_are_no_square_are_left_for_the_check_to_refuse():
    trunk = build_encoder(card_of("timm")).trunk
    odd = {"trunk.pos_embed": torch.zeros(1, 31, WIDTH)}
    assert fit_positions(odd, trunk)["trunk.pos_embed"].shape == (1, 31, WIDTH)
