"""Which kind of picture a scenario run has."""

from __future__ import annotations

from tui_descent.scenario.spec import (
    DigitsData,
    ModularAdditionData,
    OwnImagesData,
    RareClassesData,
    TextData,
    TwoLayerModel,
)
from tui_descent.training.probes.task_probe import Painter
from tui_descent.training.setup.build import Setup
from tui_descent.training.task_pictures.addition import AdditionPainter
from tui_descent.training.task_pictures.classes import ClassesPainter
from tui_descent.training.task_pictures.digits import DigitsPainter
from tui_descent.training.task_pictures.index import IndexPainter
from tui_descent.training.task_pictures.modes import ModesPainter
from tui_descent.training.task_pictures.regions import RegionsPainter
from tui_descent.training.task_pictures.surface import SurfacePainter
from tui_descent.training.task_pictures.text import TextPainter


def painter_of(setup: Setup) -> Painter:
    """The painter for a scenario's kind of data."""
    if isinstance(setup.scenario.model, TwoLayerModel):
        return ModesPainter(setup) if setup.scenario.model.picture == "modes" else IndexPainter(setup)
    match setup.scenario.data:
        case None:
            return SurfacePainter(setup)
        case DigitsData() | OwnImagesData():
            return DigitsPainter(setup)
        case TextData():
            return TextPainter(setup)
        case ModularAdditionData():
            return AdditionPainter(setup)
        case RareClassesData():
            return ClassesPainter(setup)
        case _:
            return RegionsPainter(setup)
