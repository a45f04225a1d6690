"""Names by which pathologists call genes, and the symbols that the models have.

Names of antibodies and proteins in routine use with their HGNC symbols (www.genenames.org, whose data are in the public
domain). Only names that mean one gene are here: not "actin", "CK" or "p40", an isoform that counts cannot tell apart.
"""

from __future__ import annotations

from functools import cache

#: HGNC symbol: other names
ALIASES: dict[str, tuple[str, ...]] = {
    "ACTA2": ("SMA", "α-SMA", "alpha-SMA"), "ALCAM": ("CD166",), "ALK": ("CD246",), "AR": ("androgen receptor",),
    "ARG1": ("arginase-1",), "B3GAT1": ("CD57",), "BCL2": ("Bcl-2",), "BCL6": ("Bcl-6",), "BIRC5": ("survivin",),
    "CALB2": ("calretinin",), "CALD1": ("caldesmon",), "CCND1": ("cyclin D1", "cyclin-D1"), "CCNE1": ("cyclin E1",),
    "CD274": ("PD-L1", "PDL1", "B7-H1"), "CD276": ("B7-H3",), "CD68": ("macrosialin",), "CD8A": ("CD8",),
    "CDH1": ("E-cadherin", "ECAD"), "CDH2": ("N-cadherin",), "CDH3": ("P-cadherin",),
    "CDKN1A": ("p21",), "CDKN1B": ("p27",), "CDKN2A": ("p16", "p16INK4a"), "CDX2": ("Cdx-2",),
    "CEACAM5": ("CEA", "CD66e"), "CHGA": ("chromogranin", "chromogranin A"), "CLEC4C": ("CD303", "BDCA-2"),
    "CR2": ("CD21",), "CTLA4": ("CD152",), "CTNNB1": ("beta-catenin", "β-catenin"), "DES": ("desmin",),
    "DPP4": ("CD26",), "EGFR": ("HER1", "ERBB1"), "ENG": ("CD105", "endoglin"), "EPCAM": ("CD326", "Ber-EP4", "EpCAM"),
    "ERBB2": ("HER2", "HER-2", "neu", "HER2/neu", "CD340"), "ERBB3": ("HER3",), "ERBB4": ("HER4",),
    "ESR1": ("ER", "ER-alpha", "ERα", "estrogen receptor", "oestrogen receptor"), "FCGR3A": ("CD16",),
    "FCER2": ("CD23",), "FOLH1": ("PSMA",), "FOLR1": ("FR-alpha", "folate receptor alpha"), "FUT4": ("CD15",),
    "GFAP": ("glial fibrillary acidic protein",), "GLUL": ("glutamine synthetase",), "GZMB": ("granzyme B",),
    "HAVCR2": ("TIM-3", "TIM3"), "HLA-DRA": ("HLA-DR",), "IL2RA": ("CD25",), "IL3RA": ("CD123",),
    "ITGAE": ("CD103",), "ITGAM": ("CD11b",), "ITGAX": ("CD11c",), "ITGB1": ("CD29",), "KDR": ("VEGFR2", "FLK1"),
    "KIT": ("CD117", "c-kit"), "KLK3": ("PSA",), "KLRB1": ("CD161",),
    "KRT5": ("CK5", "cytokeratin 5"), "KRT6A": ("CK6A",), "KRT7": ("CK7", "cytokeratin 7"),
    "KRT8": ("CK8", "cytokeratin 8"), "KRT10": ("CK10",), "KRT13": ("CK13",), "KRT14": ("CK14", "cytokeratin 14"),
    "KRT15": ("CK15",), "KRT17": ("CK17", "cytokeratin 17"), "KRT18": ("CK18", "cytokeratin 18"),
    "KRT19": ("CK19", "cytokeratin 19"), "KRT20": ("CK20", "cytokeratin 20"), "LAG3": ("CD223",),
    "LYVE1": ("LYVE-1",), "MAPT": ("tau",), "MCAM": ("CD146",), "MDM2": ("HDM2",), "MET": ("c-Met", "HGFR"),
    "MKI67": ("Ki-67", "Ki67", "MIB-1"), "MLANA": ("Melan-A", "MART-1"), "MME": ("CD10", "neprilysin"),
    "MS4A1": ("CD20",), "MSLN": ("mesothelin",), "MUC1": ("EMA", "CD227", "CA15-3"), "MUC16": ("CA125", "CA-125"),
    "MYC": ("c-Myc",), "NAPSA": ("napsin A", "napsin-A"), "NCAM1": ("CD56", "NCAM"), "NCR1": ("NKp46", "CD335"),
    "NECTIN4": ("nectin-4",), "NT5E": ("CD73",), "ENTPD1": ("CD39",),
    "PDCD1": ("PD-1", "PD1", "CD279"), "PDCD1LG2": ("PD-L2", "CD273"), "PDPN": ("podoplanin", "D2-40"),
    "PECAM1": ("CD31",), "PGR": ("PR", "progesterone receptor"), "PMEL": ("HMB-45", "HMB45", "gp100"),
    "POU2AF1": ("BOB.1",), "PTPRC": ("CD45", "LCA"), "RB1": ("Rb",), "SDC1": ("CD138", "syndecan-1"),
    "SELL": ("CD62L",), "SFTPC": ("surfactant protein C",), "SLAMF7": ("CD319",), "SLC2A1": ("GLUT1", "GLUT-1"),
    "SNAI2": ("slug",), "SPN": ("CD43",), "SYP": ("synaptophysin",), "TACSTD2": ("TROP2", "TROP-2"),
    "TFRC": ("CD71",), "THY1": ("CD90",), "TNFRSF8": ("CD30",), "TNFRSF9": ("4-1BB", "CD137"), "TNFRSF17": ("BCMA",),
    "TP53": ("p53",), "TP63": ("p63",), "VIM": ("vimentin",), "VWF": ("von Willebrand factor", "factor VIII antigen"),
    "XBP1": ("XBP-1",),
}  # fmt: skip


@cache
def _symbols() -> dict[str, str]:
    found: dict[str, str] = {}
    for symbol, names in ALIASES.items():
        for name in names:
            for written in (name, name.replace("-", "")):
                found[written.casefold()] = symbol
    return found


def symbol_of(name: str) -> str | None:
    """Return the HGNC symbol for another name of a gene (any case, with or without hyphens), or None."""
    wanted = name.strip().casefold()
    return _symbols().get(wanted) or _symbols().get(wanted.replace("-", ""))


def names_of(symbol: str) -> tuple[str, ...]:
    """Return other names of a gene by its HGNC symbol."""
    return ALIASES.get(symbol.upper(), ())
