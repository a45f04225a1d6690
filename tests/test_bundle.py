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

from napari_peka.core.errors import BundleError, SettingError, UnknownName
from napari_peka.models import bundle
from napari_peka.models.bundle import BundleSpec, read_bundle, save_bundle
from napari_peka.models.registry import AdapterSpec, encoder_card
from napari_peka.models.zoo import load_model, local_models

OLD = Path(__file__).parent / "data" / "bundle_schema1"


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
             ("tiny/README.md", "x"), ("__MACOSX/tiny/._peka.json", "x"), ("tiny/.DS_Store", "x")]  # fmt: skip
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
    monkeypatch.setitem(bundle.MAX_BYTES_OF, "peka.json", 100)
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


def made(tmp_path, name="made", *, adapter=None, translate=(), features="image", encoder=None, px=64, seed=3):
    """Save a bundle on the tiny encoder whose adapter and translation change the numbers; return it and its parts."""
    torch = pytest.importorskip("torch")
    from napari_peka.models import adapters
    from napari_peka.models.encoder import load_encoder
    from napari_peka.models.student import Student, translate_mlp

    card = encoder_card("tiny-random")
    spec = adapter or AdapterSpec()
    torch.manual_seed(seed)
    module = adapters.add_adapter(load_encoder(dataclasses.replace(card, px=px)), spec)
    mlp = translate_mlp(list(translate)) if translate else None
    with torch.no_grad():
        for p in [*module.parameters(), *(mlp.parameters() if mlp else ())]:
            if p.requires_grad:
                p.add_(0.2 * torch.randn_like(p))
    student = Student(module, card.mean, card.std, mlp, features).eval()
    d = {"image": 48, "peka": (list(translate) or [0])[-1]}
    d["image+peka"] = d["image"] + d["peka"]
    tensors = {
        "head.weights": np.random.default_rng(seed).normal(size=(d[features], 3)).astype(np.float32),
        "head.bias": np.zeros(3, np.float32),
    }
    tensors |= {f"adapter.{k}": v.numpy() for k, v in adapters.adapter_state(module).items()}
    if mlp is not None:
        linear = [m for m in mlp if isinstance(m, torch.nn.Linear)]
        for i, layer in enumerate(linear):
            tensors |= {f"translate.{i}.weight": layer.weight.detach().numpy()}
            tensors |= {f"translate.{i}.bias": layer.bias.detach().numpy()}
    record = BundleSpec(
        schema=1, name=name, encoder=encoder or {"name": card.name}, translate=list(translate),
        preprocessing={"tile_px": px, "mpp": 1.0, "mean": card.mean, "std": card.std},
        adapter={"kind": spec.kind, "rank": spec.rank, "options": spec.options},
        head={"features": features, "n_dims": d[features], "genes": ["A", "B", "C"], "unit": "log1p CP10K"},
    )  # fmt: skip
    return save_bundle(tmp_path / name, record, tensors), student


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


def test_an_old_bundle_keeps_its_numbers(tmp_path):
    """The committed bundle has schema 1, from before its tensors had a hash; encoder and tile come from a rule."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    from napari_peka.models.encoder import build_encoder
    from napari_peka.models.student import build_student

    model = read_bundle(OLD)
    assert model.spec.tensors_sha256 is None
    assert (model.head.genes, model.head.unit) == (("ERBB2", "KRT8", "COL1A1"), "log1p CP10K")
    trunk = build_encoder(model.card).trunk.state_dict()
    save_file({k: torch.from_numpy(ruled(v.shape, k)) + 1.0 * (k[-11:] == "norm.weight") for k, v in trunk.items()},
              tmp_path / "w.safetensors")  # fmt: skip
    tile = (np.arange(2 * 64 * 64 * 3) * 37 % 251).astype(np.uint8).reshape(2, 64, 64, 3)
    with torch.inference_mode():
        features = build_student(model, weights=tmp_path / "w.safetensors")(torch.from_numpy(tile)).numpy()
    wanted = json.loads((OLD / "expected.json").read_text())
    np.testing.assert_allclose(features[:, ::6], wanted["features_every_sixth"], atol=2e-4)
    np.testing.assert_allclose(model.head.matrix(features), wanted["genes"], atol=2e-4)
    assert (model.digest, model.embedding_digest) == (wanted["digest"], wanted["embedding_digest"])
