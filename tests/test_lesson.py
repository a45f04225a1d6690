"""Watching a training: what is shown, that it decides nothing, how it is ended, and how long it will take."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

pytest.importorskip("lightning_fabric")
pytest.importorskip("sklearn")

from napari_peka.config import TrainConfig
from napari_peka.core.child import run_in_child
from napari_peka.core.errors import SectionError
from napari_peka.core.progress import JobProgress
from napari_peka.io.sample import sample_sections
from napari_peka.io.section import read_sections
from napari_peka.io.sections.choose import find_sections
from napari_peka.workflows.lesson import (
    Asked,
    Extent,
    Lesson,
    Speed,
    extent_of,
    give_lesson,
    measure_speed,
    seconds_needed,
)
from napari_peka.workflows.train import train
from napari_peka.workflows.watch import Glance, Part, pcc_by_section

FAST = {"encoder": "tiny-random", "mpp": 1.0, "epochs": 2, "precision": "fp32", "clusters": 5, "batch_size": 16}


@pytest.fixture(autouse=True, scope="module")
def _quick_classifier():
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


class Looks:
    """Keeps what it sees."""

    def __init__(self, *genes):
        self.genes, self.parts, self.glances = genes, [], []

    def begins(self, part):
        self.parts.append(part)

    def sees(self, glance):
        assert self.parts[-1].number == glance.part
        self.glances.append(glance)


def test_what_is_seen_is_of_the_left_out_spots(sections, cache, tmp_path):
    looks = Looks("FLAT1", "unknown")
    train(sections, TrainConfig(**FAST, hold_out="section"), output=tmp_path / "m", cache=cache, watcher=looks)
    assert [(p.number, p.of) for p in looks.parts] == [(1, 3), (2, 3), (3, 3)]
    names = [s.section_id for s in sections]
    for part, name in zip(looks.parts, names):
        assert part.name == name
        assert set(part.section) == {name}
        own = next(s for s in sections if s.section_id == name)
        np.testing.assert_allclose(part.centre_um, own.centre_um)
        assert "FLAT1" in part.genes
        assert "unknown" not in part.genes
        assert part.measured.shape == (len(part.section), len(part.genes))
        assert 0.2 < part.ceiling <= 1
    last = looks.parts[-1]
    assert set(last.section) == set(names)  # on all spots some check the training
    assert np.isnan(last.ceiling)
    assert [g.epoch for g in looks.glances] == [0, 1, 2] * 3
    for g in looks.glances:
        part = looks.parts[g.part - 1]
        assert g.predicted.shape == part.measured.shape
        assert g.pcc.shape == (len(part.genes),)
        assert ("train_loss" in g.curve) == bool(g.epoch)
        np.testing.assert_allclose(g.held_out_pcc, np.nanmean(g.pcc[: part.judged]), rtol=1e-5)
        pickle.loads(pickle.dumps((part, g)))


@pytest.mark.parametrize("more", [{}, {"last_blocks": 1, "cached_views": 2}])
def test_looking_on_changes_nothing(sections, cache, tmp_path, more):
    config = TrainConfig(**FAST, **more, hold_out=sections[0].section_id)
    alone = train(sections, config, output=tmp_path / "a", cache=cache)
    seen = train(sections, config, output=tmp_path / "b", cache=cache, watcher=Looks())
    a, b = (json.loads((tmp_path / x / "report" / "report.json").read_text()) for x in "ab")
    assert a["summary"] == b["summary"]
    np.testing.assert_array_equal(alone.head.weights, seen.head.weights)


def test_the_untrained_encoder_is_judged_beside_it(sections, cache, tmp_path):
    config = TrainConfig(**FAST, hold_out="section")
    train(sections, config, output=tmp_path / "m", cache=cache, against_frozen=True)
    train(sections, config.model_copy(update={"adapter": "none"}), output=tmp_path / "f", cache=cache)
    trained, frozen = (json.loads((tmp_path / x / "report" / "report.json").read_text()) for x in "mf")
    beside = trained["summary"]["baselines"]["frozen"]["pcc_hvg50"]["mean"]
    assert beside == pytest.approx(frozen["summary"]["pcc_hvg50"]["mean"], abs=1e-6)
    assert "the encoder untrained" in (tmp_path / "m" / "report" / "report.html").read_text()


def test_what_follows_an_ended_training_is_as_long_also_after_an_interruption(sections, cache, tmp_path):
    class Stop(Exception):
        pass

    config = TrainConfig(**FAST | {"epochs": 4}, hold_out="section")
    heard = []

    def end_the_first(history, embeddings):
        heard.append(len(history.epochs))
        if len(heard) == 2:
            raise Stop
        return False if len(heard) == 1 else None

    with pytest.raises(Stop):
        train(sections, config, output=tmp_path / "m", cache=cache, on_epoch=end_the_first)
    train(sections, config, output=tmp_path / "m", cache=cache, resume=True)
    report = json.loads((tmp_path / "m" / "report" / "report.json").read_text())
    assert [c["epoch"] for c in report["curves"]] == [1, 1, 1]
    assert any("ended after 1 of 4 epochs" in w for w in report["warnings"])


def test_after_an_interruption_what_was_seen_is_shown_again(sections, cache, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def interrupt(history, embeddings):
        if len(history.epochs) == 2:
            raise Stop

    config, before, after = TrainConfig(**FAST, hold_out=sections[0].section_id), Looks(), Looks()
    with pytest.raises(Stop):
        train(sections, config, output=tmp_path / "m", cache=cache, on_epoch=interrupt, watcher=before)
    assert [g.epoch for g in before.glances] == [0, 1]
    monkeypatch.setattr("napari_peka.training.loop.Loop.look_before", None)  # it is known already
    model = train(sections, config, output=tmp_path / "m", cache=cache, resume=True, watcher=after)
    assert [g.epoch for g in after.glances] == [0, 1, 2]
    for was, now in zip(before.glances, after.glances):
        np.testing.assert_array_equal(was.predicted, now.predicted)
        assert was.curve == now.curve
        assert now.held_out_pcc == pytest.approx(was.held_out_pcc, abs=2e-3)
        assert now.val_pcc == pytest.approx(was.val_pcc, abs=1e-6)
    assert "trained on 1 section of" in model.spec.description, "one of the two was left out for good"
    assert not list((tmp_path / "m").rglob("look-*"))


def test_a_lesson_in_a_process_of_its_own(sections, tmp_path):
    asked = tuple(Asked(s.path, f"own-{i}", "somebody", "", {}) for i, s in enumerate(sections))
    lesson = Lesson(asked, TrainConfig(**FAST, hold_out="own-1"), tmp_path / "m", genes=("FLAT1",))
    events, progress = [], JobProgress()

    def ends_at_once(remote):
        remote.end_asked.set()

    path = run_in_child(give_lesson, lesson, progress=progress, on_event=events.append, on_start=ends_at_once)
    assert path == str(tmp_path / "m")
    assert isinstance(events[0], Part)
    assert [e.epoch for e in events[1:] if isinstance(e, Glance)] == [0, 1]  # ended after the first, and kept
    report = json.loads((tmp_path / "m" / "report" / "report.json").read_text())
    assert "patient somebody, own-1 left out" in report["split"]
    assert "frozen" in report["summary"]["baselines"]


def test_how_much_there_is_to_do():
    three = [("a", "P", 100, ""), ("b", "P", 200, ""), ("c", "Q", 300, "")]
    assert extent_of("section", three) == Extent(((500, 100), (400, 200), (300, 300), (600, 0)), 600)
    assert extent_of("patient", three) == Extent(((300, 300), (300, 300), (600, 0)), 600)
    assert extent_of("a, Q", three) == Extent(((200, 400),), 600)
    assert extent_of(None, [*three[:2], ("c", "Q", 300, "test")]) == Extent(((300, 300),), 600)
    assert extent_of(None, three[:1]) == extent_of("block", three[:1])
    assert len(extent_of("block", three).trainings) == 6


def test_more_work_takes_longer():
    config, speed = TrainConfig(), Speed(0.1, 0.02)
    one, all_ = (extent_of(h, [("a", "P", 500, ""), ("b", "P", 500, "")]) for h in ("a", "section"))
    low, high = seconds_needed(speed, one, config)
    assert 0 < low < high
    assert seconds_needed(speed, all_, config)[0] > 2 * low
    assert seconds_needed(speed, one, config.model_copy(update={"epochs": 50}))[0] > 2 * low
    assert seconds_needed(speed, one, config.model_copy(update={"adapter": "none"}))[0] < low


@pytest.mark.parametrize("adapter", ["bone", "none"])
def test_speed_is_measured(adapter):
    speed = measure_speed(TrainConfig(**FAST, adapter=adapter), progress=JobProgress())
    assert speed.look_s > 0
    assert (speed.learn_s > speed.look_s) == (adapter == "bone")


def test_correlations_are_taken_within_sections():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(40, 3))
    section = np.array(["a"] * 20 + ["b"] * 20)
    shifted = truth + (section == "b")[:, None] * 100.0
    np.testing.assert_allclose(pcc_by_section(truth, shifted, section), 1, atol=1e-5)
    assert np.isnan(pcc_by_section(truth[:2], truth[:2], section[:2])).all()


def test_sections_of_a_folder(manifest, tmp_path):
    outs = sorted(manifest.parent.glob("*/outs"))
    assert find_sections(outs[0]) == [outs[0]]
    assert find_sections(manifest.parent) == [manifest]  # it says which are meant
    for p in outs:
        (tmp_path / p.parent.name).symlink_to(p.parent)
    (tmp_path / "C9.tsv.gz").write_bytes(b"")
    (tmp_path / "C9_selection.tsv").write_text("")
    assert find_sections(tmp_path) == sorted([tmp_path / p.parent.name for p in outs] + [tmp_path / "C9.tsv.gz"])
    with pytest.raises(SectionError, match="holds no section"):
        find_sections(outs[0] / "spatial")
    with pytest.raises(SectionError, match="there is no"):
        find_sections(tmp_path / "nowhere")
