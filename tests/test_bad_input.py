"""Every bad input, in one table: one clear sentence, the right exit code, nothing half-written, no traceback.

Each row is run through the command line and through Python. A row makes its files in a folder of its own and says
which words the sentence must hold: what is wrong, where, what to do.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import napari_peka as peka
from napari_peka import cli
from napari_peka.core.errors import PekaError

#: fits the embedded slide: its tissue runs through the middle
INSIDE = [[900, 900], [1300, 900], [1300, 1300], [900, 1300], [900, 900]]


@dataclass
class Case:
    """What a row asks for; ``make`` changes it and makes the files that it needs."""

    folder: Path
    slide: Path
    model: Path | str
    output: Path = Path()
    genes: tuple[str, ...] = ("ERBB2",)
    roi: Path | None = None
    mpp: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> list[str]:
        more = ["--genes", ",".join(self.genes)] if self.genes else []
        more += ["--roi", str(self.roi)] if self.roi else []
        more += ["--mpp", str(self.mpp)] if self.mpp is not None else []
        for name, value in self.options.items():
            more += [f"--{name.replace('_', '-')}", str(value)]
        return ["predict", str(self.slide), "--model", str(self.model), "-o", str(self.output), *more]

    def call(self) -> peka.Prediction:
        """Do by the API what the command line does."""
        config = peka.PredictConfig(**({"device": "cpu", "precision": "fp32"} | self.options))
        model = peka.load_model(self.model)
        for gene in self.genes:
            model.head.index(gene)
        region = peka.read_regions(self.roi) if self.roi else None
        target = self.output / f"{self.slide.stem}.peka.zarr"
        with peka.open_slide(self.slide, mpp=self.mpp) as slide:
            return peka.predict(slide, model, output=target, region=region, config=config)


# -- slides ------------------------------------------------------------------------------------------------------


def slide_bytes(name: str, data: Callable[[Case], bytes]) -> Callable[[Case], None]:
    def make(case: Case) -> None:
        path = case.folder / name
        path.write_bytes(data(case))
        case.slide = path

    return make


def slide_path(path: Callable[[Case], Path]) -> Callable[[Case], None]:
    def make(case: Case) -> None:
        case.slide = path(case)

    return make


def cut(name: str, share: float) -> Callable[[Case], None]:
    """A copy of a whole slide of which the end is missing, as an interrupted copy leaves it."""

    def make(case: Case) -> None:
        whole = {"a.svs": peka.sample_slide(), "a.tif": case.folder / "whole.tif", "a.jpg": case.folder / "whole.jpg"}
        source = whole[name]
        if not source.exists():
            write_image(source, tissue(), mpp=0.5)
        data = source.read_bytes()
        slide_bytes(name, lambda _: data[: int(len(data) * share)])(case)

    return make


def tissue(h: int = 700, w: int = 800) -> np.ndarray:
    rng = np.random.default_rng(2)
    image = np.full((h, w, 3), 244, np.uint8)
    image[60:-60, 60:-60] = np.clip(np.array([200, 130, 180]) + rng.integers(-25, 25, (h - 120, w - 120, 1)), 0, 255)
    return image


def write_image(path: Path, image: np.ndarray, mpp: float | None) -> None:
    if path.suffix == ".jpg":
        Image.fromarray(image).save(path, quality=90)
        return
    import tifffile

    resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(
        path, image, tile=(256, 256), photometric="rgb", compression="zlib", metadata=None, **resolution
    )  # fmt: skip


def image_slide(name: str, image: Callable[[], np.ndarray], mpp: float | None, given: float | None = None) -> Any:
    def make(case: Case) -> None:
        case.slide, case.mpp = case.folder / name, given
        write_image(case.slide, image(), mpp)

    return make


def glass() -> np.ndarray:
    rng = np.random.default_rng(3)
    return (np.full((700, 800, 3), 240) + rng.integers(-2, 3, (700, 800, 3))).astype(np.uint8)


# -- bundles -----------------------------------------------------------------------------------------------------


def spec_with(path: str, value: Any) -> Callable[[Case], None]:
    def make(case: Case) -> None:
        file = copied_bundle(case) / "peka.json"
        spec = json.loads(file.read_text())
        *parents, last = path.split(".")
        at = spec
        for key in parents:
            at = at[key]
        at[last] = value
        file.write_text(json.dumps(spec))

    return make


def tensors_with(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Callable[[Case], None]:
    def make(case: Case) -> None:
        from safetensors.numpy import load_file, save_file

        file = copied_bundle(case) / "model.safetensors"
        save_file(change(load_file(file)), file)

    return make


def copied_bundle(case: Case) -> Path:
    case.model = Path(shutil.copytree(case.model, case.folder / "model"))
    return case.model


def zip_with(member: str, data: str | bytes) -> Callable[[Case], None]:
    def make(case: Case) -> None:
        path = case.folder / "model.zip"
        with zipfile.ZipFile(path, "w") as z:
            for f in Path(case.model).iterdir():
                z.write(f, f"tiny/{f.name}")
            z.writestr(member, data)
        case.model = path

    return make


def model_path(name: str) -> Callable[[Case], None]:
    def make(case: Case) -> None:
        case.model = name

    return make


# -- outputs, regions, options -----------------------------------------------------------------------------------


def below_a_file(case: Case) -> None:
    (case.folder / "file").write_text("mine")
    case.output = case.folder / "file" / "out"


def a_file(case: Case) -> None:
    case.output = case.folder / "file"
    case.output.write_text("mine")


def no_such_place(case: Case) -> None:
    case.output = Path("/proc/napari-peka")


def of_another_slide(case: Case) -> None:
    other = case.folder / "other" / case.slide.name
    other.parent.mkdir()
    write_image(other.with_suffix(".tif"), tissue(), mpp=0.5)
    first = Case(case.folder, other.with_suffix(".tif"), case.model, case.output)
    assert first.call().path == case.output / f"{case.slide.stem}.peka.zarr"


def a_foreign_folder(case: Case) -> None:
    foreign = case.output / f"{case.slide.stem}.peka.zarr"
    foreign.mkdir(parents=True)
    (foreign / "precious.txt").write_text("mine")


def region(content: Any) -> Callable[[Case], None]:
    def make(case: Case) -> None:
        case.roi = case.folder / "roi.geojson"
        text = content if isinstance(content, str) else json.dumps(content)
        case.roi.write_text(text)

    return make


def no_region_file(case: Case) -> None:
    case.roi = case.folder / "none.geojson"


def polygon(*ring: Any, **more: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [list(ring)], **more}


def option(**options: Any) -> Callable[[Case], None]:
    def make(case: Case) -> None:
        case.options |= options

    return make


def genes(*names: str) -> Callable[[Case], None]:
    def make(case: Case) -> None:
        case.genes = names

    return make


def slide_mpp(mpp: float) -> Callable[[Case], None]:
    def make(case: Case) -> None:
        case.mpp = mpp

    return make


FAR = [[90000, 90000], [90100, 90000], [90100, 90100], [90000, 90000]]
LINE = {"type": "LineString", "coordinates": INSIDE}

#: name: (what is bad, exit code, words of the sentence)
TABLE: dict[str, tuple[Callable[[Case], None], int, tuple[str, ...]]] = {
    # slides
    "slide missing": (slide_path(lambda c: c.folder / "no.svs"), 2, ("no file", "no.svs")),
    "slide below a file": (slide_path(lambda c: c.slide / "no.svs"), 2, ("no.svs",)),
    "slide with an impossible name": (slide_path(lambda c: c.folder / ("x" * 300)), 2, ("xxx",)),
    "slide empty": (slide_bytes("a.svs", lambda _: b""), 2, ("empty", "copy it again")),
    "slide of noise": (slide_bytes("a.svs", lambda _: os.urandom(5000)), 2, ("a.svs", "no slide or image")),
    "slide is text": (slide_bytes("a.txt", lambda _: b"hello, slide\n" * 99), 2, ("a.txt", "no slide or image")),
    "slide is a folder": (slide_path(lambda c: c.folder), 2, ("no slide or image", "zarr")),
    "format without a reader": (slide_bytes("a.czi", lambda _: b"ZISRAWFILE\0" * 200), 2, ("a.czi", "read here")),
    "a PDF": (slide_bytes("a.pdf", lambda _: b"%PDF-1.7\n" * 200), 2, ("a.pdf", "no slide or image")),
    "SVS truncated": (cut("a.svs", 0.6), 2, ("a.svs", "truncated", "copy it again")),
    "SVS of a header only": (cut("a.svs", 0.0001), 2, ("a.svs",)),
    "TIFF truncated": (cut("a.tif", 0.6), 2, ("a.tif",)),
    "JPEG truncated": (cut("a.jpg", 0.6), 2, ("a.jpg", "truncated")),
    "JPEG of a header only": (cut("a.jpg", 0.001), 2, ("a.jpg",)),
    "TIFF header that points nowhere": (
        slide_bytes("a.tif", lambda _: b"II*\0" + struct.pack("<I", 0xFFFFFF00)), 2, ("a.tif",),
    ),
    "multichannel": (
        image_slide("a.tif", lambda: np.zeros((64, 64, 3), np.float32), 0.5), 2, ("a.tif", "float32"),
    ),
    "no tissue": (image_slide("a.tif", glass, 0.5), 2, ("no tissue", "a.tif", "H&E")),
    # resolution
    "mpp missing": (image_slide("a.tif", tissue, None), 2, ("a.tif", "µm per pixel", "--mpp")),
    "mpp absurd in the file": (image_slide("a.tif", tissue, 900.0), 2, ("a.tif", "900", "--mpp")),
    "mpp of zero": (slide_mpp(0.0), 2, ("0.05", "9", "got 0")),
    "mpp below zero": (slide_mpp(-0.5), 2, ("got -0.5",)),
    "mpp absurd": (slide_mpp(5000.0), 2, ("got 5000", "20×")),
    "mpp not a number": (slide_mpp(float("nan")), 2, ("got nan",)),
    # bundles
    "model unknown": (model_path("dem"), 2, ("'dem'", "did you mean demo", "models")),
    "model missing": (model_path("/nowhere/model"), 2, ("/nowhere/model",)),
    "model is no bundle": (lambda c: setattr(c, "model", c.slide), 2, ("neither a bundle folder nor a .zip",)),
    "wrong schema": (spec_with("schema", 99), 2, ("schema 99", "update napari-peka")),
    "no schema": (spec_with("schema", None), 2, ("no schema",)),
    "missing tensor": (tensors_with(lambda t: {"head.weights": t["head.weights"]}), 2, ("head.bias", "missing")),
    "wrong shape": (tensors_with(lambda t: t | {"head.bias": np.zeros(3, np.float32)}), 2, ("head.bias", "(3,)")),
    "wrong width": (spec_with("head.n_dims", 192), 2, ("head.weights", "192")),
    "NaN in the head": (tensors_with(lambda t: t | {"head.bias": np.full(5, np.nan, np.float32)}), 2, ("NaN",)),
    "tensors of integers": (tensors_with(lambda t: {k: v.astype(np.int32) for k, v in t.items()}), 2, ("again",)),
    "unknown encoder": (spec_with("encoder.name", "tiny-randon"), 2, ("tiny-randon", "did you mean tiny-random")),
    "mpp of the model absurd": (spec_with("preprocessing.mpp", 0.0), 2, ("preprocessing.mpp",)),
    "unknown adapter": (spec_with("adapter.kind", "lorra"), 2, ("lorra",)),
    "std of zero": (spec_with("preprocessing.std", [0.0, 0.0, 0.0]), 2, ("std",)),
    "tile size that the encoder cannot take": (spec_with("preprocessing.tile_px", 67), 2, ("67",)),
    "hostile zip, path": (zip_with("../evil.json", "{}"), 2, ("unsafe name", "do not use")),
    "hostile zip, code": (zip_with("tiny/code.py", "boom"), 2, ("code.py", "do not use")),
    "hostile zip, twice": (zip_with("other/peka.json", "{}"), 2, ("twice",)),
    "zip of something else": (lambda c: (zip_only(c, "a.txt"), None)[1], 2, ("peka.json", "missing")),
    # outputs
    "output below a file": (below_a_file, 1, ("is a file", "choose another output")),
    "output is a file": (a_file, 1, ("is a file", "choose another output")),
    "output where nothing can be": (no_such_place, 1, ("cannot write", "/proc")),
    "output of another slide": (of_another_slide, 2, ("belongs to another run", "slide", "overwrite")),
    "output of somebody else": (a_foreign_folder, 1, ("not a napari-peka result", "choose another")),
    # genes
    "gene unknown": (genes("ERB2"), 2, ("'ERB2'", "did you mean ERBB2", "5 genes")),
    "one gene of two unknown": (genes("ERBB2", "NOSUCH"), 2, ("'NOSUCH'",)),
    # regions
    "region file missing": (no_region_file, 2, ("none.geojson", "check the path")),
    "region is no JSON": (region("{"), 2, ("not GeoJSON", "QuPath")),
    "region is other JSON": (region({"a": 1}), 2, ("not GeoJSON", "QuPath")),
    "region is a line": (region(LINE), 2, ("LineString", "no area")),
    "region is empty": (region({"type": "FeatureCollection", "features": []}), 2, ("no region",)),
    "region of words": (region(polygon(["a", "b"], ["c", "d"], ["e", "f"], ["a", "b"])), 2, ("coordinates",)),
    "region on the globe": (
        region(polygon(*INSIDE, crs={"type": "name", "properties": {"name": "EPSG:4326"}})), 2, ("geographic",),
    ),
    "region outside": (region(polygon(*FAR)), 2, ("outside the slide", "2220 px wide")),
    "region of nothing": (region(polygon([5, 5], [5, 5], [5, 5], [5, 5])), 2, ("area",)),
    "region without tissue": (region(polygon([0, 0], [150, 0], [150, 150], [0, 150], [0, 0])), 2, ("no tissue",)),
    # options
    "device unknown": (option(device="banana"), 2, ("device = 'banana'", "cuda")),
    "device not here": (option(device="cuda:7"), 1, ("cuda:7", "not here", "use auto")),
    "precision unknown": (option(precision="fp8"), 2, ("precision = 'fp8'", "bf16")),
    "batch of none": (option(batch_size=0), 2, ("batch_size = 0", "greater")),
    "batch absurd": (option(batch_size=10**9), 2, ("batch_size", "4096")),
    "stride of none": (option(stride_px=0), 2, ("stride_px = 0", "greater")),
    "stride of less": (option(stride_px=-5), 2, ("stride_px = -5",)),
    "tissue above all": (option(min_tissue=1.5), 2, ("min_tissue = 1.5",)),
    "tissue not a number": (option(min_tissue=float("nan")), 2, ("min_tissue = nan",)),
}  # fmt: skip


def zip_only(case: Case, name: str) -> None:
    case.model = case.folder / "model.zip"
    with zipfile.ZipFile(case.model, "w") as z:
        z.writestr(name, "hello")


@pytest.fixture
def case(tmp_path, bundle_folder) -> Case:
    return Case(tmp_path, peka.sample_slide(), bundle_folder, tmp_path / "out")


def finals(case: Case, before: set[Path]) -> set[Path]:
    """Return what appeared under a final name."""
    if not case.output.is_dir():
        return set()
    return {p for p in case.output.iterdir() if p.suffix in (".zarr", ".png")} - before


def prepared(case: Case, name: str) -> tuple[int, tuple[str, ...], set[Path]]:
    make, code, words = TABLE[name]
    make(case)
    return code, words, finals(case, set())


def check_sentence(text: str, words: tuple[str, ...]) -> None:
    assert "\n" not in text
    assert "Traceback" not in text
    assert len(text) < 700, "a sentence, not a page"
    assert not [w for w in words if w not in text], text
    assert "unexpected" not in text, text


@pytest.mark.skipif(sys.platform == "win32", reason="paths of the table are POSIX")
@pytest.mark.parametrize("name", TABLE)
def test_the_command_line_says_one_sentence(name, case, capsys):
    code, words, before = prepared(case, name)
    with pytest.raises(SystemExit) as ended:
        cli.main([*case.arguments(), "--json"])
    out, err = capsys.readouterr()
    assert ended.value.code == code, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert sum(line.startswith("error: ") for line in err.splitlines()) == 1
    assert "Traceback" not in err
    check_sentence(last, words)
    if out:  # what concerns one slide is in its entry; what concerns the whole command leaves nothing
        (entry,) = json.loads(out)
        assert entry == {"slide": str(case.slide), "error": last.removeprefix("error: ")}
    assert not finals(case, before)


@pytest.mark.skipif(sys.platform == "win32", reason="paths of the table are POSIX")
@pytest.mark.parametrize("name", TABLE)
def test_python_raises_one_sentence(name, case):
    code, words, before = prepared(case, name)
    with pytest.raises(PekaError) as caught:
        case.call()
    check_sentence(" ".join(str(caught.value).split()), words)
    assert isinstance(caught.value, (OSError, ValueError, KeyError, RuntimeError)), "each is a builtin too"
    assert cli.exit_code(caught.value) == code
    assert not finals(case, before)


SLIDES = [name for name, (make, *_) in TABLE.items() if make.__qualname__.split(".")[0] in ("slide_bytes", "cut")]


@pytest.mark.parametrize("name", SLIDES)
def test_info_says_the_same_of_a_bad_slide(name, case, capsys):
    code, words, _ = prepared(case, name)
    with pytest.raises(SystemExit) as ended:
        cli.main(["info", str(case.slide), "--json"])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (code, "")
    check_sentence(err.rstrip("\n"), ("error: ", *words))


@pytest.mark.parametrize("name", ["JPEG truncated", "hostile zip, path", "device unknown"])
def test_a_real_process_says_it_and_nothing_else(name, case):
    code, words, _ = prepared(case, name)
    ran = subprocess.run(
        [sys.executable, "-m", "napari_peka", *case.arguments(), "--json"], capture_output=True, encoding="utf-8"
    )
    assert ran.returncode == code
    check_sentence(ran.stderr.rstrip("\n"), ("error: ", *words))
    assert ran.stdout == "" or [set(e) for e in json.loads(ran.stdout)] == [{"slide", "error"}]


def test_a_slide_that_may_not_be_read_is_not_called_a_bad_one(case, monkeypatch, capsys):
    slide_bytes("closed.svs", lambda _: peka.sample_slide().read_bytes()[:5000])(case)
    real = Path.open

    def denied(path, *args, **kwargs):
        if path == case.slide:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", denied)  # tests may run as root, who may read everything
    monkeypatch.setattr(os, "access", lambda path, *_: Path(path) != case.slide)
    with pytest.raises(SystemExit) as ended:
        cli.main(["info", str(case.slide)])
    err = capsys.readouterr().err
    assert ended.value.code == 2
    check_sentence(err.rstrip("\n"), ("error: ", "closed.svs", "ermission denied"))
    assert "no slide" not in err, "it may well be one"
