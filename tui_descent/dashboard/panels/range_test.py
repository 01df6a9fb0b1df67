"""A range test's two pictures: the loss over learning rates, and the loss along the update that comes next."""

from __future__ import annotations

import math

from textual.strip import Strip

from tui_descent.dashboard import colours
from tui_descent.dashboard.charts.xy_plot import Path, Upright, height_axis, plotted
from tui_descent.dashboard.panels.panel import Panel, notice
from tui_descent.dashboard.text.numbers import tick
from tui_descent.dashboard.view import View
from tui_descent.protocol.rates import RatesSwept

# What lies above the present loss by so many times what can be gained, or by half of it, is a wall.
GAINS, HALF = 3.0, 0.5
# So too what lies above the loss that the smaller step sizes lead to by so many times its size.
WALL = 3.0
SHARES = {0.0: "0", 0.125: "⅛", 0.25: "¼", 0.5: "½"}


class RatesPanel(Panel, can_focus=False):
    """Draws what it was told last; `words` stand in an empty one."""

    swept: RatesSwept | None = None
    words: str = ""

    def tell(self, swept: RatesSwept | None, words: str) -> None:
        """What there is to draw."""
        self.swept, self.words = swept, words

    def cares(self, view: View) -> object:
        """Another result, or another word about why there is none."""
        return self.swept, self.words

    def draw(self, view: View, width: int, height: int) -> list[Strip]:
        """The picture, or the words."""
        if self.swept is None:
            return notice([(self.words, colours.DIM)], width, height)
        return self.picture(self.swept, width, height)

    def picture(self, swept: RatesSwept, width: int, height: int) -> list[Strip]:
        """`height` rows."""
        raise NotImplementedError


class SweepPanel(RatesPanel):
    """Loss by rate, both logarithmic as a rule."""

    about = (
        "Loss of the next batch after an update at each of a hundred rates, growing from where they do nothing; all is "
        "put back afterwards. Each batch counts against its own loss with the weights as they are, so hard and easy "
        "ones cancel out. Dim: each. Bright: smoothed (0.9). ▲ lowest; ▲ try, a tenth of it, is the suggestion."
    )

    def heading(self, view: View) -> tuple[str, str]:
        """What is drawn."""
        return "Range test  [dim]loss by rate, log[/dim]", "⣿ each batch  ━ smooth"

    def picture(self, swept: RatesSwept, width: int, height: int) -> list[Strip]:
        """Up to the rate that ended it; the marks of the suggestion first, where names want the same room."""
        if not swept.rates:
            return notice([("the first update gave no number", colours.ORANGE)], width, height)
        low, high = math.log10(swept.rates[0]), math.log10(max(swept.rates[-1], swept.ended_at or 0.0, swept.rate))

        def place(rate: float) -> float:
            return (math.log10(rate) - low) / ((high - low) or 1.0)

        marks = [
            (swept.suggestion, "try", colours.GREEN),
            (swept.rate, "now", colours.BRIGHT),
            (swept.lowest, "lowest", colours.DIM),
        ]
        gain = swept.level - min(swept.smooth)
        axis = height_axis([swept.level, *swept.smooth], swept.level + max(GAINS * gain, HALF * abs(swept.level)))
        xs = [place(rate) for rate in swept.rates]
        paths = [
            Path(list(zip(xs, swept.against, strict=True)), colours.BAND),
            Path(list(zip(xs, swept.smooth, strict=True)), colours.CURVE),
        ]
        uprights = [Upright(place(rate), name, style) for rate, name, style in marks if rate]
        decades = range(math.ceil(low), math.floor(high) + 1)
        return plotted(
            width, height, axis, paths=paths, uprights=uprights, ticks={place(10.0**e): tick(10.0**e) for e in decades}
        )


class AheadPanel(RatesPanel):
    """Loss along the next update."""

    about = (
        "Loss of the next batch at θ + s·d, d being the update that the optimizer makes next: momentum, "
        "preconditioning, decay and clipping are in it. ▲ next, s = 1, is where it goes. Where the loss still falls at "
        "larger s a larger rate could be borne; where it has risen at 1 a smaller is wanted."
    )

    def heading(self, view: View) -> tuple[str, str]:
        """What is drawn."""
        return "Look ahead  [dim]loss by s[/dim]", "s × the next update"

    def picture(self, swept: RatesSwept, width: int, height: int) -> list[Strip]:
        """Equal room for each size."""
        if not swept.ahead:
            return notice([("the next update moves nothing", colours.DIM)], width, height)
        last = len(swept.scales) - 1
        finite = [v for v in swept.ahead if math.isfinite(v)]
        near = finite[:5]
        size = max(map(abs, near), default=0.0)
        axis = height_axis(finite, max(near) + WALL * size if size else math.inf)
        path = Path([(n / last, loss) for n, loss in enumerate(swept.ahead)], colours.BAND, colours.POINT)
        uprights = [Upright(n / last, "next", colours.BRIGHT) for n, scale in enumerate(swept.scales) if scale == 1]
        ticks = {n / last: SHARES.get(scale, f"{scale:g}") for n, scale in enumerate(swept.scales)}
        return plotted(width, height, axis, paths=[path], uprights=uprights, ticks=ticks)
