"""The picture of a text: the losses of held-out characters, and what the net writes."""

from __future__ import annotations

from array import array

import pytest
import torch
from torch.nn import functional as F

from tui_descent.protocol import codec
from tui_descent.protocol.task_pictures import MAX_LINE, MAX_TEXT, TEXT_LINES
from tui_descent.scenario import presets
from tui_descent.scenario.spec import SYMBOLS as SYMBOL_COUNT
from tui_descent.training.setup.build import Setup, build
from tui_descent.training.setup.data.text import SYMBOLS
from tui_descent.training.task_pictures import text
from tui_descent.training.task_pictures.text import FIRST_CHARACTERS, TextPainter


def made(*overrides: str) -> Setup:
    short = ("model.depth=1", "model.width=8", "model.context=8")
    _, scenario = presets.find("transformer", overrides=[*short, *overrides])
    return build(scenario, on=torch.device("cpu"))


def test_losses_are_those_of_each_character() -> None:
    setup = made("model.dropout=0.3")
    picture = TextPainter(setup).picture(70, 16)
    assert setup.batches is not None
    data = setup.batches.data
    count = len(picture.windows)
    setup.model.eval()
    with torch.no_grad():
        logits = setup.model(data.held_out_x[:count])
    losses = array("f", picture.losses)
    for n in (0, 5, 8 * count - 1):
        expected = F.cross_entropy(logits[n // 8, n % 8], data.held_out_y[n // 8, n % 8])
        assert losses[n] == pytest.approx(expected.item(), rel=1e-5)
        assert picture.windows[n // 8][n % 8] == SYMBOLS[int(data.held_out_y[n // 8, n % 8])]
    assert picture.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert len(SYMBOLS) == SYMBOL_COUNT


def test_lines_grow_character_by_character_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "WRITE_S", 0.0)
    painter = TextPainter(made())
    first = painter.picture(70, 16)
    assert [len(line) for line in first.lines] == [FIRST_CHARACTERS] * TEXT_LINES
    assert first.new == FIRST_CHARACTERS
    second = painter.picture(70, 16)
    assert second.new == 1
    assert [line[:-1] for line in second.lines] == list(first.lines)
    monkeypatch.setattr(text, "FIRST_CHARACTERS", 1)
    for _ in range(MAX_LINE):
        last = painter.picture(70, 16)
    assert {len(line) for line in last.lines} == {MAX_LINE}


def test_characters_are_drawn_from_the_nets_predictions() -> None:
    setup = made()
    with torch.no_grad():  # whatever it reads, it predicts a "q"
        setup.model.head.weight.zero_()  # type: ignore[union-attr, operator]
        setup.model.head.bias.fill_(-50.0)  # type: ignore[union-attr, operator]
        setup.model.head.bias[SYMBOLS.index("q")] = 50.0  # type: ignore[index]
    assert set("".join(TextPainter(setup).picture(70, 16).lines)) == {"q"}


def test_what_the_net_sees_are_the_last_characters_of_the_line() -> None:
    setup = made()
    painter = TextPainter(setup)
    painter.picture(70, 16)
    seen: list[torch.Tensor] = []
    setup.model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    lines = painter.picture(70, 16).lines
    last = seen[-1]
    assert last.shape == (TEXT_LINES, 8)
    assert ["".join(SYMBOLS[code] for code in row) for row in last.tolist()] == [line[-9:-1] for line in lines]


def test_a_net_with_nan_weights_writes_nothing() -> None:
    setup = made()
    with torch.no_grad():
        next(setup.model.parameters()).fill_(torch.nan)
    picture = TextPainter(setup).picture(70, 16)
    assert (picture.new, set(picture.lines)) == (0, {""})
    assert picture.loss != picture.loss


@pytest.mark.parametrize("context", [2, 32, 1024])
def test_the_picture_is_bounded(context: int) -> None:
    painter = TextPainter(made(f"model.context={context}", "data.batch_size=1"))
    picture = painter.picture(10**9, 10**9)
    assert 0 < sum(map(len, picture.windows)) <= MAX_TEXT
    assert len(codec.encode(picture)) < 16 * 1024
