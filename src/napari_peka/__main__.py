"""``python -m napari_peka`` is the command line."""

from napari_peka.cli import main

main()
