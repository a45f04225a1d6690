"""Each loss term against numbers computed by hand, and the list of terms as a person sets it."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from napari_peka.core.errors import SettingError
from napari_peka.training import losses

STUDENT_LOGITS = [[2.0, 0.0, -2.0], [0.0, 1.0, 0.0]]
TEACHER_LOGITS = [[1.0, 0.0, 0.0], [0.0, 3.0, -1.0]]
LABELS = [0, 1]


def given(**changes):
    tensors = {
        "student": torch.tensor([[1.0, 0.0], [1.0, 1.0]]),
        "teacher": torch.tensor([[0.0, 1.0], [2.0, 2.0]]),
        "student_logits": torch.tensor(STUDENT_LOGITS),
        "teacher_logits": torch.tensor(TEACHER_LOGITS),
        "labels": torch.tensor(LABELS),
    }
    return losses.LossInput(**(tensors | changes))


def softmax(values, t=1.0):
    e = [math.exp(v / t) for v in values]
    return [v / sum(e) for v in e]


def test_distillation_is_the_kl_from_teacher_to_student_times_t_squared():
    t = 2.0
    by_hand = 0.0
    for s, q in zip(STUDENT_LOGITS, TEACHER_LOGITS):
        p_s, p_t = softmax(s, t), softmax(q, t)
        by_hand += sum(b * math.log(b / a) for a, b in zip(p_s, p_t)) * t**2
    assert float(losses.kd(given(temperature=t))) == pytest.approx(by_hand / 2, abs=1e-6)


def test_cross_entropy_is_minus_the_log_of_the_labels_probability():
    by_hand = -sum(math.log(softmax(s)[k]) for s, k in zip(STUDENT_LOGITS, LABELS)) / 2
    assert float(losses.ce(given())) == pytest.approx(by_hand, abs=1e-6)


def test_the_papers_loss_mixes_both_by_alpha():
    x = given()
    total, parts = losses.total(x, losses.weights(alpha=0.3))
    assert set(parts) == {"kd", "ce"}
    assert float(total) == pytest.approx(0.3 * float(losses.kd(x)) + 0.7 * float(losses.ce(x)), abs=1e-6)


def test_embedding_terms_by_hand():
    x = given()
    assert float(losses.mse(x)) == pytest.approx((1 + 1 + 1 + 1) / 4, abs=1e-6)
    assert float(losses.cosine(x)) == pytest.approx(((1 - 0.0) + (1 - 1.0)) / 2, abs=1e-6)
    # cosine between the two spots: student 1/sqrt 2, teacher 1/sqrt 2: the same relation, though all else differs
    assert float(losses.relational(x)) == pytest.approx(0.0, abs=1e-6)
    turned = given(teacher=torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert float(losses.relational(turned)) == pytest.approx(0.5, abs=1e-6)


def test_gene_terms_by_hand():
    genes = torch.tensor([[0.5, -1.0], [0.0, 1.0]])
    more = {"genes": genes, "targets": torch.tensor([[0.0, 0.0], [0.0, 3.0]])}
    assert float(losses.genes(given(**more))) == pytest.approx((0.25 + 1 + 0 + 4) / 4, abs=1e-6)
    counts, totals = [[3.0, 0.0], [1.0, 20.0]], [2.0, 5.0]
    mean = np.exp(genes.numpy()) * np.array(totals)[:, None]
    poisson = (mean - np.array(counts) * np.log(mean)).mean()
    counted = {"genes": genes, "counts": torch.tensor(counts), "totals": torch.tensor(totals)}
    assert float(losses.poisson(given(**counted))) == pytest.approx(poisson, abs=1e-5)


def test_negative_binomial_against_scipy():
    from scipy.stats import nbinom

    genes = torch.tensor([[0.5, -1.0], [0.0, 1.0]], dtype=torch.float64)
    counts, totals = np.array([[3.0, 0.0], [1.0, 20.0]]), np.array([2.0, 5.0])
    r = np.array([0.7, 4.0])
    mean = np.exp(genes.numpy()) * totals[:, None]
    by_scipy = -nbinom.logpmf(counts, r, r / (r + mean)).mean()
    x = given(
        genes=genes,
        counts=torch.from_numpy(counts),
        totals=torch.from_numpy(totals),
        log_dispersion=torch.from_numpy(np.log(r)),
    )
    assert float(losses.nb(x)) == pytest.approx(by_scipy, abs=1e-6)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"cosin": 1.0}, "did you mean cosine"),
        ({"mse": -1.0}, "0 or more"),
        ({"genes": 1.0, "nb": 1.0}, "exclude each other"),
        ({"kd": 0.0, "ce": 0.0}, "nothing to learn"),
        ({"mse": math.nan}, "0 or more"),
    ],
)
def test_weights_that_cannot_be_used_are_said(more, says):
    with pytest.raises(SettingError, match=says):
        losses.weights(0.5, more)


def test_a_term_of_weight_nothing_is_not_computed():
    assert losses.weights(1.0) == {"kd": 1.0}
    assert losses.weights(0.5, {"ce": 0, "mse": 2}) == {"kd": 0.5, "mse": 2.0}


@pytest.mark.parametrize("name", sorted(losses.TERMS))
def test_every_term_has_a_gradient_and_is_least_where_student_is_right(name):
    torch.manual_seed(0)
    b, g = 6, 4
    teacher = torch.randn(b, 3)
    logits = torch.randn(b, 5)
    counts = torch.poisson(torch.full((b, g), 3.0))
    fixed = {
        "teacher": teacher,
        "teacher_logits": logits,
        "labels": logits.argmax(1),
        "targets": torch.randn(b, g),
        "counts": counts,
        "totals": torch.full((b,), 12.0),
        "log_dispersion": torch.full((g,), 2.0),
    }
    right = {
        "student": teacher.clone(),
        "student_logits": logits * (50 if name == "ce" else 1),
        "genes": fixed["targets"] if name == "genes" else torch.log((counts + 1e-3) / 12),
    }
    wrong = {k: torch.randn_like(v).requires_grad_() for k, v in right.items()}
    term = losses.TERMS[name]
    loss = term(losses.LossInput(**(fixed | wrong)))
    assert float(term(losses.LossInput(**(fixed | right)))) < float(loss.detach())
    loss.backward()
    grads = [v.grad for v in wrong.values() if v.grad is not None]
    assert grads
    assert all(torch.isfinite(gr).all() for gr in grads)
    assert any(gr.abs().sum() > 0 for gr in grads)
