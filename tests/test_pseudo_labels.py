"""Clusters of teacher embeddings and the frozen classifier of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from napari_peka.core.errors import TrainingError
from napari_peka.core.progress import Cancelled, JobProgress
from napari_peka.training import pseudo_labels
from napari_peka.training.pseudo_labels import Scaling, centred_by_section, fit_pseudo_labels, nearest


@pytest.fixture(scope="module", autouse=True)
def _small():
    """A classifier that is fitted in a moment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"HIDDEN": 32, "LR": 1e-2, "MIN_STEPS": 300}.items():
            patch.setattr(pseudo_labels, name, value)
        yield


def blobs(n: int = 400, k: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings in well separated groups, far from the origin, of very different widths a dimension."""
    rng = np.random.default_rng(seed)
    group = rng.integers(k, size=n)
    centres = rng.normal(size=(k, 6)) * [40, 40, 40, 0, 0, 0]
    return (500 + centres[group] + rng.normal(size=(n, 6)) * [1, 1, 1, 0.1, 0.1, 0.1]).astype(np.float32), group


@pytest.fixture(scope="module")
def fitted():
    embeddings, group = blobs()
    train = np.arange(len(embeddings)) % 4 != 0
    progress = JobProgress()
    return embeddings, group, train, fit_pseudo_labels(embeddings, train, n_clusters=4, progress=progress), progress


def test_clusters_find_groups_and_the_classifier_tells_them(fitted):
    embeddings, group, _, pseudo, progress = fitted
    assert pseudo.n_clusters == 4
    # one cluster a group, for spots that trained and for those that did not
    pairs = set(zip(group.tolist(), pseudo.labels.tolist()))
    assert len(pairs) == 4
    logits = pseudo.classifier(torch.from_numpy(embeddings))
    np.testing.assert_array_equal(logits.argmax(1).numpy(), pseudo.labels)
    made = pseudo.record["classifier"]
    assert made["validation_accuracy"] == 1.0
    # steps enough, though twenty epochs of so few spots would make 160
    assert made["epochs"] * -(-240 // 32) >= 300
    assert not progress.notes


def test_the_classifier_is_frozen_and_takes_its_scaling_along(fitted):
    embeddings, _, train, pseudo, _ = fitted
    assert not any(p.requires_grad for p in pseudo.classifier.parameters())
    assert not pseudo.classifier.training
    state = pseudo.classifier.state_dict()
    np.testing.assert_allclose(state["mean"].numpy(), embeddings[train].mean(0), rtol=1e-5)
    again = pseudo_labels.Classifier(Scaling(np.zeros(6, np.float32), 1.0), 4)
    again.load_state_dict(state)
    x = torch.from_numpy(embeddings[:5])
    np.testing.assert_array_equal(again(x).detach(), pseudo.classifier(x))


def test_the_same_seed_gives_the_same_and_leaves_other_random_numbers_alone():
    embeddings, _ = blobs(120, 5)
    train = np.ones(120, bool)
    torch.manual_seed(7)
    first = fit_pseudo_labels(embeddings, train, n_clusters=5, seed=3)
    drawn = torch.rand(3)
    torch.manual_seed(8)
    again = fit_pseudo_labels(embeddings, train, n_clusters=5, seed=3)
    np.testing.assert_array_equal(first.labels, again.labels)
    for a, b in zip(first.classifier.state_dict().values(), again.classifier.state_dict().values()):
        assert torch.equal(a, b)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(3))
    other = fit_pseudo_labels(embeddings, train, n_clusters=5, seed=4)
    assert not torch.equal(first.classifier.layers[0].weight, other.classifier.layers[0].weight)


def test_held_out_spots_change_nothing_but_have_labels():
    embeddings, _ = blobs(200)
    train = np.arange(200) < 120
    changed = embeddings.copy()
    changed[~train] *= -30
    a, b = (fit_pseudo_labels(e, train, n_clusters=4) for e in (embeddings, changed))
    np.testing.assert_array_equal(a.centres, b.centres)
    np.testing.assert_array_equal(a.labels[train], b.labels[train])
    np.testing.assert_array_equal(b.labels, nearest(changed, b.centres))


def test_sections_that_differ_as_a_whole_share_their_clusters():
    embeddings, group = blobs(200)
    section = np.repeat(["a", "b"], 100)
    moved = embeddings + 1000 * (section == "b")[:, None]
    train = np.arange(200) % 3 != 0
    fitted = fit_pseudo_labels(centred_by_section(moved, section, train), train, n_clusters=4)
    for label in range(4):
        of = fitted.labels == label
        assert len(set(group[of])) == 1
        assert set(section[of]) == {"a", "b"}
    torn = fit_pseudo_labels(moved, train, n_clusters=4)
    assert all(len(set(section[torn.labels == label])) == 1 for label in range(4))


def test_what_is_held_out_moves_no_training_spot():
    embeddings, _ = blobs(90)
    section = np.repeat(["a", "b", "c"], 30)
    train = (np.arange(90) % 2 == 0) & (section != "c")
    changed = embeddings.copy()
    changed[~train] *= -30
    a, b = (centred_by_section(e, section, train) for e in (embeddings, changed))
    np.testing.assert_array_equal(a[train], b[train])
    np.testing.assert_allclose(a[train & (section == "a")].mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(a[section == "c"].mean(0), 0, atol=1e-4)


def test_a_strong_dimension_outweighs_a_weak_one():
    rng = np.random.default_rng(0)
    strong, weak = rng.integers(2, size=80), rng.integers(2, size=80)
    embeddings = np.stack([100.0 * strong, 0.1 * weak], 1) + rng.normal(size=(80, 2)) * [1, 0.001]
    labels = fit_pseudo_labels(embeddings, np.ones(80, bool), n_clusters=2).labels
    assert len(set(zip(strong.tolist(), labels.tolist()))) == 2


def test_few_spots_give_fewer_clusters_and_say_so():
    embeddings, _ = blobs(130)
    progress = JobProgress()
    pseudo = fit_pseudo_labels(embeddings, np.ones(130, bool), progress=progress)
    assert pseudo.n_clusters == 6
    assert progress.notes == ["130 training spots give 6 pseudo-labels, not 100: about 20 spots are needed for each"]
    assert pseudo.record["asked_for"] == 100
    assert fit_pseudo_labels(embeddings[:9], np.ones(9, bool)).n_clusters == 2
    same = np.repeat(np.eye(3), 30, 0)
    progress = JobProgress()
    assert fit_pseudo_labels(same, np.ones(90, bool), progress=progress).n_clusters == 3
    assert progress.notes[0].startswith("3 different embeddings give 3")


def test_embeddings_that_are_no_use_are_one_sentence():
    with pytest.raises(TrainingError, match="embeddings of the 30 training spots do not differ"):
        fit_pseudo_labels(np.ones((30, 4)), np.ones(30, bool))
    broken = np.ones((30, 4))
    broken[[2, 5], 1] = np.nan
    with pytest.raises(TrainingError, match=r"no numbers .* for 2 of 30 training spots"):
        fit_pseudo_labels(broken, np.ones(30, bool))


def test_it_can_be_cancelled():
    embeddings, _ = blobs(60)

    class Impatient(JobProgress):
        def changed(self) -> None:
            if self.snapshot().done == 2:
                self.cancel()

    with pytest.raises(Cancelled):
        fit_pseudo_labels(embeddings, np.ones(60, bool), progress=Impatient())
