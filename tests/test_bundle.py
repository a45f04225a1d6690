"""Model bundles: round trip, hostile files, damaged files. Each refusal is one sentence that names the fault."""

from __future__ import annotations

import dataclasses
import json
import shutil
import stat
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from bundles import made
from napari_peka.core.errors import BundleError, SettingError, UnknownName
from napari_peka.models import archive
from napari_peka.models.bundle import read_bundle, save_bundle
from napari_peka.models.registry import AdapterSpec, encoder_card
from napari_peka.models.zoo import load_model, local_models

DATA = Path(__file__).parent / "data"


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


def header(change, data=b""):
    """Rewrite the header of the safetensors file, and optionally what follows it."""

    def apply(folder):
        path = folder / "model.safetensors"
        raw = path.read_bytes()
        (n,) = struct.unpack("<Q", raw[:8])
        new = json.dumps(change(json.loads(raw[8 : 8 + n]))).encode()
        path.write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + n :] + data)

    return apply


def lie(name, **fields):
    return header(lambda h: h | {name: h[name] | fields})


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
    "swapped tensors": (
        tensors(lambda t: t | {"head.weights": t["head.weights"][::-1].copy()}),
        r"is not the one that peka\.json speaks of",
    ),
    "schema is true": (edit(["schema"], True), "no schema number"),
    "nested too deep": (lambda f: (f / "peka.json").write_text("[" * 200_000), "not JSON"),
    "no mean": (edit(["preprocessing", "mean"], None), "preprocessing.mean"),
    "mean out of range": (edit(["preprocessing", "mean"], [0.5, 0.5, 128]), "preprocessing.mean"),
    "std of zero": (edit(["preprocessing", "std"], [0.5, 0, 0.5]), "preprocessing.std"),
    "mpp is NaN": (edit(["preprocessing", "mpp"], float("nan")), "preprocessing.mpp"),
    "ids of other genes": (edit(["head", "gene_ids"], ["E1"]), "1 entries for 5 genes"),
    "translation of one width": (edit(["translate"], [48]), "two or more widths"),
    "translation of nothing": (edit(["translate"], [48, 0]), "two or more widths"),
    "head of another encoder": (
        lambda f: (edit(["head", "n_dims"], 47)(f), tensors(lambda t: t | {"head.weights": t["head.weights"][:47]})(f)),
        "reads 47 numbers, tiny-random gives 48",
    ),
    "a lying shape": (lie("head.bias", shape=[6]), r"shape \(6,\)"),
    "a negative shape": (lie("head.bias", shape=[-5]), r"shape \(-5,\)"),
    "a lying type": (lie("head.bias", dtype="F64"), "cannot be read"),
    "a type of the future": (lie("head.bias", dtype="F3"), "cannot be read"),
    "overlapping tensors": (lie("head.bias", data_offsets=[4, 24]), "cannot be read"),
    "offsets outside": (lie("head.bias", data_offsets=[0, 1 << 40]), "damaged"),
    "offsets of one number": (lie("head.bias", data_offsets=[7]), "damaged"),
    "no offsets": (header(lambda h: h | {"head.bias": {"dtype": "F32", "shape": [5]}}), "damaged"),
    "a header that is a list": (header(list), "damaged"),
    "data behind the end": (header(dict, b"more"), "damaged"),
    "bfloat16": (lie("head.bias", dtype="BF16", shape=[5], data_offsets=[0, 10]), "damaged|cannot be read"),
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
    [("../evil.json", "unsafe name"), ("tiny/../../evil.json", "unsafe name"), ("/etc/evil.json", "unsafe name"),
     ("C:\\evil.json", "unsafe name"), ("c:/evil.json", "unsafe name"), ("..\\evil.json", "unsafe name"),
     ("\\\\server\\share\\evil.json", "unsafe name"), ("a/b/c/deep.json", "unsafe name"),
     ("tiny/code.py", "no bundle has"), ("tiny/weights.pkl", "no bundle has"), ("tiny/last.ckpt", "no bundle has"),
     ("other/peka.json", "twice"), ("peka.json", "twice")],
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


def test_what_training_leaves_beside_a_model_and_what_a_mac_adds_are_no_harm(bundle_folder, tmp_path):
    extra = [("tiny/report/report.html", "x"), ("tiny/report/genes.csv", "x"), ("tiny/report/map.png", "x"),
             ("tiny/NOTES.md", "x"), ("__MACOSX/tiny/._peka.json", "x"), ("tiny/.DS_Store", "x")]  # fmt: skip
    assert read_bundle(zipped(bundle_folder, tmp_path / "m.zip", extra)).name == "tiny"


def test_a_zip_may_hold_the_files_at_its_top_or_in_one_folder_and_no_deeper(bundle_folder, tmp_path):
    for prefix, found in (("", True), ("tiny/", True), ("a/b/", False)):
        path = tmp_path / "m.zip"
        with zipfile.ZipFile(path, "w") as z:
            for f in bundle_folder.iterdir():
                z.write(f, prefix + f.name)
        if found:
            assert read_bundle(path).name == "tiny"
        else:
            with pytest.raises(BundleError, match="at its top or in its one folder"):
                read_bundle(path)


def rewrite(path, change):
    """Change the entries of a zip's directory and its local headers: what a member claims of itself."""
    raw = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x01\x02", 0), (b"PK\x03\x04", -2)):
        at = raw.find(signature)
        while at >= 0:
            change(raw, at, offset)
            at = raw.find(signature, at + 4)
    path.write_bytes(raw)


def test_an_encrypted_member_is_refused(bundle_folder, tmp_path):
    path = zipped(bundle_folder, tmp_path / "m.zip")

    def encrypt(raw, at, offset):
        raw[at + 8 + offset] |= 1

    rewrite(path, encrypt)
    with pytest.raises(BundleError, match="encrypted"):
        read_bundle(path)


def bomb(path, *, claims=None, method=zipfile.ZIP_DEFLATED, name="tiny/model.safetensors", size=64 << 20):
    with zipfile.ZipFile(path, "w", method) as z:
        z.writestr(name, b"\0" * size)
    if claims is not None:
        crc = zlib.crc32(b"\0" * claims)

        def claim(raw, at, offset):
            struct.pack_into("<I", raw, at + 16 + offset, crc)
            struct.pack_into("<I", raw, at + 24 + offset, claims)

        rewrite(path, claim)
    return path


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "claims to inflate to 64 MiB"),
        ({"name": "tiny/peka.json", "size": 65 << 20}, "absurdly large"),
        ({"claims": 100}, "missing|damaged"),  # it says 100 bytes and holds 64 MiB
        ({"method": zipfile.ZIP_BZIP2, "claims": 100}, "packed in a way"),
        ({"method": zipfile.ZIP_LZMA, "claims": 100}, "packed in a way"),
    ],
)
def test_a_zip_bomb_does_not_go_off(settings, words, tmp_path):
    path = bomb(tmp_path / "m.zip", **settings)
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match=words):
            read_bundle(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_member_that_is_shorter_than_it_claims_is_damaged(bundle_folder, tmp_path):
    path = zipped(bundle_folder, tmp_path / "m.zip")

    def claim(raw, at, offset):
        struct.pack_into("<I", raw, at + 24 + offset, 1 << 20)

    rewrite(path, claim)
    with pytest.raises(BundleError, match=r"damaged|shorter"):
        read_bundle(path)


def test_too_many_and_too_large(bundle_folder, tmp_path, monkeypatch):
    many = [(f"tiny/{i}.txt", "") for i in range(1000)]
    with pytest.raises(BundleError, match="too large"):
        read_bundle(zipped(bundle_folder, tmp_path / "m.zip", many))
    monkeypatch.setitem(archive.MAX_BYTES_OF, "peka.json", 100)
    with pytest.raises(BundleError, match="too large"):
        read_bundle(bundle_folder)


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


def some_tiles(px=64):
    import torch

    return torch.from_numpy(np.random.default_rng(5).integers(0, 256, (2, px, px, 3), np.uint8))


@pytest.mark.parametrize("features", ["peka", "image+peka"])
@pytest.mark.parametrize("kind", ["none", "bone", "lora", "full"])
def test_what_was_trained_gives_the_same_numbers_after_saving(kind, features, tmp_path):
    import torch

    from napari_peka.models.student import build_student

    adapter = AdapterSpec(kind, None if kind in ("none", "full") else 4)
    model, trained = made(tmp_path, adapter=adapter, translate=(48, 16, 10), features=features)
    with torch.inference_mode():
        wanted = trained(some_tiles())
        assert wanted.shape == (2, model.head.n_dims)
        for source in (
            model,
            read_bundle(tmp_path / "made"),
            read_bundle(zipped(tmp_path / "made", tmp_path / "m.zip")),
        ):
            torch.testing.assert_close(build_student(source, offline=True)(some_tiles()), wanted, atol=1e-5, rtol=1e-5)
            assert source.digest == model.digest


def test_an_encoder_is_built_for_the_bundles_own_tiles(tmp_path):
    import torch

    from napari_peka.models.student import build_student

    model, trained = made(tmp_path, px=80)
    with torch.inference_mode():
        torch.testing.assert_close(build_student(model)(some_tiles(80)), trained(some_tiles(80)))
    spec = json.loads((tmp_path / "made" / "peka.json").read_text())
    spec["preprocessing"]["tile_px"] = 81
    (tmp_path / "made" / "peka.json").write_text(json.dumps(spec))
    with pytest.raises(SettingError, match="nearest valid: 80, 96"):
        build_student(read_bundle(tmp_path / "made"))


def test_tensors_of_another_adapter_or_encoder_are_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    from napari_peka.models.student import build_student

    made(tmp_path, adapter=AdapterSpec("bone", 4), translate=(48, 16, 10), features="peka")
    folder = tmp_path / "made"
    spec = json.loads((folder / "peka.json").read_text())
    edit(["adapter", "rank"], 8)(folder)
    with pytest.raises(BundleError, match="another encoder or rank"):
        build_student(read_bundle(folder))
    tensors = load_file(folder / "model.safetensors")
    tensors["translate.0.weight"] = tensors["translate.0.weight"][:, :47].copy()
    save_file(tensors, folder / "model.safetensors")
    (folder / "peka.json").write_text(json.dumps(spec | {"translate": [47, 16, 10], "tensors_sha256": None}))
    with pytest.raises(BundleError, match="the translation reads 47 numbers, tiny-random gives 48"):
        build_student(read_bundle(folder))


def test_other_weights_of_the_encoder_are_refused(tmp_path):
    from safetensors.torch import save_file

    from napari_peka.models.encoder import load_encoder
    from napari_peka.models.student import build_student
    from napari_peka.models.weights import file_sha256

    trunk = load_encoder(encoder_card("tiny-random")).trunk.state_dict()
    save_file(trunk, tmp_path / "right.safetensors")
    save_file(trunk | {"cls_token": trunk["cls_token"] + 1}, tmp_path / "wrong.safetensors")
    sha256 = file_sha256(tmp_path / "right.safetensors")
    model, _ = made(tmp_path, encoder={"name": "tiny-random", "sha256": sha256})
    build_student(model, weights=tmp_path / "right.safetensors")
    with pytest.raises(BundleError, match="sha256"):
        build_student(model, weights=tmp_path / "wrong.safetensors")
    demo, _ = made(tmp_path, "demo2", encoder={"name": "tiny-random", "sha256": "0" * 64})
    spec = demo.spec.model_copy(update={"encoder": demo.spec.encoder.model_copy(update={"name": "dinov2-vits14-demo"})})
    with pytest.raises(BundleError, match="made with other weights"):
        build_student(dataclasses.replace(demo, spec=spec))


def test_a_bundle_that_cannot_be_right_is_not_written(tmp_path, tiny_model):
    with pytest.raises(BundleError, match=r"head\.bias is missing"):
        save_bundle(tmp_path / "m", tiny_model.spec, {"head.weights": tiny_model.head.weights})
    assert not (tmp_path / "m" / "peka.json").exists()


def test_halves_of_two_models_do_not_pass_for_one(tmp_path):
    """As after a crash between the two files of a model that is saved over an older one."""
    made(tmp_path, "a", seed=1)
    made(tmp_path, "b", seed=2)
    shutil.copy(tmp_path / "b" / "model.safetensors", tmp_path / "a")
    with pytest.raises(BundleError, match="get the bundle again"):
        read_bundle(tmp_path / "a")


def ruled(shape, key):
    """Numbers from a rule alone: no generator, whose stream may change with a version of torch or numpy."""
    i = np.arange(int(np.prod(shape)), dtype=np.float64)
    return (0.08 * np.sin(0.7 * i + len(key)) * np.cos(0.013 * i)).reshape(shape).astype(np.float32)


def scattered(shape, key):
    """As :func:`ruled`, but as uneven as random numbers, so that an encoder made of them tells tiles apart."""
    i = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(zlib.crc32(key.encode()))
    i = (i ^ (i >> np.uint64(15))) * np.uint64(2654435761) % np.uint64(1 << 32)
    i = (i ^ (i >> np.uint64(13))) * np.uint64(2246822519) % np.uint64(1 << 32)
    return (0.4 * (i / 2.0**32 - 0.5)).reshape(shape).astype(np.float32)


def ruled_features(model, tmp_path, tiles, rule=ruled):
    """Embed tiles with an encoder whose weights are made from a rule."""
    import torch
    from safetensors.torch import save_file

    from napari_peka.models.encoder import build_encoder
    from napari_peka.models.student import build_student

    trunk = build_encoder(model.card).trunk.state_dict()
    save_file({k: torch.from_numpy(rule(v.shape, k)) + 1.0 * (k[-11:] == "norm.weight") for k, v in trunk.items()},
              tmp_path / "w.safetensors")  # fmt: skip
    with torch.inference_mode():
        return build_student(model, weights=tmp_path / "w.safetensors")(torch.from_numpy(tiles)).numpy()


def test_an_old_bundle_keeps_its_numbers(tmp_path):
    """The committed bundle has schema 1, from before its tensors had a hash; encoder and tile come from a rule."""
    model = read_bundle(DATA / "bundle_schema1")
    assert model.spec.tensors_sha256 is None
    assert (model.head.genes, model.head.unit) == (("ERBB2", "KRT8", "COL1A1"), "log1p CP10K")
    tiles = (np.arange(2 * 64 * 64 * 3) * 37 % 251).astype(np.uint8).reshape(2, 64, 64, 3)
    features = ruled_features(model, tmp_path, tiles)
    wanted = json.loads((DATA / "bundle_schema1" / "expected.json").read_text())
    np.testing.assert_allclose(features[:, ::6], wanted["features_every_sixth"], atol=2e-4)
    np.testing.assert_allclose(model.head.matrix(features), wanted["genes"], atol=2e-4)
    assert (model.digest, model.embedding_digest) == (wanted["digest"], wanted["embedding_digest"])


def ruled_tiles():
    """Three tiles of 128 px with gradients that differ by direction, colour and distance from the centre."""
    i, y, x, c = np.mgrid[:3, :128, :128, :3]
    wave = np.sin(y / (9.0 + 4 * i) + x / 31.0 + c) * np.cos((x - 64) ** 2 / (900.0 + 300 * i))
    return (127 + 120 * wave).astype(np.uint8)


def test_a_bundle_of_schema_2_keeps_its_numbers(tmp_path):
    """Eight rotations, two views, a translation that ends in ReLU, context, and all that a bundle carries."""
    from napari_peka.core.neighbours import neighbour_mean

    model = read_bundle(DATA / "bundle_schema2")
    features = ruled_features(model, tmp_path, ruled_tiles(), scattered)
    wanted = json.loads((DATA / "bundle_schema2" / "expected.json").read_text())
    np.testing.assert_allclose(features[:, ::6], wanted["features_every_sixth"], atol=2e-4)
    near = neighbour_mean(np.array([[0.0, 0.0], [0.0, 64.0], [64.0, 64.0]]), model.head.context_um)
    np.testing.assert_allclose(model.head.matrix(features, None, near), wanted["genes"], atol=2e-4)
    assert (model.digest, model.embedding_digest) == (wanted["digest"], wanted["embedding_digest"])
    assert np.isnan(model.residual_q90).tolist() == [False, True, False]
    assert set(model.baselines) == {"colour", "train_mean"}
    assert len(model.reference) == 5


# -- options, and the schema that they need ----------------------------------------------------------------------

OPTIONS = {
    "rotations": ({"rotations": 4}, True),
    "views": ({"views": (1.0, 2.0)}, True),
    "a single wide view": ({"views": (2.0,)}, True),
    "an activation": ({"translate": (48, 16), "features": "peka", "activation": "relu"}, True),
    "context": ({"context_um": 300.0}, False),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_changes_the_digests_and_asks_for_schema_2(name, tmp_path):
    options, embeds = OPTIONS[name]
    plain = {k: v for k, v in options.items() if k in ("translate", "features")}
    before, after = made(tmp_path, "a", **plain)[0], made(tmp_path, "b", **options)[0]
    assert (before.spec.schema_version, after.spec.schema_version) == (1, 2)
    assert before.digest != after.digest
    assert (before.embedding_digest != after.embedding_digest) == embeds
    assert read_bundle(tmp_path / "b").digest == after.digest
    # a reader of schema 1 would not know the option and give other values: it must never be offered such a file
    edit(["schema"], 1)(tmp_path / "b")
    with pytest.raises(BundleError, match=r"schema 1 and asks for what only schema 2 has"):
        read_bundle(tmp_path / "b")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (["preprocessing", "rotations"], 3, r"preprocessing\.rotations"),
        (["preprocessing", "views"], [], r"preprocessing\.views"),
        (["preprocessing", "views"], [0.5], r"preprocessing\.views"),
        (["preprocessing", "views"], [9], r"preprocessing\.views"),
        (["preprocessing", "views"], [2, 2], "views must differ"),
        (["preprocessing", "views"], [1, 1.01], "whole pixels"),
        (["preprocessing", "views"], [1, 1.015625], "in the middle"),  # 64 and 65 px have no common centre
        (["preprocessing", "views"], [1, 2], "reads 48 numbers, tiny-random gives 96"),
        (["head", "context_um"], -1, r"head\.context_um"),
        (["head", "context_um"], 100, "reads 24 numbers, tiny-random gives 48"),
        (["head", "n_dims"], 49, r"shape \(48, 5\)"),
        (["translate_activation"], "gelu", "translate_activation"),
        (["translate_activation"], "relu", "no translation that the activation 'relu' ends"),
        (["head", "attainable_pcc"], [0.5], "1 entries for 5 genes"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_sentence(key, value, words, bundle_folder, tmp_path):
    folder = shutil.copytree(bundle_folder, tmp_path / "m")
    edit(["schema"], 2)(folder)
    edit(key, value)(folder)
    with pytest.raises(BundleError, match=words) as caught:
        read_bundle(folder)
    assert "\n" not in str(caught.value)


def test_an_odd_head_has_no_context(tmp_path, tiny_model):
    spec = tiny_model.spec.model_copy(
        update={"head": tiny_model.spec.head.model_copy(update={"context_um": 9.0, "n_dims": 47})}
    )
    with pytest.raises(BundleError, match="a head with context reads two embeddings, so not 47 numbers"):
        save_bundle(tmp_path / "m", spec, {"head.weights": np.zeros((47, 5), np.float32),
                                           "head.bias": np.zeros(5, np.float32)})  # fmt: skip
    assert not (tmp_path / "m").exists()


def test_a_translation_that_ends_in_relu_is_a_small_mlp_head(tmp_path):
    """Hidden layer and output, as a trainer has them, are a translation and a gene head."""
    import torch

    from napari_peka.models.student import build_student

    model, _ = made(tmp_path, translate=(48, 16), activation="relu", features="peka")
    mlp = torch.nn.Sequential(torch.nn.Linear(48, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    for at, weight, bias in (
        (0, model.tensors["translate.0.weight"], model.tensors["translate.0.bias"]),
        (2, model.head.weights.T, model.head.bias),
    ):
        mlp[at].weight.data, mlp[at].bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
    image = made(tmp_path, "image")[0]
    with torch.inference_mode():
        wanted = mlp(build_student(image)(some_tiles())).numpy()
        hidden = build_student(model)(some_tiles()).numpy()
    assert (hidden == 0).any()
    np.testing.assert_allclose(model.head.matrix(hidden), wanted, atol=1e-4)


# -- what a bundle carries ---------------------------------------------------------------------------------------


def carried(d=48, g=3, k=4):
    rng = np.random.default_rng(0)
    return {
        "residual.q90": np.array([0.5, np.nan, 0.25], np.float32),
        "baseline.colour.weights": rng.normal(size=(6, g)).astype(np.float32),
        "baseline.colour.bias": rng.normal(size=g).astype(np.float32),
        "baseline.train_mean.bias": rng.normal(size=g).astype(np.float32),
        "reference.mean": rng.normal(size=d).astype(np.float32),
        "reference.axes": np.eye(d, dtype=np.float32)[:k],
        "reference.variances": np.ones(k, np.float32),
        "reference.residual_variance": np.ones(1, np.float32),
        "reference.distance_percentiles": np.arange(101, dtype=np.float32),
    }


def test_what_is_carried_comes_back_and_changes_no_digest(tmp_path):
    plain, _ = made(tmp_path, "plain", pcc=[0.5, None, 0.25])
    sections = [{"name": "s", "patient": "p", "fingerprint": "f", "part": "train"}]
    full, _ = made(tmp_path, "full", tensors=carried(), pcc=[0.5, None, 0.25], attainable_pcc=[0.75, 0.5, None],
                   hvg50=["A", "C"], neighbour_smoothing=True)  # fmt: skip
    assert (plain.spec.schema_version, full.spec.schema_version) == (1, 2)
    assert (full.digest, full.embedding_digest) == (plain.digest, plain.embedding_digest)
    again = read_bundle(zipped(tmp_path / "full", tmp_path / "m.zip"))
    for model in (full, again):
        np.testing.assert_array_equal(model.pcc, np.float32([0.5, np.nan, 0.25]))
        np.testing.assert_array_equal(model.attainable_pcc, np.float32([0.75, 0.5, np.nan]))
        np.testing.assert_array_equal(model.residual_q90, np.float32([0.5, np.nan, 0.25]))
        assert model.hvg50 == ("A", "C")
        assert model.spec.head.neighbour_smoothing
        assert model.baselines["train_mean"][0].shape == (0, 3)
        for name in ("weights", "bias"):
            got = model.baselines["colour"][name == "bias"]
            np.testing.assert_array_equal(got, carried()[f"baseline.colour.{name}"])
        assert set(model.reference) == {k for k in carried() if k.startswith("reference.")}
        assert set(model.tensors) == set(plain.tensors)
    for values in (plain.residual_q90, plain.attainable_pcc):
        assert values.shape == (3,)
        assert np.isnan(values).all()
    assert (plain.baselines, plain.reference, plain.hvg50, plain.trained_on) == ({}, {}, (), ())
    known = dataclasses.replace(plain, spec=plain.spec.model_copy(update={"training": {"sections": sections}}))
    assert known.trained_on == tuple(sections)


def test_what_a_later_version_carries_under_a_known_name_is_kept(tmp_path):
    model, _ = made(tmp_path, tensors={"reference.of_the_future": np.ones(3, np.float32)} | carried())
    assert "reference.of_the_future" in model.carried
    assert set(model.reference) > {k for k in carried() if k.startswith("reference.")}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"residual.q90": np.zeros(4, np.float32)}, r"residual\.q90 has shape \(4,\)"),
        ({"residual.q90": np.full(3, np.inf, np.float32)}, r"residual\.q90 holds NaN or infinite"),
        ({"baseline.colour.bias": np.full(3, np.nan, np.float32)}, r"baseline\.colour\.bias holds NaN"),
        ({"baseline.colour.weights": np.zeros((6, 4), np.float32)}, r"baseline\.colour\.weights has shape"),
        ({"baseline.colour.weights": np.zeros(3, np.float32)}, r"baseline\.colour\.weights has shape"),
        ({"baseline.colour.bias": None}, r"baseline\.colour\.bias is missing"),
        ({"reference.axes": np.zeros((4, 47), np.float32)}, r"reference\.axes has shape"),
        ({"reference.mean": None}, r"reference\.mean is missing"),
        ({"reference.variances": None}, r"reference\.axes has shape|reference\.variances is missing"),
        ({"baselines.colour": np.zeros(3, np.float32)}, r"unknown tensor baselines\.colour"),
    ],
)
def test_carried_tensors_that_do_not_fit_are_refused(change, words, tmp_path):
    tensors = {k: v for k, v in (carried() | change).items() if v is not None}
    with pytest.raises(BundleError, match=words):
        made(tmp_path, tensors=tensors)
    assert not (tmp_path / "made").exists()


def test_reference_statistics_are_of_the_embedding_that_is_stored(tmp_path):
    made(tmp_path, tensors=carried(48), context_um=100.0)
    with pytest.raises(BundleError, match=r"reference\.axes|reference\.mean"):
        made(tmp_path, "wrong", tensors=carried(96), context_um=100.0)
