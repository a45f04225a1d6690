"""napari-peka."""
