"""What this machine can compute on, by name and free memory."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from napari_peka.models.encoder import choose_device


@dataclass(frozen=True)
class Device:
    """Something to compute on.

    Parameters
    ----------
    name
        As :class:`napari_peka.PredictConfig` takes it, such as ``"cuda:1"``.
    title
        What people call it.
    memory
        Bytes that it has; of a CPU the machine's.
    free
        Bytes of them that nobody uses now; None where the system does not say.
    """

    name: str
    title: str
    memory: int
    free: int | None

    @property
    def text(self) -> str:
        """One line: ``CPU, 2 threads, 21 GB free``."""
        return f"{self.title}, {self.room}"

    @property
    def room(self) -> str:
        """How much memory there is: ``21 GB free``."""
        return f"{self.memory / 1e9:.0f} GB" if self.free is None else f"{self.free / 1e9:.0f} GB free"


def devices() -> list[Device]:
    """Return what is there, the one that ``auto`` takes first."""
    found = [describe(torch.device("cpu"))]
    if torch.cuda.is_available():
        found += [describe(torch.device("cuda", i)) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append(describe(torch.device("mps")))
    first = choose_device("auto").type
    return sorted(found, key=lambda d: d.name.split(":")[0] != first)


def describe(device: torch.device) -> Device:
    """Return what a device that is there is called, and its memory."""
    if device.type == "cuda":
        at = device.index or 0
        free, memory = torch.cuda.mem_get_info(at)
        return Device(f"cuda:{at}", torch.cuda.get_device_name(at), memory, free)
    ram = psutil.virtual_memory()
    if device.type == "mps":
        return Device("mps", "Apple GPU", ram.total, ram.available)
    threads = torch.get_num_threads()
    return Device("cpu", f"CPU, {threads} thread{'s' * (threads > 1)}", ram.total, ram.available)
