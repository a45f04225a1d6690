"""Adapters: where they go, how wide, what trains, and that storing and merging change no number."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from napari_peka.core.errors import BundleError, SettingError, TrainingError
from napari_peka.models.registry import ADAPTER_KINDS, AdapterSpec, encoder_card

torch = pytest.importorskip("torch")
from torch import nn

from napari_peka.models import adapters, targets
from napari_peka.models._torchvision import ensure_torchvision
from napari_peka.models.encoder import Encoder, build_encoder, load_encoder

SPECS = [
    AdapterSpec("bone", 8),
    AdapterSpec("bone", 10),  # does not divide the width of 48: peft pads
    AdapterSpec("bat", 8),
    AdapterSpec("bone", 8, options={"init_weights": "bat"}),  # the same, said otherwise
    AdapterSpec("lora", 4),
    AdapterSpec("dora", 4),
    AdapterSpec("adalora", 4),
    AdapterSpec("hra", 4),
]
KINDS = [k for k in ADAPTER_KINDS if k not in ("none", "full")]


def name_of(spec: AdapterSpec) -> str:
    return f"{spec.kind}-{spec.rank}-{spec.options.get('init_weights', '')}".strip("-")


@pytest.fixture(scope="module")
def plain():
    return load_encoder(encoder_card("tiny-random"))


@pytest.fixture(scope="module")
def tiles():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def shaken(encoder):
    """Give the adapter weights that change the outputs: fresh ones are made to change nothing."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in encoder.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return encoder


@pytest.mark.parametrize("spec", SPECS, ids=name_of)
def test_only_targets_carry_an_adapter_and_only_it_trains(plain, tiles, spec):
    encoder = adapters.add_adapter(copy.deepcopy(plain), spec)
    trains = [n for n, p in encoder.named_parameters() if p.requires_grad]
    assert trains
    assert all(".attn.qkv." in n and "base_layer" not in n for n in trains)
    assert {n.split(".")[2] for n in trains} == {"0", "1"}  # every block
    assert set(trains) == set(adapters.adapter_state(encoder))
    assert 0 < adapters.trainable_share(encoder) < 0.5
    torch.testing.assert_close(encoder(tiles), plain(tiles), atol=1e-5, rtol=1e-4)  # a fresh one changes nothing


@pytest.mark.parametrize("spec", SPECS, ids=name_of)
def test_stored_and_merged_it_gives_the_same_numbers(plain, tiles, spec, tmp_path):
    encoder = shaken(adapters.add_adapter(copy.deepcopy(plain), spec))
    wanted = encoder(tiles).detach()
    assert (wanted - plain(tiles)).abs().max() > 1e-3

    save_file(adapters.adapter_state(encoder), tmp_path / "a.safetensors")
    again = adapters.add_adapter(copy.deepcopy(plain), spec)
    adapters.load_adapter_state(again, load_file(tmp_path / "a.safetensors"))
    assert torch.equal(again(tiles), wanted)

    merged = adapters.merge_adapter(again)
    torch.testing.assert_close(merged(tiles), wanted, atol=1e-5, rtol=1e-5)
    assert list(merged.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in merged.modules()] == [type(m) for m in plain.modules()]
    assert adapters.trainable_share(merged) == 0
    adapters.add_adapter(merged, spec)  # and it can carry a new one


def test_a_merged_encoder_can_be_trained_on_by_gradient(plain, tiles):
    encoder = adapters.add_adapter(copy.deepcopy(plain), AdapterSpec("bone", 8))
    encoder(tiles).square().sum().backward()
    gradients = {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}
    assert set(gradients) == set(adapters.adapter_state(encoder))
    assert all(g.abs().sum() > 0 for g in gradients.values())


def test_full_trains_and_stores_everything(plain, tiles, tmp_path):
    encoder = shaken(adapters.add_adapter(copy.deepcopy(plain), AdapterSpec("full")))
    assert adapters.trainable_share(encoder) == 1
    save_file(adapters.adapter_state(encoder), tmp_path / "a.safetensors")
    again = adapters.add_adapter(copy.deepcopy(plain), AdapterSpec("full"))
    adapters.load_adapter_state(again, load_file(tmp_path / "a.safetensors"))
    assert torch.equal(adapters.merge_adapter(again)(tiles), encoder(tiles))


def test_none_is_nothing(plain):
    encoder = adapters.add_adapter(copy.deepcopy(plain), AdapterSpec())
    assert adapters.trainable_share(encoder) == 0
    assert adapters.adapter_state(encoder) == {}
    adapters.load_adapter_state(encoder, {})
    assert list(adapters.merge_adapter(encoder).state_dict()) == list(plain.state_dict())


def test_loading_is_strict(plain):
    encoder = adapters.add_adapter(copy.deepcopy(plain), AdapterSpec("lora", 4))
    state = adapters.adapter_state(encoder)
    first = min(state)
    with pytest.raises(BundleError, match="not there"):
        adapters.load_adapter_state(encoder, {k: v for k, v in state.items() if k != first})
    with pytest.raises(BundleError, match="none of that name"):
        adapters.load_adapter_state(encoder, state | {"stranger": torch.zeros(1)})
    with pytest.raises(BundleError, match="another encoder or rank"):
        adapters.load_adapter_state(encoder, state | {first: torch.zeros(2, 2)})


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (AdapterSpec("lora", 4, target=r".*\.attn\.qkw"), "matches no layer.* one is called 'trunk.blocks.0.attn.qkv'"),
        (AdapterSpec("lora", 4, target="("), "not a regular expression"),
        (AdapterSpec("lora", 49), "allows 48: take at most that"),
        (AdapterSpec("adalora", 48), "allows 47: take at most that"),  # it must have ranks to give up
        (AdapterSpec("adalora", 4, options={"init_r": 4}), "must end with less"),
        (AdapterSpec("hra", 3), "even"),
        (AdapterSpec("bat", 10), "divisible.*ranks that fit: 2, 3, 4, 6, 8, 12, 16, 24, 48"),
        (AdapterSpec("bone", 10, options={"init_weights": "bat"}), "divisible"),
        (AdapterSpec("bone", last_blocks=3), "2 blocks: last_blocks must be 1 to 2"),
        (AdapterSpec("lora", 4, options={"no_such": 1}), "options"),
    ],
)
def test_settings_that_do_not_fit(plain, spec, words):
    with pytest.raises(SettingError, match=words):
        adapters.add_adapter(copy.deepcopy(plain), spec)


def test_other_layers_can_be_the_target(plain):
    encoder = adapters.add_adapter(copy.deepcopy(plain), AdapterSpec("lora", 4, target=r".*\.mlp\.fc[12]"))
    assert all(".mlp.fc" in n for n in adapters.adapter_state(encoder))


# -- what the kinds compute ------------------------------------------------------------------------------------


class OneLayer(nn.Module):
    """The smallest thing that an adapter can be put into; double precision, so that a wrong formula cannot hide."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.attn = nn.Module()
        self.attn.qkv = nn.Linear(inputs, outputs)
        self.double()

    def forward(self, x):
        return self.attn.qkv(x)


def bone_by_hand(layer, b, x):
    """Bone, arXiv 2409.15371: y = W x + bias + (sum over the r-wide pieces of x) B; the last piece may be shorter."""
    y = x @ layer.weight.T + layer.bias
    for first in range(0, x.shape[-1], len(b)):
        piece = x[..., first : first + len(b)]
        y = y + piece @ b[: piece.shape[-1]]
    return y


def bat_by_hand(layer, b, x):
    """The Weight Guide: each r × r block of W becomes W + W B + B, with one B for a row of blocks."""
    w, r = layer.weight.clone(), b.shape[-1]
    for i in range(w.shape[0] // r):
        for j in range(w.shape[1] // r):
            block = layer.weight[i * r : (i + 1) * r, j * r : (j + 1) * r]
            w[i * r : (i + 1) * r, j * r : (j + 1) * r] = block + block @ b[i] + b[i]
    return x @ w.T + layer.bias


def one_layer(inputs, outputs, spec, seed):
    generator = torch.Generator().manual_seed(seed)
    model = adapters.add_adapter(OneLayer(inputs, outputs), spec)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    x = torch.randn(3, 5, inputs, generator=generator, dtype=torch.float64)
    return model, model.attn.qkv.get_base_layer(), model.attn.qkv.miss_block[adapters.NAME], x


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(1, 24), st.integers(1, 24), st.integers(0, 1000))
def test_bone_is_the_sum_over_pieces_of_the_input_times_one_matrix(data, inputs, outputs, seed):
    rank = data.draw(st.integers(1, min(inputs, outputs)), "rank")  # also such as do not divide the width
    model, base, block, x = one_layer(inputs, outputs, AdapterSpec("bone", rank, target=r"attn\.qkv"), seed)
    assert block.shape == (rank, outputs)
    torch.testing.assert_close(model(x), bone_by_hand(base, block, x), atol=1e-6, rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.integers(0, 1000), st.booleans())
def test_bat_guides_each_block_by_its_own_weights(across, down, rank, seed, as_option):
    spec = AdapterSpec("bone", rank, r"attn\.qkv", {"init_weights": "bat"}) if as_option else None
    spec = spec or AdapterSpec("bat", rank, r"attn\.qkv")
    model, base, block, x = one_layer(across * rank, down * rank, spec, seed)
    assert block.shape == (down, rank, rank)
    torch.testing.assert_close(model(x), bat_by_hand(base, block, x), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("inputs", "rank"), [(48, 4), (48, 48), (192, 124)])
def test_hras_reflections_at_once_are_those_of_peft_one_by_one(inputs, rank):
    spec = AdapterSpec("hra", rank, target=r"attn\.qkv")
    layer = adapters.add_adapter(OneLayer(inputs, inputs), spec).attn.qkv
    u = layer.hra_u[adapters.NAME]
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        u.add_(0.02 * torch.randn(u.shape, generator=generator))
    push = torch.randn(inputs, inputs, generator=generator)
    for reverse in (False, True):
        got = layer.get_delta_weight(adapters.NAME, reverse)
        wanted = type(layer).get_delta_weight(layer, adapters.NAME, reverse)
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
        slopes = [torch.autograd.grad((m * push).sum(), u, retain_graph=True)[0] for m in (got, wanted)]
        torch.testing.assert_close(*slopes, atol=1e-4 * float(slopes[1].abs().max()), rtol=1e-3)


# -- on other architectures --------------------------------------------------------------------------------------

SMALL = {
    "ViT": ("vit_tiny_patch16_224", {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3}),
    "Swin": ("swin_tiny_patch4_window7_224",
             {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2)}),
    "Swin v2": ("swinv2_tiny_window8_256",
                {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2)}),
    "ConvNeXt": ("convnext_tiny", {"depths": (1, 1, 1, 1), "dims": (16, 16, 32, 32)}),
    "EVA-02": ("eva02_base_patch14_224", {"img_size": 56, "embed_dim": 48, "depth": 2, "num_heads": 3}),
    "EVA": ("eva_giant_patch14_224", {"img_size": 56, "embed_dim": 48, "depth": 2, "num_heads": 3}),
    "DINOv3": ("vit_small_patch16_dinov3", {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3}),
    "BEiT": ("beit_base_patch16_224", {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3}),
    "PVT": ("pvt_v2_b0", {"depths": (1, 1, 1, 1)}),
    "Mixer": ("mixer_s32_224", {"img_size": 64}),
    "ResNet": ("test_resnet", {}),
    "EfficientNet": ("test_efficientnet", {}),
    "EfficientNet, tf": ("tf_efficientnet_b0", {}),
}  # fmt: skip


@pytest.fixture(scope="module")
def small():
    """Return small models of other families by name, each built once; random weights, never changed."""
    ensure_torchvision()
    import timm

    built: dict[str, Encoder] = {}

    def get(family: str) -> Encoder:
        arch, kwargs = SMALL[family]
        if family not in built:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(7)
                trunk = timm.create_model(arch, num_classes=0, **kwargs)
                for p in trunk.parameters():  # norms and layer scales: fresh ones let a block through as good as not
                    if p.ndim == 1:
                        nn.init.uniform_(p, 0.5, 1.5)
            built[family] = Encoder(trunk, "model").eval().requires_grad_(False)
        return copy.deepcopy(built[family])

    return get


def side_of(family: str) -> int:
    return SMALL[family][1].get("img_size", 64)


def trained(encoder, spec, x, steps=3):
    """Take a few steps towards random numbers, so that every part of the adapter has moved."""
    generator = torch.Generator().manual_seed(3)
    adapters.start_training(encoder, spec, steps)
    optimizer = torch.optim.Adam([p for p in encoder.parameters() if p.requires_grad], lr=3e-2)
    for step in range(steps):
        image = encoder(x)
        loss = (image - torch.randn(image.shape, generator=generator)).square().mean()
        (loss + adapters.adapter_penalty(encoder)).backward()
        optimizer.step()
        adapters.after_step(encoder, step)
        optimizer.zero_grad()
    return encoder


CASES = [
    *((f, k) for f in ("ViT", "Swin", "ConvNeXt", "EVA-02") for k in KINDS),
    *((f, "bone") for f in ("Swin v2", "EVA", "DINOv3", "BEiT", "PVT")),
    *((f, k) for f in ("ResNet", "EfficientNet") for k in targets.CONVOLUTION_KINDS),
    ("EfficientNet, tf", "lora"),  # whose layers pad by themselves and are left alone
]  # fmt: skip


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_trained_on_any_family_it_stores_loads_and_merges_to_the_same_numbers(small, family, kind):
    encoder = small(family)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, side_of(family), side_of(family), generator=generator)
    before = encoder(x)
    spec = targets.resolve_adapter(encoder, AdapterSpec(kind))
    adapters.add_adapter(encoder, spec)
    scale = float(before.abs().max())
    torch.testing.assert_close(encoder(x), before, atol=1e-5 * scale, rtol=0)
    trained(encoder, spec, x)
    with torch.no_grad():
        wanted = encoder(x)
        assert (wanted - before).abs().max() > 1e-3 * scale

        again = adapters.add_adapter(small(family), spec, seed=99)  # other first weights, all of them replaced
        adapters.load_adapter_state(again, adapters.adapter_state(encoder))
        assert torch.equal(again(x), wanted)
        merged = adapters.merge_adapter(copy.deepcopy(again))
        torch.testing.assert_close(merged(x), wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0)
    assert list(merged.state_dict()) == list(small(family).state_dict())


@pytest.mark.parametrize(
    ("family", "last", "n"),
    [("ViT", "attn.qkv", 2), ("Swin", "attn.qkv", 2), ("Swin v2", "attn.qkv", 2), ("ConvNeXt", "mlp.fc2", 8),
     ("EVA-02", "attn.v_proj", 6), ("EVA", "attn.qkv", 2), ("DINOv3", "attn.qkv", 2), ("BEiT", "attn.qkv", 2),
     ("PVT", "attn.kv", 8), ("Mixer", "mlp_channels.fc2", 16), ("ResNet", "downsample.1", None),
     ("EfficientNet", "conv_head", None)],
)  # fmt: skip
def test_each_family_has_usual_layers(small, family, last, n):
    encoder = small(family)
    found = targets.target_layers(encoder, targets.usual_target(encoder))
    assert list(found)[-1].endswith(last)
    assert len(found) == n or n is None
    assert not any("stem" in name or ".se." in name for name in found)


def test_what_cannot_work_is_refused_with_what_would(small):
    with pytest.raises(SettingError, match=r"bone works on linear layers.*is a convolution; take lora or dora"):
        adapters.add_adapter(small("ResNet"), AdapterSpec("bone"))
    with pytest.raises(SettingError, match=r"a SwinTransformer .*cannot be cut.* leave last_blocks away"):
        adapters.add_adapter(small("Swin"), AdapterSpec("bone", last_blocks=1))
    with pytest.raises(SettingError, match=r"not known which layers .* such as '\.\*odd'"):
        targets.usual_target(nn.ModuleDict({"odd": nn.Linear(4, 4)}))
    with pytest.raises(SettingError, match="no layer that can carry an adapter"):
        targets.usual_target(nn.Sequential(nn.Conv2d(8, 8, 5), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(3, 8, 3)))
    with pytest.raises(SettingError, match="leave last_blocks away"):
        AdapterSpec("full", last_blocks=2)


def test_convolutions_that_peft_would_fold_wrongly_are_left_alone():
    ensure_torchvision()
    from timm.layers import StdConv2d

    convolutions = {
        "plain": nn.Conv2d(8, 8, 3),
        "standardised": StdConv2d(8, 8, 3),
        "grouped": nn.Conv2d(8, 8, 3, groups=2),
        "dilated": nn.Conv2d(8, 8, 3, dilation=2),
        "of pixels": nn.Conv2d(3, 8, 3),
    }
    assert list(targets.target_layers(nn.ModuleDict(convolutions), ".*")) == ["plain"]


def test_an_adapter_that_nothing_flows_through_is_said_at_the_first_step(plain, tiles):
    encoder = copy.deepcopy(plain)
    encoder.spare = nn.Linear(48, 48)
    adapters.add_adapter(encoder, AdapterSpec("lora", 4, target=r".*(qkv|spare)"))
    encoder(tiles).sum().backward()
    with pytest.raises(TrainingError, match=r"spare\.lora_A.* got no gradient"):
        adapters.after_step(encoder, 0)


# -- what a spec leaves open -------------------------------------------------------------------------------------


def on_meta(name):
    with torch.device("meta"):
        return build_encoder(encoder_card(name))


@pytest.mark.parametrize(
    ("name", "kind", "rank"),
    [("UNI", "bone", 256), ("H-optimus-0", "bone", 384), ("dinov2-vits14-demo", "bone", 96), ("UNI", "bat", 256)],
)
def test_bones_usual_rank_is_about_the_papers(name, kind, rank):
    """PEKA takes 256 for UNI; every width is cut into whole pieces."""
    assert targets.resolve_adapter(on_meta(name), AdapterSpec(kind)).rank == rank


@pytest.mark.parametrize("kind", KINDS)
def test_no_other_rank_comes_nearer_to_5_percent_of_the_weights(kind):
    encoder = load_encoder(encoder_card("dinov2-vits14-demo"), random=True)
    spec = targets.resolve_adapter(encoder, AdapterSpec(kind))
    assert spec.target == r".*\.attn\.qkv"

    def off(rank: int) -> float:
        # what was built is counted; AdaLoRA begins with more ranks than it keeps, so build what it keeps
        small = {"init_r": rank, "target_r": rank - 1} if kind == "adalora" else {}
        built = adapters.add_adapter(copy.deepcopy(encoder), dataclasses.replace(spec, rank=rank, options=small))
        return abs(adapters.trainable_share(built) - 0.05)

    others = {"bone": (64, 128), "bat": (64, 128), "hra": (spec.rank - 2, spec.rank + 2)}
    lower, higher = others.get(kind, (spec.rank - 1, spec.rank + 1))
    assert off(spec.rank) < min(off(lower), off(higher))
    assert off(spec.rank) < 0.009


def test_what_was_said_stays_and_what_was_resolved_is_final(plain):
    spec = targets.resolve_adapter(plain, AdapterSpec("lora", 3, target=r".*\.fc1", options={"lora_alpha": 5}))
    assert spec == AdapterSpec("lora", 3, r".*\.fc1", {"lora_alpha": 5})
    for kind in ADAPTER_KINDS:
        spec = targets.resolve_adapter(plain, AdapterSpec(kind))
        assert targets.resolve_adapter(plain, spec) == spec
        assert spec.target
        json.dumps(dataclasses.asdict(spec))


def test_the_last_blocks_alone_can_be_the_target():
    encoder = on_meta("UNI")
    spec = targets.resolve_adapter(encoder, AdapterSpec("lora", 8, last_blocks=3))
    assert spec.last_blocks is None
    assert list(targets.target_layers(encoder, spec.target)) == [f"trunk.blocks.{i}.attn.qkv" for i in (21, 22, 23)]
    spec = targets.resolve_adapter(encoder, AdapterSpec("lora", 8, target=r".*\.fc1|.*\.fc2", last_blocks=1))
    assert list(targets.target_layers(encoder, spec.target)) == [f"trunk.blocks.23.mlp.fc{i}" for i in (1, 2)]


def test_every_bundle_with_an_adapter_says_its_rank():
    """None means a share of the weights; were one stored so, a better rule would change what it means."""
    here = Path(__file__).resolve().parent
    specs = [*here.rglob("peka.json"), *(here.parent / "src").rglob("peka.json")]
    stored = [json.loads(p.read_text())["adapter"] for p in specs]
    assert any(a["kind"] == "bone" for a in stored)
    assert all(isinstance(a["rank"], int) for a in stored if a["kind"] not in ("none", "full"))


@pytest.mark.parametrize("kind", ["lora", "dora", "adalora", "hra"])
def test_first_weights_depend_on_the_seed_alone(plain, kind):
    def first(dice: int, seed: int):
        torch.manual_seed(dice)
        state = adapters.adapter_state(adapters.add_adapter(copy.deepcopy(plain), AdapterSpec(kind), seed=seed))
        after = torch.rand(1)
        torch.manual_seed(dice)
        assert torch.equal(after, torch.rand(1))  # the caller's dice were left alone
        return state

    a, b, c = first(1, 5), first(2, 5), first(1, 6)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


# -- AdaLoRA's training ------------------------------------------------------------------------------------------


def test_adaloras_penalty_is_the_mean_distance_from_orthogonal(plain):
    encoder = shaken(adapters.add_adapter(copy.deepcopy(plain), AdapterSpec("adalora", 4)))
    norms = []
    for block in encoder.trunk.blocks:
        a, b = block.attn.qkv.lora_A[adapters.NAME], block.attn.qkv.lora_B[adapters.NAME]
        for product in (a @ a.T, b.T @ b):
            norms.append((product - torch.eye(6)).square().sum().sqrt())
    torch.testing.assert_close(adapters.adapter_penalty(encoder), 0.5 * sum(norms) / 4, atol=1e-6, rtol=1e-6)
    assert adapters.adapter_penalty(adapters.add_adapter(copy.deepcopy(plain), AdapterSpec("lora", 4))) == 0


@pytest.mark.parametrize("options", [{}, {"deltaT": 5}, {"tinit": 3, "tfinal": 1}])
def test_adalora_begins_with_half_again_its_rank_and_ends_with_it(plain, tiles, options):
    spec = AdapterSpec("adalora", 4, options=options)
    encoder = adapters.add_adapter(copy.deepcopy(plain), spec)
    assert encoder.trunk.blocks[0].attn.qkv.lora_A[adapters.NAME].shape == (6, 48)
    trained(encoder, spec, tiles, steps=12)
    kept = [int((b.attn.qkv.lora_E[adapters.NAME] != 0).sum()) for b in encoder.trunk.blocks]
    assert sum(kept) == 2 * 4


def test_adalora_without_a_step_to_choose_in_is_refused(plain):
    spec = AdapterSpec("adalora", 4, options={"tinit": 4, "tfinal": 6})
    encoder = adapters.add_adapter(copy.deepcopy(plain), spec)
    with pytest.raises(SettingError, match="has 10 steps, of which 4"):
        adapters.start_training(encoder, spec, 10)
    adapters.start_training(encoder, spec, 11)


def steps(encoder, optimizer, tiles, first, last):
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        image = encoder(tiles)
        loss = (image - torch.randn(image.shape, generator=generator)).square().mean()
        (loss + adapters.adapter_penalty(encoder)).backward()
        optimizer.step()
        adapters.after_step(encoder, step)
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["adalora", "hra"])
@pytest.mark.parametrize("killed_after", [1, 4, 6, 7, 9])
def test_killed_and_resumed_it_ends_at_the_same_weights(plain, tiles, kind, killed_after):
    """Steps 0 to 11 of AdaLoRA: choosing ranks begins at 2 and ends at 6."""
    spec, total = AdapterSpec(kind, 4), 12

    def fresh():
        encoder = adapters.add_adapter(copy.deepcopy(plain), spec)
        adapters.start_training(encoder, spec, total)
        return encoder, torch.optim.Adam([p for p in encoder.parameters() if p.requires_grad], lr=1e-2)

    whole, optimizer = fresh()
    steps(whole, optimizer, tiles, 0, total)
    wanted = adapters.adapter_state(whole)

    encoder, optimizer = fresh()
    steps(encoder, optimizer, tiles, 0, killed_after)
    disk = io.BytesIO()
    parts = (adapters.adapter_state(encoder), optimizer.state_dict(), adapters.adapter_training_state(encoder))
    torch.save(parts, disk)
    disk.seek(0)
    weights, momentum, ranks = torch.load(disk, weights_only=True)

    again, optimizer = fresh()
    adapters.load_adapter_state(again, weights)
    optimizer.load_state_dict(momentum)
    adapters.load_adapter_training_state(again, ranks)
    steps(again, optimizer, tiles, killed_after, total)
    got = adapters.adapter_state(again)
    assert all(torch.equal(got[k], wanted[k]) for k in wanted)
    if kind == "adalora" and killed_after > 1:  # and without the ranks' state it would not
        lost, optimizer = fresh()
        adapters.load_adapter_state(lost, weights)
        optimizer.load_state_dict(momentum)
        if killed_after > 6:
            with pytest.raises(TrainingError, match="was not loaded"):
                steps(lost, optimizer, tiles, killed_after, total)


def test_the_state_of_another_training_is_refused(plain, tiles):
    spec = AdapterSpec("adalora", 4)
    encoder = trained(adapters.add_adapter(copy.deepcopy(plain), spec), spec, tiles, steps=4)
    state = adapters.adapter_training_state(encoder)
    other = adapters.add_adapter(copy.deepcopy(plain), AdapterSpec("adalora", 6))
    adapters.start_training(other, AdapterSpec("adalora", 6), 4)
    for wrong in (other, adapters.add_adapter(copy.deepcopy(plain), AdapterSpec("lora", 4))):
        with pytest.raises(TrainingError, match="had another adapter"):
            adapters.load_adapter_training_state(wrong, state)
    adapters.load_adapter_training_state(encoder, state)
    assert adapters.adapter_training_state(plain) == {}
