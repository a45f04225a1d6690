"""Engines that run an encoder in PyTorch's place: the same maps, faster; what is compiled is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
import torch

import napari_peka as peka
from napari_peka import cli
from napari_peka.core.errors import OutputMismatch, SettingError, StoreError
from napari_peka.core.progress import Cancelled, JobProgress
from napari_peka.infer.forward import Forward
from napari_peka.io import cache
from napari_peka.models import backends, engines
from napari_peka.models.backends import ENGINES, ONNX, OPENVINO, TORCH, choose_backend
from napari_peka.models.bundle import BundleSpec, save_bundle
from napari_peka.models.encoder import complete, ensure_torchvision
from napari_peka.models.folder import encoder_folder
from napari_peka.models.registry import encoder_card
from napari_peka.workflows import speed

CPU = torch.device("cpu")


@pytest.fixture(params=[OPENVINO, ONNX])
def config(request, monkeypatch, tmp_path):
    """fp32 by an engine, with a cache of its own."""
    for package in ENGINES[request.param].needs:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed (pip install 'napari-peka[{ENGINES[request.param].extra}]')")
    monkeypatch.setenv("NAPARI_PEKA_CACHE", str(tmp_path / "cache"))
    return peka.PredictConfig(device="cpu", precision="fp32", backend=request.param)


@pytest.fixture
def slide(sample):
    with peka.open_slide(sample) as opened:
        yield opened


def pcc(a, b):
    a, b = (x - x.mean(0) for x in (a.astype(np.float64), b.astype(np.float64)))
    return (a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))


@pytest.fixture(scope="module")
def exact(sample):
    """The demo's map by torch in fp32, of a few tiles."""
    config = peka.PredictConfig(device="cpu", precision="fp32", backend=TORCH, stride_px=448)
    with peka.open_slide(sample) as opened:
        return peka.predict(opened, peka.load_model("demo"), config=config)


def test_maps_are_those_of_torch_and_what_was_compiled_is_taken_again(config, slide, exact, monkeypatch):
    model, own = peka.load_model("demo"), exact
    config = config.model_copy(update={"stride_px": 448})
    made = peka.predict(slide, model, config=config)
    assert own.record["identity"]["precision"] == "float32"
    assert made.record["identity"]["precision"] == f"float32, {config.backend}"
    np.testing.assert_allclose(made.embeddings, own.embeddings, atol=2e-3 * np.abs(own.embeddings).max())
    [kept] = cache.listing()
    assert kept.kind == "compiled encoder"

    def compiles_again(*_, **__):
        raise AssertionError("compiled a second time")

    with monkeypatch.context() as no_more:
        no_more.setattr("napari_peka.models.student.load_encoder", compiles_again)  # nor is the encoder itself loaded
        no_more.setattr(torch.onnx, "export", compiles_again)
        if config.backend == OPENVINO:
            no_more.setattr(engines.import_openvino(), "convert_model", compiles_again)
        again = peka.predict(slide, model, config=config)
    np.testing.assert_array_equal(again.embeddings, made.embeddings)


def test_other_weights_of_an_encoder_are_compiled_anew(config, tmp_path, monkeypatch):
    """Of an encoder whose file nobody has a checksum of."""
    from safetensors.torch import save_file

    ensure_torchvision()
    import timm

    monkeypatch.setenv("NAPARI_PEKA_MODELS", str(tmp_path / "models"))
    name = "timm:test_vit"
    dims, values = complete(encoder_card(name)).dim, []
    for seed in (0, 1):
        torch.manual_seed(seed)
        folder = encoder_folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(timm.create_model("test_vit", num_classes=0).state_dict(), folder / "model.safetensors")
        spec = BundleSpec(
            schema=1, name="a", encoder={"name": name},
            preprocessing={"tile_px": 160, "mpp": 1.0, "mean": (0.5,) * 3, "std": (0.5,) * 3},
            head={"n_dims": dims, "genes": ["A"], "unit": "log1p CP10K"},
        )  # fmt: skip
        tensors = {"head.weights": np.ones((dims, 1), np.float32), "head.bias": np.zeros(1, np.float32)}
        model = save_bundle(tmp_path / f"model{seed}", spec, tensors)
        tiles = np.random.default_rng(0).integers(0, 255, (2, 160, 160, 3), np.uint8)
        values.append(peka.load_forward(model, config)(tiles))
    assert np.abs(values[0].astype(float) - values[1]).max() > 0.01


def test_what_is_damaged_in_the_cache_is_made_anew(config, tiny_model):
    side = tiny_model.tile_spec().size_px
    tiles = np.random.default_rng(0).integers(0, 255, (3, side, side, 3), np.uint8)
    made = peka.load_forward(tiny_model, config)(tiles)
    [kept] = cache.listing()
    whole = kept.path.read_bytes()
    for damaged in (b"damaged", whole[: len(whole) // 2], b""):
        kept.path.write_bytes(damaged)
        np.testing.assert_array_equal(peka.load_forward(tiny_model, config)(tiles), made)
        assert kept.path.stat().st_size > 0.9 * len(whole)


def test_a_cache_that_is_full_costs_only_time(config, tiny_model, monkeypatch):
    def full(path, data):
        raise StoreError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(engines.files, "write_whole", full)
    forward = peka.load_forward(tiny_model, config)
    side = tiny_model.tile_spec().size_px
    assert np.isfinite(forward(np.zeros((1, side, side, 3), np.uint8))).all()
    assert not cache.listing()


@pytest.mark.parametrize("config", [OPENVINO], indirect=True)
def test_in_bf16_every_gene_goes_with_that_of_fp32(config, slide):
    model = peka.load_model("demo")
    fine = peka.predict(slide, model, config=config.model_copy(update={"backend": TORCH}))
    fast = peka.predict(slide, model, config=config.model_copy(update={"precision": "bf16"}))
    genes = list(model.head.genes)
    a, b = (p.to_anndata(genes).X for p in (fine, fast))
    assert pcc(a, b).min() > 0.999
    assert fast.record["identity"]["precision"] == "bfloat16, openvino"


def test_a_stop_is_heard_between_two_passes_of_a_block(config, slide, tiny_model, monkeypatch):
    job, passes, seen = JobProgress(), [], []
    made = backends.compiled

    def counted(encoder, backend, **how):
        module = made(encoder, backend, **how)
        seen.append(module)

        def count(*_):
            passes.append(1)
            job.cancel()

        module.passes.register_forward_hook(count)
        return module

    monkeypatch.setattr(backends, "compiled", counted)
    with pytest.raises(Cancelled):
        peka.predict(slide, tiny_model, config=config, progress=job)
    assert len(passes) <= 2, "one that ran, and one that was begun with it"
    assert max(len(b) for b in peka.plan_tiles(slide, tiny_model).blocks()) > seen[0].images


def test_a_run_goes_on_with_the_backend_that_began_it(config, slide, tiny_model, tmp_path):
    def stop(*_):
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        peka.predict(slide, tiny_model, output=tmp_path / "a.peka.zarr", config=config, on_block=stop)
    other = config.model_copy(update={"backend": TORCH})
    with pytest.raises(OutputMismatch, match=rf"\(float32 by {config.backend}, now float32 by torch\)"):
        peka.predict(slide, tiny_model, output=tmp_path / "a.peka.zarr", config=other)


def test_which_one_is_taken(monkeypatch):
    fp32, fp16 = torch.float32, torch.float16
    assert choose_backend("auto", CPU, fp32) == TORCH, "tests say so"
    monkeypatch.delenv(backends.ENVIRONMENT)
    monkeypatch.setattr(backends, "find_spec", lambda name: object())
    assert choose_backend("auto", CPU, fp32) == OPENVINO
    assert choose_backend("auto", CPU, fp16) == TORCH
    assert choose_backend(ONNX, CPU, fp32) == ONNX
    with pytest.raises(SettingError, match="onnx computes in float32, not in bfloat16; choose that precision"):
        choose_backend(ONNX, CPU, torch.bfloat16)
    with monkeypatch.context() as without:
        without.setattr(backends, "find_spec", lambda name: None if name == "openvino" else object())
        assert choose_backend("auto", CPU, fp32) == TORCH, "it knows fewer encoders, so it is asked for"
    assert choose_backend("auto", torch.device("cuda"), fp32) == TORCH
    assert choose_backend(TORCH, torch.device("cuda"), fp16) == TORCH
    with pytest.raises(SettingError, match="computes on the CPU, not on cuda"):
        choose_backend(OPENVINO, torch.device("cuda"), fp32)
    with pytest.raises(SettingError, match="computes in float32 and bfloat16, not in float16"):
        choose_backend(OPENVINO, CPU, fp16)
    monkeypatch.setenv(backends.ENVIRONMENT, "tensorrt")
    with pytest.raises(
        SettingError,
        match=r"no backend 'tensorrt' \(the environment variable NAPARI_PEKA_BACKEND asks",
    ):
        choose_backend("auto", CPU, fp32)
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    for name in (OPENVINO, ONNX):
        with pytest.raises(SettingError, match=rf"pip install 'napari-peka\[{name}\]'"):
            choose_backend(name, CPU, fp32)


@pytest.mark.parametrize("config", [OPENVINO], indirect=True)
def test_openvino_is_imported_without_its_telemetry(config):
    said = (
        "from napari_peka.models.engines import import_openvino; ov = import_openvino();"
        "from openvino.tools.ovc import utils; print(utils.tm.__name__)"
    )
    told = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "openvino.tools.ovc.telemetry_stub"


@pytest.mark.parametrize("config", [ONNX], indirect=True)
def test_onnxruntime_runs_without_its_telemetry(config, tmp_path):
    """Where it reports, it first writes who it reports of into the home folder; it never does where ``CI`` is set."""
    home = tmp_path / "home"
    home.mkdir()
    quiet = ("CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    environment = {k: v for k, v in os.environ.items() if k not in quiet} | {"HOME": str(home)}
    said = """
from pathlib import Path
import torch
from napari_peka.models.engines import onnx_run
run = onnx_run(lambda: torch.nn.Flatten().eval(), 4, torch.float32, Path("flat"))
print(run.function(torch.ones(2, 3, 4, 4).numpy()).shape)
"""
    told = subprocess.run(
        [sys.executable, "-c", said], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
    )
    assert told.stdout.strip() == "(2, 48)"
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_an_encoder_that_an_engine_does_not_know_is_refused_in_one_sentence(config, tmp_path):
    class Unusual(torch.nn.Module):
        def forward(self, images):
            return torch.linalg.svd(images.mean(1)).S

    with pytest.raises(SettingError, match=f"{config.backend} cannot run this encoder .*; choose the backend torch$"):
        backends.compiled(
            lambda: Unusual().eval(), config.backend, px=4, dtype=torch.float32, digest="unusual", folder=tmp_path
        )
    assert not list(tmp_path.iterdir())


def test_doctor_times_every_backend_and_says_which_to_choose(bundle_folder, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("NAPARI_PEKA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(speed, "speeds", partial(speed.speeds, seconds=0.01))
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == "onnx" else find_spec(name))
    ask = ["doctor", "--speed", "--model", str(bundle_folder), "--device", "cpu"]
    with pytest.raises(SystemExit, match="0"):
        cli.main([*ask, "--json"])
    told = json.loads(capsys.readouterr().out)
    runs = {(r["backend"], r["precision"]): r for r in told["runs"]}
    assert runs[TORCH, "fp32"]["pcc"] == pytest.approx(1)
    assert runs[TORCH, "fp32"]["tiles_per_second"] > 0
    assert "pip install 'napari-peka[onnx]'" in runs[ONNX, "fp32"]["why"]
    assert runs[ONNX, "fp32"]["tiles_per_second"] is None
    assert all(r["pcc"] > 0.99 for r in runs.values() if not r["why"])
    assert (told["choose"]["backend"], told["choose"]["precision"]) in runs
    assert told["auto"]["backend"] == TORCH, "tests say so"
    with pytest.raises(SystemExit, match="0"):
        cli.main(ask)
    text = capsys.readouterr().out.splitlines()
    assert text[-1].startswith("choose: --backend ")
    assert sum(line.startswith(ONNX) for line in text) == 1


def test_nearly_as_fast_is_as_good_and_what_differs_from_fp32_is_not_chosen():
    def chosen(**rates):
        runs = [speed.Speed(TORCH, "fp32", rates["torch"], 1.0, 1.0), speed.Speed(TORCH, "bf16", 9.0, 1.0, 0.99)]
        runs.append(speed.Speed(OPENVINO, "fp32", rates["openvino"], 1.0, 0.9999))
        runs.append(speed.Speed(ONNX, "fp32", why="not installed"))
        return speed.Speeds("m", "cpu", runs, (TORCH, "fp32"), 0.0).choose.backend

    assert chosen(torch=1.0, openvino=1.04) == TORCH
    assert chosen(torch=1.0, openvino=1.2) == OPENVINO


def test_a_module_of_another_kind_is_run_by_torch_as_before():
    forward = Forward(lambda: torch.nn.Flatten(), CPU, torch.float32)
    assert forward.precision == "float32"
    assert forward(np.ones((2, 1, 1, 3), np.uint8)).shape == (2, 3)


def test_a_cpu_refuses_a_format_that_it_does_not_compute_in():
    with pytest.raises(SettingError, match="on a CPU choose bf16 or fp32"):
        peka.load_forward(peka.load_model("demo"), peka.PredictConfig(device="cpu", precision="fp16"))


def test_an_engine_is_first_called_by_one_thread_alone():
    """Bindings set themselves up at their first call, and two threads in it would wait for each other for good."""
    from napari_peka.models.engines import _in_streams

    here, called = threading.get_ident(), []

    def few(images):
        called.append((threading.get_ident(), len(images)))
        return images.reshape(len(images), -1)

    run = _in_streams(few, 2, "openvino", 4)
    assert called == [(here, 1)]
    images = np.arange(9 * 48, dtype=np.float32).reshape(9, 3, 4, 4)
    np.testing.assert_array_equal(run.function(images), images.reshape(9, -1))
    assert all(thread != here for thread, _ in called[1:])
