"""Every registered encoder: builds, takes its tile, gives its numbers, and pools the tokens that it should."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from napari_peka.core.errors import BundleError, DeviceError, EncoderUnavailable, SettingError, UnknownName
from napari_peka.models.registry import ENCODERS, AdapterSpec, encoder_card

torch = pytest.importorskip("torch")

from napari_peka.models.adapters import target_layers
from napari_peka.models.devices import choose_device, choose_precision
from napari_peka.models.encoder import (
    Encoder,
    Normaliser,
    build_encoder,
    complete,
    load_encoder,
    read_at,
)

#: tokens between the class token and the patches, as the models' own pages say
REGISTERS = {
    "UNI2-h": 8, "H-optimus-0": 4, "H-optimus-1": 4, "H0-mini": 4, "Virchow2": 4, "Hibou-B": 4, "Hibou-L": 4,
    "Kaiko-ViT-L14": 4,
}  # fmt: skip
#: published: bytes of a float32 file of weights (its header or zip entries come on top), or parameters
FILE_BYTES = {
    "UNI": 1_213_527_781, "H-optimus-0": 4_539_305_018, "H-optimus-1": 4_539_151_464, "H0-mini": 342_974_184,
}  # fmt: skip
MILLIONS = {
    "UNI2-h": 681, "Virchow": 631.2, "Virchow2": 631.2, "Prov-GigaPath": 1135, "Phikon": 85.8, "Phikon-v2": 303.4,
    "Hibou-B": 85.7, "Hibou-L": 303.7, "Midnight-12k": 1135, "Lunit-ViT-S16": 21.7, "Lunit-ViT-S8": 21.7,
    "ResNet50": 23.5,
}  # fmt: skip
CARDS = pytest.mark.parametrize("card", ENCODERS.values(), ids=lambda c: c.name)
TRANSFORMERS = [c for c in ENCODERS.values() if c.pooling != "model"]


def on_meta(card) -> Encoder:
    with torch.device("meta"):
        return build_encoder(card)


def stand_in(card) -> Encoder:
    """Build a model of the card's width, tokens and pooling at the cost of a dwarf: only its first two blocks."""
    if card.pooling == "model":
        return load_encoder(card, random=True)
    encoder = on_meta(dataclasses.replace(card, kwargs=tuple((dict(card.kwargs) | {"depth": 2}).items())))
    encoder = encoder.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(4)
    for p in encoder.parameters():  # timm's own first weights take seconds for a giant
        p.uniform_(-0.05, 0.05, generator=generator)
    return encoder


@CARDS
def test_the_whole_architecture_gives_the_cards_numbers_from_the_cards_tile(card):
    """On the meta device: shapes are computed through every layer, nothing is allocated."""
    encoder = on_meta(card)
    assert encoder(torch.empty(2, 3, card.px, card.px, device="meta")).shape == (2, card.dim)
    n = sum(p.numel() for p in encoder.parameters())
    if card.name in FILE_BYTES:
        assert 0 < FILE_BYTES[card.name] - 4 * n < 300_000
    if card.name in MILLIONS:
        assert n / 1e6 == pytest.approx(MILLIONS[card.name], abs=0.06 if MILLIONS[card.name] % 1 else 0.6)


@pytest.mark.parametrize("card", TRANSFORMERS, ids=lambda c: c.name)
def test_adapters_find_a_qkv_in_every_block(card):
    encoder = on_meta(card)
    found = target_layers(encoder, AdapterSpec().target)
    assert len(found) == len(encoder.trunk.blocks) > 0
    assert all(m.out_features == 3 * m.in_features for m in found.values())


@CARDS
def test_one_tile_is_embedded_and_pooled_from_the_right_tokens(card):
    """With two of the model's blocks, at its full width and tile, so that the giants fit; see `stand_in`."""
    encoder = stand_in(card)
    x = torch.randn(1, 3, card.px, card.px, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        got = encoder(x)
        tokens = encoder.trunk.forward_features(x)
    assert got.shape == (1, card.dim)
    assert got.dtype == torch.float32
    assert torch.isfinite(got).all()
    assert got.std() > 0
    torch.testing.assert_close(got, by_hand(card, encoder, tokens), atol=1e-5, rtol=1e-4)


def by_hand(card, encoder, tokens):
    if card.pooling == "model":
        return tokens.mean((2, 3))
    patches = (card.px // encoder.trunk.patch_embed.patch_size[0]) ** 2
    first_patch = 1 + REGISTERS.get(card.name, 0)
    assert tokens.shape[1] == first_patch + patches
    if card.pooling == "attention":
        return attended(encoder.pooler, tokens)
    cls, mean = tokens[:, 0], tokens[:, first_patch:].mean(1)
    return cls if card.pooling == "cls" else torch.cat([cls, mean], 1)


def attended(pooler, tokens):
    """One query over all tokens, head by head."""
    q = pooler.q(pooler.ln_q(pooler.query))[0]
    k, v = pooler.kv(pooler.ln_k(tokens))[0].chunk(2, -1)
    size = len(q) // 8
    heads = []
    for h in range(8):
        part = slice(h * size, (h + 1) * size)
        share = torch.softmax(k[:, part] @ q[part] / size**0.5, 0)
        heads.append(share @ v[:, part])
    return pooler.ln_out(pooler.out(torch.cat(heads)))[None]


@pytest.mark.parametrize("name", ["Virchow", "Virchow2", "Midnight-12k"])
def test_class_and_mean_are_side_by_side(name):
    card = encoder_card(name)
    assert card.pooling == "cls+mean"
    assert card.dim == 2 * on_meta(card).trunk.embed_dim


def test_registers_are_never_pooled():
    trunk = torch.nn.Identity()
    trunk.num_prefix_tokens = 5
    tokens = torch.cat([torch.full((1, 1, 2), 7.0), torch.full((1, 4, 2), 1e6), torch.ones(1, 9, 2)], 1)
    assert Encoder(trunk, "mean").pool(tokens).tolist() == [[1, 1]]
    assert Encoder(trunk, "cls+mean").pool(tokens).tolist() == [[7, 7, 1, 1]]
    assert Encoder(trunk, "cls").pool(tokens).tolist() == [[7, 7]]


@pytest.mark.parametrize(("name", "px", "nearest"), [("UNI", 225, "224, 240"), ("UNI2-h", 256, "252, 266")])
def test_a_tile_that_patches_do_not_fill_is_refused_with_the_nearest_sizes(name, px, nearest):
    with pytest.raises(SettingError, match=f"nearest valid: {nearest}"):
        on_meta(dataclasses.replace(encoder_card(name), px=px))


def test_other_tile_sizes_are_taken_where_they_fit():
    for name, px in (("UNI2-h", 280), ("ResNet50", 225)):
        card = dataclasses.replace(encoder_card(name), px=px)
        assert on_meta(card)(torch.empty(1, 3, px, px, device="meta")).shape == (1, card.dim)


@pytest.mark.parametrize(
    ("arch", "px", "dim"),
    [("test_vit", 160, 64), ("resnet18", 224, 512), ("convnext_atto.d2_in1k", 224, 320),
     ("mobilenetv3_small_050", 224, 1024), ("swin_tiny_patch4_window7_224", 224, 768)],
)  # fmt: skip
def test_any_timm_model_can_be_an_encoder(arch, px, dim):
    card = complete(encoder_card(f"timm:{arch}"))
    assert (card.px, card.dim) == (px, dim)
    assert card.hub_id.startswith("timm/")
    assert complete(card) is card
    encoder = on_meta(card)
    assert encoder(torch.empty(1, 3, px, px, device="meta")).shape == (1, dim)


def test_a_timm_model_loads_its_own_checkpoint_without_the_classifier(tmp_path):
    import timm
    from safetensors.torch import save_file

    for arch in ("test_vit", "test_convnext", "test_efficientnet"):  # each names its classifier otherwise
        whole = timm.create_model(arch, pretrained=False).eval()
        save_file(whole.state_dict(), tmp_path / f"{arch}.safetensors")
        encoder = load_encoder(encoder_card(f"timm:{arch}"), weights=tmp_path / f"{arch}.safetensors")
        x = torch.randn(1, 3, 160, 160)
        with torch.inference_mode():
            wanted = whole.forward_head(whole.forward_features(x), pre_logits=True)
            torch.testing.assert_close(encoder(x), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "words"),
    [("timm:resnett18", "did you mean resnet18"), ("timm:resnet18.a1_in2k", "did you mean resnet18.a1_in1k"),
     ("timm:hf-hub:someone/else", "timm has no model")],
)  # fmt: skip
def test_what_timm_does_not_know_is_said_with_near_names(name, words):
    with pytest.raises(UnknownName, match=words):
        complete(encoder_card(name))


def test_a_timm_model_without_published_weights_is_not_filled_with_random_ones(monkeypatch):
    from napari_peka.models import encoder

    card = dataclasses.replace(complete(encoder_card("timm:test_vit")), hub_id=None, weights_file=None)
    monkeypatch.setattr(encoder, "complete", lambda c: c)
    with pytest.raises(EncoderUnavailable, match="no weights"):
        load_encoder(card)


def test_random_weights_are_the_same_every_time_and_leave_the_callers_dice_alone():
    torch.manual_seed(5)
    a = load_encoder(encoder_card("tiny-random"))
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    b = load_encoder(encoder_card("tiny-random"))
    assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values()))
    assert not a.training
    assert not any(p.requires_grad for p in a.parameters())


def test_the_packages_own_encoder_loads_offline_and_is_checked(monkeypatch):
    card = encoder_card("dinov2-vits14-demo")
    encoder = load_encoder(card, offline=True)
    assert encoder(torch.zeros(1, 3, 224, 224)).shape == (1, 384)
    with pytest.raises(BundleError, match="sha256"):
        load_encoder(dataclasses.replace(card, sha256="0" * 64))


def test_tiles_are_normalised_as_the_definition_says():
    card = encoder_card("H-optimus-0")
    tiles = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
    got = Normaliser(card.mean, card.std)(torch.from_numpy(tiles))
    wanted = (tiles / 255 - np.array(card.mean)) / np.array(card.std)
    np.testing.assert_allclose(got.permute(0, 2, 3, 1).numpy(), wanted, atol=1e-5)


def test_devices_and_number_formats_that_are_not_here_are_named():
    assert choose_device("cpu").type == "cpu"
    assert choose_device().type in ("cpu", "cuda", "mps")
    with pytest.raises(DeviceError, match="there is no device"):
        choose_device("gpu")
    with pytest.raises(DeviceError, match="not supported"):
        choose_device("meta")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="there is 1 × cpu"):
            choose_device("cuda")
    assert choose_precision("fp32", torch.device("cpu")) is torch.float32
    assert choose_precision("auto", torch.device("cpu")) in (torch.float32, torch.bfloat16)
    assert choose_precision("auto", torch.device("mps")) is torch.float32
    with pytest.raises(SettingError, match="no precision"):
        choose_precision("fp8", torch.device("cpu"))


def test_a_torchvision_that_fails_for_another_reason_is_not_hidden(monkeypatch):
    import builtins

    from napari_peka.models._torchvision import ensure_torchvision

    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "torchvision":
            raise RuntimeError("no kernel image for this device")
        return real(name, *args, **kwargs)

    ensure_torchvision()
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(RuntimeError, match="no kernel image"):
        ensure_torchvision()


class TestReadingElsewhere:
    """Blocks and pooling other than as published."""

    def test_the_last_blocks_class_token_is_what_is_published(self):
        card = encoder_card("tiny-random")
        x = torch.rand(2, 3, card.px, card.px)
        with torch.no_grad():
            whole = load_encoder(card)(x)
            same = load_encoder(read_at(card, [1], "cls"))(x)
        torch.testing.assert_close(same, whole)

    def test_tokens_are_those_that_timm_itself_returns(self):
        card = encoder_card("tiny-random")
        x = torch.rand(2, 3, card.px, card.px)
        here = read_at(card, [0, 1], "cls+mean+std")
        assert here.dim == 2 * 3 * 48
        with torch.no_grad():
            got = load_encoder(here)(x)
            trunk = load_encoder(card).trunk
            pairs = trunk.forward_intermediates(
                x, indices=[0, 1], return_prefix_tokens=True, norm=True, output_fmt="NLC", intermediates_only=True
            )
        by_hand = torch.cat([part for p, c in pairs for part in (c[:, 0], p.mean(1), p.std(1, correction=0))], dim=1)
        torch.testing.assert_close(got, by_hand)

    def test_later_blocks_are_not_computed(self):
        assert len(load_encoder(read_at(encoder_card("tiny-random"), [0], "mean")).trunk.blocks) == 1

    @pytest.mark.parametrize("arch", ["test_resnet", "test_efficientnet", "test_convnext"])
    def test_stages_of_other_networks(self, arch):
        card = read_at(encoder_card(f"timm:{arch}"), [1, 2], "mean+std")
        with torch.no_grad():
            out = load_encoder(card, random=True)(torch.rand(2, 3, 64, 64))
        assert out.shape == (2, card.dim)
        assert torch.isfinite(out).all()

    @pytest.mark.parametrize(
        ("name", "blocks", "pooling", "says"),
        [
            ("tiny-random", [2], None, "blocks 0 to 1"),
            ("tiny-random", [1, 0], None, "ascending order"),
            ("tiny-random", [0], "median", "pooled by 'median'"),
            ("ResNet50", [1], None, "say pooling ="),
            ("ResNet50", [1], "cls", "no class token"),
            ("CONCH", [1], None, "a pooler of its own"),
        ],
    )
    def test_what_cannot_be_read_is_said(self, name, blocks, pooling, says):
        with pytest.raises(SettingError, match=says):
            read_at(encoder_card(name), blocks, pooling)
