"""Pathway activities as a teacher: how strongly the targets of each pathway are expressed."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from napari_peka.core.errors import SettingError, TrainingError
from napari_peka.core.progress import NULL, Progress
from napari_peka.training.targets import log1p_cp10k
from napari_peka.training.teachers.base import Expression, Float32Array, not_fitted, require

#: where weights are looked for in the current folder when no file is named
FILE = "progeny_human_top500.tsv"
#: target genes that a pathway must have among the measured ones
MIN_TARGETS = 5
#: spots that decoupler makes dense at once
_SPOTS = 4096
#: names of the columns, as PROGENy's R package and as decoupler write them
_SOURCE, _TARGET = ("pathway", "source"), ("gene", "target", "genesymbol")
_HOW_TO = (
    "a table with columns gene, pathway, weight; decoupler fetches it: "
    'decoupler.op.progeny(top=500).to_csv("progeny_human_top500.tsv", sep="\\t", index=False)'
)


class PathwayTeacher:
    """Activities of pathways from weighted target genes (decoupler).

    Parameters
    ----------
    path
        Weights, tab- or comma-separated, with columns ``gene, pathway, weight`` (PROGENy) or ``source, target,
        weight`` (decoupler); None for :data:`FILE` in the current folder.
    method
        ``"mlm"``: one linear model of all pathways for each spot; ``"ulm"``: one for each pathway. The activity is the
        t-value of the slope.

    Notes
    -----
    decoupler: Badia-i-Mompel et al., Bioinformatics Advances 2022. PROGENy: Schubert et al., Nature Communications
    2018. Nothing is fitted: training spots only settle which genes are read.
    """

    name = "pathways"

    def __init__(self, path: str | Path | None = None, *, method: Literal["mlm", "ulm"] = "mlm") -> None:
        require("decoupler", "decoupler", self.name)
        if method not in ("mlm", "ulm"):
            raise SettingError(f"pathway activities are computed by 'mlm' or 'ulm', not {method!r}")
        self.path, self.method = Path(path) if path else Path(FILE), method
        self.weights = read_weights(self.path)
        self.genes: tuple[str, ...] = ()
        self.pathways: tuple[str, ...] = ()

    def fit(self, train: Expression, *, progress: Progress = NULL) -> None:
        """Settle which genes and pathways are read.

        Raises
        ------
        TrainingError
            If fewer than two pathways have enough target genes among those measured.
        """
        self.genes = train.genes
        here = self.weights[self.weights["target"].isin(set(train.genes))]
        found = here.groupby("source").size()
        every = sorted(self.weights["source"].unique())
        self.pathways = tuple(p for p in every if found.get(p, 0) >= MIN_TARGETS)
        share = len(here) / len(self.weights)
        if len(self.pathways) < 2:
            raise TrainingError(
                f"only {len(here)} of the {len(self.weights)} target genes in {self.path.name} (such as "
                f"{self.weights['target'].iloc[0]}) are measured in the sections (they have {train.genes[0]}), too few "
                "to tell pathways; give weights of the same organism and kind of gene name"
            )
        if dropped := [p for p in every if p not in self.pathways]:
            progress.note(f"too few target genes are measured for the pathways {', '.join(dropped)}; they are left out")
        elif share < 0.5:
            progress.note(
                f"{share:.0%} of the target genes in {self.path.name} are measured; pathways are told less well"
            )

    def embed(self, expression: Expression) -> Float32Array:
        """Return activities of any spots, float32 ``(n, n_pathways)``; columns in alphabetical order."""
        if not self.pathways:
            raise not_fitted(self.name)
        import anndata as ad
        import decoupler as dc

        net = self.weights[self.weights["source"].isin(self.pathways)]
        x = log1p_cp10k(expression.columns(self.genes), expression.totals)
        names = [str(i) for i in range(len(expression))]
        adata = ad.AnnData(x, obs=pd.DataFrame(index=names), var=pd.DataFrame(index=list(self.genes)))
        # "empty" genes and spots stay: which are empty depends on the spots at hand, and so would every activity
        try:
            getattr(dc.mt, self.method)(adata, net, tmin=MIN_TARGETS, empty=False, bsize=_SPOTS)
        except (AssertionError, np.linalg.LinAlgError) as e:
            raise TrainingError(f"pathway activities cannot be computed with {self.path.name}: {e}") from e
        return np.asarray(adata.obsm[f"score_{self.method}"][list(self.pathways)], np.float32)

    def record(self) -> dict[str, Any]:
        """Return what made the embeddings."""
        return {
            "name": self.name, "unit": "log1p CP10K", "method": self.method, "file": self.path.name,
            "sha256": hashlib.sha256(self.path.read_bytes()).hexdigest(), "pathways": list(self.pathways),
            "decoupler": version("decoupler"),
        }  # fmt: skip


def read_weights(path: Path) -> pd.DataFrame:
    """Return pathway weights as decoupler wants them: columns ``source, target, weight``.

    Raises
    ------
    SettingError
        If the file is not there or not such a table.
    """
    if not path.is_file():
        raise SettingError(f"no pathway weights at {path}; give {_HOW_TO}")
    try:
        table = pd.read_csv(path, sep=None, engine="python")
    except (pd.errors.ParserError, UnicodeDecodeError, ValueError) as e:
        raise SettingError(f"{path} cannot be read as a table ({e}); give {_HOW_TO}") from e
    by = {c.casefold(): c for c in map(str, table.columns)}
    source, target = (next((by[n] for n in names if n in by), None) for names in (_SOURCE, _TARGET))
    if source is None or target is None or "weight" not in by:
        raise SettingError(f"{path} has the columns {', '.join(map(str, table.columns))}; give {_HOW_TO}")
    out = table[[source, target, by["weight"]]].set_axis(["source", "target", "weight"], axis=1).dropna()
    if not pd.api.types.is_numeric_dtype(out["weight"]) or out.empty:
        raise SettingError(f"{path} has no numbers in its column weight; give {_HOW_TO}")
    return out.astype({"source": str, "target": str}).drop_duplicates(["source", "target"], ignore_index=True)
