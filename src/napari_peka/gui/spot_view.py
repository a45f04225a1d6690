"""The layers of a check: kept in step with each other, shown one at a time or side by side. No Qt in here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from psygnal import Signal

from napari_peka.gui import doubt_view, layers, spot_layers
from napari_peka.gui.spot_layers import DIFFERENCE, KINDS, Limits, Values

if TYPE_CHECKING:
    from napari_peka.workflows.check import Check
    from napari_peka.workflows.check_places import Place

SIDE_BY_SIDE = "side by side"
#: share of a field that is left free around the spots, for its colour bar
_BESIDE_BARS = 0.3


class SpotView:
    """Measured, predicted and difference of a gene as layers of a viewer.

    Layers that a person takes away come back with the next gene.

    Parameters
    ----------
    viewer
        The viewer.

    Attributes
    ----------
    limits_changed
        Emitted with the ends of the colour scale of measured and predicted, whoever changed them.
    marked
        Emitted with the numbers of the spots that stand out, a set, whoever chose them.
    """

    limits_changed = Signal(object)
    marked = Signal(object)

    def __init__(self, viewer: Any) -> None:
        self.viewer = viewer
        self._check: Check | None = None
        self._values: Values | None = None
        self._mode = KINDS[0]
        self._rows: set[int] = set()
        self._limits: Limits | None = None
        self._busy = False
        self._hidden: list[Any] = []
        self._map: Any = None
        self._view: tuple[Any, float] | None = None

    def layer(self, kind: str) -> Any:
        """Return the layer of a kind, or None."""
        return next((x for x in self._own() if spot_layers.kind_of(x) == kind), None)

    @property
    def limits(self) -> Limits | None:
        """The ends of the colour scale of measured and predicted."""
        return self._limits

    @property
    def rows(self) -> set[int]:
        """Spots that stand out."""
        return set(self._rows)

    def show(self, values: Values) -> None:
        """Show a gene: in the layers that are there, and in new ones for those that are not."""
        if values.check is not self._check and not self._is_again(values.check):
            self.close()
            self._check = values.check
            self._put_map_aside()
        self._values, self._limits = values, values.limits()
        with self._alone():
            active = self.viewer.layers.selection.active
            for kind in KINDS:
                layer = self.layer(kind)
                if layer is None:
                    self._add(values, kind)
                    active = active if spot_layers.is_drawn_in(active) else None
                else:
                    limits = values.difference_limits() if kind == DIFFERENCE else self._limits
                    spot_layers.set_limits(layer, limits)
                    spot_layers.show_values(layer, values)
            self._drop_places()
            self._check = values.check
            self._arrange()
            self._activate(active)
        self.limits_changed.emit(self._limits)

    def outline(self, check: Check, gene: str, places: Sequence[Place]) -> None:
        """Outline places where errors lie together, in place of those of before."""
        with self._alone():
            self._drop_places()
            if places and check is self._check:
                active = self.viewer.layers.selection.active
                data, settings, _ = spot_layers.places_layer(check, gene, places)
                self.viewer.add_shapes(data, **settings)
                self.viewer.layers.selection.active = active
            self._arrange()

    def choose(self, mode: str) -> None:
        """Show one of :data:`KINDS`, or all of them side by side in napari's grid."""
        self._mode = mode
        active = self.viewer.layers.selection.active
        with self._alone():
            self._arrange()
            self._activate(active if spot_layers.is_drawn_in(active) else None)

    def set_limits(self, limits: Limits) -> None:
        """Spread the colours of measured and predicted alike."""
        low, high = map(float, limits)
        if not high > low:
            return
        self._limits = (low, high)
        with self._alone():
            for kind in KINDS:
                if kind != DIFFERENCE and (layer := self.layer(kind)) is not None:
                    spot_layers.set_limits(layer, self._limits)
        self.limits_changed.emit(self._limits)

    def mark(self, rows: set[int]) -> None:
        """Make spots stand out in all layers."""
        self._rows = set(rows)
        with self._alone():
            for kind in KINDS:
                if (layer := self.layer(kind)) is not None:
                    spot_layers.mark(layer, self._rows)
        self.marked.emit(set(rows))

    def close(self) -> None:
        """Take the layers away and leave the viewer as it was."""
        with self._alone():
            self._leave_grid()
            for layer in list(self._own()):
                self.viewer.layers.remove(layer)
            if self._map is not None:
                self._map.visible = True
                self._map = None
        self._check, self._values, self._limits, self._rows = None, None, None, set()

    # -- how it is done ------------------------------------------------------------------------------------------

    def _own(self) -> Iterator[Any]:
        return (x for x in list(self.viewer.layers) if spot_layers.is_of(x, self._check))

    def _add(self, values: Values, kind: str) -> None:
        data, settings, _ = spot_layers.spots_layer(values, kind)
        layer = self.viewer.add_points(data, **settings)
        if self._limits is not None and kind != DIFFERENCE:
            spot_layers.set_limits(layer, self._limits)
        if self._rows:
            spot_layers.mark(layer, self._rows)
        spot_layers.follow_limits(layer, self._others_limits)
        layer.selected_data.events.items_changed.connect(self._others_choice)

    def _activate(self, layer: Any) -> None:
        """Make a layer the active one; None: the spots that are seen, for napari reads out the active layer alone."""
        own = self.layer(KINDS[0] if self._mode == SIDE_BY_SIDE else self._mode)
        layer = layer if layer is not None and layer in self.viewer.layers else own
        if layer is not None:
            self.viewer.layers.selection.active = layer

    def _arrange(self) -> None:
        if self._mode == SIDE_BY_SIDE and self._check is not None:
            self._enter_grid()
        else:
            self._leave_grid()
        for layer in self._own():
            if layers.kept(layer).get("hidden"):  # another slide is looked at
                continue
            kind = spot_layers.kind_of(layer)
            visible = self._mode != SIDE_BY_SIDE if kind is None else self._mode in (kind, SIDE_BY_SIDE)
            if visible and layers.is_aside(self.viewer, layer):
                layers.kept(layer)["hidden"], visible = True, False
            if layer.visible != visible:
                layer.visible = visible
            if kind is not None and visible:
                spot_layers.show_bar(layer)
            if kind is not None:
                spot_layers.write_name(layer, small=self._mode == SIDE_BY_SIDE)

    def _drop_places(self) -> None:
        for old in [x for x in self._own() if spot_layers.is_places(x)]:
            self.viewer.layers.remove(old)

    def _is_again(self, check: Check) -> bool:
        """Whether a check is of the same spots on the same map, which has grown: the layers stay."""
        before = self._check
        return before is not None and before.prediction is check.prediction and before.section is check.section

    def _put_map_aside(self) -> None:
        """Hide the map: it would colour the ground that spots are seen on. Its eye brings it back."""
        check = self._check
        for layer in self.viewer.layers:
            if check is not None and layers.prediction_of(layer) is check.prediction and layer.visible:
                doubt_view.adopt(self.viewer, layer)  # its hatching goes with it
                layer.visible = False
                self._map = layer

    def _enter_grid(self) -> None:
        """Give slide and spots a field each; other layers are put aside."""
        for layer in self.viewer.layers:
            kept = spot_layers.is_of(layer, self._check) or layers.slide_of(layer) is not None
            if layer.visible and not kept:
                layer.visible = False
                self._hidden.append(layer)
        if self._view is None:
            self._view = self.viewer.camera.center, self.viewer.camera.zoom
            self.viewer.grid.enabled = True
            spots = [x for x in self._own() if spot_layers.kind_of(x) is not None]
            self.viewer.reset_view(layers=spots or None, margin=_BESIDE_BARS)  # what is compared, as large as it can be

    def _leave_grid(self) -> None:
        if self._view is not None:
            self.viewer.grid.enabled = False
            for layer in self._hidden:
                layer.visible = True
            self._hidden.clear()
            self.viewer.camera.center, self.viewer.camera.zoom = self._view
            self._view = None

    def _others_limits(self, *_: Any) -> None:
        """Keep measured and predicted on one scale when a person or a script changes one of them."""
        if self._busy or self._limits is None:
            return
        for kind in KINDS:
            layer = self.layer(kind)
            if kind != DIFFERENCE and layer is not None:
                now = tuple(map(float, layer.face_contrast_limits))
                if now != self._limits:
                    self.set_limits((now[0], now[1]))
                    return

    def _others_choice(self, *_: Any) -> None:
        """Mark in all layers what a person chose in one of them."""
        if self._busy:
            return
        for layer in self._own():
            if spot_layers.kind_of(layer) is not None and (rows := set(map(int, layer.selected_data))) != self._rows:
                self.mark(rows)
                return

    @contextmanager
    def _alone(self) -> Iterator[None]:
        before, self._busy = self._busy, True
        try:
            yield
        finally:
            self._busy = before
