"""Teachers: what each makes of counts, what it must not see, and what is wrong with stored embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from napari_peka.config import TrainConfig
from napari_peka.core.errors import SectionError, SettingError, TrainingError
from napari_peka.core.progress import Cancelled, JobProgress
from napari_peka.training.teacher import Expression, make_teacher
from napari_peka.training.teachers import base
from napari_peka.training.teachers.gene_order import read_gene_order, to_gene_order
from napari_peka.training.teachers.pathways import PathwayTeacher
from napari_peka.training.teachers.pca import PcaTeacher
from napari_peka.training.teachers.precomputed import FileTeacher, ObsmTeacher

SECTIONS, N, G = ("a", "b", "c"), 30, 60
SIZES = {"a": 32, "b": 30, "c": 30}  # of a two spots are left out before the teacher comes


def make_expression(held_out: float = 1.0, apart: float = 1.0) -> Expression:
    """Three sections of 30 spots and 60 genes; the first twenty genes follow two hidden factors.

    Counts of the last section's first genes are multiplied by `held_out`; ten genes are `apart` times as strong in the
    first section as in the others.
    """
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(3 * N, 2))
    rate = np.full((3 * N, G), 4.0)
    rate[:, :20] *= np.exp(factor @ rng.normal(size=(2, 20)) * 0.7)
    rate[:N, 40:50] *= apart
    dense = rng.poisson(rate).astype(np.float32)
    dense[2 * N :, :30] *= held_out
    counts = sparse.csr_matrix(dense)
    rows = [np.arange(2, 32), np.arange(N), np.arange(N)]
    adatas = {}
    for name, n in SIZES.items():
        obs = pd.DataFrame(index=[f"{name}{i}" for i in range(n)])
        adatas[name] = ad.AnnData(obs=obs, obsm={"spatial": np.zeros((n, 2)), "X_x": rng.normal(size=(n, 4))})
    ids = tuple(f"{s}{i}" for s, part in zip(SECTIONS, rows) for i in part)
    return Expression(
        counts, tuple(f"G{i}" for i in range(G)), np.asarray(counts.sum(1)).ravel() + 7, ids,
        np.repeat(SECTIONS, N), adatas, np.concatenate(rows),
    )  # fmt: skip


@pytest.fixture
def expression() -> Expression:
    return make_expression()


def train_part(expression: Expression) -> Expression:
    return expression.take(np.flatnonzero(expression.section != "c"))


def test_expression_takes_spots_with_all_that_belongs_to_them(expression):
    part = expression.take(np.array([31, 0]))
    assert part.spot_ids == ("b1", "a2")
    assert part.sections == ("b", "a")
    np.testing.assert_array_equal(part.rows, [1, 2])
    np.testing.assert_array_equal(part.counts.toarray(), expression.counts[[31, 0]].toarray())
    np.testing.assert_array_equal(part.columns(("G3", "G1")).toarray(), expression.counts[[31, 0]][:, [3, 1]].toarray())
    with pytest.raises(SectionError, match="1 of 2 genes of the teacher are not measured here, such as X"):
        part.columns(("G1", "X"))
    with pytest.raises(SectionError, match="90 spots and 60 genes needs as many"):
        Expression(
            expression.counts,
            (),
            *(getattr(expression, k) for k in ("totals", "spot_ids", "section", "adatas", "rows")),
        )


# -- PCA ----------------------------------------------------------------------------------------------------------


def test_pca_is_that_of_scikit_learn(expression):
    decomposition = pytest.importorskip("sklearn.decomposition")
    y = np.log1p(expression.counts.toarray() / np.asarray(expression.totals)[:, None] * 1e4)
    train = expression.section != "c"
    teacher = PcaTeacher(5, n_genes=G)
    teacher.fit(train_part(expression))
    theirs = decomposition.PCA(5, svd_solver="full").fit(y[train])
    ours, expected = teacher.embed(expression), theirs.transform(y)
    np.testing.assert_allclose(np.abs(ours), np.abs(expected), atol=1e-3)
    record = teacher.record()
    assert record["variance_explained"] == pytest.approx(theirs.explained_variance_ratio_.sum(), abs=1e-4)
    assert json.loads(json.dumps(record)) == record
    white = PcaTeacher(5, n_genes=G, whiten=True)
    white.fit(train_part(expression))
    np.testing.assert_allclose(white.embed(expression)[train].std(0), 1, atol=1e-4)


@pytest.mark.parametrize("name", ["pca", "pathways"])
def test_a_teacher_sees_training_spots_alone_and_each_spot_by_itself(expression, name, weights):
    def make():
        return PcaTeacher(4, n_genes=20) if name == "pca" else PathwayTeacher(weights)

    other = make_expression(held_out=5)
    embedded = []
    for e in (expression, other):
        teacher = make()
        teacher.fit(train_part(e))
        embedded.append(teacher.embed(e))
    np.testing.assert_array_equal(embedded[0][:60], embedded[1][:60])
    assert not np.allclose(embedded[0][60:], embedded[1][60:])
    alone = teacher.embed(other.take(np.arange(70, 75)))
    np.testing.assert_allclose(alone, embedded[1][70:75], atol=1e-5)


def test_pca_takes_genes_that_vary_within_sections():
    expression = make_expression(apart=8)
    teacher = PcaTeacher(2, n_genes=10)
    teacher.fit(expression)
    assert {int(g[1:]) // 20 for g in teacher.genes} == {0}


def test_pca_says_when_there_are_fewer_components_and_refuses_what_does_not_vary(expression):
    progress = JobProgress()
    teacher = PcaTeacher(50)
    teacher.fit(expression.take(np.arange(6)), progress=progress)
    assert teacher.embed(expression).shape == (90, 5)
    assert progress.notes == ["6 training spots give the teacher 5 components, not 50"]
    flat = expression.take(np.zeros(9, int))
    with pytest.raises(TrainingError, match=r"no gene that more than 10% of the 9 training spots show varies"):
        PcaTeacher().fit(flat)
    with pytest.raises(RuntimeError, match="pca was asked for embeddings before it was fitted"):
        PcaTeacher().embed(expression)


# -- pathways -----------------------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path) -> Path:
    """PROGENy's format: three pathways of eight genes, and one with too few."""
    pytest.importorskip("decoupler")
    rng = np.random.default_rng(2)
    lines = ["gene\tpathway\tweight\tp.value"]
    for k, pathway in enumerate(("WNT", "EGFR", "p53")):
        lines += [f"G{i}\t{pathway}\t{rng.normal()}\t0.01" for i in range(6 * k, 6 * k + 8)]
    lines += [f"{g}\tTrail\t1.5\t0.01" for g in ("G1", "NOT", "HERE")]
    path = tmp_path / "weights.tsv"
    path.write_text("\n".join(lines), "utf-8")
    return path


def test_pathway_activities_are_the_t_values_of_one_linear_model(expression, weights):
    teacher = PathwayTeacher(weights)
    progress = JobProgress()
    teacher.fit(train_part(expression), progress=progress)
    assert teacher.pathways == ("EGFR", "WNT", "p53")
    assert progress.notes == ["too few target genes are measured for the pathways Trail; they are left out"]
    got = teacher.embed(expression)
    table = pd.read_csv(weights, sep="\t").pivot(index="gene", columns="pathway", values="weight")
    x = table.reindex(expression.genes).fillna(0)[list(teacher.pathways)].to_numpy()
    x = np.column_stack([np.ones(G), x])
    for spot in (0, 77):
        y = np.log1p(expression.counts[spot].toarray().ravel() / expression.totals[spot] * 1e4)
        slope, rss, _, _ = np.linalg.lstsq(x, y, rcond=None)
        error = np.sqrt(np.diag(rss / (G - 4) * np.linalg.inv(x.T @ x)))
        np.testing.assert_allclose(got[spot], (slope / error)[1:], rtol=1e-4)
    record = teacher.record()
    assert json.loads(json.dumps(record)) == record


def test_a_gene_that_no_spot_shows_counts_as_zero_whichever_spots_are_asked_for(expression, weights):
    expression.counts[:10, 0] = 0
    expression.counts.eliminate_zeros()
    teacher = PathwayTeacher(weights)
    teacher.fit(expression)
    np.testing.assert_allclose(teacher.embed(expression.take(np.arange(10))), teacher.embed(expression)[:10], atol=1e-5)


def test_weights_come_in_either_format_or_are_refused(expression, weights, tmp_path, monkeypatch):
    table = pd.read_csv(weights, sep="\t")
    own = table.rename(columns={"gene": "target", "pathway": "source"})[["source", "target", "weight"]]
    own.to_csv(tmp_path / "own.csv", index=False)
    first, second = PathwayTeacher(weights), PathwayTeacher(tmp_path / "own.csv")
    for teacher in (first, second):
        teacher.fit(expression)
    np.testing.assert_array_equal(first.embed(expression), second.embed(expression))
    mouse = PathwayTeacher(weights)
    mouse.weights = mouse.weights.assign(target=mouse.weights["target"].str.lower())
    with pytest.raises(
        TrainingError, match=r"only 0 of the 27 target genes in weights.tsv \(such as g0\) .* have G0\)"
    ):
        mouse.fit(expression)
    (tmp_path / "wrong.tsv").write_text("gene\tvalue\nA\t1\n", "utf-8")
    with pytest.raises(SettingError, match="has the columns gene, value; give a table with columns gene, pathway"):
        PathwayTeacher(tmp_path / "wrong.tsv")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match=r"no pathway weights at progeny_human_top500.tsv; give"):
        PathwayTeacher()
    weights.rename(tmp_path / "progeny_human_top500.tsv")
    assert PathwayTeacher().weights["source"].nunique() == 4


def test_the_real_weights_give_fourteen_pathways(shared_data):
    pytest.importorskip("decoupler")
    teacher = PathwayTeacher(shared_data / "progeny_human_top500.tsv")
    assert teacher.weights["source"].nunique() == 14
    assert len(teacher.weights) == 7000


# -- computed elsewhere -------------------------------------------------------------------------------------------


def stored(expression: Expression) -> np.ndarray:
    """What ``obsm`` of all sections holds, in the order of the spots."""
    return np.concatenate([expression.adatas[s].obsm["X_x"][expression.rows[expression.of(s)]] for s in SECTIONS])


def test_obsm_is_read_by_section_and_row(expression):
    teacher = make_teacher(TrainConfig(teacher="obsm:X_x"))
    teacher.fit(train_part(expression))
    np.testing.assert_allclose(teacher.embed(expression), stored(expression), rtol=1e-6)
    mixed = np.array([80, 3, 40])
    np.testing.assert_allclose(teacher.embed(expression.take(mixed)), stored(expression)[mixed], rtol=1e-6)
    assert teacher.record() == {"name": "obsm:X_x", "n_dims": 4, "fitted_on": "computed elsewhere; not known"}


def test_obsm_that_is_missing_ragged_or_not_a_number_is_one_sentence(expression):
    with pytest.raises(SectionError, match=r'section a has no obsm\["X_y"\] \(it has X_x\); did you mean X_x\?'):
        ObsmTeacher("X_y").embed(expression)
    broken = expression.adatas["b"].obsm["X_x"]
    broken[[4, 9, 11, 12], 0] = np.nan
    with pytest.raises(SectionError, match=r"\(NaN or infinite\) for 4 of 30 spots of section b, such as b4, b9, b11"):
        ObsmTeacher("X_x").embed(expression)
    expression.adatas["b"].obsm["X_x"] = np.ones((30, 7))
    with pytest.raises(SectionError, match=r"different widths in the sections \(a 4, b 7, c 4\)"):
        ObsmTeacher("X_x").embed(expression)


def table_of(expression: Expression) -> pd.DataFrame:
    """All embeddings keyed by barcode, shuffled, with the section's name."""
    table = pd.DataFrame(stored(expression), index=list(expression.spot_ids)).rename(columns=str)
    return table.assign(section=expression.section).sample(frac=1, random_state=0)


def test_parquet_is_joined_by_barcode(expression, tmp_path):
    pytest.importorskip("pyarrow")
    table = table_of(expression)
    table.to_parquet(tmp_path / "all.parquet")
    teacher = make_teacher(TrainConfig(teacher=str(tmp_path / "all.parquet")))
    teacher.fit(train_part(expression))
    np.testing.assert_allclose(teacher.embed(expression), stored(expression), rtol=1e-6)
    record = teacher.record()
    assert len(record["sha256"]["all.parquet"]) == 64
    for name, part in table.groupby("section"):
        part.drop(columns="section").rename_axis("barcode").reset_index().to_parquet(tmp_path / f"{name}.parquet")
    for path in (tmp_path, tmp_path / "{section}.parquet"):
        np.testing.assert_allclose(FileTeacher(path).embed(expression), stored(expression), rtol=1e-6)


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (lambda t: t.drop(["b3", "b7"]), SectionError, "no row for 2 of 30 spots of section b, such as b3, b7; embed"),
        (
            lambda t: t.rename(lambda i: f"{i}-1"),
            SectionError,
            r"none of the 30 barcodes of section a \(such as 'a2'\)",
        ),
        (lambda t: t.drop(columns="section"), SettingError, "has no column section, which 3 sections need"),
        (lambda t: t[t["section"] != "c"], SectionError, "has no row of section c"),
        (lambda t: pd.concat([t, t.loc[["a5"]]]), SectionError, "has 'a5' more than once in section a"),
        (lambda t: t.assign(name="x"), SettingError, "must hold numbers beside barcode and section, but has name"),
        (lambda t: t.assign(**{"0": np.inf}), SectionError, "for 30 of 30 spots of section a"),
    ],
)
def test_a_table_that_does_not_fit_is_one_sentence(expression, tmp_path, spoil, kind, words):
    pytest.importorskip("pyarrow")
    spoil(table_of(expression)).to_parquet(tmp_path / "all.parquet")
    with pytest.raises(kind, match=words):
        FileTeacher(tmp_path / "all.parquet").embed(expression)


def test_npy_has_a_row_for_each_spot_of_its_section(expression, tmp_path):
    for name in SECTIONS:
        np.save(tmp_path / f"{name}_x.npy", expression.adatas[name].obsm["X_x"])
    teacher = FileTeacher(tmp_path / "{section}_x.npy")
    np.testing.assert_allclose(teacher.embed(expression), stored(expression), rtol=1e-6)
    with pytest.raises(SettingError, match=r"is one array, but there are 3 sections; give a folder with a.npy"):
        FileTeacher(tmp_path / "a_x.npy").embed(expression)
    np.save(tmp_path / "b_x.npy", np.ones((29, 4)))
    with pytest.raises(SectionError, match=r"shape \(29, 4\), section b has 30 spots"):
        teacher.embed(expression)
    (tmp_path / "b_x.npy").unlink()
    with pytest.raises(SettingError, match=r"no embeddings of section b: .*b_x.npy is not there"):
        teacher.embed(expression)
    (tmp_path / "b_x.npy").write_bytes(b"no array")
    with pytest.raises(SettingError, match="cannot be read as an array of numbers"):
        teacher.embed(expression)
    with pytest.raises(SettingError, match=r"neither a.npy nor a.parquet"):
        FileTeacher(tmp_path).embed(expression)


def test_pickled_arrays_are_refused(expression, tmp_path):
    np.save(tmp_path / "a.npy", np.array([[object()]]), allow_pickle=True)
    with pytest.raises(SettingError, match="cannot be read as an array of numbers"):
        FileTeacher(tmp_path).embed(expression)


# -- which --------------------------------------------------------------------------------------------------------


def test_the_settings_name_the_teacher(tmp_path, weights):
    assert make_teacher(TrainConfig()).name == "pca"
    assert make_teacher(TrainConfig(teacher_dims=7)).n_dims == 7
    assert make_teacher(TrainConfig(teacher="pathways", pathways=str(weights))).weights["source"].nunique() == 4
    assert make_teacher(TrainConfig(teacher=str(tmp_path))).name == "file"
    with pytest.raises(SettingError, match=r"there is no file or folder of embeddings at .*gone.npy"):
        make_teacher(TrainConfig(teacher=str(tmp_path / "gone.npy")))
    with pytest.raises(SettingError, match=r"no teacher 'pathway'; it is pca, scvi, pathways, obsm:KEY.*did you mean"):
        make_teacher(TrainConfig(teacher="pathway"))


def test_a_teacher_whose_package_is_missing_says_so_at_once(monkeypatch):
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(
        SettingError, match=r"scvi needs scvi-tools, which is not installed: pip install 'napari-peka\[scvi\]'"
    ):
        make_teacher(TrainConfig(teacher="scvi"))


# -- scVI ---------------------------------------------------------------------------------------------------------


def test_scvi_embeds_sections_that_it_has_not_seen(expression, capsys):
    from napari_peka.models._torchvision import ensure_torchvision
    from napari_peka.training.teachers.scvi import ScviTeacher

    ensure_torchvision()
    pytest.importorskip("scvi")
    made = []
    for _ in range(2):
        teacher = ScviTeacher(3, epochs=2, seed=5, device="cpu")
        teacher.fit(train_part(expression))
        made.append(teacher.embed(expression))
    assert made[0].shape == (90, 3)
    assert np.isfinite(made[0]).all()
    assert (made[0][60:].std(0) > 0).all()
    np.testing.assert_array_equal(made[0], made[1])
    np.testing.assert_allclose(teacher.embed(expression.take(np.arange(70, 75))), made[0][70:75], atol=1e-5)
    assert capsys.readouterr().out == ""
    record = teacher.record()
    assert record["epochs"] == 2
    assert record["batches"] == ["a", "b"]
    assert json.loads(json.dumps(record)) == record

    class Impatient(JobProgress):
        def changed(self) -> None:
            if self.snapshot().done == 1:
                self.cancel()

    with pytest.raises(Cancelled):
        ScviTeacher(3, epochs=50, device="cpu").fit(train_part(expression), progress=Impatient())


# -- another gene order -------------------------------------------------------------------------------------------


def test_counts_are_laid_out_in_another_gene_order(tmp_path):
    path = tmp_path / "OS_scRNA_gene_index.19264.tsv"
    path.write_text("gene_name\tindex\nNA\t0\nC\t1\nA\t2\nZ\t3\n", "utf-8")
    order = read_gene_order(path)
    assert order == ("NA", "C", "A", "Z")  # a gene may be called NA
    counts = sparse.csr_matrix([[1, 2, 3], [0, 5, 0]], dtype=np.float32)
    progress = JobProgress()
    got = to_gene_order(counts, ["A", "B", "C"], order, progress=progress)
    np.testing.assert_array_equal(got.toarray(), [[0, 3, 1, 0], [0, 0, 0, 0]])
    assert got.dtype == np.float32
    assert progress.notes == ["2 of the order's 4 genes are not measured and set to zero"]


def test_a_gene_order_of_plain_lines_and_what_is_none(tmp_path):
    path = tmp_path / "genes.txt"
    path.write_text("A\nB\n\n", "utf-8")
    assert read_gene_order(path) == ("A", "B")
    with pytest.raises(SettingError, match=r"none of the 1 genes \(such as X\) is among the 2 of the order"):
        to_gene_order(sparse.csr_matrix([[1.0]]), ["X"], ("A", "B"))
    path.write_text("A\nB\nA\n", "utf-8")
    with pytest.raises(SettingError, match="has A more than once"):
        read_gene_order(path)
    with pytest.raises(SettingError, match="there is no gene list"):
        read_gene_order(tmp_path / "gone.tsv")
