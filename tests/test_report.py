"""The HTML report: it says what the numbers say, cannot be broken by a name, and needs nothing but itself."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from napari_peka.core.doubt import Intervals
from napari_peka.core.errors import StoreError
from napari_peka.io.figure import trust_text
from napari_peka.io.prediction import RESEARCH_USE
from napari_peka.training import report_plots as plots
from napari_peka.training.compare import Arm, compare
from napari_peka.training.evaluate import evaluate, read_report
from napari_peka.training.report import write_comparison_html, write_html
from napari_peka.training.report_maps import MAP_GENES, MAP_SECTIONS
from napari_peka.training.report_page import element
from napari_peka.training.report_words import flat, genes_in_words, grade
from napari_peka.training.scoring import Measured

EVIL = "<script>alert(1)</script>\"'&amp;"


class Page(HTMLParser):
    """Reads a page as a browser would, and fails where tags do not nest."""

    void = frozenset({"meta", "img"})

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.text, self.raw = [], [], [], {"style": "", "script": ""}
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in self.raw:
            self.raw[self.open[-1]] += data
        else:
            self.text.append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def anchors(self):
        return [a["id"] for a in self.all("section")]

    def cells(self, anchor):
        """Return the text of each row of the last table in a section."""
        part = self.source[self.source.index(f'id="{anchor}"') :]
        part = part[: part.index("</section>")]
        body = part[part.rindex("<tbody>") : part.rindex("</tbody>")]
        return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.split("</tr>")[:-1]]


def part(section="C2", patient="C", n=24, genes=2, *, fold=None, seed=0, first=0, noise=1.0, ceiling=0.8):
    """A held-out section on a square grid; genes are the less predictable the later they come."""
    rng = np.random.default_rng([n, genes, seed, first])
    row, column = np.divmod(np.arange(first, first + n), 6)
    pattern = rng.normal(size=(n, 1)) * np.linspace(2, 0.5, genes)
    truth = 3 + pattern + noise * rng.normal(size=(n, genes))
    return Measured(
        section, patient, fold or section, seed, tuple(f"{section}-{first + i}" for i in range(n)),
        np.stack([row, column], 1) * 200.0, truth.astype(np.float32), (3 + 0.6 * pattern).astype(np.float32),
        np.full(genes, ceiling),
        {"train_mean": np.full((n, genes), 3, np.float32), "colour": (3 - pattern).astype(np.float32)},
    )  # fmt: skip


def judged(parts=None, *, names=None, hvg=2, **more):
    parts = parts or [part()]
    names = names or [f"GENE{i}" for i in range(parts[0].truth.shape[1])]
    settings = {"unit": "log1p CP10K", "model": "bone", "split": "each section left out in turn", **more}
    return evaluate(parts, names, hvg50=names[:hvg], **settings)


def epochs(fold="C2", seed=0, kept=None, n=4):
    for e in range(1, n + 1):
        row = {
            "fold": fold,
            "seed": seed,
            "epoch": e,
            "train_loss": 2 / e,
            "val_loss": 1 + abs(e - 3),
            "val_pcc": 0.1 * e,
        }
        yield row | ({} if kept is None else {"kept": e == kept})


@pytest.fixture(scope="module")
def report():
    parts = [part("C2", genes=4), part("C3", n=30, genes=4)]
    return judged(parts, hvg=4, curves=[*epochs("C2"), *epochs("C3")], provenance={"seeds": [0, 1]})


@pytest.fixture(scope="module")
def shown(report, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_html(report, path)
    return Page(path)


def written(report, tmp_path, *, maps=False, **more):
    """Write and read a report; without its maps, which take most of the time, where a test is not about them."""
    write_html(report if maps else dataclasses.replace(report, measured=()), tmp_path / "r.html", **more)
    return Page(tmp_path / "r.html")


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def embedded(page):
    return [base64.b64decode(a["src"].removeprefix("data:image/png;base64,")) for a in page.all("img")]


# what is read first


def test_the_verdict_says_score_ceiling_best_baseline_and_split(report, shown):
    summary = report.summary
    pcc, best = summary["pcc_hvg50"], summary["baselines"]["train_mean"]["pcc_hvg50"]["mean"]
    first = shown.words[: shown.words.index("Against baselines and noise")]
    assert f"Mean PCC {pcc['mean']:.2f} over the 4 most variable genes ({grade(pcc['mean'])}" in first
    assert f"interval {pcc['ci95'][0]:.2f} to {pcc['ci95'][1]:.2f}), on 54 spots of 2 sections from 1 patient." in first
    assert f"That is {100 * summary['share_of_attainable_hvg50']:.0f} % of what the noise" in first
    assert f"It is {pcc['mean'] - best:.2f} above training mean ({best:.2f}), the best of the baselines." in first
    assert "Split: each section left out in turn." in first
    assert RESEARCH_USE in first
    assert all(warning in first for warning in report.warnings)
    assert report.warnings


def test_a_model_that_does_not_beat_a_baseline_is_told_so(tmp_path):
    m = part()
    m = dataclasses.replace(m, baselines={"colour": m.predicted}, predicted=m.baselines["colour"])
    assert "It is not better than colour alone" in written(judged([m]), tmp_path).words


@pytest.mark.parametrize(
    ("half", "words"),
    [(1e-3, "it is surer of such tissue than it may be, by 90 of 100"), (9.0, "they are wider than they need be")],
)
def test_the_verdict_says_whether_intervals_hold(tmp_path, half, words):
    """By how much they hold less on another patient or laboratory is what an evaluation there measures."""
    wide = np.full((1, 2), half, np.float32)
    report = judged([part(n=300)], intervals=Intervals(np.array([0.05, 0.95]), np.concatenate([-wide, wide])))
    share = round(100 * report.summary["coverage_90"])
    assert (
        f"The model's intervals of 90 % hold {share} % of these measured values: {words}."
        in written(report, tmp_path).words
    )


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"optimistic": True}, "spots were split at random"),
        ({"neighbour_smoothing": True}, "measurements were smoothed"),
        ({"split": "TRAINED ON: the model has seen C2"}, "the model was trained on sections that it is judged on"),
    ],
)
def test_what_flatters_is_said_before_the_number(tmp_path, settings, why):
    words = written(judged(**settings), tmp_path).words
    assert f"These scores are flattered: {why}." in words
    assert words.index("flattered") < words.index("Mean PCC")


def test_nothing_flatters_a_plain_report(shown):
    assert "flattered" not in shown.words


def test_no_gene_with_a_score_is_said_in_a_sentence(tmp_path):
    m = part()
    m = dataclasses.replace(m, truth=np.full_like(m.truth, 2))
    words = written(judged([m]), tmp_path, maps=True).words
    assert "No gene could be scored on 24 spots of 1 section from 1 patient" in words
    assert "nan" not in words.lower().split()


def test_one_section_and_no_ceiling(tmp_path):
    page = written(judged([part(ceiling=np.nan)]), tmp_path, maps=True)
    assert "of 1 section from 1 patient" in page.words
    assert "of what the noise" not in page.words
    assert "curves" not in page.anchors
    assert "nan" not in page.words.lower().split()


def test_spots_without_prediction_are_left_out_and_drawn(tmp_path):
    m = part()
    m.predicted[:4] = np.nan
    page = written(judged([m]), tmp_path, maps=True)
    assert "over 20 spots" in page.words
    assert "nan" not in page.words.lower().split()


def test_the_words_for_a_correlation_are_those_of_the_maps():
    for pcc in np.linspace(-1, 1, 401):
        assert trust_text(pcc).endswith(f"({grade(pcc)})")


# the page itself


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\x00")), st.text(st.characters(codec="ascii")))
def test_text_and_attributes_come_out_as_they_went_in(text, attribute):
    seen = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            seen.append((tag, attrs))

        def handle_data(self, data):
            seen.append(data)

    reader = Reader()
    reader.feed(element("p", text, title=attribute))
    reader.close()
    assert seen[0] == ("p", [("title", attribute)])
    assert "".join(seen[1:]) == text


def test_names_from_outside_stay_text(tmp_path):
    m = part(section=f"S{EVIL}", patient=f"P{EVIL}")
    m = dataclasses.replace(m, baselines={f"B{EVIL}": m.baselines["colour"]})
    report = judged(
        [m], names=[f"{i}{EVIL}" for i in range(2)], model=f"M{EVIL}", split=f"W{EVIL}", unit=f"U{EVIL}",
        curves=epochs(f"S{EVIL}"), warnings=(f"N{EVIL}",), provenance={f"K{EVIL}": f"V{EVIL}"},
    )  # fmt: skip
    page = written(report, tmp_path, maps=True)
    assert len(page.all("script")) == 1
    assert page.source.count("<script") == 1
    for name in ("0", "S", "P", "B", "M", "W", "U", "N", "K", "V"):
        assert f"{name}{EVIL}" in "".join(page.text)


def test_the_page_loads_nothing_and_forbids_loading(shown):
    for tag, attrs in shown.tags:
        assert tag not in ("link", "iframe", "object", "base", "form")
        assert attrs.get("src", "data:").startswith("data:image/png;base64,"[: len(attrs.get("src", "data:"))])
        assert attrs.get("href", "#").startswith("#")
        assert "style" not in attrs
        assert not any(name.startswith("on") for name in attrs)
    assert not re.search(r"url\(|@import|https?:|fetch|import\(", shown.raw["style"] + shown.raw["script"])
    assert all(a["href"].removeprefix("#") in shown.anchors for a in shown.all("a"))
    (policy,) = (a["content"] for a in shown.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    for part_of_page in shown.raw.values():  # a wrong hash would silence the page's own script and style
        digest = base64.b64encode(hashlib.sha256(part_of_page.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_pictures_are_told_in_words(shown):
    assert shown.all("img")
    assert all(len(a["alt"]) > 20 for a in shown.all("img"))
    for png in embedded(shown):
        assert Image.open(io.BytesIO(png)).format == "PNG"


def test_the_same_report_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_html(judged(curves=epochs()), tmp_path / f"{name}.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_folder_that_is_not_there_is_said(report, tmp_path):
    with pytest.raises(StoreError, match="cannot write"):
        write_html(dataclasses.replace(report, measured=()), tmp_path / "none" / "r.html")


# tables


def test_the_table_of_genes_holds_every_gene_best_first(report, shown):
    rows = shown.cells("table")
    best_first = report.genes.sort_values("pcc", ascending=False, kind="stable")
    assert [r[0] for r in rows] == best_first["gene"].tolist()
    assert [r[2] for r in rows] == [f"{v:.3f}" for v in best_first["pcc"]]
    assert {r[0] for r in rows if r[1] == "yes"} == set(report.hvg50)


def of_many_genes(n, parts=()):
    """A report whose table of genes is made up: scoring so many is another module's work."""
    rng = np.random.default_rng(0)
    small = judged()
    columns = {c: rng.uniform(-0.5, 0.9, n) for c in small.genes if c not in ("gene", "hvg50", "n_scored")}
    genes = pd.DataFrame({"gene": [f"ENSG{i:011d}" for i in range(n)], **columns, "n_scored": 4})
    return dataclasses.replace(small, genes=genes, measured=tuple(parts), hvg50=tuple(genes["gene"][:50]))


def test_eighteen_thousand_genes_stay_small(tmp_path):
    write_html(of_many_genes(18_000), tmp_path / "r.html")
    source = (tmp_path / "r.html").read_text("utf-8")
    assert source.count("<tr><td>ENSG") == 18_000
    assert "the first 100 of 18,000 genes" in source
    assert len(source) < 6e6


def test_a_report_of_usual_size_is_small(tmp_path):
    write_html(of_many_genes(2000, [part(f"C{i}", n=200, genes=2000) for i in range(2, 6)]), tmp_path / "r.html")
    assert (tmp_path / "r.html").stat().st_size < 4e6


def test_sections_are_listed_with_model_and_baselines(report, shown):
    rows = shown.cells("sections")
    assert [r[:5] for r in rows] == [["C2", "C", "C2", "0", "24"], ["C3", "C", "C3", "0", "30"]]
    assert [r[5] for r in rows] == [f"{v:.3f}" for v in report.sections["pcc_hvg50"]]
    assert [r[7] for r in rows] == [f"{v:.3f}" for v in report.sections["pcc_hvg50_colour"]]


@pytest.mark.parametrize("swapped", [False, True])
def test_two_splits_stand_side_by_side(tmp_path, swapped):
    grouped = judged([part(noise=2.0)])
    shuffled = judged([part()], optimistic=True, split="spots at random")
    first, second = (shuffled, grouped) if swapped else (grouped, shuffled)
    page = written(first, tmp_path, beside=second)
    a, b = (r.summary["pcc_hvg50"]["mean"] for r in (grouped, shuffled))
    assert page.cells("splits")[0] == ["PCC, most variable genes", f"{a:.3f}", f"{b:.3f}", f"{b - a:.3f}"]
    assert "flattered by" in page.words


def test_a_report_read_from_disk_can_be_shown(report, tmp_path):
    report.write(tmp_path / "out")
    again = read_report(tmp_path / "out")
    page = written(again, tmp_path)
    assert "no maps" in page.words
    assert len(page.cells("table")) == len(report.genes)


def test_the_record_is_told_whole_but_not_at_any_length():
    record = {"a": {"b": [1, 2], "none": None, "empty": {}}, "parts": [{"x": 1}, {"x": 2}], "long": list(range(50))}
    told = dict(flat(record | {"text": "y" * 1000}))
    assert told["a.b"] == "1, 2"
    assert told["a.none"] == told["a.empty"] == "none"
    assert (told["parts[0].x"], told["parts[1].x"]) == ("1", "2")
    assert told["long"].endswith("19, … 50 in all")
    assert len(told["text"]) < 500


# maps


def test_best_and_worst_genes_are_drawn_on_every_section(report, shown):
    drawn = re.findall(r"<h3>(.*?)</h3>", shown.source)
    ranked = report.genes.sort_values("pcc", ascending=False)["gene"].tolist()
    variable = [g for g in reversed(ranked[MAP_GENES:]) if g in report.hvg50]
    assert drawn == ranked[:MAP_GENES] + variable[:MAP_GENES]
    maps = [a["alt"] for a in shown.all("img") if a["alt"].startswith("Maps of")]
    assert len(maps) == 2 * len(drawn)
    assert all(f"section C{k} (patient C): PCC" in alt for k, alt in zip([2, 3] * len(drawn), maps))


def test_of_many_sections_some_are_drawn_and_the_page_says_so(tmp_path):
    parts = [part(f"C{i}", genes=1, n=12 + i, seed=s) for i in range(MAP_SECTIONS + 2) for s in (3, 4)]
    page = written(judged(parts, hvg=1), tmp_path, maps=True)
    assert len([a for a in page.all("img") if a["alt"].startswith("Maps of")]) == MAP_SECTIONS
    assert f"{MAP_SECTIONS} of {MAP_SECTIONS + 2} sections, from the best scored to the worst" in page.words
    assert "the run with seed 3 of 2" in page.words


def test_folds_within_a_section_are_joined_on_its_map(tmp_path):
    parts = [part(genes=1, n=12, fold=f"block {k}", first=12 * k) for k in range(2)]
    (alt,) = (
        a["alt"] for a in written(judged(parts, hvg=1), tmp_path, maps=True).all("img") if a["alt"].startswith("Maps")
    )
    assert "over 24 spots" in alt


def test_shuffled_spots_of_mixed_sections_are_not_drawn_as_one(tmp_path):
    page = written(judged(optimistic=True), tmp_path, maps=True)
    assert "there is no map" in page.words


def drawing(yx, truth):
    spots = plots.GeneMap(np.asarray(yx, float), np.asarray(truth, float), np.zeros(len(yx)))
    image = pixels(plots.gene_map(spots, "u", (0, 1), 1))
    return image[:, : round(plots._MAP_IN * plots.DPI)], image


def of_colour(image, rgb):
    y, x = np.nonzero(np.abs(image - rgb).max(2) < 20)
    return y, x


@pytest.mark.parametrize("bright", [(0, 0), (0, 5), (3, 0), (3, 5)])
def test_maps_are_upright(bright):
    yx = np.stack(np.divmod(np.arange(24), 6), 1)
    panel, _ = drawing(yx * 200.0, (yx == bright).all(1))
    # where the one bright spot lies among the dark ones, y down and x right
    above = panel[round(0.3 * plots.DPI) : -round(plots._BELOW_IN * plots.DPI)]
    y, x = of_colour(above, (252, 253, 191))
    dark_y, dark_x = of_colour(above, (0, 0, 4))
    assert (y.mean() > np.median(dark_y)) == (bright[0] == 3)
    assert (x.mean() > np.median(dark_x)) == (bright[1] == 5)


@pytest.mark.parametrize(("rows", "columns"), [(2, 20), (10, 10), (30, 6), (60, 60)])
def test_a_micrometre_is_as_long_down_as_across(rows, columns):
    yx = np.stack(np.divmod(np.arange(rows * columns), columns), 1) * 100.0
    panel, _ = drawing(yx, np.ones(len(yx)))
    y, x = of_colour(panel[: -round(plots._BELOW_IN * plots.DPI)], (252, 253, 191))
    assert (np.ptp(y) + 1) / (np.ptp(x) + 1) == pytest.approx((rows - 0.1) / (columns - 0.1), rel=0.05)
    assert x.min() > 0
    assert x.max() < panel.shape[1] - 1


def test_measured_and_predicted_share_one_scale_over_all_sections():
    maps = [plots.GeneMap(np.zeros((3, 2)), np.array([0.0, 1, 2]) + k, np.array([1.0, 1, np.nan])) for k in (0, 4)]
    (low, high), residual = plots.gene_limits(maps)
    assert 0 <= low < 0.5
    assert 5.5 < high <= 6
    assert residual == pytest.approx(4, abs=0.2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_spots_and_constant_values_are_drawn(n):
    for predicted in (np.ones(n), np.full(n, np.nan)):
        spots = plots.GeneMap(np.arange(2.0 * n).reshape(n, 2), np.ones(n), predicted)
        assert plots.gene_map(spots, "$x^2$ 表", *plots.gene_limits([spots]))


# learning curves


def test_the_kept_epoch_is_marked_and_told(tmp_path):
    page = written(judged(curves=[*epochs("C2", 0, kept=2), *epochs("C2", 1, kept=4)]), tmp_path)
    assert [r[:5] for r in page.cells("curves")] == [["1", "C2", "0", "4", "2"], ["2", "C2", "1", "4", "4"]]
    assert "the epoch that was kept" in page.words


def test_without_a_kept_epoch_the_lowest_loss_is_marked(shown):
    assert [r[4] for r in shown.cells("curves")] == ["3", "3"]
    assert "lowest held-out loss" in shown.words


def test_a_training_without_held_out_spots_has_a_curve_too(tmp_path):
    rows = [
        {"fold": "all", "seed": 0, "epoch": e, "train_loss": 1.0, "val_loss": None, "val_pcc": None} for e in (1, 2)
    ]
    page = written(judged(curves=rows), tmp_path)
    assert page.cells("curves") == [["1", "all", "0", "2", "2", "", ""]]


# comparison


@functools.cache
def scored():
    return judged([part("C2", genes=8), part("C3", n=30, genes=8)], hvg=5).board


def arm(adapter, better=0.0, *, protocol="grouped", encoder="vit", noise=0.0):
    board = scored()
    pcc = board.metrics["pcc"] + better + noise * (-1.0) ** np.arange(len(board.genes))
    board = dataclasses.replace(board, metrics=board.metrics | {"pcc": pcc})
    return Arm(encoder, adapter, "image", "4 rotations", "", "ridge", board, protocol)


def compared(arms, tmp_path, **more):
    table = compare(arms)
    write_comparison_html(table, tmp_path / "c.html", **more)
    return table, Page(tmp_path / "c.html")


def test_a_comparison_says_the_gain_and_whether_it_is_sure(tmp_path):
    arms = [arm("none"), arm("bone", 0.1), arm("lora", -0.05), arm("none", 0.02, protocol="paper")]
    table, page = compared(arms, tmp_path, split="each section", warnings=("one patient",), provenance={"seed": 0})
    gain = table["gain_percent"][1]
    assert "Best: vit, bone (image, 4 rotations), mean PCC" in page.words
    gained = f"+0.100 PCC, that is +{gain:.1f} % (95 % interval of the PCC +0.100 to +0.100, which leaves out 0)"
    assert gained in page.words
    assert "It was picked from 2, which flatters it." in page.words
    assert "1 of 2 adapted ways to predict gain 5 % or more" in page.words
    assert "Spots held out at random, as in the paper, would have changed PCC by 0.02" in page.words
    rows = page.cells("table")
    assert [r[1] for r in rows] == ["frozen", "bone", "lora"]
    assert [f"{v:.3f}" for v in table["pcc"]] == [r[2] for r in rows]
    assert "+0.100" in rows[1]
    assert "-0.050" in rows[2]
    assert "averaging: 4 rotations" in page.words
    assert "one patient" in page.words


def test_a_gain_that_may_be_chance_is_called_so(tmp_path):
    _, page = compared([arm("none"), arm("bone", 0.0, noise=0.2)], tmp_path)
    assert "which holds 0, so it may be chance" in page.words


def test_no_gain_is_said(tmp_path):
    _, page = compared([arm("none"), arm("bone", -0.1)], tmp_path)
    assert "Nothing is better than the same encoder frozen" in page.words


def test_a_frozen_encoder_alone_has_no_gain(tmp_path):
    _, page = compared([arm("none")], tmp_path)
    assert "gain" not in page.words.split("All ways to predict")[0].lower()


def test_arms_scored_on_shuffled_spots_alone_are_marked(tmp_path):
    arms = [arm("none", protocol="paper"), arm("bone", 0.1, protocol="paper")]
    _, page = compared(arms, tmp_path)
    assert page.words.index("Scores are flattered") < page.words.index("Best:")


def test_a_comparison_cannot_be_broken_by_a_name(tmp_path):
    arms = [arm(a, encoder=f"{e}{EVIL}") for e in "ab" for a in ("none", "bone")]
    _, page = compared(arms, tmp_path, title=EVIL, split=EVIL, warnings=(EVIL,), provenance={EVIL: EVIL})
    assert len(page.all("script")) == 1
    assert f"b{EVIL}" in "".join(page.text)


def test_an_empty_comparison_is_said(tmp_path):
    write_comparison_html(compare([]), tmp_path / "c.html")
    assert "Nothing was compared" in Page(tmp_path / "c.html").words


@pytest.mark.parametrize(
    ("n", "words"),
    [(1, "the most variable gene"), (4, "the 4 most variable genes"), (50, "the 50 most variable genes"),
     (53, "the 50 most variable genes of each training part"), (0, "the most variable genes")],
)  # fmt: skip
def test_the_headline_says_over_which_genes(n, words):
    assert genes_in_words(n) == words
