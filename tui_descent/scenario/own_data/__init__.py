"""Readers of the user's own data files: a text, images, points. They do not import torch, so a command can check a file
before a run starts. An error is a `ValueError` that names the file, the place in it and what is allowed.
"""

from __future__ import annotations

from tui_descent.scenario.own_data import images, points, text
from tui_descent.scenario.spec import OwnImagesData, OwnPointsData, OwnTextData, Scenario, TransformerModel


def check(scenario: Scenario) -> str | None:
    """What is wrong with the scenario's own data file; None if it can be used, or if there is none."""
    try:
        match scenario.data:
            case OwnTextData() if isinstance(scenario.model, TransformerModel):
                text.read(scenario.data, scenario.model.context)
            case OwnImagesData():
                images.sizes(scenario.data)
            case OwnPointsData():
                points.read(scenario.data)
            case _:
                pass
    except ValueError as error:
        return str(error)
    return None
