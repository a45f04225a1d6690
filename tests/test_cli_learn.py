"""Learning on the command line: documents and files by the contract, settings, interruption, and every bad input.

Scripts outside this project rely on the contract; a renamed key, an extra line on standard output or another exit code
must fail here.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hest_files import write_task
from section_files import POSITIONS, change_counts, copied, positions, write_positions

pytest.importorskip("lightning_fabric")
pytest.importorskip("sklearn")

from napari_peka import cli
from napari_peka.core import files
from napari_peka.io import cache
from napari_peka.io.sample import sample_sections
from napari_peka.models.bundle import read_bundle

SETTINGS = ["--set", "mpp=1.0", "--set", "precision=fp32", "--device", "cpu"]
FAST = ["--epochs", "1", *SETTINGS]
TRAIN = ["--encoder", "tiny-random", "--hold-out", "P2S1", *FAST]
SCORE = {"mean", "sd", "ci95"}
#: of report.json and genes.csv, as the contract has them
REPORT = {
    "schema", "model", "sections", "split", "n_spots", "n_genes", "unit", "summary", "attainable_hvg50",
    "share_of_attainable_hvg50", "baselines", "coverage_90",
}  # fmt: skip
GENES = ["gene", "pcc", "spearman", "mse", "mae", "r2", "attainable_pcc", "coverage_90"]


@dataclass
class Ran:
    """What a command left on its streams."""

    out: str
    err: list[str]

    @property
    def data(self) -> Any:
        """The one document on standard output; anything else there fails."""
        return json.loads(self.out, parse_constant=pytest.fail)


def run(*args: Any, code: int = 0) -> Ran:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        cli.main([str(a) for a in args])
    lines = err.getvalue().splitlines()
    assert ended.value.code == code, err.getvalue()
    errors = [line for line in lines if line.startswith("error: ")]
    assert errors == (lines[-1:] if code else []), "a failure ends with one error line, a success has none"
    assert "Traceback" not in err.getvalue()
    assert not (code and out.getvalue()), "a failure leaves nothing on standard output"
    return Ran(out.getvalue(), lines)


def left(folder: Path) -> list[str]:
    """What a run left in a folder, hidden files too."""
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


@pytest.fixture(autouse=True, scope="module")
def _quick(tmp_path_factory):
    """A cache of their own, and a classifier of a few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cache.ENVIRONMENT, str(tmp_path_factory.mktemp("cache")))
        patch.setattr("napari_peka.training.pseudo_labels.MIN_STEPS", 100)
        yield


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return sample_sections(tmp_path_factory.mktemp("paired"), patients=2, sections=1, mpp=1.0, spots=(12, 12))


@pytest.fixture(scope="module")
def outs(manifest):
    return manifest.parent / "P1S1/outs", manifest.parent / "P2S1/outs"


@pytest.fixture(scope="module")
def trained(manifest, tmp_path_factory):
    """A model in a folder that did not exist, and what the command said."""
    output = tmp_path_factory.mktemp("models") / "new" / "model"
    return output, run("train", manifest, "-o", output, *TRAIN, "--json")


# -- help --------------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy():
    commands = ("train", "refit", "evaluate", "benchmark", "settings", "cache")
    code = f"""
import sys
from napari_peka import cli
for command in {commands!r}:
    try:
        cli.main([command, "--help"])
    except SystemExit as e:
        assert e.code == 0, (command, e.code)
heavy = [m for m in ("torch", "timm", "anndata", "napari", "numpy", "pandas", "matplotlib", "zarr") if m in sys.modules]
assert not heavy, heavy
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    for command in commands:
        assert f"napari-peka {command}" in ran.stdout
    for option in ("--hold-out", "--config", "--set", "--resume", "--encoders", "--protocol", "--older-than"):
        assert option in ran.stdout


# -- train -------------------------------------------------------------------------------------------------------


def test_train_writes_a_bundle_with_its_report_and_says_so_in_one_document(trained):
    output, ran = trained
    data = ran.data
    assert set(data) == {"model", "report", "sections", "split", "summary", "warnings"}
    assert (data["model"], data["report"]) == (str(output), str(output / "report"))
    assert data["sections"] == ["P1S1", "P2S1"]
    assert data["split"] == "2 sections of 2 patients, P2S1 left out"
    assert set(data["summary"]["pcc_hvg50"]) == SCORE
    assert left(output.parent) == ["model"]
    assert set(left(output / "report")) >= {"genes.csv", "report.html", "report.json"}
    model = read_bundle(output)
    assert model.spec.encoder.name == "tiny-random"
    assert {s["name"]: s["part"] for s in model.trained_on} == {"P1S1": "train", "P2S1": "held out"}
    report = json.loads((output / "report/report.json").read_text())
    assert set(report) >= REPORT
    assert report["summary"] == data["summary"]


def test_progress_and_warnings_go_to_standard_error_and_warnings_into_the_document(trained):
    _, ran = trained
    for stage in ("cutting tiles of P1S1 0/", "training ", "embedding spots 0/"):
        assert any(line.startswith(f"model: {stage}") for line in ran.err), stage
    assert any("pseudo-labels, not 100" in w for w in ran.data["warnings"])
    for warning in ran.data["warnings"]:
        assert ran.err.count(f"model: warning: {warning}") == 1
    report = json.loads((Path(ran.data["report"]) / "report.json").read_text())
    assert report["warnings"]
    assert set(report["warnings"]) <= set(ran.data["warnings"])


def test_an_option_goes_before_set_and_set_before_the_file_and_overwrite_replaces(trained, manifest, tmp_path):
    output = shutil.copytree(trained[0], tmp_path / "model")
    config = tmp_path / "settings.yaml"
    config.write_text("encoder: tiny-random\nadapter: none\nseed: 1\nepochs: 7\nmin_detected: 0.2\nrotations: 4\n")
    args = ["train", manifest, "-o", output, "--config", config, "--hold-out", "P2S1", "--epochs", 1, *SETTINGS,
            "--set", "seed=2", "--set", "epochs=5", "--set", "genes=[NUCLEI1, EOSIN1]"]  # fmt: skip
    assert "is there already" in run(*args, code=2).err[-1]
    assert read_bundle(output).digest == read_bundle(trained[0]).digest
    text = run(*args, "--overwrite").out
    settings = read_bundle(output).spec.training["settings"]
    wanted = {"adapter": "none", "seed": 2, "epochs": 1, "min_detected": 0.2, "rotations": 4, "mpp": 1.0}
    assert {k: settings[k] for k in wanted} == wanted
    assert read_bundle(output).head.genes == ("NUCLEI1", "EOSIN1")
    assert left(tmp_path) == ["model", "settings.yaml"]
    assert text.splitlines()[0] == "judged on  2 sections of 2 patients, P2S1 left out"
    assert f"report     {output / 'report' / 'report.html'}" in text.splitlines()


def test_spots_without_counts_and_genes_that_do_not_vary_are_said_not_refused(outs, tmp_path):
    odd = copied(outs[1], tmp_path)

    def change(matrix):
        counts = matrix.counts.tolil()
        counts[:3] = 0
        counts[:, matrix.genes.tolist().index("FLAT1")] = 0
        return matrix._replace(counts=counts.tocsr())

    change_counts(odd, change)
    ran = run("train", outs[0], odd, "-o", tmp_path / "m", *TRAIN, "--adapter", "none", "--json")
    assert any(w.startswith("P2S1: 3 of 109 spots") for w in ran.data["warnings"])
    assert any("1 of 100 genes do not vary over the held-out spots of P2S1" in w for w in ran.data["warnings"])
    genes = pd.read_csv(tmp_path / "m/report/genes.csv").set_index("gene")
    assert np.isnan(genes["pcc"]["FLAT1"])
    assert genes["pcc"].notna().sum() == 99


# -- evaluate ----------------------------------------------------------------------------------------------------


def test_evaluate_writes_the_contracts_files_key_by_key(trained, outs, tmp_path):
    out = tmp_path / "a" / "b"
    ran = run("evaluate", trained[0], outs[1], "-o", out, "--patient", "P2", "--device", "cpu", "--json")
    assert set(left(out)) >= {"genes.csv", "report.html", "report.json"}
    report = json.loads((out / "report.json").read_text())
    assert ran.data == report
    assert set(report) >= REPORT
    assert (report["schema"], report["model"], report["unit"]) == (1, "model", "log1p CP10K")
    assert report["split"] == "sections and patients that the model never saw"
    assert (report["n_spots"], report["n_genes"]) == (109, 100)
    assert [s["section"] for s in report["sections"]] == ["P2S1"]
    summary = report["summary"]
    for key in ("pcc_hvg50", "pcc_all"):
        assert set(summary[key]) == SCORE
        assert summary[key]["ci95"][0] <= summary[key]["mean"] <= summary[key]["ci95"][1]
    assert set(summary["baselines"]) == {"train_mean", "colour", "position"}
    assert all("pcc_hvg50" in b for b in summary["baselines"].values())
    for key in ("attainable_hvg50", "share_of_attainable_hvg50", "baselines", "coverage_90"):
        assert report[key] == summary[key]
    assert 0 < summary["coverage_90"] <= 1
    assert summary["share_of_attainable_hvg50"] == pytest.approx(
        summary["pcc_hvg50"]["mean"] / summary["attainable_hvg50"], rel=0.01
    )
    genes = pd.read_csv(out / "genes.csv")
    assert list(genes.columns[: len(GENES)]) == GENES
    assert len(genes) == 100


def test_patients_that_nobody_named_are_not_called_unseen(trained, outs, tmp_path):
    ran = run("evaluate", trained[0], outs[1], "-o", tmp_path / "e", "--device", "cpu", "--json")
    assert "whether it knows their patients is not known" in ran.data["split"]
    said = "\n".join(ran.data["warnings"])
    assert "name the patients" in said
    assert "nobody says whose section this is" in said, "a section's own warnings are in the report too"


def test_what_is_said_of_one_section_reaches_it(trained, outs, tmp_path):
    plain = run(
        "evaluate", trained[0], outs[1], "-o", tmp_path / "plain", "--patient", "P2", "--device", "cpu", "--json"
    )
    moved = copied(outs[1], tmp_path)
    table = positions(moved)
    table["pxl_col_in_fullres"] += 1000
    write_positions(moved, table)
    (tmp_path / "back.json").write_text(json.dumps({"affine": [[1, 0, -1000], [0, 1, 0]]}))
    ran = run(
        "evaluate", trained[0], moved, "-o", tmp_path / "moved", "--patient", "P2", "--section", "told", "--affine",
        tmp_path / "back.json", "--mpp", 1.0, "--device", "cpu", "--json",
    )  # fmt: skip
    assert [s["section"] for s in ran.data["sections"]] == ["told"]
    assert ran.data["summary"]["pcc_hvg50"]["mean"] == pytest.approx(
        plain.data["summary"]["pcc_hvg50"]["mean"], abs=1e-4
    )


def test_evaluate_on_sections_that_were_trained_on_says_so_on_both_streams(trained, manifest, tmp_path):
    ran = run("evaluate", trained[0], manifest, "-o", tmp_path / "e", "--device", "cpu")
    loud = "the model was trained on P1S1: its scores there are worth nothing, leave them out"
    assert ran.err.count(f"model: warning: {loud}") == 1
    assert ran.out.startswith("judged on  TRAINED ON: the model has seen P1S1")
    report = json.loads((tmp_path / "e/report.json").read_text())
    assert report["split"].startswith("TRAINED ON")
    assert report["warnings"][0] == loud
    lines = ran.out.splitlines()
    score = report["summary"]["pcc_hvg50"]
    assert lines[1].startswith(f"PCC        {score['mean']:.3f} (")
    assert lines[1].endswith("mean over the 50 most variable genes")
    assert any(line.startswith("ceiling ") for line in lines)
    assert any(line.startswith("baselines ") and line.endswith("colour alone") for line in lines), "best first"
    assert lines[-1] == f"report     {tmp_path / 'e' / 'report.html'}"


def test_what_is_not_known_is_left_out_of_the_text_not_printed_as_nothing():
    from napari_peka.cli_output import report_text

    nothing = {"mean": None, "sd": None, "ci95": None}
    summary = {"pcc_hvg50": nothing, "pcc_all": nothing, "attainable_hvg50": None, "share_of_attainable_hvg50": None,
               "baselines": {"colour": {"pcc_hvg50": nothing}}}  # fmt: skip
    text = report_text({"split": "s", "hvg50": [], "n_genes": 3, "summary": summary})
    assert text.splitlines() == [
        "judged on  s", "PCC        not known: no gene varies where there are predictions",
    ]  # fmt: skip


# -- benchmark ---------------------------------------------------------------------------------------------------


def test_benchmark_writes_the_table_beside_the_frozen_encoder(manifest, tmp_path):
    out = tmp_path / "b"
    args = ["benchmark", manifest, "-o", out, "--encoders", "tiny-random", "--rotations", "1", "--hold-out", "P2S1",
            *FAST]  # fmt: skip
    rows = run(*args, "--adapters", "bone", "--features", "image,peka", "--json").data
    assert left(out) == [f"benchmark.{e}" for e in ("csv", "html", "json", "md")]
    assert left(tmp_path) == ["b"]
    arms = {(r["encoder"], r["adapter"], r["features"]) for r in rows}
    assert arms == {("tiny-random", "none", "image"), *(("tiny-random", "bone", f) for f in ("image", "peka"))}
    table = pd.read_csv(out / "benchmark.csv")
    assert {"encoder", "adapter", "features", "pcc_ci95_low", "pcc_ci95_high"} <= set(table.columns)
    assert len(table) == 3
    assert rows == json.loads((out / "benchmark.json").read_text())
    assert "already" in run(*args, "--adapters", "none", code=2).err[-1]
    ran = run(*args, "--adapters", "none", "--contexts", "0,150", "--overwrite")
    lines = ran.out.splitlines()
    assert lines[0] == "encoder tiny-random, adapter none, features image, head ridge (gcv), protocol grouped"
    assert lines[2].split() == [
        "context",
        "PCC",
        "±",
        "sd",
        "of",
        "ceiling",
        "gain",
        "over",
        "the",
        "same",
        "frozen",
        "(95",
        "%",
        "CI)",
    ]
    assert lines[4].startswith("150 µm")
    assert max(map(len, lines[:5])) < 100
    assert any("of one patient" in line for line in ran.err)
    assert ran.out.splitlines()[-1] == f"table      {out / 'benchmark.html'}"
    assert len(pd.read_csv(out / "benchmark.csv")) == 2


def test_a_folder_of_hest_bench_gives_hest_benchs_table(tmp_path):
    write_task(tmp_path / "bench/IDC", [(["A"], ["B"]), (["B"], ["A"])])
    args = ["benchmark", tmp_path / "bench", "--encoders", "tiny-random", "--rotations", "1", "--adapters", "none",
            "--device", "cpu"]  # fmt: skip
    rows = run(*args, "-o", tmp_path / "out", "--json").data
    assert [(r["task"], r["adapter"]) for r in rows] == [("IDC", "none")]
    assert 0 < rows[0]["pcc_hest_bench"] < 1
    assert {"benchmark.csv", "benchmark.json", "benchmark.md", "IDC"} == set(left(tmp_path / "out"))
    assert "IDC" in run(*args, "-o", tmp_path / "text").out.splitlines()[0]
    assert "hold_out" in run(*args, "-o", tmp_path / "no", "--hold-out", "patient", code=2).err[-1]


# -- refit, settings -----------------------------------------------------------------------------------------------


def test_refit_writes_a_bundle_beside_the_model_before(trained, outs, tmp_path):
    args = ["refit", trained[0], outs[1], "--patient", "P2", "-o", tmp_path / "new", "--genes", "NUCLEI1,EOSIN2",
            "--device", "cpu", "--set", "precision=fp32"]  # fmt: skip
    data = run(*args, "--json").data
    assert set(data) == {"model", "report", "sections", "split", "summary", "warnings"}
    assert data["sections"] == ["P2S1"]
    assert data["split"].startswith("model, its head refitted: 1 section of patient P2")
    assert set(data["summary"]["baselines"]) == {"before", "train_mean", "colour", "position"}
    assert left(tmp_path) == ["new"]
    assert read_bundle(tmp_path / "new").head.genes == ("NUCLEI1", "EOSIN2")
    assert "already" in run(*args, code=2).err[-1]
    text = run(*args, "--start", "nothing", "--overwrite").out
    assert "the model before" in text
    assert "report.html" in text


def test_settings_lists_what_set_takes():
    rows = run("settings", "train", "--json").data
    assert [r["setting"] for r in rows][:2] == ["encoder", "adapter"]
    by_name = {r["setting"]: r for r in rows}
    assert by_name["rank"] == {
        "setting": "rank", "default": "null", "values": "whole number, ≥ 1",
        "what": "rank of the adapter; null: about 5 % of the encoder's weights",
    }  # fmt: skip
    assert {"ridge_alpha", "seed", "min_on_tissue"} <= set(by_name)
    for job in ("refit", "evaluate", "benchmark", "predict"):
        assert "= " in run("settings", job).out


# -- interruption ------------------------------------------------------------------------------------------------

CHILD = """
from napari_peka.training import pseudo_labels
pseudo_labels.MIN_STEPS = 100
from napari_peka import cli
cli.main()
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_and_a_schedulers_sigterm_end_with_130_and_resume_goes_on(manifest, tmp_path):
    out = tmp_path / "model"
    args = list(map(str, ["train", manifest, "-o", out, *TRAIN, "--json", "--epochs", 20]))
    state = tmp_path / "model.partial" / "P2S1" / "state.pt"
    written = 0
    for number, more in ((signal.SIGINT, []), (signal.SIGTERM, ["--resume"])):
        # a shell that runs the tests in the background hands down that Ctrl-C is ignored
        ran = subprocess.Popen(
            [sys.executable, "-c", CHILD, *args, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while not (state.exists() and state.stat().st_mtime_ns != written):
            assert time.monotonic() < deadline
            assert ran.poll() is None, ran.communicate()
            time.sleep(0.01)
        ran.send_signal(number)
        said, err = ran.communicate(timeout=60)
        assert (ran.returncode, said) == (130, ""), err
        assert err.splitlines()[-1] == "error: interrupted; the same command with --resume goes on from here"
        assert "Traceback" not in err
        assert left(tmp_path) == ["model.partial"]
        written = state.stat().st_mtime_ns
    assert "--resume" in run(*args, code=2).err[-1], "unfinished work is not thrown away unasked"
    other = run(*args, "--resume", "--set", "lr=0.1", code=2).err[-1]
    assert "lr was 0.0003, now 0.1" in other
    ran = run(*args, "--resume")
    assert any("resumed" in line for line in ran.err)
    assert left(tmp_path) == ["model"]
    learnt = read_bundle(out).spec.training
    assert learnt["settings"]["epochs"] == 20
    curves = json.loads((out / "report/report.json").read_text())["curves"]
    assert [c["epoch"] for c in curves] == list(range(1, 21)), "each epoch once"


def test_resume_and_finish_keep_what_was_learnt_and_overwrite_begins_anew(manifest, tmp_path, monkeypatch):
    """A full disk is the machine's fault: 1, said plainly, and the work before it is kept."""
    out = tmp_path / "m"
    args = ["train", manifest, "-o", out, *TRAIN, "--epochs", 3]
    real, times = files.write_whole, []

    def full(path, data):
        times.append(path)
        if path.name == "state.pt" and len([p for p in times if p.name == "state.pt"]) == 2:
            raise files.cannot_write(path, OSError(errno.ENOSPC, "No space left on device"))
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_whole", full)
        err = run(*args, code=1).err[-1]
    assert err.startswith("error: the disk is full: ")
    assert "state.pt could not be written; free some space" in err
    assert left(tmp_path) == ["m.partial"]
    run(*args, "--resume", "--finish")
    curves = json.loads((out / "report/report.json").read_text())["curves"]
    assert [c["epoch"] for c in curves] == [1]


def test_an_interrupted_evaluation_does_not_promise_to_go_on(trained, outs, tmp_path, monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("napari_peka.workflows.evaluate.gather", interrupted)
    ran = run("evaluate", trained[0], outs[1], "-o", tmp_path / "e", "--json", code=130)
    assert ran.err[-1] == "error: interrupted; run the same command again"
    assert left(tmp_path) == []


# -- bad input ---------------------------------------------------------------------------------------------------


@dataclass
class Bad:
    """What a row of the table makes wrong."""

    folder: Path
    manifest: Path
    outs: tuple[Path, Path]
    model: Path
    command: str = "train"
    sections: list[Any] = field(default_factory=list)
    options: list[Any] = field(default_factory=list)
    output: Path = Path()

    def arguments(self) -> list[Any]:
        model = [self.model] if self.command == "evaluate" else []
        base = {
            "train": TRAIN, "evaluate": ["--device", "cpu"],
            "benchmark": ["--encoders", "tiny-random", "--hold-out", "P2S1", *FAST],
        }  # fmt: skip
        return [self.command, *model, *self.sections, "-o", self.output, *base[self.command], *self.options]


def options(*args, command="train", of=None):
    def make(bad):
        bad.command = command
        bad.sections = of(bad) if of else bad.sections
        bad.options = [a(bad) if callable(a) else a for a in args]

    return make


def no_section(bad):
    bad.sections = [bad.folder / "nothing" / "outs"]


def without_image(bad):
    target = copied(bad.outs[0], bad.folder, scan=False)
    for image in (target / "spatial").glob("*.png"):
        image.unlink()
    bad.sections = [target]


def without_match(bad):
    target = copied(bad.outs[0], bad.folder)
    table = positions(target)
    table["barcode"] = [f"OTHER{i}" for i in range(len(table))]
    write_positions(target, table)
    bad.sections = [target]


def without_positions(bad):
    target = copied(bad.outs[0], bad.folder)
    (target / POSITIONS).unlink()
    bad.sections = [target]


def manifest_of(text):
    def make(bad):
        path = bad.folder / "bad.csv"
        path.write_text(text)
        bad.sections = [path]

    return make


def one_patient(bad):
    bad.sections = list(bad.outs)
    bad.options = ["--patient", "Ann", "--hold-out", "patient"]


def nobodys_patients(bad):
    bad.sections = list(bad.outs)
    bad.options = ["--hold-out", "patient"]


def another_image(command):
    def make(bad):
        target = copied(bad.outs[0], bad.folder)
        scan = target.parent / "P1S1.tif"
        with Image.open(scan) as image:
            blank, info = np.full((image.height, image.width, 3), 244, np.uint8), image.tag_v2
            blank[:40, :40] = (120, 40, 110)  # what tissue there is lies in a corner
            resolution = {k: float(info[k]) for k in (282, 283)}
        Image.fromarray(blank).save(scan, resolution_unit=3, x_resolution=resolution[282], y_resolution=resolution[283])
        bad.command, bad.sections = command, [target]
        bad.options = ["--hold-out", "block"] if command != "evaluate" else []

    return make


def into_a_model(bad):
    shutil.copytree(bad.model, bad.output)
    (bad.output / "thesis.docx").write_text("years of work")
    bad.command, bad.sections = "evaluate", [bad.outs[1]]


def beside_a_models_report(bad):
    shutil.copytree(bad.model, bad.output.parent / "model")
    (bad.output.parent / "model" / "thesis.docx").write_text("years of work")
    bad.output = bad.output.parent / "model" / "report"
    bad.command, bad.sections = "evaluate", [bad.outs[1]]


def mirrored(bad):
    target = copied(bad.outs[0], bad.folder)
    scan = target.parent / "P1S1.tif"
    with Image.open(scan) as image:
        wide = np.full((image.height, image.width * 2, 3), 244, np.uint8)  # tissue left, glass right
        wide[:, : image.width] = np.asarray(image.convert("RGB"))
        resolution = [float(image.tag_v2[k]) for k in (282, 283)]
        width = wide.shape[1]
    Image.fromarray(wide).save(scan, resolution_unit=3, x_resolution=resolution[0], y_resolution=resolution[1])
    affine = bad.folder / "mirror.json"
    affine.write_text(json.dumps([[-1, 0, width], [0, 1, 0]]))
    bad.sections, bad.options = [target], ["--affine", affine, "--hold-out", "block"]


def affine_of(data):
    def make(bad):
        path = bad.folder / "affine.json"
        path.write_text(json.dumps(data))
        bad.sections, bad.options = [bad.outs[0]], ["--affine", path]

    return make


def into_a_file(bad):
    (bad.output.parent / "thesis.docx").write_text("years of work")
    bad.output = bad.output.parent / "thesis.docx" / "out"
    bad.command, bad.sections = "evaluate", [bad.outs[1]]


def several_with_an_image(bad):
    bad.sections = list(bad.outs)
    bad.options = ["--image", bad.outs[0].parent / "P1S1.tif"]


def teacher_file(change):
    def make(bad):
        pytest.importorskip("pyarrow")
        parts = [positions(o).query("in_tissue == 1")[["barcode"]].assign(section=o.parent.name) for o in bad.outs]
        table = pd.concat(parts, ignore_index=True)
        table[["a", "b", "c"]] = np.random.default_rng(0).normal(size=(len(table), 3))
        path = bad.folder / "teacher.parquet"
        change(table).to_parquet(path)
        bad.options = ["--teacher", path]

    return make


def with_nan(table):
    table.loc[7, "b"] = np.nan
    return table


def config_file(text):
    def make(bad):
        path = bad.folder / "settings.yaml"
        path.write_text(text)
        bad.options = ["--config", path]

    return make


def with_other_files(bad):
    bad.output.mkdir()
    (bad.output / "thesis.docx").write_text("years of work")


def other_species(bad):
    target = copied(bad.outs[1], bad.folder)
    change_counts(target, lambda m: m._replace(genes=np.array([f"Mm{g}" for g in m.genes], object),
                                               gene_ids=np.array([f"M{i}" for i in m.gene_ids], object)))  # fmt: skip
    bad.command, bad.sections = "evaluate", [target]


def evaluate_of(model):
    def make(bad):
        bad.command, bad.model = "evaluate", model

    return make


#: name: (what is bad, words of the sentence); exit code 2 but for those of ONE
TABLE = {
    # sections
    "no such section": (no_section, ("nothing/outs", "there")),
    "section without image": (without_image, ("P1S1", "image")),
    "coordinates without match in counts": (without_match, ("barcode",)),
    "counts without coordinates": (without_positions, ("tissue_positions",)),
    "manifest is empty": (manifest_of("path,section,patient,image,split\n"), ("bad.csv", "names no section")),
    "manifest of nothing": (manifest_of(""), ("bad.csv", "header")),
    "manifest of a missing section": (manifest_of("path\nnowhere/outs\n"), ("nowhere",)),
    "image of several sections": (several_with_an_image, ("--image", "manifest")),
    "mirrored spots": (mirrored, ("P1S1: only 0%", "with x flipped", "or turned")),
    "affine into nowhere": (affine_of([[1, 0, 99999], [0, 1, 99999]]), ("the affine does not fit", "0% of the spots")),
    "affine of other keys": (affine_of({"foo": "bar"}), ("affine.json", "foo")),
    "affine that is not there": (
        options("--affine", lambda bad: bad.folder / "none.json", of=lambda bad: [bad.outs[0]]), ("none.json",),
    ),
    "a section twice": (lambda b: setattr(b, "sections", [b.outs[0]] * 2), ("twice",)),
    # splits
    "unknown hold-out": (options("--hold-out", "P2S9"), ("'P2S9'", "did you mean P2S1")),
    "one patient, split by patient": (one_patient, ("Ann", "hold out section or block")),
    "patients that nobody named": (nobodys_patients, ("nobody says whose P1S1, P2S1 are", "--patient")),
    "another section's image, train": (another_image("train"), ("P1S1: only 0%", "another section's image", "--image")),
    "another section's image, benchmark": (another_image("benchmark"), ("P1S1: only 0%", "min_on_tissue")),
    "everything held out": (options("--hold-out", "P1,P2"), ("nothing to train on",)),
    # genes, teachers
    "gene missing": (options("--set", "genes=[NUCLEI1, NUCLEO2]"), ("NUCLEO2",)),
    "teacher file lacks rows": (teacher_file(lambda t: t.drop(index=[3, 4])), ("teacher.parquet", "2 of 109 spots")),
    "teacher file has NaN": (teacher_file(with_nan), ("teacher.parquet", "1 of 109")),
    "teacher file missing": (options("--teacher", "gone.npy"), ("gone.npy",)),
    "teacher unknown": (options("--teacher", "pcaa"), ("'pcaa'", "did you mean pca")),
    "teacher not in obsm": (options("--teacher", "obsm:X_scvi"), ('obsm["X_scvi"]',)),
    # settings
    "adapter unknown": (options("--adapter", "lorra"), ("adapter = 'lorra'", "'lora'")),
    "encoder unknown": (options("--encoder", "tiny-randon"), ("did you mean tiny-random",)),
    "setting unknown": (options("--set", "epoch=3"), ("'epoch'", "did you mean epochs")),
    "setting of no known kin": (options("--set", "learning_rate=1"), ("`napari-peka settings train` lists them",)),
    "setting of another kind": (options("--set", "rank=many"), ("rank = 'many'", "it must be a whole number")),
    "setting out of range": (options("--epochs", "0"), ("epochs = 0",)),
    "setting without a value": (options("--set", "rank"), ("NAME=VALUE", "'rank'")),
    "setting is no YAML": (options("--set", "terms={mse: "), ("terms={mse:", "not YAML")),
    "no YAML": (config_file("epochs: [1\n  : {"), ("settings.yaml", "not YAML")),
    "YAML of a list": (config_file("- epochs\n- 3\n"), ("settings.yaml", "NAME: VALUE")),
    "YAML with an unknown setting": (config_file("lerning_rate: 3\n"), ("'lerning_rate'",)),
    "settings file missing": (options("--config", lambda b: b.folder / "no.yaml"), ("no.yaml", "cannot be read")),
    "adapter wider than the encoder": (options("--set", "rank=1000"), ("rank of bone is 1000",)),
    "patches left out of a network that needs them": (
        options("--encoder", "timm:convnext_atto", "--adapter", "lora", "--set", "patch_dropout=0.5"),
        ("needs all patches", "leave patch_dropout away"),
    ),
    "device unknown": (options("--device", "banana"), ("banana",)),
    "terms unknown": (options("--set", "terms={cosin: 1}"), ("did you mean cosine",)),
    # training
    "training that diverges": (options("--set", "terms={mse: 3e38}"), ("diverged in epoch 1", "learning rate")),
    # outputs
    "output of other files": (with_other_files, ("holds other files", "choose another")),
    # evaluate, benchmark
    "model unknown": (evaluate_of("dem"), ("'dem'", "did you mean demo")),
    "model missing": (evaluate_of(Path("/nowhere/model")), ("/nowhere/model",)),
    "report into a model": (into_a_model, ("belongs to the model", "choose another folder")),
    "report over a model's": (beside_a_models_report, ("belongs to the model", "choose another folder")),
    "report into a file": (into_a_file, ("thesis.docx is a file",)),
    "sections of another species": (other_species, ("species", "MmNUCLEI1")),
    "evaluate with a setting of training": (options("--set", "epochs=2", command="evaluate"), ("'epochs'",)),
    "benchmark of an unknown adapter": (options("--adapters", "bone,lorra", command="benchmark"), ("lorra",)),
    "benchmark of an unknown encoder": (options("--encoders", "UNY", command="benchmark"), ("UNY", "UNI")),
    "benchmark of an unknown feature": (options("--features", "pixels", command="benchmark"), ("pixels",)),
    "benchmark by words for numbers": (options("--seeds", "1,two", command="benchmark"), ("'1,two'", "numbers")),
    "benchmark protocol unknown": (options("--protocol", "papper", command="benchmark"), ("papper",)),
}  # fmt: skip
#: as for `predict`: what lies where a result should go is nobody's wrong usage
ONE = {"output of other files", "report into a file"}


#: what needs no tile to be known
SAID_FIRST = {
    "adapter wider than the encoder", "patches left out of a network that needs them", "report into a model",
    "another section's image, train", "terms unknown",
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_is_one_sentence_and_leaves_nothing_behind(name, manifest, outs, trained, tmp_path):
    make, words = TABLE[name]
    place = tmp_path / "place"
    place.mkdir()
    bad = Bad(tmp_path, manifest, outs, trained[0], sections=[manifest], output=place / "out")
    make(bad)
    before = left(place)
    ran = run(*bad.arguments(), "--json", code=1 if name in ONE else 2)
    for word in words:
        assert word in ran.err[-1]
    assert left(place) == before
    if before:
        assert "years of work" in [p.read_text() for p in place.rglob("thesis.docx")]
    if name in SAID_FIRST:
        assert not any("cutting tiles" in line for line in ran.err)


# -- cache -------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A cache of two old things, a new one and one half-written, among files of somebody else."""
    folder = tmp_path / "cache"
    monkeypatch.setenv(cache.ENVIRONMENT, str(folder))
    day = 86_400
    for name, size, age_days in (
        ("tiles/P1-0123456789abcdef.zarr", 3000, 40), ("tiles/P2-0123456789abcdef.zarr", 2000, 1),
        ("tiles/.01234567.P3-0123456789abcdef.zarr", 500, 0), (f"images/{'0a' * 16}.png", 1000, 40),
        ("tiles/mine.zarr", 100, 400), ("images/holiday.png", 100, 400), ("thesis.docx", 100, 400),
    ):  # fmt: skip
        path = folder / name
        file = path / "c" / "0" if path.suffix == ".zarr" else path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(size))
        at = time.time() - age_days * day - 60
        os.utime(path, (at, at))
    return folder


def names(entries):
    return [e["name"] for e in entries]


def test_the_cache_is_listed_with_size_and_age_largest_first(kept):
    data = run("cache", "--json").data
    assert set(data) == {"folder", "entries", "size_bytes"}
    assert (data["folder"], data["size_bytes"]) == (str(kept), 6500)
    first = data["entries"][0]
    assert set(first) == {"name", "kind", "size_bytes", "age_days", "path"}
    assert first["age_days"] == pytest.approx(40, abs=0.01)
    assert [(e["kind"], e["size_bytes"]) for e in data["entries"]] == [
        ("tiles", 3000), ("tiles", 2000), ("image", 1000), ("unfinished", 500),
    ]  # fmt: skip
    assert all(Path(e["path"]).exists() for e in data["entries"])
    assert run("cache", "list", "--json").data["entries"][0]["name"] == first["name"]
    assert len(run("cache", "list", "--older-than", 30, "--json").data["entries"]) == 2
    text = run("cache").out.splitlines()
    assert text[0].split() == ["3.0", "kB", "40.0", "days", "tiles", "P1-0123456789abcdef.zarr"]
    assert text[-1].split() == ["6.5", "kB", "kept", "in", str(kept)]


def test_prune_removes_the_old_or_all_but_nothing_of_somebody_else(kept):
    old = run("cache", "prune", "--older-than", 30, "--json").data
    assert names(old["removed"]) == ["P1-0123456789abcdef.zarr", f"{'0a' * 16}.png"]
    half = kept / "tiles/.01234567.P3-0123456789abcdef.zarr"
    assert left(kept / "tiles") == [half.name, "P2-0123456789abcdef.zarr", "mine.zarr"]
    assert "P2-0123456789abcdef.zarr" in run("cache", "prune").out
    assert left(kept / "tiles") == [half.name, "mine.zarr"], "somebody may be writing what is unfinished"
    assert left(kept / "images") == ["holiday.png"]
    assert (kept / "thesis.docx").exists()
    os.utime(half, (0, 0))
    assert len(run("cache", "prune", "--json").data["removed"]) == 1
    assert not half.exists()


def test_prune_leaves_as_much_as_is_wanted_and_takes_the_oldest(kept):
    ages = {"P1-0123456789abcdef.zarr": 40, "P2-0123456789abcdef.zarr": 2}
    sizes = {e.name: e.size_bytes for e in cache.listing()}
    room = sum(sizes.values()) - 1
    removed = run("cache", "prune", "--keep-gb", room / 1e9, "--json").data["removed"]
    assert removed[0]["age_days"] == max(e["age_days"] for e in removed)
    left = {e.name for e in cache.listing()}
    assert left == set(sizes) - set(names(removed))
    assert len(left) > 0
    assert set(ages) - left <= {"P1-0123456789abcdef.zarr"}
    assert run("cache", "prune", "--keep-gb", 1000, "--json").data["removed"] == []
    assert "list removes nothing" in run("cache", "list", "--keep-gb", 1, code=2).err[-1]


def test_prune_never_leaves_its_folder(kept, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(kept / "tiles", elsewhere / "tiles")
    (kept / "tiles/L-0123456789abcdef.zarr").symlink_to(elsewhere / "tiles", target_is_directory=True)
    (kept / "tiles/P1-0123456789abcdef.zarr/link").symlink_to(elsewhere, target_is_directory=True)
    before = sorted(elsewhere.rglob("*"))
    run("cache", "prune")
    assert not (kept / "tiles/P1-0123456789abcdef.zarr").exists()
    assert sorted(elsewhere.rglob("*")) == before
    shutil.rmtree(kept / "tiles")
    (kept / "tiles").symlink_to(elsewhere / "tiles", target_is_directory=True)
    assert "is a link to elsewhere" in run("cache", "prune", code=1).err[-1]
    assert sorted(elsewhere.rglob("*")) == before


def test_without_a_cache_there_is_nothing_to_list_or_prune(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.ENVIRONMENT, str(tmp_path / "none"))
    assert run("cache", "--json").data == {"folder": str(tmp_path / "none"), "entries": [], "size_bytes": 0}
    assert run("cache", "prune", "--json").data["removed"] == []
    assert not (tmp_path / "none").exists()
    run("cache", "burn", code=2)
    run("cache", "prune", "--older-than", "-1", code=2)


def test_images_out_of_files_lie_in_the_cache_folder_too(kept):
    from napari_peka.io.sections.h5ad import keep_image

    path = keep_image(np.zeros((8, 9, 3), np.uint8))
    assert path.parent == kept / "images"
    assert [e.path for e in cache.listing() if e.kind == "image" and e.age_days < 1] == [path]


def test_what_training_keeps_lies_in_the_cache_folder(trained):
    entries = [e for e in cache.listing() if e.kind == "tiles"]
    assert {e.name.split("-")[0] for e in entries} >= {"P1S1", "P2S1"}
    assert all(e.size_bytes > 10_000 and e.path.parent == cache.cache_folder() / "tiles" for e in entries)
