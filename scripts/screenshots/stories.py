"""What is clicked, and where a picture is taken."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hands
from hands import Answers, press, row, unfold
from napari_peka.gui.session import session_of
from screenshots.cases import Case, Corners, Map
from screenshots.stage import Stage, share_done

SLIDE, PREDICT, EXPLORE = "Slide", "Predict expression", "Explore expression"
TRAIN, CHECK = "Train on paired sections", "Check against spots"
#: share of the map that is there when its picture is taken
PART = 0.35
#: epochs after which the curves tell something
EPOCH = 6
GENE_TABLE, SECTION_TABLE = "Gene", "section"

Story = Callable[[Stage, Case, Path], None]


def slide(stage: Stage, case: Case, work: Path) -> None:
    """A slide, what it is, and its tissue; then two regions drawn on it by hand."""
    _forget_regions(case)
    dock = open_slide(stage, case.map)
    press(dock, "show tissue")
    hands.wait(lambda: hands.says(dock, "of the slide"))
    _see(stage, case.map)
    stage.shoot("slide")
    press(dock, "show tissue")
    with case.map.open() as opened:
        for name in case.regions:
            press(dock, "Draw…")
            hands.draw(stage.viewer, case.corners(name, opened))
    hands.wait(lambda: hands.says(dock, "saved: "))
    stage.shoot("draw")
    _forget_regions(case)


def predict(stage: Stage, case: Case, work: Path) -> None:
    """A map that fills in."""
    with predicting(stage, case, work) as dock:
        hands.wait(lambda: share_done(dock) > PART)
        stage.shoot("predict")
        press(dock, "Cancel")


def explore(stage: Stage, case: Case, work: Path) -> None:
    """A gene, and how far to believe it."""
    explored(stage, case, work)
    stage.shoot("explore")


def compare(stage: Stage, case: Case, work: Path) -> None:
    """Three genes in one picture, and side by side."""
    dock = explored(stage, case, work)
    fold = unfold(dock, "Compare genes")
    for field, gene in zip(hands.lines_of(fold, "no gene"), case.genes):
        hands.write(field, gene)
    press(fold, "Side by side")
    hands.pause(0.5)
    stage.viewer.reset_view()
    stage.bring_up(dock, fold)
    stage.shoot("compare-beside")
    press(fold, "Side by side")
    press(fold, "Blend")
    _see(stage, case.map)
    stage.shoot("compare")


def regions(stage: Stage, case: Case, work: Path) -> None:
    """Two regions compared, and all genes ranked by them."""
    _forget_regions(case)
    explored(stage, case, work)
    with Answers(case.write_regions(work / "regions.geojson")):
        press(stage.dock(SLIDE), "Import…")
    dock = stage.dock(EXPLORE)
    hands.find_gene(dock, case.map.gene)
    fold = unfold(dock, "Regions")
    one, other = case.regions
    hands.choose(row(fold, "Shapes"), "regions")
    hands.wait(lambda: row(fold, "Higher in").findText(one) >= 0)
    hands.choose(row(fold, "Higher in"), one)
    hands.choose(row(fold, "than in"), other)
    hands.wait(lambda: hands.says(fold, f"{one} against {other}"))
    stage.bring_up(dock, fold)
    stage.shoot("regions")
    hands.line(dock, "search a gene").clear()
    hands.choose(row(dock, "Trust"), "fair or better")
    press(fold, "Rank genes by difference")
    hands.wait(lambda: hands.says(fold, "Ordered by"))
    hands.pause(1.0)
    stage.bring_up(dock, row(dock, "Map"))
    stage.shoot("ranking")
    _forget_regions(case)


def sets(stage: Stage, case: Case, work: Path) -> None:
    """A set of genes as a score."""
    dock = explored(stage, case, work)
    fold = unfold(dock, "Gene sets")
    hands.choose(row(fold, "Set"), case.gene_set)
    press(fold, "Show score")
    hands.wait(lambda: hands.says(dock, "standardised over this map"))
    stage.bring_up(dock, fold)
    stage.shoot("sets")


def train(stage: Stage, case: Case, work: Path) -> None:
    """Sections, their spots on the image, and a training as it goes."""
    session_of(stage.viewer).gene = case.checked.gene  # as if it had been picked in the dock Explore
    dock = stage.dock(TRAIN)
    table = hands.table(dock, SECTION_TABLE)
    with Answers(*case.sections):
        press(dock, "Add files…")
    hands.wait(lambda: not hands.says(dock, "reading ") and table.model().rowCount() > 1)
    _select(table, case.left_out)
    press(dock, "Show")
    hands.wait(lambda: len(stage.viewer.layers) > 1)
    hands.pause(1.0)
    fold = unfold(dock, "Move spots on the image")
    hands.write(row(fold, "Right"), "60")
    hands.wait(lambda: hands.says(fold, "on tissue"))
    hands.pause(1.5)
    _see_section(stage, case)
    stage.shoot("train")
    press(fold, "Reset")
    for name in case.aside:
        _select(table, name)
        press(dock, "Remove")
    shutil.rmtree(work / "models" / "my-model.partial", ignore_errors=True)
    _learn(stage, dock, case)


def _select(table: Any, name: str) -> None:
    model = table.model()
    table.selectRow(next(i for i in range(model.rowCount()) if model.index(i, 0).data() == name))


def _learn(stage: Stage, dock: Any, case: Case) -> None:
    for label, words in case.training.items():
        hands.choose(row(dock, label), words)
    hands.choose(row(dock, "Leave out"), f"{case.left_out} for good")
    if case.advanced:
        advanced = unfold(dock, "Advanced")
        for label, text in case.advanced.items():
            hands.write(row(advanced, label), text)
        hands.click(advanced.toggleButton())
    press(dock, "Train")
    hands.wait(lambda: hands.says(dock, f"epoch {EPOCH}"))
    stage.viewer.reset_view()
    stage.bring_up(dock, hands.button(dock, "Train"))
    stage.shoot("learning")
    press(dock, "Cancel")
    hands.wait(lambda: hands.says(dock, "cancelled"))


def check(stage: Stage, case: Case, work: Path) -> None:
    """A map beside what was measured on its slide."""
    open_slide(stage, case.checked)
    dock = stage.dock(EXPLORE)
    with Answers(case.checked.stored(work / "maps")):
        press(dock, "Open…")
    dock = stage.dock(CHECK)
    with Answers(case.measured):
        hands.pick_menu(hands.button(dock, "Open…"), "File")
        hands.wait(lambda: hands.says(dock, "PCC"))
    for mode, gene, name in (
        ("predicted", case.checked.gene, "check"),
        ("difference", case.doubted, "check-difference"),
        ("side by side", case.doubted, "check-beside"),
    ):
        hands.find_gene(dock, gene)
        hands.line(dock, "search a gene").clear()
        hands.wait(lambda: not hands.says(dock, "attainable …"))
        press(dock, mode)
        hands.pause(1.0)
        if mode != "side by side":
            _see(stage, case.checked)
        stage.bring_up(dock, row(dock, "Order by" if mode == "predicted" else "Show"))
        stage.shoot(name)
    press(dock, "predicted")
    hands.find_gene(dock, case.checked.gene)
    fold = unfold(dock, "Do the intervals hold?")
    hands.wait(lambda: hands.says(fold, "genes that vary"))
    stage.bring_up(dock, fold)
    stage.shoot("check-calibration")


# -- steps that several stories have -----------------------------------------------------------------------------


def open_slide(stage: Stage, seen: Map) -> Any:
    """Open a slide in its dock."""
    dock = stage.dock(SLIDE)
    with Answers(seen.slide):
        press(dock, "Open…")
    hands.wait(hands.button(dock, "Set").isEnabled)
    if seen.mpp:
        hands.write(row(dock, "µm per pixel"), str(seen.mpp))
        press(dock, "Set")
        hands.wait(lambda: hands.says(dock, f"{seen.mpp} µm/px"))
    hands.pause(0.5)
    return dock


def explored(stage: Stage, case: Case, work: Path) -> Any:
    """Open slide and map, and search the gene."""
    open_slide(stage, case.map)
    path = case.map.stored(work / "maps")
    dock = stage.dock(EXPLORE)
    with Answers(path):
        press(dock, "Open…")
    hands.find_gene(dock, case.map.gene)
    hands.line(dock, "search a gene").clear()
    hands.pause(0.5)
    _see(stage, case.map)
    return dock


@contextmanager
def predicting(stage: Stage, case: Case, work: Path, part: Corners | None = None) -> Any:
    """Predict from the beginning while this lasts, and throw the result away."""
    results = list(case.map.slide.parent.glob(f"{case.map.slide.stem}.peka.zarr*"))
    for old in results:
        shutil.rmtree(old, ignore_errors=True)
    open_slide(stage, case.map)
    session_of(stage.viewer).model = case.map.model()  # as "Use this model" in the dock Train does
    dock = stage.dock(PREDICT)
    hands.write(row(dock, "Output"), str(case.map.slide.parent))
    hands.choose(row(dock, "Detail"), "twice")
    press(dock, "Predict")
    hands.wait(lambda: share_done(dock) > 0)
    _see(stage, case.map, part)
    yield dock
    hands.wait(lambda: share_done(dock) != share_done(dock))  # NaN: nothing is at work
    hands.pause(0.5)


def _see(stage: Stage, seen: Map, part: Corners | None = None) -> None:
    with seen.open() as opened:
        size = [n * mpp for n, mpp in zip(opened.shape, opened.mpp)]
    low, high = ([part * n for part, n in zip(corner[::-1], size)] for corner in part or seen.view)
    stage.look_at(low, high)
    hands.pause(0.3)


def _see_section(stage: Stage, case: Case) -> None:
    if case.checked.slide.stem == case.left_out:
        _see(stage, case.checked)
    else:
        stage.viewer.reset_view()


def _forget_regions(case: Case) -> None:
    case.map.slide.with_name(f"{case.map.slide.stem}.regions.geojson").unlink(missing_ok=True)
