"""Adapters: where they go, what trains, and that storing and merging change no number."""

from __future__ import annotations

import copy

import pytest
from safetensors.torch import load_file, save_file

from napari_peka.core.errors import BundleError, SettingError
from napari_peka.models.registry import AdapterSpec, encoder_card

torch = pytest.importorskip("torch")

from napari_peka.models import adapters
from napari_peka.models.encoder import load_encoder

SPECS = [
    AdapterSpec("bone", 8),
    AdapterSpec("bone", 10),  # does not divide the width of 48: peft pads
    AdapterSpec("bone", 8, options={"init_weights": "bat"}),
    AdapterSpec("lora", 4),
    AdapterSpec("dora", 4),
    AdapterSpec("adalora", 4),
    AdapterSpec("hra", 4),
]


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


def test_bone_is_the_sum_over_pieces_of_the_input_times_one_matrix(plain):
    encoder = shaken(adapters.add_adapter(copy.deepcopy(plain), AdapterSpec("bone", 8)))
    layer = encoder.trunk.blocks[0].attn.qkv
    block = layer.miss_block[adapters.NAME]
    x = torch.randn(5, 48)
    by_hand = layer.get_base_layer()(x) + x.reshape(5, 6, 8).sum(1) @ block
    torch.testing.assert_close(layer(x), by_hand)


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
        (AdapterSpec("lora", 4, target=r".*\.attn\.qkw"), "matches no linear layer"),
        (AdapterSpec("lora", 4, target="("), "not a regular expression"),
        (AdapterSpec("lora", 999), "take at most that"),
        (AdapterSpec("hra", 3), "even"),
        (AdapterSpec("bone", 10, options={"init_weights": "bat"}), "divisible"),
        (AdapterSpec("lora", 4, options={"no_such": 1}), "options"),
    ],
)
def test_settings_that_do_not_fit(plain, spec, words):
    with pytest.raises(SettingError, match=words):
        adapters.add_adapter(copy.deepcopy(plain), spec)


def test_other_layers_can_be_the_target(plain):
    encoder = adapters.add_adapter(copy.deepcopy(plain), AdapterSpec("lora", 4, target=r".*\.mlp\.fc[12]"))
    assert all(".mlp.fc" in n for n in adapters.adapter_state(encoder))


def test_a_resnet_has_no_such_target():
    encoder = load_encoder(encoder_card("ResNet50"), random=True)
    with pytest.raises(SettingError, match="this encoder has none"):
        adapters.add_adapter(encoder, AdapterSpec("lora", 4))
