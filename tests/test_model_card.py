"""The model card says what the bundle knows, and what it does not know."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from bundles import made
from napari_peka.models.bundle import read_bundle
from napari_peka.models.card import model_card
from napari_peka.models.registry import AdapterSpec
from napari_peka.models.zoo import load_model
from test_bundle import carried

TRAINING = {
    "data": "two tumours, doi:10.1234/x, CC BY 4.0",
    "tissue": "breast",
    "sections": [
        {"name": "s1", "patient": "p1", "fingerprint": "a" * 64, "part": "train", "spots": 180},
        {"name": "s2", "patient": "p2", "fingerprint": "b" * 64, "part": "train", "spots": 175},
        {"name": "s3", "patient": "p2", "fingerprint": "c" * 64, "part": "held out", "spots": 170},
    ],
    "summary": {
        "pcc_hvg50": {"mean": 0.41, "sd": 0.02, "ci95": [0.37, 0.45]},
        "attainable_hvg50": 0.8,
        "share_of_attainable_hvg50": 0.5125,
        "baselines": {
            "train_mean": {"pcc_hvg50": {"mean": None, "sd": None}},
            "colour": {"pcc_hvg50": {"mean": 0.31, "sd": 0.01}},
            "position": {"pcc_hvg50": {"mean": 0.452, "sd": 0.01}},
        },
    },
    "settings": {"epochs": 6, "lr": 0.0003},
    "seeds": [0, 1, 2],
    "versions": {"torch": "2.13.0", "napari-peka": "0.1"},
    "data_digest": "d" * 64,
    "made_by": "napari-peka train sections.csv -o model",
}


def full(tmp_path, training=TRAINING, **head):
    """A bundle with everything: adapter, translation, rotations, views, context, baselines, ceilings."""
    scores = {"pcc": [0.6, None, -0.1], "attainable_pcc": [0.8, 0.5, None], "hvg50": ["A", "C"], **head}
    model, _ = made(
        tmp_path, "full", adapter=AdapterSpec("bone", 4), translate=(96, 16), activation="relu",
        features="image+peka", rotations=4, views=(1.0, 2.0), context_um=300.0, tensors=carried(112),
        pcc_split="section s3 left out", **scores,
    )  # fmt: skip
    spec = model.spec.model_copy(update={"training": training, "description": "A test model.", "licence": "CC0"})
    return dataclasses.replace(model, spec=spec)


def section(card, title):
    return re.search(rf"## {title}\n(.*?)(\n## |\Z)", card, re.S).group(1)


def test_a_card_is_written_into_the_bundles_folder(tmp_path):
    model, _ = made(tmp_path)
    assert (tmp_path / "made" / "README.md").read_text("utf-8") == model_card(model)
    # and the model does not depend on it
    (tmp_path / "made" / "README.md").unlink()
    assert read_bundle(tmp_path / "made").digest == model.digest


def test_the_demo_has_an_honest_card():
    card = model_card(load_model("demo"))
    assert "Research use only. Not for diagnosis." in card
    assert "One patient only" in card
    assert "| C2 | C |" in card
    assert "| encoder | dinov2-vits14-demo, sha256 3a01be8a58b2; Apache-2.0 |" in card
    assert "4 passes of the encoder a tile" in card
    table = section(card, "How well it predicts")
    model = load_model("demo")
    assert f"| 50 most variable genes | {model.spec.training['summary']['pcc_hvg50']['mean']:.3f} " in table
    assert f"| all {len(model.head.genes)} genes | {np.nanmean(model.pcc):.3f} " in table
    best = model.head.genes[int(np.nanargmax(model.pcc))]
    assert section(card, "Genes").index(best) < section(card, "Genes").index("### Worst")
    assert re.search(r"### Often asked for\n\n.*\| ERBB2 \| 0\.\d{3}", card, re.S)


def test_a_card_says_all_that_the_bundle_knows(tmp_path):
    card = model_card(full(tmp_path))
    what = section(card, "What it is")
    assert "| adapter | bone, rank 4, on `" in what
    assert "(MLP 96 → 16, ReLU), and its mean over the neighbours within 300 µm" in what
    assert "mean over 4 quarter turns; at 2 widths: 64 µm, 128 µm" in what
    assert "8 passes of the encoder a tile, so a map takes about 8 times as long" in what
    data = section(card, "Data")
    assert "2 patients" in data
    assert "| s3 | p2 | held out | 170 |" in data
    assert "doi:10.1234/x" in data
    well = section(card, "How well it predicts")
    assert "Split: section s3 left out." in well
    assert "| 2 most variable genes | 0.410 ± 0.020 (95 %: 0.370 to 0.450) | 0.800 | 51% |" in well
    # of all genes nothing is stated: means of what is known, the share over the one gene that has both
    assert "| all 3 genes | 0.250 | 0.650 | 75% |" in well
    assert "| colour alone | 0.310 | yes, by 0.100 |" in well
    assert "| position alone | 0.452 | **no**, it is better by 0.042 |" in well
    assert "| training mean | none | it has none to compare with |" in well
    genes = section(card, "Genes")
    assert "Of 3 genes 2 were measured" in genes
    assert "| A | 0.600 | 0.800 |" in genes
    assert "| C | -0.100 | unknown |" in genes
    assert "| B |" not in genes
    made_how = section(card, "How it was made")
    for words in ("`napari-peka train sections.csv -o model`", "Seeds: [0, 1, 2]", "torch 2.13.0", '"lr": 0.0003'):
        assert words in made_how
    assert "within 300 µm" in section(card, "Use")


def test_what_is_not_known_is_said(tmp_path):
    card = model_card(made(tmp_path)[0])
    for words in (
        "Nobody says on what it was trained.", "nobody says on what the figures below were measured",
        "| 50 most variable genes | unknown | unknown | unknown |", "Nobody says whether it beats simple baselines.",
        "Of 3 genes 0 were measured", "| licence | not stated |", "no hash recorded",
    ):  # fmt: skip
        assert words in card
    assert "### Best" not in card
    assert "nan" not in card.casefold().replace("nanog", "")


def test_smoothed_scores_are_flagged(tmp_path):
    assert "averaged over neighbouring spots, which flatters" in model_card(full(tmp_path, neighbour_smoothing=True))
    assert "flatters" not in model_card(full(tmp_path))


def test_words_of_a_bundle_stay_words(tmp_path):
    training = {
        "data": "# a heading\n| a | table |\n```\n<script>alert(1)</script>",
        "sections": [{"name": "a|b\n# c", "patient": 3}, "no section", {}],
        "settings": {"x": "```\n# out of the block"},
        "summary": "none",
        "baselines": {"colour": 0.2, "odd": "words", "list": [1]},
        "versions": ["1"],
        "seeds": 7,
    }
    card = model_card(full(tmp_path, training))
    assert "# a heading" not in card.splitlines()
    assert "# c" not in card.splitlines()
    assert "a\\|b # c" in card
    assert "<script>" not in card
    assert card.count("```") == 2
    assert "| colour alone | 0.200 |" in card
    assert "One patient only" in card


@pytest.mark.parametrize("training", [{}, {"sections": "x", "summary": [1], "baselines": 4, "settings": "s"}])
def test_a_record_of_any_make_has_a_card(training, tmp_path):
    assert "## How it was made" in model_card(full(tmp_path, training))


def test_a_card_does_not_change_a_zip(tmp_path):
    model, _ = made(tmp_path)
    path = shutil.make_archive(str(tmp_path / "m"), "zip", tmp_path, "made")
    assert read_bundle(Path(path)).digest == model.digest
