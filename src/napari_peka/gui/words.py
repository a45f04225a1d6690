"""Sentences of the core in the window's words: where they name an option of the command line, its button or field."""

from __future__ import annotations

#: longest first: what stands for an option or for a phrase with one
_INSTEAD = {
    "go on with it (--resume), or begin anew (--overwrite)": "go on with it (Resume), or begin anew (Begin anew)",
    "begin anew without --resume (--overwrite)": "begin anew (Begin anew)",
    "start without --resume": "begin anew (Begin anew)",
    "it needs resume as well (--resume --finish)": "it needs Resume",
    "leave --genes away for the usual ones": "choose the usual ones",
    "give --affine or affine=": "move the spots (Move spots on the image)",
    "take --hold-out block": "leave out blocks",
    "use --device cpu": "choose the CPU under Device",
    "--patient or patient=": "the table's column patient",
    "--image or image=": "a manifest's column image",
    "--section or section=": "a manifest's column section",
    "(--stain macenko or stain=)": "(Stain)",
    "(--stain none)": "(Stain)",
    "--mpp or mpp=": "the field µm per pixel, or a manifest's column mpp",
    "(--image)": "(a manifest's column image)",
    "(--affine)": "(Move spots on the image)",
    "(--overwrite)": "(tick replace)",
    "(--genes)": "(Genes)",
}


def in_the_window(text: str) -> str:
    """Return a sentence of the core as a dock says it."""
    if "--" in text:
        for option, words in _INSTEAD.items():
            text = text.replace(option, words)
    return text
