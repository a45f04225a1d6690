"""The watchdog bites when this package holds the main thread, and only then."""

from __future__ import annotations

import time

import pytest

from napari_peka.gui.gene_model import known_rows
from watchdog import Watchdog

pytestmark = pytest.mark.skipif(
    not hasattr(time, "pthread_getcpuclockid"), reason="no processor clock of a thread here"
)
MANY = [f"GENE{i}" for i in range(300_000)]


class Head:
    """Knows every gene, after some thought."""

    def find(self, gene: str) -> int:
        return sum(i * i for i in range(10)) * 0


def test_a_long_call_is_found_with_its_place():
    with Watchdog() as dog:
        known_rows(Head(), MANY)
    [(seconds, where)] = dog.holds
    assert seconds > 0.05
    assert "known_rows" in where


def test_others_may_take_their_time():
    with Watchdog() as dog:
        sum(i * i for i in range(2_000_000))
        time.sleep(0.2)
    assert dog.holds == []


def test_short_calls_one_after_another_are_no_long_one():
    with Watchdog() as dog:
        for _ in range(300):
            known_rows(Head(), MANY[:10])
    assert dog.holds == []
