"""Engines that run an encoder in PyTorch's place: the same maps, faster; what is compiled is kept."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import napari_peka as peka
from napari_peka.core.errors import OutputMismatch, SettingError
from napari_peka.core.progress import Cancelled, JobProgress
from napari_peka.infer.forward import Forward
from napari_peka.io import cache
from napari_peka.models import backends
from napari_peka.models.backends import OPENVINO, TORCH, choose_backend

CPU = torch.device("cpu")


@pytest.fixture
def openvino(monkeypatch, tmp_path):
    """OpenVINO, with a cache of its own."""
    pytest.importorskip("openvino", reason="openvino is not installed (pip install 'napari-peka[openvino]')")
    monkeypatch.setenv("NAPARI_PEKA_CACHE", str(tmp_path / "cache"))
    return peka.PredictConfig(device="cpu", precision="fp32", backend=OPENVINO)


@pytest.fixture
def slide(sample):
    with peka.open_slide(sample) as opened:
        yield opened


def pcc(a, b):
    a, b = (x - x.mean(0) for x in (a.astype(np.float64), b.astype(np.float64)))
    return (a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))


def test_maps_are_those_of_torch_and_what_was_compiled_is_taken_again(openvino, slide, monkeypatch):
    model = peka.load_model("demo")
    config = openvino.model_copy(update={"stride_px": 448})
    own = peka.predict(slide, model, config=config.model_copy(update={"backend": TORCH}))
    made = peka.predict(slide, model, config=config)
    assert own.record["identity"]["precision"] == "float32"
    assert made.record["identity"]["precision"] == "float32, openvino"
    np.testing.assert_allclose(made.embeddings, own.embeddings, atol=2e-3 * np.abs(own.embeddings).max())
    [kept] = cache.listing()
    assert kept.kind == "compiled encoder"

    def compiles_again(*_, **__):
        raise AssertionError("compiled a second time")

    monkeypatch.setattr(backends.import_openvino(), "convert_model", compiles_again)
    again = peka.predict(slide, model, config=config)
    np.testing.assert_array_equal(again.embeddings, made.embeddings)
    kept.path.write_bytes(b"damaged")
    monkeypatch.undo()
    monkeypatch.setenv("NAPARI_PEKA_CACHE", str(kept.path.parent.parent))
    anew = peka.predict(slide, model, config=config)
    np.testing.assert_array_equal(anew.embeddings, made.embeddings)


def test_in_bf16_every_gene_goes_with_that_of_fp32(openvino, slide):
    model = peka.load_model("demo")
    fine = peka.predict(slide, model, config=openvino.model_copy(update={"backend": TORCH}))
    fast = peka.predict(slide, model, config=openvino.model_copy(update={"precision": "bf16"}))
    genes = list(model.head.genes)
    a, b = (p.to_anndata(genes).X for p in (fine, fast))
    assert pcc(a, b).min() > 0.999
    assert fast.record["identity"]["precision"] == "bfloat16, openvino"


def test_a_stop_is_heard_between_two_passes_of_a_block(openvino, slide, tiny_model, monkeypatch):
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
        peka.predict(slide, tiny_model, config=openvino, progress=job)
    assert len(passes) == 1
    assert max(len(b) for b in peka.plan_tiles(slide, tiny_model).blocks()) > seen[0].images


def test_a_run_goes_on_with_the_backend_that_began_it(openvino, slide, tiny_model, tmp_path):
    def stop(*_):
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        peka.predict(slide, tiny_model, output=tmp_path / "a.peka.zarr", config=openvino, on_block=stop)
    other = openvino.model_copy(update={"backend": TORCH})
    with pytest.raises(OutputMismatch, match=r"another number format \(float32, openvino, now float32\)"):
        peka.predict(slide, tiny_model, output=tmp_path / "a.peka.zarr", config=other)


def test_which_one_is_taken(monkeypatch):
    fp32, fp16 = torch.float32, torch.float16
    assert choose_backend("auto", CPU, fp32) == TORCH, "tests say so"
    monkeypatch.delenv(backends.ENVIRONMENT)
    monkeypatch.setattr(backends, "find_spec", lambda name: object())
    assert choose_backend("auto", CPU, fp32) == OPENVINO
    assert choose_backend("auto", CPU, fp16) == TORCH
    assert choose_backend("auto", torch.device("cuda"), fp32) == TORCH
    assert choose_backend(TORCH, torch.device("cuda"), fp16) == TORCH
    with pytest.raises(SettingError, match="computes on the CPU, not on cuda"):
        choose_backend(OPENVINO, torch.device("cuda"), fp32)
    with pytest.raises(SettingError, match="computes in float32, bfloat16"):
        choose_backend(OPENVINO, CPU, fp16)
    monkeypatch.setenv(backends.ENVIRONMENT, "tensorrt")
    with pytest.raises(SettingError, match="no backend 'tensorrt'; one of auto, torch, openvino"):
        choose_backend("auto", CPU, fp32)
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"pip install 'napari-peka\[openvino\]'"):
        choose_backend(OPENVINO, CPU, fp32)


def test_openvino_is_imported_without_its_telemetry(openvino):
    said = (
        "from napari_peka.models.backends import import_openvino; ov = import_openvino();"
        "from openvino.tools.ovc import utils; print(utils.tm.__name__)"
    )
    told = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "openvino.tools.ovc.telemetry_stub"


def test_a_module_of_another_kind_is_run_by_torch_as_before():
    forward = Forward(lambda: torch.nn.Flatten(), CPU, torch.float32)
    assert forward.precision == "float32"
    assert forward(np.ones((2, 1, 1, 3), np.uint8)).shape == (2, 3)
