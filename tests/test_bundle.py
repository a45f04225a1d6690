"""Model bundles: round trip, hostile files, damaged files. Each refusal is one sentence that names the fault."""

from __future__ import annotations

import json
import shutil
import stat
import zipfile

import numpy as np
import pytest

from napari_peka.core.errors import BundleError, UnknownName
from napari_peka.models.bundle import read_bundle
from napari_peka.models.zoo import load_model, local_models


def zipped(folder, path, extra=()):
    with zipfile.ZipFile(path, "w") as z:
        for f in folder.iterdir():
            z.write(f, f"tiny/{f.name}")
        for name, data in extra:
            z.writestr(name, data)
    return path


def test_a_zip_is_the_same_model_as_its_folder(bundle_folder, tmp_path):
    folder, zip_ = read_bundle(bundle_folder), read_bundle(zipped(bundle_folder, tmp_path / "tiny.zip"))
    assert folder.digest == zip_.digest
    np.testing.assert_array_equal(folder.head.weights, zip_.head.weights)
    assert np.isnan(folder.head.pcc[-1])
    assert folder.head.pcc[0] == pytest.approx(0.6)


def test_bundles_in_the_models_folder_are_found_by_name(bundle_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("NAPARI_PEKA_MODELS", str(tmp_path))
    shutil.copytree(bundle_folder, tmp_path / "mine")
    zipped(bundle_folder, tmp_path / "yours.zip")
    assert set(local_models()) == {"mine", "yours"}
    assert load_model("yours").name == "tiny"
    with pytest.raises(UnknownName, match="did you mean mine"):
        load_model("mini")


def test_a_new_head_keeps_the_embedding_digest(bundle_folder, tmp_path):
    folder = shutil.copytree(bundle_folder, tmp_path / "m")
    spec = json.loads((folder / "peka.json").read_text())
    spec["head"]["genes"][0] = "OTHER"
    (folder / "peka.json").write_text(json.dumps(spec))
    a, b = read_bundle(bundle_folder), read_bundle(folder)
    assert a.embedding_digest == b.embedding_digest
    assert a.digest != b.digest


def test_unknown_keys_from_the_future_are_named_and_dropped(bundle_folder, tmp_path):
    folder = shutil.copytree(bundle_folder, tmp_path / "m")
    spec = json.loads((folder / "peka.json").read_text())
    (folder / "peka.json").write_text(json.dumps(spec | {"novelty": 1}))
    assert read_bundle(folder).dropped == ("novelty",)


def edit(key, value):
    def change(folder):
        spec = json.loads((folder / "peka.json").read_text())
        at = spec
        for k in key[:-1]:
            at = at[k]
        if value is None:
            del at[key[-1]]
        else:
            at[key[-1]] = value
        (folder / "peka.json").write_text(json.dumps(spec))

    return change


def tensors(change):
    def apply(folder):
        from safetensors.numpy import load_file, save_file

        data = change(load_file(folder / "model.safetensors"))
        save_file(data, folder / "model.safetensors")

    return apply


DAMAGE = {
    "no json": (lambda f: (f / "peka.json").unlink(), "peka.json is missing"),
    "no tensors": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "not json": (lambda f: (f / "peka.json").write_text("{"), "not JSON"),
    "a list": (lambda f: (f / "peka.json").write_text("[]"), "one JSON object"),
    "no schema": (edit(["schema"], None), "no schema number"),
    "future schema": (edit(["schema"], 99), "update napari-peka"),
    "wrong type": (edit(["head", "genes"], 3), "head.genes"),
    "unknown encoder": (edit(["encoder", "name"], "tiny-randon"), "did you mean tiny-random"),
    "duplicate genes": (edit(["head", "genes"], ["A"] * 5), "not unique"),
    "features without translation": (edit(["head", "features"], "peka"), "do not fit"),
    "adapter without weights": (edit(["adapter", "kind"], "lora"), "do not fit"),
    "missing tensor": (tensors(lambda t: {"head.weights": t["head.weights"]}), "head.bias is missing"),
    "wrong shape": (tensors(lambda t: t | {"head.bias": np.zeros(3, np.float32)}), r"shape \(3,\)"),
    "stray tensor": (tensors(lambda t: t | {"x": np.zeros(3, np.float32)}), "unknown tensor x"),
    "NaN": (tensors(lambda t: t | {"head.bias": np.full(5, np.nan, np.float32)}), "NaN"),
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
        "damaged",
    ),
    "header bomb": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 16), "damaged"),
    "a pickle": (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04\x95abc"), "damaged"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_bundles_are_refused_in_one_sentence(name, bundle_folder, tmp_path):
    damage, words = DAMAGE[name]
    folder = shutil.copytree(bundle_folder, tmp_path / "m")
    damage(folder)
    with pytest.raises((BundleError, UnknownName), match=words) as caught:
        read_bundle(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("member", "words"),
    [("../evil.json", "unsafe name"), ("/etc/evil.json", "unsafe name"), ("C:\\evil.json", "unsafe name"),
     ("tiny/code.py", "no bundle has"), ("tiny/weights.pkl", "no bundle has"), ("other/peka.json", "twice")],
)  # fmt: skip
def test_hostile_zips_are_refused(member, words, bundle_folder, tmp_path):
    path = zipped(bundle_folder, tmp_path / "m.zip", [(member, "{}")])
    with pytest.raises(BundleError, match=words):
        read_bundle(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.zip"]  # nothing was unpacked


def test_a_link_in_a_zip_is_refused(bundle_folder, tmp_path):
    link = zipfile.ZipInfo("tiny/notes.md")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(BundleError, match="link"):
        read_bundle(zipped(bundle_folder, tmp_path / "m.zip", [(link, "/etc/passwd")]))


def test_what_is_no_bundle_at_all_says_so(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    for path, words in (
        (tmp_path / "a.txt", "neither"),
        (tmp_path / "empty", "missing"),
        (tmp_path / "no", "there is no"),
    ):
        with pytest.raises(BundleError, match=words):
            read_bundle(path)
