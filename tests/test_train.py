"""The walk from paired sections to a model and its report, on sections whose answer is known."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("lightning_fabric")
pytest.importorskip("sklearn")

from napari_peka.models._torchvision import ensure_torchvision

ensure_torchvision()
from timm.layers import PatchDropout, use_fused_attn

from napari_peka.config import EvaluateConfig, PredictConfig, TrainConfig
from napari_peka.core.errors import OutputMismatch, SectionError, SettingError, StoreError, TrainingError, UnknownName
from napari_peka.core.progress import Cancelled, JobProgress
from napari_peka.io.sample import sample_sections
from napari_peka.io.section import read_sections
from napari_peka.models.bundle import read_bundle
from napari_peka.workflows.evaluate import evaluate
from napari_peka.workflows.predict import predict
from napari_peka.workflows.train import train

FAST = {"encoder": "tiny-random", "mpp": 1.0, "epochs": 2, "precision": "fp32", "clusters": 5, "batch_size": 16}


@pytest.fixture(autouse=True, scope="module")
def _quick_classifier():
    """A classifier of a few steps: these tests ask how the parts fit together, not how well it tells clusters apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("napari_peka.training.pseudo_labels.MIN_STEPS", 100)
        yield


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return sample_sections(tmp_path_factory.mktemp("paired"), patients=2, sections=1, mpp=1.0, spots=(12, 12))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("tiles")


@pytest.fixture
def sections(manifest):
    opened = read_sections(manifest)
    yield opened
    for s in opened:
        s.close()


@pytest.fixture(scope="module")
def trained(manifest, cache, tmp_path_factory):
    """A model with every option, patients left out in turn."""
    output = tmp_path_factory.mktemp("models") / "everything"
    opened = read_sections(manifest)
    config = TrainConfig(**FAST, hold_out="patient", features="image+peka", context_um=150, rotations=4)
    model = train(opened, config, output=output, cache=cache)
    for s in opened:
        s.close()
    return model


def test_the_bundle_says_all_of_itself(trained):
    spec = trained.spec
    assert spec.head.pcc_split.startswith("2 sections of 2 patients, each patient left out in turn")
    assert spec.adapter.kind == "bone"
    assert spec.preprocessing.rotations == 4
    assert spec.head.context_um == 150
    assert len(trained.hvg50) >= 50
    for values in (trained.pcc, trained.attainable_pcc, trained.residual_q90):
        assert np.isfinite(values).mean() > 0.9
    assert set(trained.baselines) == {"train_mean", "colour", "position"}
    assert trained.reference
    assert {"reference.colour", "reference.focus", "reference.macenko"} <= set(trained.carried)
    assert [s["part"] for s in trained.trained_on] == ["train", "train"]
    assert all(s["fingerprint"] for s in trained.trained_on)
    assert spec.training["settings"]["epochs"] == 2
    assert spec.training["learnt"]["pseudo_labels"]
    assert "napari-peka" in spec.training["versions"]


def test_it_says_how_far_to_believe_it(trained, sections):
    """Its intervals were tried on the patient that had no part in them; genes without a pattern are not claimed."""
    head = trained.head
    assert trained.intervals.known.mean() > 0.9
    low, high = trained.intervals.ends(0.9)
    assert (low < high).all()
    covered = trained.spec.training["summary"]["coverage_90"]
    assert 0.8 < covered < 1
    assert (head.pcc_low <= head.pcc).all()
    assert (head.pcc <= head.pcc_high).all()
    flat = np.array([g.startswith("FLAT") for g in head.genes])
    assert head.predictable[flat].mean() < 0.1
    assert not trained.image_reference, "nothing was narrowed"


def test_a_narrowed_model_knows_what_its_encoder_saw(sections, cache, tmp_path):
    config = TrainConfig(
        **FAST | {"adapter": "none"}, hold_out="patient", target_rank=4, blocks=[0, 1], pooling="mean+std"
    )
    model = train(sections, config, output=tmp_path / "m", cache=cache)
    assert model.spec.head.features == "peka"
    assert model.image_reference["reference.mean"].shape == (model.spec.translate[0],)
    with sections[0].slide as slide:
        done = predict(slide, model, config=PredictConfig(precision="fp32", device="cpu"))
    assert done.embeddings.shape[1] == model.head.embedding_dims
    assert (done.ood < 99).mean() > 0.8, "it was trained here"
    lower, upper = done.interval(done.genes[0])
    values = done.values(done.genes[0])
    assert (lower < upper).all()
    assert ((lower <= values) & (values <= upper)).mean() > 0.9


def test_the_report_lies_inside(trained):
    from pathlib import Path

    folder = Path(trained.source)
    report = json.loads((folder / "report" / "report.json").read_text())
    assert report["summary"]["pcc_hvg50"]["mean"] == pytest.approx(
        trained.spec.training["summary"]["pcc_hvg50"]["mean"]
    )
    assert {c["fold"] for c in report["curves"]} == {"P1", "P2", "all spots"}
    assert (folder / "report" / "genes.csv").exists()
    assert "Research use only" in (folder / "report" / "report.html").read_text()
    assert "Research use only" in (folder / "README.md").read_text()
    assert not folder.with_name(folder.name + ".partial").exists()


def test_what_follows_a_visible_pattern_is_learnt_and_the_rest_is_not(sections, cache, tmp_path):
    config = TrainConfig(
        **FAST | {"adapter": "none"}, hold_out="patient", rotations=4, blocks=[0, 1], pooling="mean+std"
    )
    report = _report(train(sections, config, output=tmp_path / "m", cache=cache))
    genes = report["genes"]
    visible = ~genes["gene"].str.startswith("FLAT")
    assert genes[visible]["share_of_attainable"].mean() > 0.9
    # not nothing: where the visible ones rise, the share of all others in ten thousand counts falls
    assert abs(genes[~visible]["pcc"].mean()) < 0.25


@pytest.mark.parametrize(
    ("adapter", "hold_out"),
    [("none", "patient"), ("none", "section"), ("none", "block"), ("none", "P1S1"), ("bone", "section")]
    + [pytest.param("bone", hold_out, marks=pytest.mark.slow) for hold_out in ("patient", "block", "P1S1")],
)
def test_from_shuffled_pairs_nothing_is_learnt(tmp_path, hold_out, adapter):
    """A leak of held-out spots into training would show here."""
    opened = read_sections(
        sample_sections(tmp_path / "s", patients=2, sections=1, mpp=1.0, spots=(12, 12), shuffle=True)
    )
    report = _report(
        train(opened, TrainConfig(**FAST | {"adapter": adapter}, hold_out=hold_out), output=tmp_path / "m")
    )
    for s in opened:
        s.close()
    # a hundred spots and three programs: chance alone gives 0.06 (one standard deviation), a leak would give 0.5
    assert abs(report["summary"]["pcc_all"]["mean"]) < 0.2
    assert abs(report["summary"]["pcc_hvg50"]["mean"]) < 0.2


def test_a_model_predicts_a_slide_as_it_predicts_spots(trained, sections, cache):
    """The features that the head was fitted on are those of prediction: spots and tiles at the same places agree."""
    from napari_peka.config import PredictConfig
    from napari_peka.workflows.predict import predict

    report = evaluate(trained, sections[:1], EvaluateConfig(precision="fp32"), cache=cache)
    spots = report.measured[0]
    map_ = predict(sections[0].slide, trained, config=PredictConfig(precision="fp32", stride_px=16))
    i = list(report.genes["gene"]).index("NUCLEI1")
    centre = map_.tiles.centre_yx * np.array(sections[0].slide.mpp)
    distance = np.linalg.norm(centre[:, None] - spots.centre_um[None], axis=2)
    near = distance.argmin(0)
    close = distance.min(0) < 10
    assert close.sum() > 20
    r = np.corrcoef(map_.values("NUCLEI1")[near[close]], spots.predicted[close, i])[0, 1]
    assert r > 0.95


class StopsIn(JobProgress):
    def __init__(self, stage, done=1):
        super().__init__()
        self.at, self.number = stage, done

    def changed(self):
        state = self.snapshot()
        if state.stage.startswith(self.at) and state.done >= self.number:
            self.cancel()


def test_killed_in_the_second_training_it_goes_on_and_ends_the_same(trained, sections, cache, tmp_path, monkeypatch):
    config = TrainConfig(**FAST, hold_out="patient", features="image+peka", context_um=150, rotations=4)
    output = tmp_path / "everything"

    class StopsInSecond(JobProgress):
        trainings = 0

        def stage(self, name, total=None, done=0):
            self.trainings += name.startswith("training")
            super().stage(name, total, done)

        def changed(self):
            if self.trainings == 2 and self.snapshot().done > 120:
                self.cancel()

    with pytest.raises(Cancelled):
        train(sections, config, output=output, cache=cache, progress=StopsInSecond())
    assert not output.exists()
    with pytest.raises(OutputMismatch, match=r"holds unfinished work; go on with it \(--resume\)"):
        train(sections, config, output=output, cache=cache)
    with pytest.raises(OutputMismatch, match=r"settings.lr was 0.0003, now 0.1"):
        train(sections, config.model_copy(update={"lr": 0.1}), output=output, cache=cache, resume=True)
    model = train(sections, config, output=output, cache=cache, resume=True)
    assert model.digest == trained.digest
    assert _report(model)["summary"] == _report(trained)["summary"]


def test_an_output_that_is_there_is_not_overwritten_unasked(trained, sections, cache, tmp_path):
    output = tmp_path / "m"
    shutil.copytree(trained.source, output)
    with pytest.raises(OutputMismatch, match="there already"):
        train(sections, TrainConfig(**FAST), output=output, cache=cache)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.docx").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(StoreError, match="holds other files"):
            train(sections, TrainConfig(**FAST), output=other, cache=cache, overwrite=overwrite)
    config = TrainConfig(**FAST | {"adapter": "none"}, hold_out="P2S1")
    assert train(sections, config, output=output, cache=cache, overwrite=True).spec.adapter.kind == "none"


def test_sections_named_to_be_held_out_stay_out(sections, cache, tmp_path):
    model = train(
        sections, TrainConfig(**FAST | {"adapter": "none"}, hold_out="P2S1"), output=tmp_path / "m", cache=cache
    )
    assert {s["name"]: s["part"] for s in model.trained_on} == {"P1S1": "train", "P2S1": "held out"}
    report = evaluate(model, sections[1:], cache=cache)
    assert not report.split.startswith("TRAINED ON")
    assert _report(model)["summary"]["pcc_hvg50"]["mean"] == pytest.approx(
        report.summary["pcc_hvg50"]["mean"], abs=0.02
    )
    seen = evaluate(model, sections[:1], cache=cache)
    assert seen.split.startswith("TRAINED ON")
    assert "worth nothing" in seen.warnings[0]


def test_a_manifest_says_what_is_held_out(sections, cache, tmp_path):
    sections[0].split = "test"
    model = train(sections, TrainConfig(**FAST | {"adapter": "none"}), output=tmp_path / "m", cache=cache)
    assert model.spec.head.pcc_split == "2 sections of 2 patients, P1S1 left out"


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"hold_out": "P9"}, UnknownName, "no section or patient 'P9'"),
        ({"genes": ["NUCLEI1", "NUCLEI999"]}, UnknownName, "NUCLEI999"),
        ({"teacher": "pcb"}, SettingError, "no teacher 'pcb'"),
        ({"features": "peka", "adapter": "none"}, SettingError, "needs a trained translation"),
        ({"terms": {"cosin": 1}}, SettingError, "did you mean cosine"),
        ({"encoder": "UNY"}, UnknownName, "did you mean UNI"),
        ({"blocks": [7]}, SettingError, "blocks 0 to 1"),
        ({"mpp": 1.0, "tile_px": 65}, SettingError, "multiple of its patch size"),
        ({"min_detected": 1.0, "genes": None, "min_counts": 10**9}, Exception, "no spot is left"),
        ({"rank": 1000}, SettingError, "rank"),
        ({"terms": {"mse": 3e38}}, TrainingError, r"diverged in epoch 1, batch \d: the loss is (nan|inf)"),
    ],
)
def test_what_cannot_be_trained_is_said_in_a_sentence(sections, cache, tmp_path, settings, error, says):
    with pytest.raises(error, match=says) as caught:
        train(sections, TrainConfig(**{**FAST, "hold_out": "P2S1", **settings}), output=tmp_path / "m", cache=cache)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m").exists()


def test_one_patient_cannot_be_left_out(sections, cache, tmp_path):
    for s in sections:
        s.patient_id = "only"
    with pytest.raises(SettingError, match="all spots are of one patient"):
        train(sections, TrainConfig(**FAST, hold_out="patient"), output=tmp_path / "m", cache=cache)


def test_an_unnamed_patient_is_no_patient(manifest, cache, tmp_path):
    unnamed = read_sections(sorted(manifest.parent.glob("*/outs")))
    try:
        with pytest.raises(SettingError, match=r"nobody says whose P1S1, P2S1 are.*column patient"):
            train(unnamed, TrainConfig(**FAST, hold_out="patient"), output=tmp_path / "m", cache=cache)
        frozen = TrainConfig(**FAST | {"adapter": "none"}, hold_out="P1S1")
        model = train(unnamed, frozen, output=tmp_path / "m", cache=cache)
        assert "patients that nobody named" in model.spec.head.pcc_split
        assert "patients that nobody named" in model.spec.description
        said = evaluate(model, unnamed[0], cache=cache).split
        assert said.startswith("sections that the model never saw; whether it knows their patients is not known")
    finally:
        for s in unnamed:
            s.close()


def test_a_patient_may_be_named_as_its_section_is(sections, cache, tmp_path):
    for s in sections:
        s.patient_id = s.section_id
    frozen = TrainConfig(**FAST | {"adapter": "none"}, hold_out="patient")
    model = train(sections, frozen, output=tmp_path / "m", cache=cache)
    assert model.spec.head.pcc_split.startswith("2 sections of 2 patients")


def test_names_in_place_of_sections_are_said(trained, manifest, tmp_path):
    with pytest.raises(SectionError, match="open it first"):
        train([str(manifest)], output=tmp_path / "m")
    with pytest.raises(SectionError, match="open it first"):
        evaluate(trained, manifest)


def test_the_curves_are_left_as_a_table_and_for_tensorboard(sections, cache, tmp_path):
    pytest.importorskip("tensorboard")
    import pandas as pd

    train(sections, TrainConfig(**FAST, tensorboard=True, hold_out="P2S1"), output=tmp_path / "m", cache=cache)
    curves = pd.read_csv(tmp_path / "m" / "report" / "curves.csv")
    assert list(curves["epoch"]) == [1, 2]
    assert curves["kept"].sum() == 1
    assert {"train_loss", "val_loss", "val_pcc", "lr", "images_per_second", "train_kd", "train_ce"} <= set(curves)
    assert list((tmp_path / "m" / "report" / "tensorboard" / "P2S1").glob("events*"))


def test_an_mlp_head_is_stored_and_predicts_the_same(sections, cache, tmp_path):
    config = TrainConfig(**FAST | {"adapter": "none"}, head="mlp", hold_out="P2S1")
    model = train(sections, config, output=tmp_path / "m", cache=cache)
    assert model.spec.head.features == "peka"
    report = evaluate(model, sections[1:], EvaluateConfig(precision="fp32"), cache=cache)
    assert _report(model)["summary"]["pcc_hvg50"]["mean"] == pytest.approx(
        report.summary["pcc_hvg50"]["mean"], abs=0.02
    )
    assert report.summary["pcc_hvg50"]["mean"] > 0.3


def test_smoothed_neighbours_are_flagged_everywhere(sections, cache, tmp_path):
    config = TrainConfig(**FAST | {"adapter": "none"}, smooth_um=150, hold_out="P2S1")
    model = train(sections, config, output=tmp_path / "m", cache=cache)
    assert model.spec.head.neighbour_smoothing
    assert any("flattered" in w for w in _report(model)["warnings"])
    assert "flatters" in (tmp_path / "m" / "README.md").read_text()


def _report(model):
    from pathlib import Path

    import pandas as pd

    folder = Path(model.source) / "report"
    return json.loads((folder / "report.json").read_text()) | {"genes": pd.read_csv(folder / "genes.csv")}


def test_the_model_reads_again_as_it_was(trained):
    from pathlib import Path

    assert read_bundle(Path(trained.source)).digest == trained.digest


@pytest.mark.parametrize("last_blocks", [None, 1])
def test_what_makes_training_lighter_is_gone_when_it_predicts(sections, cache, tmp_path, last_blocks):
    from napari_peka.training import learn as module

    seen = []
    with pytest.MonkeyPatch.context() as patch:
        merged = module.adapters.merge_adapter
        patch.setattr(module.adapters, "merge_adapter", lambda encoder: seen.append(encoder.trunk) or merged(encoder))
        lighter = {"patch_dropout": 0.5, "checkpoint_gradients": True, "last_blocks": last_blocks, "precision": "bf16"}
        train(sections, TrainConfig(**FAST | lighter, hold_out="P1"), output=tmp_path / "m", cache=cache)
    (trunk,) = seen
    assert not trunk.grad_checkpointing
    assert not any(isinstance(part, PatchDropout) for part in trunk.modules())
    assert all(block.attn.fused_attn == use_fused_attn() for block in trunk.blocks)
