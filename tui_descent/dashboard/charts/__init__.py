"""Charts as rows of styled cells: axes, curves, ghosts. They draw a `View` and contain no widgets."""
