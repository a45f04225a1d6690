"""Finding models by name, path or hub id; what is listed can be written as JSON."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from napari_peka.core.errors import BundleError, EncoderUnavailable, UnknownName
from napari_peka.models.registry import ENCODERS
from napari_peka.models.zoo import listing, load_model, local_models, show

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def models(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv("NAPARI_PEKA_MODELS", str(folder))
    return folder


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a test reached for the hub")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)


def test_an_encoder_is_no_model_and_that_is_said():
    from napari_peka.models.zoo import load_model

    with pytest.raises(UnknownName, match="UNI is an encoder"):
        load_model("UNI")


def test_the_demo_is_always_there(models):
    model = load_model("demo")
    assert model.name == "demo"
    assert model.card.name == "dinov2-vits14-demo"
    assert len(model.head.genes) > 100


def test_paths_go_before_names_and_a_folder_that_is_no_bundle_does_not_hide_one(
    models, bundle_folder, tmp_path, monkeypatch
):
    shutil.copytree(bundle_folder, models / "mine")
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()  # for instance the results of that model
    assert load_model("mine").source == str(models / "mine")
    shutil.copytree(bundle_folder, "mine", dirs_exist_ok=True)
    assert load_model("mine").source == "mine"
    assert load_model(Path("mine")).source == "mine"
    Path("other").mkdir()
    with pytest.raises(BundleError, match=r"other is no model bundle: peka\.json is missing"):
        load_model("other")


def test_a_folder_goes_before_a_zip_of_the_same_name(models, bundle_folder):
    shutil.make_archive(str(models / "mine"), "zip", bundle_folder)
    assert load_model("mine").source.endswith("mine.zip")
    shutil.copytree(bundle_folder, models / "mine")
    assert local_models() == {"mine": models / "mine"}


def test_what_is_no_model_is_said_with_near_names_and_the_folder(models, bundle_folder):
    shutil.copytree(bundle_folder, models / "her2-breast")
    with pytest.raises(UnknownName, match=r"did you mean her2-breast\?") as caught:
        load_model("her2-brest")
    assert str(models) in str(caught.value)
    for name in ("x" * 400, "", "a/b/c", "no\\such"):
        with pytest.raises((UnknownName, BundleError)):
            load_model(name)


def test_without_a_models_folder_there_is_the_demo(models):
    models.rmdir()
    assert local_models() == {}
    assert [m["name"] for m in listing()["models"]] == ["demo"]
    assert not models.exists()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a person without all rights")
def test_a_folder_that_may_not_be_read_is_named(models):
    models.chmod(0)
    try:
        with pytest.raises(BundleError, match="cannot be read"):
            local_models()
        assert load_model("demo").name == "demo"
    finally:
        models.chmod(0o700)


def test_a_models_folder_that_cannot_be_listed_is_named(models, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(BundleError, match=r"cannot be read \(Permission denied\); .*NAPARI_PEKA_MODELS"):
        local_models()
    assert load_model("demo").name == "demo"


def test_the_listing_is_json_and_names_what_cannot_be_used(models, bundle_folder):
    shutil.copytree(bundle_folder, models / "good")
    shutil.copytree(bundle_folder, models / "unknown-encoder")
    spec = json.loads((bundle_folder / "peka.json").read_text())
    spec["encoder"]["name"] = "UNI9"
    (models / "unknown-encoder" / "peka.json").write_text(json.dumps(spec))
    with zipfile.ZipFile(models / "broken.zip", "w") as z:
        z.writestr("notes.txt", "hello")
    listed = json.loads(json.dumps(listing()))
    by_name = {m["name"]: m for m in listed["models"]}
    assert by_name.keys() == {"demo", "good", "unknown-encoder", "broken"}
    assert by_name["good"]["genes"] == 5
    assert "there is no encoder 'UNI9'" in by_name["unknown-encoder"]["encoder"]
    assert "is missing" in by_name["broken"]["encoder"]
    assert [e["name"] for e in listed["encoders"]] == list(ENCODERS)
    assert listed["folder"] == str(models)


@pytest.mark.parametrize("name", ["demo", "good", *ENCODERS, "uni2-h"])
def test_all_that_is_known_of_one_is_json(name, models, bundle_folder):
    shutil.copytree(bundle_folder, models / "good")
    shown = json.loads(json.dumps(show(name), allow_nan=False))
    assert shown["name"]
    if name.casefold() in {k.casefold() for k in ENCODERS}:
        assert {"dim", "px", "mpp", "pooling", "mean", "std", "licence", "gated", "hub_id", "page"} <= shown.keys()
    else:
        assert {"digest", "encoder", "preprocessing", "head", "path"} <= shown.keys()
        assert "genes" not in shown["head"]


def test_a_timm_model_can_be_shown(models):
    assert show("timm:resnet18")["dim"] == 512


def test_showing_what_is_not_there_offers_models_and_encoders(models):
    with pytest.raises(UnknownName, match=r"did you mean .*Virchow2"):
        show("Virchow3")


class TestHub:
    @pytest.fixture
    def hub(self, bundle_folder, tmp_path, monkeypatch):
        """A hub with one bundle in a snapshot, as its client lays it out; what was asked is written down."""
        snapshot = tmp_path / "hub" / "models--me--tiny" / "snapshots" / ("a" * 40)
        shutil.copytree(bundle_folder, snapshot)
        asked = []

        def download(repo, file, *, local_files_only, library_name):
            asked.append((repo, file, local_files_only))
            return str(snapshot / file)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        return asked

    def test_a_hub_id_fetches_the_two_files_and_nothing_else(self, hub, models, tiny_model):
        model = load_model("me/tiny")
        assert model.digest == tiny_model.digest
        assert hub == [("me/tiny", f, False) for f in ("model.safetensors", "peka.json")]
        assert list(models.iterdir()) == []

    def test_offline_only_the_cache_is_asked(self, hub, models):
        load_model("me/tiny", offline=True)
        assert {local for _, _, local in hub} == {True}

    def test_a_path_is_no_hub_id(self, hub, models):
        for name in ("./me/tiny", "/me/tiny", "~/tiny", "a/b/c"):
            with pytest.raises(UnknownName):
                load_model(name)
        with pytest.raises(UnknownName):
            load_model(Path("me/tiny"))
        assert hub == []

    def test_halves_of_two_commits_are_refused(self, models, bundle_folder, tmp_path, monkeypatch):
        for commit in ("a", "b"):
            shutil.copytree(bundle_folder, tmp_path / commit)
        commits = iter("ab")
        monkeypatch.setattr(
            huggingface_hub, "hf_hub_download", lambda repo, file, **_: str(tmp_path / next(commits) / file)
        )
        with pytest.raises(BundleError, match="different revisions"):
            load_model("me/tiny")

    @pytest.mark.parametrize(
        ("error", "kind", "words"),
        [
            ("gated", EncoderUnavailable, "ask for access at https://huggingface.co/me/tiny"),
            ("missing", UnknownName, "there is no model 'me/tiny' here or on the hub"),
            ("unreachable", UnknownName, "the hub cannot be reached"),
            ("no such file", BundleError, "is no model bundle"),
            ("proxy", EncoderUnavailable, r"cannot be fetched \(ConnectionError\)"),
        ],
    )
    def test_what_the_hub_answers_becomes_one_sentence(self, error, kind, words, models, monkeypatch):
        from test_weights import TOKEN, hub_error

        errors = {
            "gated": lambda: hub_error("GatedRepoError", 403),
            "missing": lambda: hub_error("RepositoryNotFoundError", 404),
            "unreachable": lambda: huggingface_hub.errors.LocalEntryNotFoundError("no"),
            "no such file": lambda: huggingface_hub.errors.EntryNotFoundError("no"),
            "proxy": lambda: ConnectionError(f"http://me:{TOKEN}@proxy"),
        }

        def refuse(*args, **kwargs):
            raise errors[error]()

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
        with pytest.raises(kind, match=words) as caught:
            load_model("me/tiny")
        assert TOKEN not in str(caught.value)
        assert caught.value.__suppress_context__

    def test_a_name_that_no_hub_takes_is_unknown(self, models, monkeypatch):
        def refuse(*args, **kwargs):
            raise huggingface_hub.errors.HFValidationError("Repo id must use alphanumeric chars")

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
        with pytest.raises(UnknownName, match="give the path of a bundle"):
            load_model("my models/tiny")
