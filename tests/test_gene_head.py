"""The closed-form read-out, against scikit-learn and against what it must refuse."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_peka.core.errors import SettingError, TrainingError
from napari_peka.training import ridge
from napari_peka.training.gene_head import (
    PAPER,
    RELATIVE_ALPHAS,
    fit_head,
    hest_bench_alpha,
    narrowed,
    pearson,
)

pytest.importorskip("sklearn")
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def spots(seed: int, n: int = 60, d: int = 12, g: int = 5, noise: float = 0.5):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * rng.uniform(0.1, 10, d) + rng.normal(size=d)
    return x, x @ rng.normal(size=(d, g)) * 0.3 + noise * rng.normal(size=(n, g)) + 2


shapes = st.tuples(st.integers(5, 70), st.integers(2, 40), st.integers(1, 6), st.integers(0, 10_000))


@settings(max_examples=25, deadline=None)
@given(shapes, st.floats(1e-3, 1e3), st.booleans(), st.integers(1, 12))
def test_pca_and_ridge_are_those_of_scikit_learn(shape, alpha, standardise, k):
    n, d, g, seed = shape
    x, y = spots(seed, n, d, g)
    k = min(k, n - 1, d)
    steps = [StandardScaler()] if standardise else []
    theirs = make_pipeline(*steps, PCA(k, svd_solver="full"), Ridge(alpha=alpha)).fit(x, y)
    ours = fit_head(x, y, n_components=k, alpha=alpha, standardise=standardise)
    np.testing.assert_allclose(ours(x), theirs.predict(x).reshape(n, g), rtol=1e-4, atol=1e-4)
    weights, bias = float64_head(x, y, k, alpha, standardise)
    np.testing.assert_allclose(x @ weights + bias, theirs.predict(x).reshape(n, g), rtol=1e-6, atol=1e-6)


def float64_head(x, y, k, alpha, standardise, weight=None):
    """The same walk before rounding to float32."""
    directions = ridge.decompose(x, standardise=standardise, limit=k, weight=weight)
    projection = ridge.project(directions.scores(x), directions.values, y, weight=weight)
    return ridge.coefficients(directions, projection, min(k, len(directions.values)), alpha)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_weights_of_spots_are_those_of_scikit_learn(seed):
    x, y = spots(seed)
    weight = np.random.default_rng(seed).uniform(0, 3, len(x))
    weight[:5] = 0
    theirs = Ridge(alpha=2.0).fit(x, y, sample_weight=weight)
    kept = weight > 0
    weights, bias = float64_head(x[kept], y[kept], 12, 2.0, False, weight[kept])
    np.testing.assert_allclose(weights, theirs.coef_.T, atol=1e-6)
    np.testing.assert_allclose(bias, theirs.intercept_, atol=1e-6)
    ours = fit_head(x, y, n_components=None, alpha=2.0, standardise=False, sample_weight=weight)
    np.testing.assert_allclose(ours(x), theirs.predict(x), atol=1e-3)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_gcv_is_the_leave_one_out_error_of_scikit_learn_where_all_spots_weigh_the_same(seed):
    # rows that are shifts of one smooth row have equal leverage; there both are the same number
    rng = np.random.default_rng(seed)
    row = np.fft.irfft(np.where(np.arange(13) < 5, rng.normal(size=13) + 1j * rng.normal(size=13), 0), 24)
    x = np.stack([np.roll(row, i) for i in range(24)])
    y = rng.normal(size=(24, 3))
    alphas = [0.03, 1.0, 30.0]
    theirs = RidgeCV(alphas, store_cv_results=True).fit(x, y)
    directions = ridge.decompose(x, standardise=False)
    projection = ridge.project(directions.scores(x), directions.values, y)
    k = len(directions.values)
    ours = ridge.gcv_scores(directions.values, projection, 24, counts=[k], alphas=alphas)[0]
    loo = theirs.cv_results_.mean(0).T / y.var(0)
    np.testing.assert_allclose(ours, loo, rtol=1e-6)


@settings(max_examples=15, deadline=None)
@given(shapes, st.integers(1, 8))
def test_gcv_is_its_definition(shape, count):
    n, d, g, seed = shape
    x, y = spots(seed, n, d, g)
    directions = ridge.decompose(x, standardise=True)
    count = min(count, len(directions.values))
    projection = ridge.project(directions.scores(x), directions.values, y)
    scores = ridge.gcv_scores(directions.values, projection, n, counts=[count], alphas=[2.5])[0, 0]
    t = directions.scores(x)[:, :count]
    hat = t @ np.linalg.solve(t.T @ t + 2.5 * np.eye(count), t.T) + 1 / n
    residual = y - hat @ y
    expected = (residual**2).mean(0) / (1 - np.trace(hat) / n) ** 2 / y.var(0)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_gcv_chooses_the_penalty_that_scikit_learn_does():
    x, y = spots(3, n=300, d=20, g=1, noise=8.0)
    head = fit_head(x, y, n_components=None, alpha="gcv")
    z = StandardScaler().fit_transform(x)
    top = np.linalg.svd(z - z.mean(0), compute_uv=False)[0] ** 2
    theirs = RidgeCV([a * top for a in RELATIVE_ALPHAS]).fit(z, y)
    np.testing.assert_allclose(head.alpha, theirs.alpha_, rtol=1e-9)
    np.testing.assert_allclose(head(x), theirs.predict(z).reshape(-1, 1), atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([6, 30]))
def test_leaving_groups_out_scores_what_refitting_would(seed, d):
    x, y = spots(seed, 45, d, 4)
    y[:, 1] = 3.0  # never varies
    groups = np.repeat(["a", "b", "c"], 15)
    counts = [2, 5]
    head = fit_head(x, y, n_components=counts, alpha="groups", groups=groups)
    tried = {(t["n_components"], t["relative_alpha"]): t["score"] for t in head.record["tried"]}
    for count in counts:
        for relative in (10.0, RELATIVE_ALPHAS[5]):
            pcc = []
            for name in "abc":
                held = groups == name
                z = (x[~held] - x[~held].mean(0)) / x[~held].std(0)
                alpha = relative * np.linalg.norm(z, 2) ** 2
                part = fit_head(x[~held], y[~held], n_components=count, alpha=alpha)
                pcc.append(pearson(part(x[held]), y[held])[[0, 2, 3]])
            assert tried[count, relative] == pytest.approx(np.mean(pcc), abs=2e-5)
    best = max(tried.values())
    assert tried[head.n_components, head.record["relative_alpha"]] == best


def test_only_the_genes_named_judge_the_penalty():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 30))
    exact, hopeless = x @ rng.normal(size=(30, 3)), rng.normal(size=(80, 3))
    y = np.concatenate([exact, hopeless], 1)
    weak, strong = (
        fit_head(x, y, n_components=None, alpha="gcv", judged_genes=g).alpha for g in ([0, 1, 2], [3, 4, 5])
    )
    assert weak < strong


def test_the_paper_and_hest_bench_are_what_their_code_does():
    x, y = spots(1, 400, 30, 7)
    authors = make_pipeline(PCA(30), Ridge(alpha=1.0)).fit(x, y)
    with_all = fit_head(x, y, **(PAPER | {"n_components": 30}))
    np.testing.assert_allclose(with_all(x), authors.predict(x), atol=1e-4)
    # their probe has no intercept, which changes no correlation
    alpha = hest_bench_alpha(20, 7)
    probe = make_pipeline(StandardScaler(), PCA(20), Ridge(alpha=alpha, fit_intercept=False)).fit(x, y)
    np.testing.assert_allclose(pearson(fit_head(x, y, n_components=20, alpha=alpha)(x), probe.predict(x)), 1, atol=1e-6)


def test_fewer_components_than_asked_for_are_said():
    x, y = spots(0, n=10, d=40)
    head = fit_head(x, y)
    assert head.n_components == 9
    assert head.warnings == ("10 spots of 40 numbers have 9 principal components, not 256: 9 are used",)
    assert fit_head(x, y, n_components=5).warnings == ()


def test_constant_targets_are_predicted_as_such_and_said():
    x, y = spots(0)
    y = y.astype(np.float32)
    y[:, 2] = 0.1
    for alpha, groups in ((1.0, None), ("gcv", None), ("groups", np.arange(len(x)) % 3)):
        head = fit_head(x, y, alpha=alpha, groups=groups, n_components=4)
        np.testing.assert_array_equal(head(x)[:, 2], np.float32(0.1))
        assert head.record["constant_targets"] == 1
        assert "1 of 5 targets are constant" in head.warnings[0]
        assert np.isfinite(head(x)).all()


def test_a_constant_dimension_changes_nothing():
    x, y = spots(0)
    with_constant = np.concatenate([x, np.full((len(x), 1), 1234.567)], 1)
    a, b = fit_head(x, y, alpha="gcv"), fit_head(with_constant, y, alpha="gcv")
    np.testing.assert_allclose(a(x), b(with_constant), atol=1e-4)
    assert abs(b.weights[-1]).max() < 1e-8


def test_the_answer_does_not_depend_on_how_many_genes_are_taken_at_once(monkeypatch):
    x, y = spots(0, g=23)
    groups = np.arange(len(x)) % 4
    whole = [fit_head(x, y, alpha=a, groups=groups, n_components=[3, 6]) for a in ("gcv", "groups")]
    monkeypatch.setattr(ridge, "_GENES", 7)
    for head, alpha in zip(whole, ("gcv", "groups")):
        part = fit_head(x, y, alpha=alpha, groups=groups, n_components=[3, 6])
        assert (part.alpha, part.n_components) == (head.alpha, head.n_components)
        np.testing.assert_allclose(part.weights, head.weights, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda x, y: (x[:2], y[:2], {}), TrainingError, "at least 3 spots, got 2"),
        (lambda x, y: (x, y[:-1], {}), TrainingError, "a row of features and a row of targets"),
        (lambda x, y: (np.ones_like(x), y, {}), TrainingError, "same features"),
        (lambda x, y: (x, np.ones_like(y), {}), TrainingError, "none of the 5 targets varies"),
        (lambda x, y: (x, y, {"alpha": "groups"}), SettingError, "none was given"),
        (lambda x, y: (x, y, {"alpha": "groups", "groups": ["C2"] * len(x)}), SettingError, "all spots are of C2"),
        (lambda x, y: (x, y, {"alpha": "groups", "groups": ["a", "b"]}), SettingError, "one group for each"),
        (lambda x, y: (x, y, {"alpha": "groups", "groups": np.arange(len(x))}), TrainingError, "left out"),
        (lambda x, y: (x, y, {"n_components": 0}), SettingError, "n_components"),
        (lambda x, y: (x, y, {"n_components": [4, 8]}), SettingError, "several n_components"),
        (lambda x, y: (x, y, {"alpha": -1.0}), SettingError, "alpha"),
        (
            lambda x, y: (x, y, {"alpha": "best"}),
            SettingError,
            "alpha must be a number from 0 up, 'gcv' or 'groups', got 'best'",
        ),
        (lambda x, y: (x, y, {"sample_weight": -np.ones(len(x))}), SettingError, "sample_weight"),
    ],
)
def test_bad_input_is_one_clear_sentence(change, kind, words):
    x, y, kwargs = change(*spots(0))
    with pytest.raises(kind, match=words):
        fit_head(x, y, **kwargs)


def test_missing_numbers_are_refused_and_counted():
    x, y = spots(0)
    x[[4, 9, 11, 30], 2] = np.nan
    with pytest.raises(TrainingError, match=r"4 of 60 spots have no finite features .*first rows 4, 9, 11; leave"):
        fit_head(x, y)
    x, y = spots(0)
    y[7, 1] = np.inf
    with pytest.raises(TrainingError, match="1 of 60 spots have no finite targets"):
        fit_head(x, y)


def test_no_warning_of_numpy_escapes():
    x, y = spots(0, n=6, d=3)
    y[:, 0] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_head(x, y, alpha="gcv")
        fit_head(x, y, alpha="groups", groups=[0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize("parts", [1, 2])
def test_a_narrow_layer_and_its_head_predict_the_same(parts):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 30)).astype(np.float32)
    near = rng.normal(size=(80, 30)).astype(np.float32)
    read = x if parts == 1 else np.concatenate([x, near], 1)
    common = rng.normal(size=(80, 4)) @ rng.normal(size=(4, 50))
    head = fit_head(read, common, n_components=None, alpha=1.0)
    weight, bias, narrow = narrowed(head, x, 4, parts)
    assert weight.shape == (4 * parts, 30)
    assert narrow.weights.shape == (4 * parts * parts, 50)
    small = x @ weight.T + bias
    np.testing.assert_allclose(small.std(0), 1, rtol=1e-4)
    both = small if parts == 1 else np.concatenate([small, near @ weight.T + bias], 1)
    np.testing.assert_allclose(narrow(both), head(read), atol=2e-4)


# -- MLP ----------------------------------------------------------------------------------------------------------


def bent(n: int = 300, seed: int = 0):
    """Targets that no linear map of the features gives."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)) * [1, 2, 30, 1, 1, 1] + 5
    z = (x - 5) / [1, 2, 30, 1, 1, 1]
    y = np.stack([np.abs(z[:, 0]), np.abs(z[:, 1]) + 40, np.full(n, 0.1), z[:, 2]], 1)
    return x.astype(np.float32), y.astype(np.float32)


def test_an_mlp_learns_what_a_linear_head_cannot():
    from napari_peka.training.mlp_head import MlpSettings, fit_mlp_head

    x, y = bent()
    held, _ = bent(seed=1)
    quick = MlpSettings(hidden=64, width=8, lr=1e-2, weight_decay=0.01, dropout=0.0, epochs=60)
    head = fit_mlp_head(x, y, settings=quick)
    truth = bent(seed=1)[1]
    ridge_pcc = pearson(fit_head(x, y, alpha="gcv")(held), truth)[[0, 1]]
    assert (pearson(head(held), truth)[[0, 1]] > ridge_pcc + 0.4).all()
    np.testing.assert_array_equal(head(held)[:, 2], np.float32(0.1))
    assert 1 <= head.record["passes"] <= 60
    assert head.dims == [6, 64, 8]
    again = fit_mlp_head(x, y, settings=quick)
    np.testing.assert_array_equal(head.head.weights, again.head.weights)


def test_an_mlp_is_a_translation_and_a_linear_head():
    torch = pytest.importorskip("torch")
    from napari_peka.models.student import translate_mlp
    from napari_peka.training.mlp_head import MlpSettings, fit_mlp_head

    x, y = bent(60)
    head = fit_mlp_head(x, y, settings=MlpSettings(hidden=16, width=5, epochs=3))
    module = translate_mlp(head.dims)
    linear = [m for m in module if isinstance(m, torch.nn.Linear)]
    for layer, (weight, bias) in zip(linear, head.layers):
        layer.weight.data, layer.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
    with torch.no_grad():
        narrow = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(narrow @ head.head.weights + head.head.bias, head(x), rtol=1e-4, atol=1e-4)


def test_an_mlp_refuses_what_it_cannot_learn_from():
    from napari_peka.training.mlp_head import MlpSettings, fit_mlp_head

    x, y = bent(60)
    with pytest.raises(TrainingError, match="at least 10 spots, got 9; use the ridge head"):
        fit_mlp_head(x[:9], y[:9])
    with pytest.raises(TrainingError, match="none of the 4 targets varies"):
        fit_mlp_head(x, np.ones_like(y))
    with pytest.raises(TrainingError, match="60 of 60 spots have no finite features"):
        fit_mlp_head(x * np.nan, y)
    with pytest.raises(TrainingError, match="diverged in pass"):
        fit_mlp_head(x, y, settings=MlpSettings(lr=1e30, epochs=5))
    with pytest.raises(SettingError, match="sizes of at least 1"):
        MlpSettings(width=0)
