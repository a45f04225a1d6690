"""A box of the devices that are there, by name and free memory."""

from __future__ import annotations

from typing import Any

from qtpy.QtWidgets import QComboBox

from napari_peka.gui.aside import Aside
from napari_peka.gui.choosers import slim

AUTO = "auto"


class DeviceBox(QComboBox):
    """What to compute on. Looking costs the import of torch, so it is done beside the window, when the box is seen.

    Parameters
    ----------
    wish
        What is chosen at first, as :class:`napari_peka.PredictConfig` takes it.

    Attributes
    ----------
    looking
        What looks beside the window; its ``done`` is emitted when the box is filled.
    """

    def __init__(self, wish: str = AUTO) -> None:
        super().__init__()
        slim(self)
        self.setToolTip("auto: the GPU when there is one")
        #: whether there is a GPU; None while nobody has looked
        self.has_gpu: bool | None = None
        self._seen = False
        self.looking = Aside(self)
        self.looking.done.connect(self._fill)
        for name in dict.fromkeys((AUTO, "cpu", wish)):
            self.addItem(name, name)
        self.choose(wish)

    def name(self) -> str:
        """Return the chosen device as the settings call it."""
        return str(self.currentData())

    def choose(self, name: str) -> None:
        """Choose a device by the name that the settings have for it; one that is not here is refused at the start."""
        if self.findData(name) < 0:
            self.addItem(f"{name} (not found)", name)
        self.setCurrentIndex(self.findData(name))

    def showEvent(self, event: Any) -> None:
        """Look for devices at the first time."""
        super().showEvent(event)
        if not self._seen:
            self._seen = True
            self.look()

    def showPopup(self) -> None:
        """Open, with the memory that is free now."""
        self.look()
        super().showPopup()

    def look(self) -> None:
        """See what is there now."""
        self.looking.ask(_look)

    def _fill(self, found: list[Any]) -> None:
        chosen = self.name()
        self.has_gpu = any(d.name != "cpu" for d in found)
        self.blockSignals(True)
        self.clear()
        self.addItem(f"auto: {found[0].title.split(',')[0]}, {found[0].room}", AUTO)
        for device in found:
            self.addItem(device.text, device.name)
        # "cuda" is the first of them
        if chosen != AUTO and self.findData(chosen) < 0 and self.findData(f"{chosen}:0") >= 0:
            chosen = f"{chosen}:0"
        self.choose(chosen)
        self.blockSignals(False)


def _look() -> list[Any]:
    from napari_peka.models.devices import devices

    return devices()
