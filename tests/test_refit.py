"""A head fitted anew on measured spots: what changes, what stays, and what it costs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning_fabric")
pytest.importorskip("sklearn")

import napari_peka as peka
from napari_peka.config import PredictConfig, RefitConfig, TrainConfig
from napari_peka.core.errors import OutputMismatch, SectionError, SettingError
from napari_peka.core.head import MEASURED
from napari_peka.core.progress import Cancelled, JobProgress
from napari_peka.io.sample import sample_sections
from napari_peka.models.bundle import read_bundle, save_bundle
from napari_peka.workflows.evaluate import evaluate
from napari_peka.workflows.predict import predict
from napari_peka.workflows.refit import refit, with_model
from napari_peka.workflows.train import train

FP32 = RefitConfig(precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return sample_sections(tmp_path_factory.mktemp("paired"), patients=2, sections=1, mpp=1.0, spots=(14, 14))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def sections(manifest):
    opened = peka.read_sections(manifest)
    yield opened
    for s in opened:
        s.close()


@pytest.fixture(scope="module")
def model(sections, cache, tmp_path_factory):
    """A model of the first patient, which reads neighbours as well."""
    config = TrainConfig(
        encoder="tiny-random", adapter="none", mpp=1.0, blocks=[0, 1], pooling="mean+std", context_um=150,
        precision="fp32", device="cpu", target_rank=None,
    )  # fmt: skip
    return train(sections[:1], config, output=tmp_path_factory.mktemp("models") / "first", cache=cache)


@pytest.fixture(scope="module")
def wrong(model, tmp_path_factory):
    """The same model, but it says of every gene the opposite, and knows half of them."""
    n = len(model.head.genes) // 2
    head = model.spec.head.model_copy(
        update={"genes": list(model.head.genes[:n]), "gene_ids": [], "hvg50": [], **{name: [] for name in MEASURED}}
    )
    spec = model.spec.model_copy(update={"name": "wrong", "head": head, "tensors_sha256": None})
    tensors = {"head.weights": -model.head.weights[:, :n], "head.bias": model.head.bias[:n] + 3}
    return save_bundle(tmp_path_factory.mktemp("models") / "wrong", spec, tensors)


class Stages(JobProgress):
    """Remembers what was done; stops in the stage of a name."""

    def __init__(self, stop=""):
        super().__init__()
        self.seen, self._stop = [], stop

    def stage(self, name, total=None, *, done=0):
        self.seen.append(name)
        super().stage(name, total, done=done)

    def advance(self, n=1, **metrics):
        if self._stop and self._stop in self.seen[-1]:
            raise Cancelled
        super().advance(n, **metrics)


def test_a_model_that_is_wrong_about_a_slide_is_set_right_on_spots_that_it_did_not_see(
    wrong, sections, cache, tmp_path
):
    made = refit(wrong, sections[1:], FP32, output=tmp_path / "m", cache=cache)
    report = json.loads((tmp_path / "m" / "report" / "report.json").read_text())
    visible = [g for g in made.head.genes if not g.startswith("FLAT")]
    assert report["baselines"]["before"]["pcc_hvg50"]["mean"] < 0
    assert np.nanmean([p for g, p in zip(made.head.genes, made.pcc) if g in visible]) > 0.6
    assert set(visible) > set(wrong.head.genes)  # others are learnt as well
    # on the spots themselves, and as the stored bundle says it
    again = evaluate(read_bundle(tmp_path / "m"), sections[1:], cache=cache)
    assert again.summary["pcc_hvg50"]["mean"] > 0.6
    assert again.split.startswith("TRAINED ON")


def test_a_model_that_is_right_stays_nearly_as_it_was(model, sections, cache, tmp_path):
    few = RefitConfig(precision="fp32", device="cpu", genes=list(model.head.genes[:40]))
    refit(model, sections[1:], few, output=tmp_path / "m", cache=cache)
    refit(model, sections[1:], few.model_copy(update={"start": "nothing"}), output=tmp_path / "n", cache=cache)
    after, forgot = (json.loads((tmp_path / k / "report" / "report.json").read_text()) for k in "mn")
    before = after["baselines"]["before"]["pcc_hvg50"]["mean"]
    assert after["summary"]["pcc_hvg50"]["mean"] > before - 0.02
    assert after["summary"]["mse_hvg50"]["mean"] <= after["baselines"]["before"]["mse_hvg50"]["mean"]
    assert forgot["summary"]["pcc_hvg50"]["mean"] < after["summary"]["pcc_hvg50"]["mean"]


def test_both_heads_are_judged_by_the_same_genes(model, sections, cache, tmp_path):
    made = refit(model, sections[1:], FP32, output=tmp_path / "m", cache=cache)
    report = json.loads((tmp_path / "m" / "report" / "report.json").read_text())
    assert set(report["hvg50"]) == set(model.hvg50) == set(made.hvg50)
    assert len(model.hvg50) == 50
    assert "| the model before |" in (tmp_path / "m" / "README.md").read_text()
    assert "% of what these spots say beyond" in made.spec.description


def test_shuffled_spots_teach_nothing(model, sections, cache, tmp_path):
    shuffled = peka.read_section(sections[1].path)
    try:
        order = np.random.default_rng(0).permutation(len(shuffled.adata))
        shuffled.adata.X = shuffled.adata.X[order]
        config = FP32.model_copy(update={"start": "nothing"})
        refit(model, [shuffled], config, output=tmp_path / "m", cache=cache)
    finally:
        shuffled.close()
    summary = json.loads((tmp_path / "m" / "report" / "report.json").read_text())["summary"]
    assert abs(summary["pcc_hvg50"]["mean"]) < 0.1


def test_what_it_saw_is_kept_and_the_encoder_not_asked_again(model, sections, tmp_path, monkeypatch):
    first, second = Stages(), Stages()
    a = refit(model, sections[1:], FP32, output=tmp_path / "a", cache=tmp_path / "c", progress=first)
    assert "embedding spots" in first.seen
    monkeypatch.setattr("napari_peka.infer.forward.Forward.module", None)  # whoever asks it fails
    b = refit(model, sections[1:], FP32, output=tmp_path / "b", cache=tmp_path / "c", progress=second)
    assert "embedding spots" not in second.seen
    assert a.digest == b.digest
    assert a.embedding_digest == model.embedding_digest != a.digest
    (kept,) = (tmp_path / "c" / "embeddings").iterdir()
    kept.write_bytes(kept.read_bytes()[:-9])
    monkeypatch.undo()
    c = refit(model, sections[1:], FP32, output=tmp_path / "c2", cache=tmp_path / "c")
    assert c.digest == a.digest


def test_a_stored_map_shows_the_new_head_without_inference(model, wrong, sections, cache, tmp_path, monkeypatch):
    slide = sections[1].slide
    config = PredictConfig(precision="fp32", device="cpu", find_tissue=False)
    made = refit(wrong, sections[1:], FP32, output=tmp_path / "m", cache=cache)
    gene = wrong.head.genes[0]
    predict(slide, wrong, output=tmp_path / "s.zarr", config=config)
    whole = predict(slide, made, output=tmp_path / "t.zarr", config=config)
    monkeypatch.setattr("napari_peka.infer.forward.Forward.module", None)
    shown = with_model(peka.read_prediction(tmp_path / "s.zarr"), made)
    np.testing.assert_array_equal(shown.values(gene), whole.values(gene))
    assert shown.genes == made.head.genes
    assert shown.record["model"]["name"] == "m"
    # and the file itself may be given the new head
    with pytest.raises(OutputMismatch, match=r"another gene head \(wrong\) of the same encoder.*takes a moment"):
        predict(slide, made, output=tmp_path / "s.zarr", config=config)
    replaced = predict(slide, made, output=tmp_path / "s.zarr", config=config, overwrite=True)
    assert replaced.record["run"]["resumed_tiles"] == len(replaced.tiles)
    np.testing.assert_array_equal(peka.read_prediction(tmp_path / "s.zarr").values(gene), whole.values(gene))


def test_a_map_of_another_encoder_is_refused(model, tiny_model, tissue_tiff, tmp_path):
    with peka.open_slide(tissue_tiff) as slide:
        made = predict(slide, tiny_model, output=tmp_path / "s.zarr")
    with pytest.raises(OutputMismatch, match="sees other things in a tile"):
        with_model(made, model)


def test_spots_that_the_model_was_trained_on_are_said_to_flatter(model, sections, cache, tmp_path):
    progress = JobProgress()
    made = refit(model, sections[:1], FP32, output=tmp_path / "m", cache=cache, progress=progress)
    report = json.loads((tmp_path / "m" / "report" / "report.json").read_text())
    assert made.spec.head.pcc_split.startswith("TRAINED ON")
    assert any("all figures are flattered" in w for w in report["warnings"])
    assert "These scores are flattered" in (tmp_path / "m" / "report" / "report.html").read_text()


def test_the_new_bundle_tells_where_it_comes_from(model, sections, cache, tmp_path):
    made = refit(model, sections[1:], FP32, output=tmp_path / "m", cache=cache)
    assert made.spec.training["refitted_from"] == {"name": model.name, "digest": model.digest}
    assert [t["name"] for t in made.trained_on] == [s.section_id for s in sections]
    assert 0 <= made.spec.training["learnt"]["head"]["share_of_correction"] <= 1
    assert made.spec.training["settings"]["start"] == "model"
    assert "refitted" in (tmp_path / "m" / "README.md").read_text()
    assert np.isfinite(made.residual_q90).mean() > 0.9
    assert made.reference
    # a refit of a refit
    twice = refit(made, sections[1:], FP32, output=tmp_path / "n", cache=cache)
    assert twice.embedding_digest == model.embedding_digest


def test_a_stop_leaves_nothing_and_the_next_call_begins_anew(model, sections, cache, tmp_path):
    with pytest.raises(Cancelled):
        refit(model, sections[1:], FP32, output=tmp_path / "m", cache=cache, progress=Stages("refitting"))
    assert [p for p in tmp_path.iterdir() if not p.name.startswith(".")] == []
    other = FP32.model_copy(update={"seed": 1})
    (tmp_path / "m.partial").mkdir()  # killed: nobody tidied
    (tmp_path / "m.partial" / "run.json").write_text('{"job": "refit"}')
    assert isinstance(refit(model, sections[1:], other, output=tmp_path / "m", cache=cache), type(model))
    with pytest.raises(OutputMismatch, match="overwrite"):
        refit(model, sections[1:], other, output=tmp_path / "m", cache=cache)
    (tmp_path / "n.partial").mkdir()
    (tmp_path / "n.partial" / "run.json").write_text('{"settings": {"epochs": 100}}')  # days of somebody's training
    (tmp_path / "n.partial" / "checkpoint").write_text("")
    with pytest.raises(OutputMismatch, match="was begun otherwise"):
        refit(model, sections[1:], other, output=tmp_path / "n", cache=cache)
    assert (tmp_path / "n.partial" / "checkpoint").exists()


def test_bad_input_is_one_sentence(model, tiny_model, sections, cache, tmp_path):
    with pytest.raises(SectionError, match="none of the genes that tiny predicts"):
        refit(tiny_model, sections[1:], FP32, output=tmp_path / "m", cache=cache)
    with pytest.raises(SettingError, match="one section"):
        refit(model, sections[1:], RefitConfig(hold_out="section"), output=tmp_path / "m", cache=cache)
    assert not (tmp_path / "m").exists()
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OSError, match="is a file"):
        refit(model, sections[1:], FP32, output=file / "m", cache=cache)
    assert Path(model.source).exists()
