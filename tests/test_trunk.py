"""A transformer cut in two gives what it gave whole, and what trains in its back half trains in the encoder."""

from __future__ import annotations

import copy
import dataclasses

import pytest

from napari_peka.core.errors import SettingError
from napari_peka.models.registry import ENCODERS, AdapterSpec, encoder_card

torch = pytest.importorskip("torch")
from torch import nn

from napari_peka.models import adapters
from napari_peka.models._torchvision import ensure_torchvision
from napari_peka.models.encoder import Encoder, build_encoder, load_encoder
from napari_peka.models.trunk import (
    checkpoint_gradients,
    drop_patches,
    fuse_attention,
    go_on_dropping,
    row_of_blocks,
    split,
)

TRANSFORMERS = [c for c in ENCODERS.values() if c.pooling != "model"]


def shaken(encoder: Encoder) -> Encoder:
    """Give every weight a value that matters: fresh layer scales let a block through as good as not."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in encoder.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator) + (p.ndim == 1))
    return encoder.eval().requires_grad_(False)


def dwarf(card) -> Encoder:
    """Build a card's tokens, tile, norms and pooling at the cost of a dwarf: narrow, three blocks."""
    kwargs = dict(card.kwargs) | {"embed_dim": 24, "num_heads": 3, "depth": 3}
    return shaken(build_encoder(dataclasses.replace(card, kwargs=tuple(kwargs.items()))))


def of_timm(arch: str, pooling: str = "model", **kwargs) -> Encoder:
    ensure_torchvision()
    import timm

    more = {} if pooling == "model" else {"global_pool": ""}
    return shaken(Encoder(timm.create_model(arch, num_classes=0, **more, **kwargs), pooling))


def tiles(px: int, n: int = 2):
    return torch.randn(n, 3, px, px, generator=torch.Generator().manual_seed(1))


def by_hand(trunk, x, blocks: int):
    """Go through the first blocks as timm's documentation has it."""
    x = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(x))))
    for block in trunk.blocks[:blocks]:
        x = block(x)
    return x


@pytest.mark.parametrize("card", TRANSFORMERS, ids=lambda c: c.name)
def test_every_registered_transformer_is_the_same_in_two_halves(card):
    encoder, x = dwarf(card), tiles(card.px, 1)
    for last in (1, 3):
        front, back = split(encoder, last)
        tokens = front(x)
        n_patches = (card.px // encoder.trunk.patch_embed.patch_size[0]) ** 2
        assert tokens.shape == (1, encoder.n_prefix + n_patches, 24)
        torch.testing.assert_close(tokens, by_hand(encoder.trunk, x, 3 - last), rtol=0, atol=0)
        assert torch.equal(back(tokens), encoder(x))


@pytest.mark.parametrize(
    ("arch", "pooling", "kwargs"),
    [("vit_base_patch16_siglip_224", "model", {}),  # attention pooling of timm's own
     ("vit_base_patch16_clip_224", "model", {}),  # a norm before the blocks
     ("vit_base_patch16_clip_224", "cls+mean", {}),
     ("vit_base_patch16_reg4_gap_256", "model", {}),  # registers, mean, a norm after it
     ("vit_tiny_patch16_224", "model", {"dynamic_img_size": True}),
     ("eva02_tiny_patch14_224", "model", {}),  # rotary embedding
     ("eva02_tiny_patch14_224", "cls", {"dynamic_img_size": True}),
     ("eva_giant_patch14_224", "model", {}),  # positions, no rotation
     ("vit_small_patch16_dinov3", "cls", {})],
)  # fmt: skip
@pytest.mark.parametrize("last", [1, 2])
def test_other_kinds_of_transformers_too(arch, pooling, kwargs, last):
    encoder = of_timm(arch, pooling, img_size=112, embed_dim=48, depth=3, num_heads=3, **kwargs)
    front, back = split(encoder, last)
    assert torch.equal(back(front(tiles(112))), encoder(tiles(112)))


@pytest.mark.parametrize(
    ("arch", "kwargs"),
    [("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2)}),
     ("test_convnext", {}), ("test_resnet", {}),
     ("beit_base_patch16_224", {"embed_dim": 24, "depth": 2, "num_heads": 2}),
     ("eva02_tiny_patch14_224", {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_drop_rate": 0.5}),
     ("vit_small_patch16_rope_mixed_224", {"embed_dim": 48, "depth": 2, "num_heads": 3})],
)  # fmt: skip
def test_what_cannot_be_cut_is_refused(arch, kwargs):
    encoder = of_timm(arch, **kwargs)
    with pytest.raises(SettingError, match=f"a {type(encoder.trunk).__name__} .*leave last_blocks away"):
        split(encoder, 1)


@pytest.mark.parametrize("last", [0, 3, -1])
def test_there_must_be_so_many_blocks(last):
    with pytest.raises(SettingError, match="2 blocks: last_blocks must be 1 to"):
        split(load_encoder(encoder_card("tiny-random")), last)


def test_the_halves_are_the_encoder_and_leave_it_as_it_was():
    encoder = load_encoder(encoder_card("tiny-random"))
    before, names = encoder(tiles(64)), list(encoder.state_dict())
    front, back = split(encoder, 1)
    own = {id(p) for p in encoder.parameters()}
    first, rest = ({id(p) for p in half.parameters()} for half in (front, back))
    assert first | rest == own
    assert not first & rest
    assert list(encoder.state_dict()) == names
    assert torch.equal(encoder(tiles(64)), before)
    assert [type(b) for b in row_of_blocks(encoder)] == [type(encoder.trunk.blocks[0])] * 2


@pytest.mark.parametrize("kind", ["bone", "bat", "lora", "dora", "adalora", "hra"])
def test_training_the_back_half_trains_the_encoder(kind):
    """Gradients and the weights after a step are those of the whole encoder under the same adapter."""
    x = tiles(64)

    def fresh():
        encoder = load_encoder(encoder_card("tiny-random"))
        adapters.add_adapter(encoder, AdapterSpec(kind, 4, last_blocks=1))
        return encoder

    def step(encoder, forward):
        optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            forward().square().sum().backward()
            optimizer.step()
        return adapters.adapter_state(encoder)

    whole, cut = fresh(), fresh()
    front, back = split(cut, 1)
    tokens = front(x)
    assert not tokens.requires_grad
    assert {id(p) for p in back.parameters() if p.requires_grad} == {id(p) for p in cut.parameters() if p.requires_grad}
    first = adapters.adapter_state(whole)
    wanted, got = step(whole, lambda: whole(x)), step(cut, lambda: back(tokens))
    assert any(not torch.equal(first[k], wanted[k]) for k in wanted)
    assert all(torch.equal(got[k], wanted[k]) for k in wanted)
    assert torch.equal(back(tokens), cut(x))


def test_an_adapter_in_the_front_half_is_refused():
    encoder = load_encoder(encoder_card("tiny-random"))
    adapters.add_adapter(encoder, AdapterSpec("lora", 4))
    with pytest.raises(SettingError, match=r"blocks\.0\.attn\.qkv\.lora_A.* trains and lies before the last 1 blocks"):
        split(encoder, 1)
    split(encoder, 2)
    full = adapters.add_adapter(load_encoder(encoder_card("tiny-random")), AdapterSpec("full"))
    with pytest.raises(SettingError, match="trains and lies before"):
        split(full, 2)


def test_a_half_can_be_copied_and_moved():
    encoder = of_timm("eva02_tiny_patch14_224", img_size=56, embed_dim=48, depth=2, num_heads=3)
    front, back = split(encoder, 1)
    wanted = back(front(tiles(56)))
    other = copy.deepcopy(back).double()
    nn.init.zeros_(encoder.trunk.blocks[1].norm1.weight)  # the copy stands on its own
    torch.testing.assert_close(other(front(tiles(56)).double()).float(), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("half", [False, True])
def test_recomputing_activations_changes_no_gradient(half):
    def gradients(on):
        encoder = load_encoder(encoder_card("tiny-random"))
        adapters.add_adapter(encoder, AdapterSpec("bone", 8))
        front, back = split(encoder, 2)
        learner = back if half else encoder
        calls = []
        encoder.trunk.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
        checkpoint_gradients(learner, on)
        learner(front(tiles(64)) if half else tiles(64)).square().sum().backward()
        return [p.grad for p in encoder.parameters() if p.requires_grad], len(calls)

    (plain, once), (recomputed, twice) = gradients(False), gradients(True)
    assert (once, twice) == (1, 2)
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


def test_what_cannot_recompute_says_so():
    with pytest.raises(SettingError, match="cannot recompute"):
        checkpoint_gradients(Encoder(nn.Flatten(), "model"))


@pytest.mark.parametrize("half", [False, True])
def test_patches_are_left_out_in_training_mode_alone(half):
    encoder = of_timm("vit_tiny_patch16_224", "mean", img_size=64, embed_dim=24, depth=3, num_heads=3)
    front, back = split(encoder, 2)
    body = back if half else encoder
    x = front(tiles(64)) if half else tiles(64)
    wanted = body(x)
    seen = []
    hook = encoder.trunk.blocks[1].register_forward_hook(lambda _, __, tokens: seen.append(tokens.shape[1]))
    drop_patches(body, 0.75)
    assert torch.equal(body(x), wanted)
    body.train()
    encoder.eval()  # as in training an adapter: the frozen layers stay as they are
    go_on_dropping(body)
    torch.manual_seed(0)
    less = body(x)
    assert not torch.allclose(less, wanted)
    torch.manual_seed(0)
    assert torch.equal(body(x), less)
    assert seen == [17, 5, 5]  # of 16 patches 4, and the class token
    body.eval()
    assert torch.equal(body(x), wanted)
    body.train()
    drop_patches(body, 0)
    assert torch.equal(body(x), wanted)
    hook.remove()


def test_patches_that_an_architecture_needs_are_not_left_out():
    for encoder in (of_timm("eva02_tiny_patch14_224", img_size=56, embed_dim=48, depth=2, num_heads=3),
                    of_timm("resnet10t")):  # fmt: skip
        with pytest.raises(SettingError, match=f"a {type(encoder.trunk).__name__} .*leave patch_dropout away"):
            drop_patches(encoder, 0.5)


def test_attention_is_the_same_fused_or_plain():
    encoder = of_timm("vit_tiny_patch16_224", "cls", img_size=64, embed_dim=24, depth=2, num_heads=3)
    fused = encoder(tiles(64))
    fuse_attention(encoder, False)
    assert not any(block.attn.fused_attn for block in encoder.trunk.blocks)
    torch.testing.assert_close(encoder(tiles(64)), fused, atol=1e-5, rtol=1e-5)
    fuse_attention(encoder)
    assert all(block.attn.fused_attn for block in encoder.trunk.blocks)
