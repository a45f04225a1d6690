"""What this machine can compute on, by name and free memory. Device and number format are chosen here only."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from napari_peka.core.errors import DeviceError, SettingError

#: number formats to compute in
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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


def choose_device(name: str = "auto") -> torch.device:
    """Return the device to compute on; ``"auto"`` takes CUDA, then MPS, then the CPU.

    Raises
    ------
    DeviceError
        If the device asked for is not there; what there is is named.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise DeviceError(f"there is no device {name!r}; one of auto, cpu, cuda, cuda:1, mps") from e
    count = {"cpu": 1, "cuda": torch.cuda.device_count() if cuda else 0, "mps": int(mps)}
    if device.type not in count:
        raise DeviceError(f"the device {name!r} is not supported; one of auto, cpu, cuda, mps")
    if (device.index or 0) >= count[device.type]:
        here = ", ".join(f"{n} × {kind}" for kind, n in count.items() if n)
        mend = "install a torch built for it, or its driver" if not count[device.type] else "choose one of them"
        raise DeviceError(f"the device {name!r} is not here (there is {here}); use auto, or {mend}")
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the number format to compute in.

    ``"auto"``: bf16 on a GPU that has it, else fp16; on a CPU bf16 only where it has instructions for it (elsewhere
    it is slower than fp32); fp32 on MPS.

    Raises
    ------
    SettingError
        If there is no such format, or the device does not compute in it.
    """
    if name == "fp16" and device.type == "cpu":
        raise SettingError("fp16 is computed on GPUs alone; on a CPU choose bf16 or fp32")
    if name in PRECISIONS:
        return PRECISIONS[name]
    if name != "auto":
        raise SettingError(f"there is no precision {name!r}; one of auto, {', '.join(PRECISIONS)}")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    if device.type == "cpu" and cpu_has_bf16():
        return torch.bfloat16
    return torch.float32


def cpu_has_bf16() -> bool:
    """Return whether this CPU multiplies bf16 in hardware (AVX512-BF16 or AMX), as torch reports it."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, p)()) for p in probes if hasattr(torch.cpu, p))
