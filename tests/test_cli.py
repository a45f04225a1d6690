"""The command line's contract: documents, exit codes, names of results, interruption, closed and foreign streams."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import napari_peka as peka
from napari_peka import cli, doctor
from napari_peka.workflows import many

CLI = [sys.executable, "-m", "napari_peka"]
FAST = ["--device", "cpu", "--precision", "fp32"]
COMMANDS = ("demo", "info", "predict", "models", "doctor")
ENTRY = {
    "slide", "output", "tiles", "unreadable_tiles", "seconds", "tiles_per_second", "resumed_tiles", "warnings",
    "pictures", "verdict", "checks",
}  # fmt: skip


@pytest.fixture
def run(capsys):
    """Run a command in this process; returns ``(exit code, standard output, lines of standard error)``."""

    def go(*args, code=0):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(a) for a in args])
        out, err = capsys.readouterr()
        assert ended.value.code == code, err
        said = [line for line in err.splitlines() if line.startswith("error: ")]
        assert said == (err.splitlines()[-1:] if code else []), "a failure ends with one error line, a success has none"
        assert "Traceback" not in err
        return out, err.splitlines()

    return go


@pytest.fixture
def predict(run, bundle_folder, tmp_path):
    """Predict with the tiny model into ``out``; returns the parsed entries."""

    def go(*args, code=0):
        out, err = run("predict", *args, "--model", bundle_folder, "-o", tmp_path / "out", *FAST, "--json", code=code)
        return json.loads(out) if out else None, err

    return go


def small_slide(path: Path) -> Path:
    """Write a slide of 600 x 700 px at 0.5 µm/px with tissue in the middle."""
    import tifffile

    rng = np.random.default_rng(0)
    image = np.full((600, 700, 3), 244, np.uint8)
    image[80:-80, 80:-80] = np.clip(np.array([200, 130, 180]) + rng.integers(-25, 25, (440, 540, 1)), 0, 255)
    path.parent.mkdir(exist_ok=True, parents=True)
    tifffile.imwrite(
        path, image, tile=(256, 256), photometric="rgb", compression="zlib", metadata=None,
        resolution=(20000, 20000), resolutionunit="CENTIMETER",
    )  # fmt: skip
    return path


# -- help --------------------------------------------------------------------------------------------------------


def test_help_of_every_command_imports_nothing_heavy():
    code = f"""
import sys
from napari_peka import cli
for args in [["--help"], *([c, "--help"] for c in {COMMANDS!r})]:
    try:
        cli.main(args)
    except SystemExit as e:
        assert e.code == 0, (args, e.code)
heavy = [m for m in ("torch", "timm", "anndata", "napari", "numpy", "pandas", "matplotlib", "zarr") if m in sys.modules]
assert not heavy, heavy
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    for command in COMMANDS:
        assert f"napari-peka {command}" in ran.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [([], "no command was given"), (["predct"], "did you mean 'predict'"), (["predict"], "missing argument"),
     (["info"], "missing argument"), (["info", "a", "--nope"], "no such option"),
     (["predict", "a", "--model", "demo"], "missing option"), (["info", "a", "--mpp", "q"], "--mpp"),
     (["predict", "a", "--model", "demo", "-o", "b", "--batch-size", "1.5"], "--batch-size")],
)  # fmt: skip
def test_wrong_usage_is_2_with_one_sentence(args, words, run):
    _, err = run(*args, code=2)
    assert words in err[-1].lower()


# -- info --------------------------------------------------------------------------------------------------------


def test_info_is_one_document_with_the_contracts_keys(run, sample):
    data = json.loads(run("info", sample, "--json")[0])
    assert {"shape", "mpp", "mpp_source", "levels", "vendor", "reader", "warnings"} <= set(data)
    assert data["shape"] == [2967, 2220]
    assert data["mpp"] == pytest.approx([0.499, 0.499])
    assert data["vendor"] == "aperio"
    assert data["warnings"] == []


def test_info_without_a_resolution_is_null_and_says_what_to_do(run, tmp_path):
    Image.new("RGB", (300, 200), "white").save(tmp_path / "a.jpg")
    data = json.loads(run("info", tmp_path / "a.jpg", "--json")[0])
    assert (data["shape"], data["mpp"], data["mpp_source"]) == ([200, 300], None, None)
    text, _ = run("info", tmp_path / "a.jpg")
    assert "300 × 200 px" in text
    assert "--mpp" in text
    text, _ = run("info", tmp_path / "a.jpg", "--mpp", 0.5)
    assert "0.5 µm/px (given)" in text


# -- predict -----------------------------------------------------------------------------------------------------


def test_predict_writes_what_the_contract_says(predict, sample, tmp_path):
    (entry,), err = predict(sample, "--genes", "ERBB2, krt8 ,ERBB2,")
    assert set(entry) == ENTRY
    assert entry["slide"] == str(sample)
    assert entry["output"] == str(tmp_path / "out" / "cmu_small_region.peka.zarr")
    assert entry["pictures"] == [str(tmp_path / "out" / f"cmu_small_region.{g}.png") for g in ("ERBB2", "krt8")]
    assert entry["tiles"] > 100
    assert entry["unreadable_tiles"] == entry["resumed_tiles"] == 0
    assert entry["seconds"] > 0
    assert entry["tiles_per_second"] == pytest.approx(entry["tiles"] / entry["seconds"], rel=0.1)
    assert len(peka.read_prediction(entry["output"]).tiles) == entry["tiles"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")) == [
        "cmu_small_region.ERBB2.png", "cmu_small_region.krt8.png", "cmu_small_region.peka.zarr",
    ]  # fmt: skip
    assert any(re.fullmatch(r"cmu_small_region.svs: predicting 0/\d+", line) for line in err)


def test_a_finished_result_is_there_at_once_and_another_gene_costs_a_picture(predict, tmp_path):
    slide = small_slide(tmp_path / "a.tif")
    (first,), _ = predict(slide)
    (again,), _ = predict(slide, "--genes", "MKI67")
    assert again["resumed_tiles"] == again["tiles"] == first["tiles"]
    assert Path(again["pictures"][0]).is_file()


def test_without_json_a_person_reads_what_was_written(run, bundle_folder, tmp_path):
    slide = small_slide(tmp_path / "a.tif")
    text, _ = run("predict", slide, "--model", bundle_folder, "-o", tmp_path / "out", *FAST, "--genes", "CD3E")
    assert re.search(r"a\.tif: \d+ tiles, \d+ s -> .*a\.peka\.zarr\n  .*a\.CD3E\.png", text)


def test_one_bad_slide_does_not_stop_the_others(predict, tmp_path):
    bad, good = tmp_path / "bad.svs", small_slide(tmp_path / "good.tif")
    bad.write_bytes(b"")
    entries, err = predict(bad, good, tmp_path / "missing.svs", code=2)
    assert [("error" in e, e["slide"]) for e in entries] == [
        (True, str(bad)), (False, str(good)), (True, str(tmp_path / "missing.svs")),
    ]  # fmt: skip
    assert "empty" in entries[0]["error"]
    assert set(entries[0]) == {"slide", "error"}
    assert Path(entries[1]["output"]).is_dir()
    assert err[0].startswith("[1/3] bad.svs: ")
    assert "empty" in err[0]
    assert err[-1].endswith("(2 of 3 slides failed)")


def test_not_even_a_fault_of_the_program_stops_the_others(predict, tmp_path, monkeypatch):
    from napari_peka.io import slide as slide_module

    first, second = (small_slide(tmp_path / f"{n}.tif") for n in "ab")
    real = slide_module.open_slide

    def open_slide(path, **kwargs):
        if path == first:
            raise ZeroDivisionError("two\nlines")
        return real(path, **kwargs)

    monkeypatch.setattr(slide_module, "open_slide", open_slide)
    entries, err = predict(first, second, code=1)
    assert entries[0]["error"] == "ZeroDivisionError: two lines (unexpected; NAPARI_PEKA_DEBUG=1 shows where)"
    assert entries[1]["tiles"] > 0
    assert err[-1].startswith("error: ZeroDivisionError: two lines")


def test_the_machines_fault_outweighs_bad_input(run, bundle_folder, tmp_path):
    first, second = (small_slide(tmp_path / f"{n}.tif") for n in "ab")
    first.write_bytes(b"")
    _, err = run("predict", first, second, "--model", bundle_folder, "-o", tmp_path, "--device", "cuda:9", code=1)
    assert "cuda:9" in err[-1]


@pytest.mark.parametrize(
    ("error", "words"),
    [(MemoryError(), "not enough memory"), (OSError(errno.ENOSPC, "No space left"), "disk is full"),
     (BrokenPipeError(errno.EPIPE, "Broken pipe"), "standard output was closed")],
)  # fmt: skip
def test_what_the_machine_lacks_is_said_plainly(error, words):
    text, code = cli.sentence(error)
    assert words in text
    assert code == 1


def test_debug_shows_where_and_still_ends_with_the_sentence(run, monkeypatch, capsys, sample):
    from napari_peka.io import slide as slide_module

    def broken(*_args, **_kwargs):
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(slide_module, "open_slide", broken)
    monkeypatch.setenv("NAPARI_PEKA_DEBUG", "1")
    with pytest.raises(SystemExit) as ended:
        cli.main(["info", str(sample)])
    err = capsys.readouterr().err
    assert ended.value.code == 1
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: ZeroDivisionError: boom")


# -- names of results --------------------------------------------------------------------------------------------


def test_slides_that_would_write_the_same_result_are_refused_before_any_work(predict, tmp_path):
    slides = [small_slide(tmp_path / f) for f in ("x/case.tif", "y/case.tif", "z/other.tif")]
    entries, err = predict(*slides, code=2)
    assert entries is None
    assert "same result" in err[-1]
    assert str(slides[0]) in err[-1]
    assert str(slides[1]) in err[-1]
    assert str(slides[2]) not in err[-1]
    assert not (tmp_path / "out").exists()
    predict(slides[0], slides[0], code=2)


def test_a_slide_of_the_same_name_elsewhere_never_takes_the_others_result(predict, tmp_path):
    slides = [small_slide(tmp_path / f) for f in ("x/case.tif", "y/case.tif")]
    with slides[1].open("ab") as f:
        f.write(b"another slide")
    predict(slides[0])
    _, err = predict(slides[1], code=2)
    assert "belongs to another run" in err[-1]


def test_results_are_named_by_the_slides_stem(run, bundle_folder, tmp_path):
    stems = {
        "a.ome.tif": "a.ome", "a b.tif": "a b", "a.b.c.tif": "a.b.c", "noending": "noending", ".hidden": ".hidden",
        "-o.tif": "-o",
    }  # fmt: skip
    slides = [small_slide(tmp_path / name) for name in stems]
    out = tmp_path / "out"
    entries = json.loads(run("predict", "--model", bundle_folder, "-o", out, *FAST, "--json", "--", *slides)[0])
    assert [e["slide"] for e in entries] == list(map(str, slides))
    assert [e["output"] for e in entries] == [str(out / f"{stem}.peka.zarr") for stem in stems.values()]
    assert all(Path(e["output"]).is_dir() for e in entries)


def test_a_file_name_of_any_script_reaches_picture_and_document(predict, tmp_path):
    (entry,), _ = predict(small_slide(tmp_path / "患者 µ é.tif"), "--genes", "ERBB2")
    assert entry["pictures"] == [str(tmp_path / "out" / "患者 µ é.ERBB2.png")]
    assert Path(entry["pictures"][0]).is_file()


def test_a_picture_is_named_by_the_gene_as_asked_with_nothing_that_no_file_name_may_hold():
    name = many.picture_name
    assert name(Path("x/a.svs"), "erbb2") == "a.erbb2.png"
    assert name(Path("a.svs"), "ENSG00000141736") == "a.ENSG00000141736.png"
    assert name(Path("a.svs"), "HLA-A/B") == "a.HLA-A%2FB.png"
    assert name(Path("a.svs"), "../x") == "a...%2Fx.png"
    assert name(Path("a.svs"), "A%2FB") != name(Path("a.svs"), "A/B")


def test_a_folder_named_by_dots_takes_its_own_name(tmp_path, monkeypatch):
    (tmp_path / "case.zarr" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "case.zarr")
    assert many.stem(Path()) == "case"
    monkeypatch.chdir(tmp_path / "case.zarr" / "deep")
    assert many.stem(Path("..")) == "case"


def test_a_dry_run_says_what_predicting_takes_and_writes_nothing(predict, run, brief, tmp_path):
    slides = small_slide(tmp_path / "a.tif"), small_slide(tmp_path / "b.tif")
    (tmp_path / "c.svs").write_text("no slide")
    entries, err = predict(*slides, tmp_path / "c.svs", "--dry-run", code=2)
    assert not (tmp_path / "out").exists()
    assert "error" in entries[2]
    assert err[-1].startswith("error: ")
    for entry in entries[:2]:
        assert entry["tiles"] == entry["tiles_left"] > 0
        assert entry["passes"] == 1
        assert entry["state"] == "new"
        assert min(entry["seconds"], entry["reading_s"], entry["computing_s"], entry["result_bytes"]) > 0
        assert (entry["device"], entry["precision"]) == ("cpu", "float32")
        assert entry["memory_free"] > 0
        assert {line["key"] for line in entry["checks"]} >= {"resolution", "tissue", "stain", "focus"}
    (done,), _ = predict(slides[0])
    assert done["tiles"] == entries[0]["tiles"]
    (again,), _ = predict(slides[0], "--dry-run")
    assert (again["state"], again["tiles_left"], again["seconds"]) == ("finished", 0, 0.0)
    out, _ = run("predict", *slides, "--model", "demo", "-o", tmp_path / "out", *FAST, "--dry-run")
    assert "belongs to another run" in out
    assert re.search(r"b.tif: \d+ tiles of \d+ µm, 4 passes each\n  about \d+ s on CPU", out)


# -- demo, models, doctor ----------------------------------------------------------------------------------------


def test_demo_leaves_picture_and_map_and_can_be_run_again(run, tiny_model, tmp_path, monkeypatch, sample):
    monkeypatch.setattr(cli, "_model", lambda name: {"demo": tiny_model}[name])
    out = tmp_path / "here"
    data = json.loads(run("demo", "-o", out, "--device", "cpu", "--json")[0])
    assert set(data) == ENTRY
    assert data["slide"] == str(sample)
    assert (out / "cmu_small_region.peka.zarr").is_dir()
    assert data["pictures"] == [str(out / "cmu_small_region.ERBB2.png")]
    text, _ = run("demo", "-o", out, "--device", "cpu")
    assert text.splitlines() == [
        f"map      {out / 'cmu_small_region.peka.zarr'}", f"picture  {out / 'cmu_small_region.ERBB2.png'}",
    ]  # fmt: skip


def test_demo_replaces_what_an_older_version_left(run, tiny_model, tmp_path, monkeypatch):
    from napari_peka.io import sample as sample_module

    slide = small_slide(tmp_path / "a.tif")
    monkeypatch.setattr(sample_module, "sample_slide", lambda: slide)
    monkeypatch.setattr(cli, "_model", lambda _name: tiny_model)
    monkeypatch.setattr(cli, "DEMO_STRIDE_PX", 64)
    run("demo", "-o", tmp_path, "--device", "cpu")
    monkeypatch.setattr(cli, "DEMO_STRIDE_PX", 60)
    assert json.loads(run("demo", "-o", tmp_path, "--device", "cpu", "--json")[0])["resumed_tiles"] == 0


def test_demo_fails_with_the_code_of_its_reason(run, tmp_path):
    (tmp_path / "file").touch()
    out, err = run("demo", "-o", tmp_path / "file", "--json", code=1)
    assert out == ""
    assert "is a file" in err[-1]
    run("demo", "--device", "banana", code=2)


@pytest.mark.slow
def test_the_real_demo_runs_offline_in_a_process_of_its_own(tmp_path):
    env = dict(os.environ, HF_HUB_OFFLINE="1")
    ran = subprocess.run([*CLI, "demo", "--json"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    data = json.loads(ran.stdout)
    assert data["tiles"] > 400
    assert (tmp_path / "napari-peka-demo" / "cmu_small_region.ERBB2.png").stat().st_size > 100_000


def test_a_resolution_against_the_file_is_said_on_the_terminal_and_in_the_json(predict, run, tissue_tiff, tmp_path):
    entries, err = predict(tissue_tiff, "--mpp", "0.8")
    (warning,) = [w for w in entries[0]["warnings"] if "the file says 0.5" in w]
    assert [line for line in err if warning in line], "a person who reads no JSON is warned too"
    assert len([line for line in err if "the file says" in line]) == 1


def test_the_version(run):
    assert run("--version")[0].startswith("napari-peka ")


def test_models_lists_and_shows(run, bundle_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("NAPARI_PEKA_MODELS", str(tmp_path))
    shutil.copytree(bundle_folder, tmp_path / "mine")
    data = json.loads(run("models", "--json")[0])
    assert {m["name"] for m in data["models"]} == {"demo", "mine"}
    assert "UNI" in {e["name"] for e in data["encoders"]}
    text, _ = run("models")
    assert "mine" in text
    assert "gated" in text
    assert json.loads(run("models", "UNI", "--json")[0])["hub_id"] == "MahmoodLab/UNI"
    assert json.loads(run("models", "UNI", "--json")[0])["weights_here"] is False
    assert json.loads(run("models", "dinov2-vits14-demo", "--json")[0])["weights_here"] is True
    table = json.loads(run("models", "mine", "--genes", "--json")[0])
    assert [row["gene"] for row in table] == ["ERBB2", "KRT8", "COL1A1", "MKI67", "CD3E"], "best predicted first"
    assert table[0]["pcc"] == pytest.approx(0.6)
    assert table[-1]["pcc"] is None
    assert "MKI67" in run("models", "mine", "--genes")[0]
    demo = json.loads(run("models", "demo", "--genes", "--json")[0])
    shown = [row["predictable"] for row in demo]
    assert shown == sorted(shown, reverse=True), "those that the model was not shown to predict come last"
    assert 0 < sum(shown) < len(shown)
    assert demo[0]["pcc_low"] < demo[0]["pcc"] < demo[0]["pcc_high"] < 1
    lines = run("models", "demo", "--genes")[0].splitlines()
    assert re.search(r" 0\.\d{3} \(0\.\d{3} to 0\.\d{3}\) +0\.\d{3}$", lines[1])
    assert lines[-1].endswith("not shown to be predicted")
    assert "needs the name" in run("models", "--genes", code=2)[1][-1]
    shown = json.loads(run("models", "mine", "--json")[0])
    assert shown["head"]["unit"] == "log1p CP10K"
    text, _ = run("models", "mine")
    assert "{" not in text, "no Python in what a person reads"
    _, err = run("models", "min", code=2)
    assert "did you mean mine" in err[-1]


def test_numbers_that_json_lacks_become_null(run, bundle_folder, tmp_path):
    folder = shutil.copytree(bundle_folder, tmp_path / "m")
    spec = json.loads((folder / "peka.json").read_text())
    (folder / "peka.json").write_text(json.dumps(spec | {"training": {"pcc": float("nan"), "n": [1, float("inf")]}}))
    data = json.loads(run("models", folder, "--json")[0], parse_constant=pytest.fail)
    assert data["training"] == {"pcc": None, "n": [1, None]}


def test_doctor_names_a_mend_for_all_that_is_not_ok(run, monkeypatch):
    checks = json.loads(run("doctor", "--json")[0])
    assert {"python", "torch", "openslide", "napari", "display", "demo model", "models", "disk"} <= {
        c["name"] for c in checks
    }
    assert all(c["ok"] == (c["mend"] is None) for c in checks)
    text, _ = run("doctor")
    assert len(text.splitlines()) == len(checks) + sum(not c["ok"] for c in checks)


def test_doctor_survives_a_machine_on_which_everything_is_broken(monkeypatch):
    def broken(*_args, **_kwargs):
        raise ImportError("lib\nmissing")

    for module, name in (
        (doctor.importlib, "import_module"), (doctor.shutil, "disk_usage"), (doctor, "find_spec"),
        (doctor, "has_display"), (doctor, "version"), (doctor.subprocess, "run"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, broken)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setenv("NAPARI_PEKA_MODELS", __file__)
    checks = doctor.examine(broken)
    assert not any(c["ok"] for c in checks)
    assert all(c["mend"] and "\n" not in c["text"] for c in checks)
    assert len({c["name"] for c in checks}) == len(checks)
    assert doctor.as_text(checks).count("mend: ") == len(checks)


def test_doctor_says_why_qt_cannot_be_loaded(monkeypatch):
    said = "Traceback ...\nImportError: libEGL.so.1: cannot open shared object file"
    ended = subprocess.CompletedProcess([], 1, "", said)
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_a, **_k: ended)
    text, mend = doctor._napari()
    assert "libEGL.so.1" in text
    assert "libegl1" in mend


# -- streams and signals -----------------------------------------------------------------------------------------


def test_nobody_reads_to_the_end():
    ran = subprocess.Popen([*CLI, "models", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ran.stdout.close()
    err = ran.stderr.read()
    ran.stderr.close()
    assert ran.wait(60) == 1
    assert err == "error: standard output was closed before all was written\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_standard_output_on_a_full_disk():
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run([*CLI, "models"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert ran.returncode == 1
    assert ran.stderr == "error: the disk is full; free some space and run again\n"


def test_a_terminal_that_knows_only_ascii(tmp_path):
    slide = small_slide(tmp_path / "µ患.tif")
    env = dict(os.environ, PYTHONIOENCODING="ascii")
    text = subprocess.run([*CLI, "info", slide], env=env, capture_output=True)
    assert (text.returncode, text.stderr) == (0, b"")
    assert b"0.5 ?m/px" in text.stdout
    missing = subprocess.run([*CLI, "info", tmp_path / "µ.tif", "--json"], env=env, capture_output=True)
    assert (missing.returncode, missing.stdout) == (2, b"")
    assert missing.stderr.decode("ascii").startswith("error: there is no file")


def test_without_standard_streams_nothing_is_mixed_up(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", None)  # as `2>&-` leaves it: print would fall back to standard output
    with pytest.raises(SystemExit) as ended:
        cli.main(["models", "nope", "--json"])
    assert (ended.value.code, out.getvalue()) == (2, "")
    err = io.StringIO()
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", err)
    with pytest.raises(SystemExit) as ended:
        cli.main(["models", "nope"])
    assert ended.value.code == 2
    assert err.getvalue().startswith("error: there is no model")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_schedulers_sigterm_is_an_interruption(run, monkeypatch, sample):
    from napari_peka.io import slide as slide_module

    def terminated(*_args, **_kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(slide_module, "open_slide", terminated)
    before = signal.getsignal(signal.SIGTERM)
    _, err = run("info", sample, code=130)
    assert err[-1] == "error: interrupted; the same command goes on from here"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(bundle_folder, sample, tmp_path, run):
    out = tmp_path / "out"
    args = ["predict", str(sample), "--model", str(bundle_folder), "-o", str(out), *FAST, "--stride-px", "16", "--json"]
    # a shell that runs the tests in the background hands down that Ctrl-C is ignored
    ran = subprocess.Popen(
        [*CLI, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    partial = out / "cmu_small_region.peka.zarr.partial"
    deadline = time.monotonic() + 120
    while not list(partial.glob("blocks-*/*.safetensors")):
        assert time.monotonic() < deadline
        assert ran.poll() is None, ran.communicate()
        time.sleep(0.01)
    ran.send_signal(signal.SIGINT)
    stdout, stderr = ran.communicate(timeout=60)
    assert (ran.returncode, stdout) == (130, "")
    assert stderr.splitlines()[-1] == "error: interrupted; the same command goes on from here"
    assert "Traceback" not in stderr
    assert [p.name for p in out.iterdir() if not p.name.startswith(".")] == ["cmu_small_region.peka.zarr.partial"]
    again, err = run(*args)
    (entry,) = json.loads(again)
    assert 0 < entry["resumed_tiles"] < entry["tiles"]
    assert f"cmu_small_region.svs: resumed: {entry['resumed_tiles']} of {entry['tiles']} were done before" in err
