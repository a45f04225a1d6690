"""Where an encoder's weights come from, and what is refused: each refusal is one sentence with its mend."""

from __future__ import annotations

import dataclasses
import os
import pickle
import stat
import sys
import traceback

import pytest

from napari_peka.core.errors import BundleError, EncoderUnavailable
from napari_peka.models.folder import encoder_folder, models_folder, use_models_folder
from napari_peka.models.registry import encoder_card

torch = pytest.importorskip("torch")

import huggingface_hub
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from napari_peka.models import weights
from napari_peka.models.encoder import load_encoder
from napari_peka.models.weights import file_sha256, find_weights, read_tensors

TOKEN = "hf_ThisIsNobodysSecret0123456789"
#: as gated as UNI, as small as tiny-random
CARD = dataclasses.replace(
    encoder_card("tiny-random"), name="UNI", hub_id="MahmoodLab/UNI", gated=True, weights_file="pytorch_model.bin",
    revision="b55a5ec6cade1a39edfe6534189a9b8ca7a022f0", page="https://huggingface.co/MahmoodLab/UNI",
)  # fmt: skip
OPEN = dataclasses.replace(CARD, name="Phikon", hub_id="owkin/phikon", gated=False, revision=None)


@pytest.fixture(scope="module")
def tensors():
    trunk = load_encoder(encoder_card("tiny-random")).trunk
    return {k: v + 0.01 for k, v in trunk.state_dict().items()}


@pytest.fixture(scope="module")
def x():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """An empty models folder, an empty cache, a token that must never be shown, and no way out."""
    monkeypatch.setenv("NAPARI_PEKA_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def no_network(*args, **kwargs):
        raise AssertionError("a test reached for the hub")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_network)


def put_in_cache(folder, repo, revision, name, tensors):
    """Write a file where the hub's own client would have left it."""
    place = folder / f"models--{repo.replace('/', '--')}"
    snapshot = place / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / "main").write_text(revision)
    torch.save(tensors, snapshot / name)
    return snapshot / name


def test_from_a_file_a_folder_and_the_models_folder(tensors, x, tmp_path):
    (tmp_path / "mine").mkdir()
    save_file(tensors, tmp_path / "mine" / "model.safetensors")
    torch.save(tensors, tmp_path / "mine" / "pytorch_model.bin")
    encoder_folder("UNI").mkdir(parents=True)
    torch.save({"state_dict": tensors, "epoch": 3}, encoder_folder("UNI") / "pytorch_model.bin")
    wanted = None
    for place in (tmp_path / "mine" / "model.safetensors", tmp_path / "mine" / "pytorch_model.bin",
                  str(tmp_path / "mine"), None):  # fmt: skip
        got = load_encoder(CARD, weights=place, offline=True)(x)
        wanted = got if wanted is None else wanted
        assert torch.equal(got, wanted)
    assert find_weights(CARD, tmp_path / "mine").name == "model.safetensors"  # not the pickle, where both are there
    assert not torch.equal(load_encoder(encoder_card("tiny-random"))(x), wanted)


def test_a_folder_with_one_file_of_any_name_is_enough(tensors, tmp_path):
    save_file(tensors, tmp_path / "uni_v1.safetensors")
    assert find_weights(CARD, tmp_path) == tmp_path / "uni_v1.safetensors"
    save_file(tensors, tmp_path / "uni_v2.safetensors")
    with pytest.raises(EncoderUnavailable, match=r"wanted a file, or a folder with model\.safetensors or"):
        find_weights(CARD, tmp_path)


def test_capitals_of_a_folder_do_not_matter(tensors):
    folder = models_folder() / "encoders" / "uni"
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    assert find_weights(CARD) == folder / "model.safetensors"


@pytest.mark.skipif(os.name == "nt", reason="rights are told otherwise there")
def test_many_people_can_share_a_models_folder_read_only(tensors, x):
    folder = encoder_folder("UNI")
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    places = [folder / "model.safetensors", folder, folder.parent, models_folder()]
    before = sorted(models_folder().rglob("*"))
    for p in places:
        p.chmod(stat.S_IREAD | (stat.S_IEXEC if p.is_dir() else 0))
    try:
        assert load_encoder(CARD, offline=True)(x).shape == (2, 48)
        assert sorted(models_folder().rglob("*")) == before
    finally:
        for p in reversed(places):
            p.chmod(stat.S_IRWXU)


def test_the_setting_goes_before_the_environment_and_reaches_other_processes(tmp_path, monkeypatch):
    assert models_folder() == tmp_path / "models"
    assert models_folder(tmp_path / "x") == tmp_path / "x"
    monkeypatch.setenv("NAPARI_PEKA_MODELS", "")
    assert models_folder().parts[-2:] == ("napari-peka", "models")
    use_models_folder(tmp_path / "y")
    assert models_folder() == tmp_path / "y"
    assert os.environ["NAPARI_PEKA_MODELS"] == str(tmp_path / "y")
    use_models_folder(None)
    assert models_folder().parts[-2:] == ("napari-peka", "models")
    assert not (tmp_path / "y").exists()  # looking something up makes nothing


def test_a_filled_cache_serves_offline(tensors, x, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    path = put_in_cache(tmp_path / "hub", CARD.hub_id, CARD.revision, "pytorch_model.bin", tensors)
    assert find_weights(CARD, offline=True) == path
    assert load_encoder(CARD, offline=True)(x).shape == (2, 48)


def test_a_cache_filled_by_other_tools_serves_where_the_pinned_commit_cannot_be_had(tensors, tmp_path, monkeypatch):
    newest = put_in_cache(tmp_path / "hub", "MahmoodLab/uni", "f" * 40, "pytorch_model.bin", tensors)

    def refuse(*args, **kwargs):
        raise hub_error("GatedRepoError", 401)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    for offline in (True, False):
        assert find_weights(CARD, offline=offline) == newest  # neither the pinned commit nor our spelling
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: str(tmp_path / "fetched.bin"))
    assert find_weights(CARD) == tmp_path / "fetched.bin"  # the pinned one is preferred where it can be had
    assert find_weights(dataclasses.replace(CARD, revision=None)) == newest  # no network for what is here
    pinned = put_in_cache(tmp_path / "hub", "MahmoodLab/Uni", CARD.revision, "pytorch_model.bin", tensors)
    assert find_weights(CARD).parent.name == pinned.parent.name == CARD.revision


def test_the_hub_is_asked_for_safetensors_first_at_the_pinned_commit(tensors, tmp_path, monkeypatch):
    from huggingface_hub.errors import EntryNotFoundError

    asked = []

    def download(repo, name, *, revision, library_name):
        asked.append((repo, name, revision))
        if name == "model.safetensors":
            raise EntryNotFoundError("404")
        torch.save(tensors, tmp_path / name)
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert find_weights(CARD) == tmp_path / "pytorch_model.bin"
    assert asked == [(CARD.hub_id, n, CARD.revision) for n in ("model.safetensors", "pytorch_model.bin")]
    monkeypatch.setattr(weights, "candidates", lambda card: ("model.safetensors",))
    with pytest.raises(EncoderUnavailable, match=r"has none of model\.safetensors"):
        find_weights(CARD)


def hub_error(kind, status, text="no"):
    """An error as the hub's client raises it, with a real response of the library that this client uses."""
    from huggingface_hub import errors

    if hasattr(errors, "Response"):
        library = sys.modules[errors.Response.__module__.split(".")[0]]
        response = library.Response(status, request=library.Request("GET", f"https://u:{TOKEN}@huggingface.co/x"))
    else:
        import requests

        response = requests.Response()
        response.status_code = status
    return getattr(errors, kind)(f"{text} Authorization: Bearer {TOKEN}", response=response)


@pytest.mark.parametrize(
    ("card", "error", "words"),
    [
        (CARD, lambda: hub_error("GatedRepoError", 403), f"gated: ask for access at {CARD.page}, then log in"),
        (CARD, lambda: hub_error("GatedRepoError", 401), f"gated: ask for access at {CARD.page}"),
        (CARD, lambda: hub_error("RepositoryNotFoundError", 401), "gated"),  # what a gated page says to strangers
        (OPEN, lambda: hub_error("GatedRepoError", 403), "gated"),  # gated since this was written
        (OPEN, lambda: hub_error("RepositoryNotFoundError", 404), "has moved, or your login"),
        (OPEN, lambda: hub_error("HfHubHTTPError", 401), "your login"),
        (OPEN, lambda: hub_error("RevisionNotFoundError", 404), r"cannot be fetched \(RevisionNotFoundError\)"),
        (OPEN, lambda: hub_error("HfHubHTTPError", 500), r"cannot be fetched \(HfHubHTTPError\)"),
        (OPEN, lambda: OSError(28, f"no space; {TOKEN}"), r"cannot be fetched \(OSError\)"),
        (OPEN, lambda: ConnectionError(f"proxy http://me:{TOKEN}@proxy"), r"cannot be fetched \(ConnectionError\)"),
        (OPEN, lambda: huggingface_hub.errors.LocalEntryNotFoundError(TOKEN), "the hub cannot be reached"),
    ],
)
def test_what_the_hub_answers_becomes_one_sentence_without_any_secret(card, error, words, monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise error()

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(EncoderUnavailable, match=words) as caught:
        load_encoder(card)
    said = str(caught.value)
    assert "\n" not in said
    assert card.page in said
    shown = said + "".join(traceback.format_exception(caught.value)) + caplog.text
    assert TOKEN not in shown
    assert "Bearer" not in shown


@pytest.mark.parametrize("by_setting", [True, False])
def test_offline_says_where_the_file_would_go(by_setting, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not by_setting)
    with pytest.raises(EncoderUnavailable, match=r"nothing is fetched offline; put pytorch_model\.bin from") as caught:
        load_encoder(CARD, offline=by_setting)
    assert str(encoder_folder("UNI")) in str(caught.value)


def test_a_file_that_is_not_there_says_what_was_wanted(tmp_path):
    with pytest.raises(EncoderUnavailable, match="wanted a file, or a folder"):
        load_encoder(CARD, weights=tmp_path / "nothing.bin")
    own = dataclasses.replace(encoder_card("dinov2-vits14-demo"), weights_file="other.safetensors")
    with pytest.raises(EncoderUnavailable, match=r"put other\.safetensors"):
        find_weights(own)


def test_the_hash_of_a_file_is_held_against_the_card(tensors, tmp_path):
    save_file(tensors, tmp_path / "w.safetensors")
    right = dataclasses.replace(CARD, sha256=file_sha256(tmp_path / "w.safetensors"))
    load_encoder(right, weights=tmp_path / "w.safetensors")
    save_file(tensors | {"cls_token": tensors["cls_token"] + 1e-3}, tmp_path / "w.safetensors")
    with pytest.raises(BundleError, match=r"not the UNI that is wanted: its sha256 is \w{12}…, wanted \w{12}…"):
        load_encoder(right, weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_tensors_of_another_model_are_named(ending, tensors, tmp_path):
    path = tmp_path / f"w.{ending}"
    write = save_file if ending == "safetensors" else torch.save
    for change, words in (
        ({"norm.weight": None}, r"tensor trunk\.norm\.weight is not there, wanted \(48,\)"),
        ({"norm.weight": torch.ones(7)}, r"tensor trunk\.norm\.weight is \(7,\), wanted \(48,\)"),
        ({"stranger": torch.ones(7)}, r"tensor trunk\.stranger is \(7,\), wanted none of that name"),
    ):
        write({k: v for k, v in (tensors | change).items() if v is not None}, path)
        with pytest.raises(BundleError, match=words) as caught:
            load_encoder(CARD, weights=path)
        assert CARD.page in str(caught.value)


def test_half_precision_is_widened(tensors, tmp_path):
    save_file({k: v.half() for k, v in tensors.items()}, tmp_path / "w.safetensors")
    encoder = load_encoder(CARD, weights=tmp_path / "w.safetensors")
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


class Code:
    """What a hostile file does when it is unpickled."""

    def __init__(self, touched) -> None:
        self.touched = touched

    def __reduce__(self):
        return os.mkdir, (str(self.touched),)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_a_torch_file_with_code_is_not_opened(new_format, nested, tensors, tmp_path):
    code = Code(tmp_path / "touched")
    content = {"model": {"a": code}} if nested else tensors | {"x": code}
    torch.save(content, tmp_path / "w.bin", _use_new_zipfile_serialization=new_format)
    with pytest.raises(BundleError, match="could run code; convert it to safetensors"):
        load_encoder(CARD, weights=tmp_path / "w.bin")
    assert not (tmp_path / "touched").exists()


def test_a_bare_pickle_is_not_opened(tmp_path, recwarn):
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"x": Code(tmp_path / "touched")}))
    with pytest.raises(BundleError):
        read_tensors(tmp_path / "w.pth")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_a_torch_file_of_tensors_alone_is_taken(new_format, key, tensors, tmp_path):
    content = {key: tensors, "epoch": 7, "name": "x"} if key else tensors
    torch.save(content, tmp_path / "w.bin", _use_new_zipfile_serialization=new_format)
    got = read_tensors(tmp_path / "w.bin")
    assert got.keys() == tensors.keys()
    assert all(torch.equal(got[k], tensors[k]) for k in tensors)


DAMAGE = {
    "empty": lambda raw: b"",
    "half": lambda raw: raw[: len(raw) // 2],
    "a web page": lambda raw: b"<!DOCTYPE html><html>Access denied</html>",
    "noise": lambda raw: bytes(range(256)) * 20,
    "zeros": lambda raw: b"\0" * 4096,
}


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files_say_so_in_one_sentence(ending, name, tensors, tmp_path):
    path = tmp_path / f"w.{ending}"
    (save_file if ending == "safetensors" else torch.save)(tensors, path)
    path.write_bytes(DAMAGE[name](path.read_bytes()))
    with pytest.raises(BundleError, match="fetch it again") as caught:
        load_encoder(CARD, weights=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_pointer_of_git_lfs_is_told_apart(ending, tmp_path):
    (tmp_path / f"w.{ending}").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n")
    with pytest.raises(BundleError, match="git lfs pull"):
        load_encoder(CARD, weights=tmp_path / f"w.{ending}")


def test_a_torch_file_without_names_is_refused(tmp_path):
    torch.save([torch.ones(1)], tmp_path / "w.bin")
    with pytest.raises(BundleError, match="no named tensors"):
        read_tensors(tmp_path / "w.bin")


def test_safetensors_round_trip(tensors, tmp_path):
    save_file(tensors, tmp_path / "w.safetensors")
    shapes = weights.read_shapes(tmp_path / "w.safetensors")
    assert {k: v.shape for k, v in shapes.items()} == {k: v.shape for k, v in tensors.items()}
    assert all(v.is_meta for v in shapes.values())
    assert load_file(tmp_path / "w.safetensors").keys() == read_tensors(tmp_path / "w.safetensors").keys()
