"""The registry is data: complete, consistent, readable without torch, and told in the documentation."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from napari_peka.core.errors import SettingError, UnknownName
from napari_peka.models.registry import ENCODERS, AdapterSpec, EncoderCard, encoder_card

WANTED = (
    "UNI UNI2-h H-optimus-0 H-optimus-1 H0-mini Virchow Virchow2 Prov-GigaPath Phikon Phikon-v2 Hibou-B Hibou-L CONCH "
    "CONCH-v1.5 Kaiko-ViT-S16 Kaiko-ViT-S8 Kaiko-ViT-B16 Kaiko-ViT-B8 Kaiko-ViT-L14 Midnight-12k Lunit-ViT-S16 "
    "Lunit-ViT-S8 DINOv2-ViT-S14 DINOv2-ViT-B14 DINOv2-ViT-L14 DINOv2-ViT-g14 ResNet50 dinov2-vits14-demo tiny-random"
).split()


def test_every_promised_encoder_has_a_card():
    assert sorted(ENCODERS) == sorted(WANTED)
    assert len({n.casefold() for n in ENCODERS}) == len(ENCODERS)


@pytest.mark.parametrize("card", ENCODERS.values(), ids=lambda c: c.name)
def test_a_card_is_complete(card):
    assert card.dim > 0
    assert card.px % 14 == 0 or card.px % 16 == 0
    assert 0.2 < card.mpp < 1.1
    assert all(0 < v < 1 for v in (*card.mean, *card.std))
    assert card.licence
    assert card.revision is None or re.fullmatch(r"[0-9a-f]{40}", card.revision)
    assert card.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", card.sha256)
    if card.hub_id:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", card.hub_id)
        assert card.page == f"https://huggingface.co/{card.hub_id}"
        assert card.weights_file
    assert card.hub_id or not card.gated
    json.dumps(dataclasses.asdict(card))


def test_the_documentation_lists_every_encoder_with_what_it_needs():
    text = (Path(__file__).parent.parent / "docs" / "models.md").read_text()
    rows = {}
    for line in text.splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        if cells[0] in ENCODERS:
            rows[cells[0]] = cells
    assert sorted(rows) == sorted(ENCODERS)
    for name, cells in rows.items():
        card = ENCODERS[name]
        assert cells[1:5] == [str(card.dim), str(card.px), f"{card.mpp:g}", card.pooling], name
        assert ("yes" in cells[5]) == card.gated, name
        assert cells[6] == card.licence, name
        assert cells[7] == (card.revision[:7] if card.revision else "newest" if card.hub_id else "—"), name


def test_capitals_do_not_matter_and_near_names_are_offered():
    assert encoder_card("uni2-H") is ENCODERS["UNI2-h"]
    with pytest.raises(UnknownName, match=r"did you mean .*Virchow2"):
        encoder_card("virchow-2")
    with pytest.raises(UnknownName, match="timm:<model>"):
        encoder_card("timm:")


def test_any_timm_model_is_a_card_that_timm_completes():
    card = encoder_card("timm:resnet18")
    assert (card.arch, card.pooling, card.dim) == ("resnet18", "model", 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"pooling": "max"}, "pooling"), ({"layout": "keras"}, "layout"), ({"mpp": 0.0}, "mpp"), ({"dim": -1}, "dim")],
)
def test_bad_cards_cannot_exist(change, words):
    with pytest.raises(SettingError, match=words):
        dataclasses.replace(ENCODERS["UNI"], **change)


def test_bad_adapters_cannot_exist():
    with pytest.raises(SettingError, match="did you mean bone"):
        AdapterSpec("bones")
    with pytest.raises(SettingError, match="rank"):
        AdapterSpec("lora", 0)


def test_the_registry_needs_no_torch():
    code = "import sys, napari_peka.models.registry; print({'torch', 'timm', 'peft', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_card_is_made_of_plain_values():
    for field in dataclasses.fields(EncoderCard):
        for card in ENCODERS.values():
            assert isinstance(getattr(card, field.name), (str, int, float, bool, tuple, type(None)))
