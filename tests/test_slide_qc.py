"""A slide is checked before and after its prediction: what is good is called so, what is not is told with its mend."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy import ndimage

import napari_peka as peka
from bundles import made
from napari_peka import cli
from napari_peka.core.errors import SettingError
from napari_peka.core.geometry import TileSpec, TileTable
from napari_peka.io.prediction import Prediction
from napari_peka.models.reference import reference_of
from napari_peka.training.baselines import colour_features
from napari_peka.trust import slide_qc
from napari_peka.trust.slide_qc import Line, SlideCheck, check_of
from napari_peka.trust.stain import stain_reference
from napari_peka.workflows.outcome import _tissue
from napari_peka.workflows.sampling import sampled_tiles
from napari_peka.workflows.slide_check import check_slide, effect_line

KEYS = {"resolution", "organ", "tissue", "stain", "focus", "reading"}


def reference(tiles) -> dict[str, np.ndarray]:
    """What a bundle keeps of training tiles, and of embeddings as the tiny encoder gives them."""
    embeddings = np.random.default_rng(0).normal(size=(200, 48)).astype(np.float32)
    return {
        **reference_of(embeddings), **slide_qc.colour_reference(colour_features(tiles)),
        **slide_qc.focus_reference(slide_qc.sharpness(tiles)), **stain_reference(tiles),
    }  # fmt: skip


@pytest.fixture(scope="module")
def tiles(sample, tiny_model) -> np.ndarray:
    """Tiles of the embedded slide, 64 px of 1 µm."""
    with peka.open_slide(sample) as slide:
        tissue = peka.find_tissue(slide)
        return sampled_tiles(slide, peka.plan_tiles(slide, tiny_model, tissue=tissue), tissue, n=120).tiles


@pytest.fixture(scope="module")
def model(tiles, tmp_path_factory):
    """A model whose training spots were those tiles."""
    bundle, _ = made(tmp_path_factory.mktemp("bundles"), tensors=reference(tiles))
    spec = bundle.spec.model_copy(update={"training": {"tissue": "breast"}})
    return dataclasses.replace(bundle, spec=spec)


def blurred(tiles, um: float, mpp: float = 1.0):
    return ndimage.gaussian_filter(tiles, (0, um / mpp, um / mpp, 0))


# -- the whole check ---------------------------------------------------------------------------------------------


def test_a_slide_like_the_training_data_is_good_in_all(sample, model):
    with peka.open_slide(sample) as slide:
        check = peka.check_slide(slide, model, config=peka.PredictConfig(organ="Breast"))
    assert {line.key for line in check.lines} == KEYS
    assert {line.state for line in check.lines} == {"good"}, check.lines
    assert check.verdict == "Nothing was found that speaks against this slide."


def test_what_is_not_known_is_said_and_is_no_doubt(sample, tiny_model):
    with peka.open_slide(sample) as slide:
        check = check_slide(slide, tiny_model)
    assert check.state == "unknown"
    assert {line.key for line in check.lines if line.state == "unknown"} == {"stain", "organ"}
    assert check["focus"].state == "good", "sharp tiles are told without a reference too"
    assert check.verdict.endswith("not known: organ, stain.")


def test_without_micrometres_nothing_is_looked_at(tmp_path, model):
    from PIL import Image

    Image.fromarray(np.full((400, 500, 3), 230, np.uint8)).save(tmp_path / "a.jpg")
    with peka.open_slide(tmp_path / "a.jpg") as slide:
        check = check_slide(slide, model)
    assert check.state == "bad"
    assert "--mpp or mpp=" in check["resolution"].mend
    with peka.open_slide(tmp_path / "a.jpg", mpp=0.5) as slide:
        assert check_slide(slide, model)["tissue"].text == "No tissue was found."


def test_damage_is_told(sample, model, monkeypatch):
    from napari_peka.core.errors import Undecodable

    with peka.open_slide(sample) as slide:
        call, left = slide.read_block, iter(range(10**6))

        def some_fail(rect, mpp=None):
            if next(left) % 3 == 0:
                raise Undecodable("damaged")
            return call(rect, mpp)

        monkeypatch.setattr(slide, "read_block", some_fail)
        check = check_slide(slide, model)
    assert check["reading"].state == "bad"
    assert "14 of 40 tiles looked at cannot be decoded" in check["reading"].text
    assert check["stain"].state == "good", "what can be read is judged"


# -- one question each -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sharp_tiles(sample) -> np.ndarray:
    """Tiles of the embedded slide as the demo model reads them, 224 px of 0.7 µm."""
    with peka.open_slide(sample) as slide:
        tissue = peka.find_tissue(slide)
        return sampled_tiles(slide, peka.plan_tiles(slide, peka.load_model("demo"), tissue=tissue), tissue).tiles


@pytest.mark.parametrize(("um", "states"), [(0, {"good"}), (1, {"doubtful", "bad"}), (2, {"bad"}), (4, {"bad"})])
def test_blur_is_found(sharp_tiles, um, states):
    kept = slide_qc.focus_reference(slide_qc.sharpness(sharp_tiles))[slide_qc.FOCUS]
    sharp = slide_qc.sharpness(blurred(sharp_tiles, um, 0.7))
    assert slide_qc.focus_line(sharp, kept).state in states
    if um != 1:  # hardly seen by the absolute bound
        assert slide_qc.focus_line(sharp, None).state in states


def test_sharpness_falls_with_blur_and_hardly_with_a_paler_stain(tiles):
    medians = [np.nanmedian(slide_qc.sharpness(blurred(tiles, um))) for um in (0, 1, 2, 4)]
    assert (np.diff(medians) < -0.05).all()
    pale = (255 - (255 - tiles.astype(np.float32)) * 0.5).astype(np.uint8)
    assert abs(np.nanmedian(slide_qc.sharpness(pale)) - medians[0]) < 0.03
    assert np.isnan(slide_qc.sharpness(np.full((1, 32, 32, 3), 240, np.uint8)))[0]


def test_another_stain_is_found_and_described(tiles):
    kept = slide_qc.colour_reference(colour_features(tiles))
    kept = kept[slide_qc.COLOUR], kept[slide_qc.HUE]
    assert slide_qc.stain_line(colour_features(tiles), *kept).state == "good"
    pale = (255 - (255 - tiles.astype(np.float32)) * 0.2).astype(np.uint8)
    line = slide_qc.stain_line(colour_features(pale), *kept, can=True)
    assert line.state != "good"
    assert "paler" in line.text
    assert "--stain macenko" in line.mend
    swapped = slide_qc.stain_line(colour_features(tiles[..., ::-1]), *kept)
    assert swapped.state != "good", "each channel by itself is as ever, the hue is not"
    assert "bluer as a whole" in swapped.text
    assert "macenko" not in swapped.mend, "a model that keeps no stain cannot be normalised to"


@pytest.mark.parametrize(
    ("mpp", "state", "said"),
    [((0.5, 0.5), "good", "0.5 µm per pixel"), ((2.0, 2.0), "bad", "enlarged, blurred"), (None, "bad", "not known"),
     ((0.05, 0.05), "doubtful", "a microscope's scan has 0.1 to 2.0")],
)  # fmt: skip
def test_resolution(mpp, state, said):
    line = slide_qc.resolution_line(mpp, "given", 0.7)
    assert line.state == state
    assert said in line.text
    assert bool(line.mend) == (state != "good")


@pytest.mark.parametrize(
    ("trained", "organ", "state"),
    [("breast", "breast", "good"), ("breast cancer", "Breast", "good"), ("breast", "lung", "bad"),
     ("lung cancer", "breast cancer", "bad"), ("breast", None, "unknown"), ("", "breast", "unknown")],
)  # fmt: skip
def test_organ(trained, organ, state):
    line = slide_qc.organ_line(trained, organ)
    assert line.state == state
    if state == "unknown" and trained:
        assert line.text == "This model was trained on breast; it says nothing of other organs."


def test_the_verdict_is_the_worst_in_one_sentence():
    lines = [Line("focus", "doubtful", "A is so."), Line("stain", "bad", "B is so."), Line("organ", "unknown", "C.")]
    assert SlideCheck(tuple(lines)).verdict == "Not to be relied on (stain): b is so."
    assert SlideCheck(tuple(lines[::2])).verdict == "Doubtful (focus): a is so."
    again = check_of(json.loads(json.dumps(SlideCheck(tuple(lines)).as_dict())))
    assert again == SlideCheck(tuple(lines))


def test_normalising_is_called_helpful_only_where_tiles_come_nearer():
    far, near, no = np.full(40, 99.9), np.full(40, 71.0), np.full(40, 99.95)
    assert "from the 99.9th to the 71st percentile" in effect_line(far, near).text
    assert effect_line(far, near).state == "good"
    assert effect_line(far, no).state == "doubtful"
    assert "--stain none" in effect_line(far, no).mend


# -- after the prediction ----------------------------------------------------------------------------------------


def prediction(ood, read_ok=None) -> Prediction:
    from napari_peka.core.head import GeneHead

    n = len(ood)
    tiles = TileTable.grid((10, 10 * n), (1.0, 1.0), TileSpec(10, 1.0))
    head = GeneHead(np.ones((2, 1), np.float32), np.zeros(1, np.float32), ("A",), "log1p CP10K")
    ok = np.ones(n, bool) if read_ok is None else read_ok
    return Prediction(tiles, np.ones((n, 2), np.float16), head, ok, ood=np.asarray(ood, np.float32))


def test_after_prediction_unlike_tiles_count_and_what_was_known_stays():
    before = SlideCheck(
        (Line("stain", "doubtful", "S."), Line("reading", "good", "All 40 tiles looked at can be read."))
    )
    ok = np.arange(20) > 0
    after = peka.slide_qc_of(prediction(np.where(np.arange(20) < 12, 99.5, 50.0), ok), before)
    assert [line.key for line in after.lines] == ["stain", "reading", "likeness"]
    assert after["likeness"].state == "doubtful"
    assert "40 % of the tiles" in after["likeness"].text
    assert after["reading"].state == "doubtful"
    assert "1 of 20 tiles cannot be decoded" in after["reading"].text
    assert peka.slide_qc_of(prediction([50.0] * 12)).state == "good"
    assert peka.slide_qc_of(prediction([99.9] * 12)).state == "bad"
    nothing = dataclasses.replace(prediction([1.0] * 12), ood=None)
    assert peka.slide_qc_of(nothing)["likeness"].state == "unknown"


@pytest.mark.parametrize(
    ("unlike", "state"), [(1, "good"), (2, "doubtful"), (5, "doubtful"), (15, "doubtful"), (16, "bad")]
)
def test_from_a_tenth_of_the_tiles_on_unlikeness_is_told(unlike, state):
    """Also at exactly a quarter, from which on other questions are doubtful."""
    ood = np.where(np.arange(20) < unlike, 99.5, 50.0)
    assert slide_qc.likeness_line(ood).state == state


def test_a_map_that_says_what_was_known_before_is_enough():
    made_before = prediction([50.0] * 12)
    made_before.record["slide_check"] = SlideCheck((Line("focus", "bad", "F."),)).as_dict()
    assert peka.slide_qc_of(made_before)["focus"].state == "bad"


def test_what_a_newer_version_said_is_read_as_far_as_it_is_understood():
    known = {"key": "focus", "state": "bad", "text": "F.", "mend": "m", "more": 1}
    odd = {"key": "x", "state": "terrible", "text": "X."}
    assert check_of({"checks": [known, odd, "nothing"]}).lines == (Line("focus", "bad", "F.", "m"),)


# -- kept in the result ------------------------------------------------------------------------------------------


def test_a_result_keeps_what_was_known_of_its_slide(sample, model, tmp_path, monkeypatch):
    """The check is made once: whoever opens the result later has it, and predicting again looks at nothing."""
    organ = peka.PredictConfig(organ="skin")
    with peka.open_slide(sample) as slide:
        before = peka.check_slide(slide, model, config=organ)
        done = peka.predict(slide, model, output=tmp_path / "a.peka.zarr", config=organ)
        stored = peka.read_prediction(tmp_path / "a.peka.zarr")
        for made_ in (done, stored):
            after = peka.slide_qc_of(made_)
            assert {line.key for line in after.lines} == KEYS | {"likeness"}
            for key in KEYS - {"reading"}:
                assert after[key] == before[key]
            assert after["organ"].state == "bad"
            assert "not on skin" in after["organ"].text
        monkeypatch.setattr(type(slide), "read_block", lambda *_, **__: pytest.fail("it was looked at again"))
        again = peka.predict(slide, model, output=tmp_path / "a.peka.zarr", config=peka.PredictConfig(organ="breast"))
    assert peka.slide_qc_of(again)["organ"].state == "good", "what is said of the organ now counts"
    assert peka.slide_qc_of(again)["stain"] == before["stain"]
    corrected = peka.read_prediction(tmp_path / "a.peka.zarr")
    assert peka.slide_qc_of(corrected)["organ"].state == "good", "in the result too"
    assert corrected.record["identity"] == stored.record["identity"]
    kept = corrected.record["slide_check"]
    assert kept["verdict"] == peka.slide_qc_of(corrected).verdict, "what is stored is what is said"
    assert {line["key"] for line in kept["checks"]} == KEYS | {"likeness"}


def test_a_blurred_tenth_is_told(tiles):
    """One in ten is far more than a section in focus has."""
    known = slide_qc.focus_reference(slide_qc.sharpness(tiles))[slide_qc.FOCUS]
    sharp = np.full(40, 0.99)
    for blurred_, state in ((0, "good"), (2, "good"), (4, "doubtful"), (20, "doubtful"), (35, "bad")):
        of = np.where(np.arange(40) < blurred_, 0.01, sharp)
        assert slide_qc.focus_line(of, known).state == state, blurred_


def test_an_organ_that_is_said_beside_a_model_that_says_none():
    line = slide_qc.organ_line("", "lung")
    assert line.state == "unknown"
    assert line.text.startswith("The slide is of lung; the model does not say")
    assert line.mend
    with pytest.raises(SettingError, match=r"organ = '  ' cannot be used: it must be some text, or left away"):
        peka.PredictConfig(organ="  ")
    assert peka.TrainConfig(organ=" breast ").organ == "breast"


def test_a_model_says_of_which_organ_its_sections_were():
    assert _tissue(None) == {}
    assert _tissue("breast") == {"tissue": "breast"}
    assert _tissue("breast, skin", "Skin") == {"tissue": "breast, skin"}
    assert _tissue("", "colon") == {"tissue": "colon"}


# -- the command line --------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys):
    def go(*args, code=0):
        with pytest.raises(SystemExit) as ended:
            cli.main([str(a) for a in args])
        out, err = capsys.readouterr()
        assert ended.value.code == code, err
        return out, err

    return go


def test_info_checks_a_slide_for_a_model(run, sample):
    plain = json.loads(run("info", sample, "--json")[0])
    assert "checks" not in plain
    data = json.loads(run("info", sample, "--model", "demo", "--organ", "skin", "--json")[0])
    assert set(plain) | {"checks", "verdict"} == set(data)
    assert {line["key"] for line in data["checks"]} == KEYS
    assert all(set(line) == {"key", "state", "text", "mend"} for line in data["checks"])
    assert data["verdict"].startswith(
        "Not to be relied on (organ, stain): this model was trained on breast, not on skin"
    )
    text, _ = run("info", sample, "--model", "demo")
    assert "focus        good: In focus" in text
    _, err = run("info", sample, "--organ", "skin", code=2)
    assert "give --model too" in err


def test_what_speaks_against_a_slide_is_told_with_what_to_do(run, sample, tmp_path):
    text, _ = run("predict", sample, "--model", "demo", "-o", tmp_path, "--organ", "skin")
    told = [line.strip() for line in text.splitlines()]
    for begun in (
        "Not to be relied on (organ, stain, unlike tiles): ",
        "organ: This model was trained on breast, not on skin: it says nothing of this slide. → take a model of skin",
        "likeness: No tile is like the training data. → do not believe it",
    ):
        assert any(line.startswith(begun) for line in told), begun
    assert any(line.startswith("stain: ") and "→ try to normalise the stain (--stain macenko" in line for line in told)


# -- real slides -------------------------------------------------------------------------------------------------


def test_real_slides_are_judged_as_a_person_would(shared_data):
    """One section of a tumour for reference: another is like it, slides of other laboratories are not."""
    from napari_peka.io.section import read_section
    from napari_peka.io.tiles import spot_tiles
    from napari_peka.models.zoo import load_model

    model = load_model("demo")
    kept = []
    for name in ("C3",):
        section = read_section(shared_data / "st" / f"{name}.tsv.gz")
        with section.slide as slide:
            read = spot_tiles(slide, section.centre_yx[::3], model.tile_spec())
            kept.append(read.read(np.arange(len(read))))
    tiles = np.concatenate(kept)
    model = dataclasses.replace(
        model, carried=model.carried | {
            **slide_qc.colour_reference(colour_features(tiles)),
            **slide_qc.focus_reference(slide_qc.sharpness(tiles)),
        },
    )  # fmt: skip

    def judged(name, mpp=None) -> dict[str, str]:
        with peka.open_slide(shared_data / name, mpp=mpp) as slide:
            return {line.key: line.state for line in check_slide(slide, model).lines}

    like = judged("st/C5.jpg", 0.686)
    assert (like["stain"], like["focus"], like["tissue"]) == ("good", "good", "good")
    other = judged("wsi/slide.tiff", 0.5)
    assert (other["stain"], other["focus"]) == ("bad", "good")
    overview = judged("wsi/slide_with_ink.jpeg", 4.0)
    assert (overview["resolution"], overview["stain"], overview["focus"]) == ("bad", "bad", "bad")
    assert judged("wsi/slide.tiff") == {"resolution": "bad", "organ": "unknown"}
