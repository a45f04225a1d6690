"""The training loop: it learns, it can be killed and resumed, and it says what goes wrong."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from napari_peka.config import TrainConfig
from napari_peka.core import files
from napari_peka.core.errors import OutputMismatch, StoreError, TrainingError
from napari_peka.core.progress import Cancelled, JobProgress
from napari_peka.io.tiles import SpotTiles, TileBank
from napari_peka.models.adapters import adapter_state, add_adapter, start_training
from napari_peka.models.encoder import Normaliser, load_encoder
from napari_peka.models.registry import AdapterSpec, encoder_card
from napari_peka.models.student import translate_mlp
from napari_peka.models.targets import resolve_adapter
from napari_peka.models.trunk import drop_patches, split
from napari_peka.training.augment import Augment
from napari_peka.training.batches import TileBatches, trunk_batches
from napari_peka.training.distill import fit
from napari_peka.training.learner import Learner, Pairs, Watch
from napari_peka.training.loop import STATE_FILE

N, D, K = 48, 3, 4
CPU = torch.device("cpu")


@lru_cache(1)
def bank():
    """Tiles whose redness, greenness and blueness are what there is to know."""
    rng = np.random.default_rng(0)
    colour = rng.uniform(40, 215, (N, 3))
    images = rng.normal(colour[:, None, None], 10, (N, 64, 64, 3)).clip(0, 255).astype(np.uint8)
    return TileBank([SpotTiles(images, np.arange(N), np.ones(N, bool))]), colour


def pairs():
    _, colour = bank()
    teacher = ((colour - colour.mean(0)) / colour.std(0)).astype(np.float32)
    labels = np.argmax(np.c_[teacher, np.zeros(N)], 1)
    return Pairs(
        teacher, labels, np.arange(36), np.arange(36, N), np.array(["a"] * N), teacher, np.ones((N, D), np.float32) * 3,
        np.full(N, 9, np.float32),
    )  # fmt: skip


class Setup:
    """An encoder with its adapter, and all that the loop takes."""

    def __init__(self, folder, *, trunk=False, dtype=torch.float32, **settings):
        more = {"encoder": "tiny-random", "epochs": 3, "batch_size": 12, "lr": 3e-3, "adapter": "bone", **settings}
        self.config, self.folder, self.dtype = TrainConfig(**more), folder, dtype
        card = encoder_card("tiny-random")
        self.encoder = load_encoder(card)
        spec = AdapterSpec(
            self.config.adapter, self.config.rank, None, last_blocks=1 if trunk else self.config.last_blocks
        )
        spec = resolve_adapter(self.encoder, spec)
        add_adapter(self.encoder, spec, seed=0)
        start_training(self.encoder, spec, 3 * self.config.epochs)
        torch.manual_seed(0)
        translate = translate_mlp([card.dim, 32, D])
        classifier = torch.nn.Linear(D, K, bias=False)  # the largest of red, green, blue and nothing
        classifier.weight.data = 3 * torch.eye(K, D)
        augment = Augment(stain=0, light=0)
        normalise = Normaliser(card.mean, card.std)
        self.pairs = pairs()
        body, self.batches = torch.nn.Sequential(normalise, self.encoder), TileBatches(bank()[0], augment, CPU)
        if trunk:
            front, body = split(self.encoder, 1)
            self.batches = trunk_batches(
                torch.nn.Sequential(normalise, front), bank()[0], self.pairs.train, self.pairs.validation, n_views=3,
                augment=augment, seed=0, device=CPU, dtype=dtype, batch_size=8, folder=folder, identity="tiny",
            )  # fmt: skip
        drop_patches(body if trunk else self.encoder, self.config.patch_dropout)
        n_genes = D if set(self.config.terms) & {"genes", "poisson", "nb"} else 0
        self.learner = Learner(body, translate, classifier, card.dim, n_genes, "nb" in self.config.terms)

    def fit(self, **more):
        return fit(
            self.learner, self.encoder, self.batches, self.pairs, self.config, folder=self.folder, device=CPU,
            dtype=self.dtype, **more,
        )  # fmt: skip

    def weights(self):
        return {k: v.clone() for k, v in self.learner.state_dict().items()}


class StopsAfter(JobProgress):
    """Stops the job in the middle of an epoch."""

    def __init__(self, tiles):
        super().__init__()
        self.tiles = tiles

    def changed(self):
        if self.snapshot().done >= self.tiles:
            self.cancel()


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a) and a.keys() == b.keys()


@pytest.mark.parametrize("kind", ["bone", "bat", "lora", "dora", "adalora", "hra", "full"])
def test_every_adapter_learns_and_leaves_the_rest_alone(tmp_path, kind):
    setup = Setup(tmp_path, adapter=kind, epochs=4)
    before = setup.weights()
    history = setup.fit()
    assert [e.epoch for e in history.epochs] == [1, 2, 3, 4]
    assert history.epochs[-1].train_loss < 0.8 * history.epochs[0].train_loss
    assert history.kept == history.best == 1 + int(np.argmin([e.val_loss for e in history.epochs]))
    changed = {k for k, v in setup.weights().items() if not torch.equal(v, before[k])}
    assert changed
    assert not any(k.startswith("classifier") for k in changed)
    if kind != "full":
        adapter = set(adapter_state(setup.encoder))
        assert {k.removeprefix("body.1.") for k in changed if k.startswith("body")} <= adapter


@pytest.mark.parametrize(("kind", "dropped"), [("bone", 0), ("bone", 0.5), ("adalora", 0)])
def test_killed_and_resumed_it_ends_at_the_very_same_weights(tmp_path, kind, dropped):
    whole = Setup(tmp_path / "whole", adapter=kind, patch_dropout=dropped)
    whole_history = whole.fit()
    cut = Setup(tmp_path / "cut", adapter=kind, patch_dropout=dropped)
    with pytest.raises(Cancelled):
        cut.fit(progress=StopsAfter(36 * 2 + 10))  # in the third epoch
    again = Setup(tmp_path / "cut", adapter=kind, patch_dropout=dropped)
    progress = JobProgress()
    history = again.fit(resume=True, progress=progress)
    assert same(whole.weights(), again.weights())
    assert [e.train_loss for e in history.epochs] == [e.train_loss for e in whole_history.epochs]
    assert progress.snapshot().done == progress.snapshot().total == 36 * 3


@pytest.mark.parametrize("trunk", [False, True])
def test_patches_are_dropped_while_learning_and_not_while_judging(tmp_path, trunk):
    setup = Setup(tmp_path, patch_dropout=0.5, epochs=1, trunk=trunk)
    seen = {True: set(), False: set()}
    last = setup.encoder.trunk.blocks[-1]
    hook = last.register_forward_hook(lambda _, __, t: seen[torch.is_grad_enabled()].add(t.shape[1]))
    setup.fit()
    hook.remove()
    assert (max(seen[True]) - 1) * 2 == max(seen[False]) - 1
    assert len(seen[True]) == len(seen[False]) == 1


def test_two_runs_of_one_seed_are_equal_and_of_another_are_not(tmp_path):
    one, two, other = (Setup(tmp_path / n, seed=s) for n, s in (("1", 0), ("2", 0), ("3", 1)))
    for setup in (one, two, other):
        setup.fit()
    assert same(one.weights(), two.weights())
    assert not same(one.weights(), other.weights())


def test_an_interrupted_training_can_be_ended_with_its_best_epoch(tmp_path):
    cut = Setup(tmp_path)
    with pytest.raises(Cancelled):
        cut.fit(progress=StopsAfter(36 * 2 + 10))
    ended = Setup(tmp_path)
    history = ended.fit(resume=True, finish=True)
    assert len(history.epochs) == 2
    assert history.kept in (1, 2)
    assert not same(ended.weights(), Setup(tmp_path / "fresh").weights())


def test_it_can_be_asked_to_stop_after_an_epoch(tmp_path):
    seen = []

    def watch(history, embeddings):
        seen.append((len(history.epochs), embeddings.shape))
        return len(history.epochs) < 2

    history = Setup(tmp_path).fit(on_epoch=watch)
    assert seen == [(1, (12, 48)), (2, (12, 48))]
    assert "asked to stop" in history.stopped


def test_it_stops_early_when_held_out_loss_no_longer_falls(tmp_path):
    setup = Setup(tmp_path, epochs=30, lr=0.3, schedule="constant", patience=2)
    history = setup.fit()
    assert len(history.epochs) < 30
    assert len(history.epochs) - history.best == 2
    assert "no better held-out loss for 2 epochs" in history.stopped


def test_a_loss_that_is_no_number_is_said_and_earlier_epochs_stay(tmp_path):
    setup = Setup(tmp_path)

    def poison(history, _):
        with torch.no_grad():
            setup.learner.translate[0].weight.fill_(float("nan"))

    with pytest.raises(TrainingError, match=r"diverged in epoch 2, batch 1: the loss is nan; lower the learning rate"):
        setup.fit(on_epoch=poison)
    assert (tmp_path / STATE_FILE).exists()


def test_a_checkpoint_of_other_data_or_settings_is_not_resumed(tmp_path):
    Setup(tmp_path).fit()
    with pytest.raises(OutputMismatch, match=r"lr was 0.003, now 0.001"):
        Setup(tmp_path, lr=1e-3).fit(resume=True)
    other = Setup(tmp_path)
    other.pairs.teacher[0] += 1
    with pytest.raises(OutputMismatch, match="other sections or another split"):
        other.fit(resume=True)


def test_a_damaged_checkpoint_is_said(tmp_path):
    (tmp_path / STATE_FILE).write_bytes(b"PK nothing of the kind")
    with pytest.raises(StoreError, match="cannot be read"):
        Setup(tmp_path).fit(resume=True)


def test_a_full_disk_at_a_checkpoint_keeps_the_one_before(tmp_path, monkeypatch):
    setup, write, calls = Setup(tmp_path), files.write_whole, []

    def full_at_second(path, data):
        calls.append(path)
        if len(calls) == 2:
            raise files.cannot_write(path, OSError(28, "No space left on device"))
        write(path, data)

    monkeypatch.setattr(files, "write_whole", full_at_second)
    with pytest.raises(StoreError, match="the disk is full"):
        setup.fit()
    monkeypatch.undo()
    whole, again = Setup(tmp_path / "whole"), Setup(tmp_path)
    whole.fit()
    again.fit(resume=True)
    assert same(whole.weights(), again.weights())


def test_accumulated_passes_make_the_step_of_one_large_one(tmp_path):
    kwargs = {"dihedral": False, "clip": None, "epochs": 1, "alpha": 0.5, "adapter": "lora", "schedule": "constant"}
    one, many = (
        Setup(tmp_path / "1", batch_size=36, **kwargs),
        Setup(tmp_path / "2", batch_size=12, accumulate=3, **kwargs),
    )
    for setup in (one, many):
        setup.batches.augment = Augment(False, 0, 0)
        setup.fit()
    for k, v in one.weights().items():
        torch.testing.assert_close(v, many.weights()[k], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("term", ["cosine", "mse", "relational", "genes", "poisson", "nb"])
def test_further_terms_are_trained_and_reported(tmp_path, term):
    history = Setup(tmp_path, terms={term: 1.0}, epochs=3).fit()
    assert set(history.epochs[0].terms) == {"kd", "ce", term}
    assert history.epochs[-1].terms[term] < history.epochs[0].terms[term]


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "step", "constant"])
def test_schedules(tmp_path, schedule):
    history = Setup(tmp_path, schedule=schedule).fit()
    lrs = [e.lr for e in history.epochs]
    assert max(lrs) <= 3e-3 + 1e-12
    assert (len(set(lrs)) == 1) == (schedule == "constant")


def test_bf16_learns_too_and_keeps_float32_weights(tmp_path):
    setup = Setup(tmp_path, dtype=torch.bfloat16)
    history = setup.fit()
    assert history.epochs[-1].train_loss < history.epochs[0].train_loss
    assert all(p.dtype == torch.float32 for p in setup.learner.parameters())


def test_from_a_trunk_computed_once_it_learns_and_resumes(tmp_path):
    whole = Setup(tmp_path / "whole", trunk=True)
    history = whole.fit()
    assert history.epochs[-1].train_loss < 0.9 * history.epochs[0].train_loss
    cut = Setup(tmp_path / "cut", trunk=True)
    with pytest.raises(Cancelled):
        cut.fit(progress=StopsAfter(36 * 2 + 10))
    again = Setup(tmp_path / "cut", trunk=True)
    again.fit(resume=True)
    assert same(whole.weights(), again.weights())


def test_the_trunks_plain_look_is_what_the_encoder_sees(tmp_path):
    setup = Setup(tmp_path, trunk=True)
    with torch.no_grad():
        from_trunk = setup.learner.body(setup.batches.plain(setup.pairs.validation))
        card = encoder_card("tiny-random")
        tiles = torch.from_numpy(bank()[0].read(setup.pairs.validation))
        straight = load_encoder(card)(Normaliser(card.mean, card.std)(tiles))
    torch.testing.assert_close(from_trunk, straight, atol=2e-2, rtol=2e-2)  # kept as float16


def test_a_trunk_cache_that_does_not_fit_the_disk_is_said_before_work(tmp_path, monkeypatch):
    import shutil
    from types import SimpleNamespace

    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(StoreError, match=r"the trunk cache needs 0\.0 GB .* take fewer cached_views"):
        Setup(tmp_path, trunk=True)
    assert not list(tmp_path.glob("trunk-*"))


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    kwargs = {"dihedral": False, "clip": None, "epochs": 2, "adapter": "lora", "schedule": "constant", "lr": 1e-3}
    one, two = Setup(tmp_path / "1", **kwargs), Setup(tmp_path / "2", devices=2, **kwargs)
    for setup in (one, two):
        setup.batches.augment = Augment(False, 0, 0)
    seen, progress = [], JobProgress()
    history = one.fit()
    looks = []
    shared = two.fit(
        on_epoch=lambda h, e: seen.append((len(h.epochs), e.shape)), watch=Watch(np.arange(40, N), pairs().targets),
        on_look=looks.append, progress=progress,
    )  # fmt: skip
    assert [(look.epoch, look.predicted.shape) for look in looks] == [(0, (8, D)), (1, (8, D)), (2, (8, D))]
    assert seen == [(1, (12, 48)), (2, (12, 48))]
    assert progress.snapshot().done == 72
    assert shared.epochs[-1].val_loss == pytest.approx(history.epochs[-1].val_loss, abs=1e-3)
    for k, v in one.weights().items():
        torch.testing.assert_close(v, two.weights()[k], atol=1e-4, rtol=1e-2)


@pytest.mark.slow
def test_two_processes_stop_and_say_their_error(tmp_path):
    with pytest.raises(Cancelled):
        Setup(tmp_path / "1", devices=2, epochs=50).fit(progress=StopsAfter(36 + 10))
    assert (tmp_path / "1" / STATE_FILE).exists()
    with pytest.raises(TrainingError, match=r"diverged in epoch 1, batch \d: the loss is (nan|inf)"):
        Setup(tmp_path / "2", devices=2, epochs=50, terms={"mse": 3e38}).fit()
