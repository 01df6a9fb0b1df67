"""Charts as rows of styled cells: axes, curves, ghosts. They draw a `View`; they hold no widgets."""
