"""What the core says of the command line's options is said in the window's words there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import napari_peka
from napari_peka.gui.words import in_the_window

ROOMS = ("core", "io", "models", "infer", "training", "workflows")
OPTION = re.compile(r"--[a-z]")


def sentences() -> list[str]:
    """Every text in the core's code, but for docstrings, in which an option is named."""
    found = []
    for room in ROOMS:
        for path in (Path(napari_peka.__file__).parent / room).rglob("*.py"):
            tree = ast.parse(path.read_text("utf-8"))
            docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
            texts = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            found += [n.value for n in texts if id(n) not in docs and OPTION.search(n.value)]
    return found


def test_there_are_such_sentences():
    assert len(sentences()) > 20


@pytest.mark.parametrize("text", sorted(set(sentences())))
def test_no_option_is_left(text):
    assert not OPTION.search(in_the_window(text))


def test_other_sentences_stay():
    assert in_the_window("the disk is full -- all of it") == "the disk is full -- all of it"
