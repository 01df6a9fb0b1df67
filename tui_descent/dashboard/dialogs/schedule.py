"""The schedule dialog: the learning-rate curve of the highlighted schedule over the remaining steps.

The run continues while the dialog is open, so the curve is redrawn as the current step changes.
"""

from __future__ import annotations

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from tui_descent.dashboard import colours
from tui_descent.dashboard.bridge import Bridge
from tui_descent.dashboard.charts import braille
from tui_descent.dashboard.charts.axis import Axis
from tui_descent.dashboard.dialogs.dialog import Dialog
from tui_descent.dashboard.dialogs.fields import FindList
from tui_descent.dashboard.text.line import merge_segments
from tui_descent.dashboard.text.numbers import axis_step, plural
from tui_descent.dashboard.text.safe_text import safe
from tui_descent.protocol.commands import TurnKnob
from tui_descent.scenario import schedules
from tui_descent.scenario.knobs import KNOBS, parse, spec_of
from tui_descent.scenario.spec import ScheduleSpec

GUTTER = 9
# The parameters of all schedules, in the order of their fields.
PARAMETERS = ("warmup", "start", "every", "gamma", "patience", "decay", "floor")
REFRESH_S = 0.25


class ScheduleDialog(Dialog[TurnKnob]):
    """Answers with the change to the schedule knob. `now` is the current schedule."""

    hints = "↑ ↓ or type · tab parameters · enter applies · escape cancels"

    def __init__(self, bridge: Bridge, now: str) -> None:
        super().__init__()
        self._bridge, self._now = bridge, now
        self._drawn: object = None

    @property
    def _step(self) -> int:
        return self._bridge.history.steps

    @property
    def _remaining(self) -> int:
        """Remaining steps, at least one."""
        started = self._bridge.history.started
        return max(1, ((started.steps if started else None) or 0) - self._step)

    @property
    def _base(self) -> float | None:
        """The base learning rate.

        It is known only while the schedule is constant; other schedules multiply it by a factor.
        """
        return _number(self._bridge.history.knobs.get("lr", "")) if self._now == "constant" else None

    def compose(self) -> ComposeResult:
        """The list of schedules, the curve of the highlighted one, and a field for each of its parameters."""
        choices = KNOBS["schedule"].choices
        with Vertical(classes="dialog schedule"):
            names = FindList(*(Option(self._row(name), id=name) for name in choices))
            yield names
            yield Static("", id="curve")
            yield Static("", id="about", classes="dim", markup=False)
            with Horizontal(classes="parameters"):
                for name in PARAMETERS:
                    with Horizontal(id=f"parameter-{name}"):
                        yield Static(f"{name} ", markup=False)
                        yield Input(max_length=8, compact=True, id=f"value-{name}")
                yield Static("no parameters", id="no-parameters", classes="dim")
            yield Static("", classes="why", markup=False)
            names.highlighted = choices.index(self._now) if self._now in choices else 0

    def on_mount(self) -> None:
        """Start following the run's current step."""
        self._follow_run()
        self.set_interval(REFRESH_S, self._follow_run)

    def _follow_run(self) -> None:
        self.query_one(".dialog").border_title = f"Schedule for the remaining {plural(self._remaining, 'step')}"
        if self._drawn != (self._step, self._base):
            self._draw()

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Show the highlighted schedule's curve and parameters."""
        takes = schedules.FIELDS[self._chosen()]
        for name in PARAMETERS:
            self.query_one(f"#parameter-{name}").display = name in takes
            if name in takes:
                self.query_one(f"#value-{name}", Input).placeholder = f"{takes[name]:g}"
        self.query_one("#no-parameters").display = not takes
        self._draw()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Draw the curve with the parameters typed so far."""
        self._draw()

    def on_resize(self) -> None:
        """Draw the curve in the new size."""
        self._draw()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Answer from the list."""
        self._answer()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Answer from the input field."""
        self._answer()

    def _answer(self) -> None:
        try:
            turn, _ = self._choice()
        except ValueError as error:
            self.query_one(".why", Static).update(safe(str(error)))
        else:
            self.dismiss(turn)

    def _chosen(self) -> str:
        return KNOBS["schedule"].choices[self.query_one(OptionList).highlighted or 0]

    def _choice(self) -> tuple[TurnKnob, ScheduleSpec]:
        """Raises `ValueError` for a wrong parameter, or if the remaining steps are too few for the schedule."""
        fields = {name: self.query_one(f"#value-{name}", Input) for name in schedules.FIELDS[self._chosen()]}
        typed = [f"{name}={value}" for name, field in fields.items() if (value := field.value.strip())]
        turn = parse(",".join([f"schedule={self._chosen()}", *typed]))
        spec: ScheduleSpec = spec_of(turn)
        for field, wrong in schedules.problems(spec, self._remaining, whole="the remaining steps"):
            raise ValueError(f"{field}: {wrong}")
        return turn, spec

    def _draw(self) -> None:
        self._drawn = (self._step, self._base)
        try:
            _, spec = self._choice()
        except ValueError as error:
            self.query_one(".why", Static).update(safe(str(error)))
            return
        self.query_one(".why", Static).update("")
        self.query_one("#about", Static).update(schedules.about(spec, self._remaining))
        panel = self.query_one("#curve", Static)
        width, height = panel.content_size
        if width > GUTTER + 4 and height > 2:
            panel.update(curve(spec, self._step, self._remaining, self._base, width, height))

    def _row(self, name: str) -> Text:
        takes = ", ".join(schedules.FIELDS[name])
        text = Text(f"{'●' if name == self._now else ' '} {name:<15}", no_wrap=True, overflow="ellipsis")
        return text.append(takes, colours.DIM)


def curve(spec: ScheduleSpec, step: int, remaining: int, base: float | None, width: int, height: int) -> Text:
    """The learning rate over the next `remaining` steps, in `height` rows.

    If `base` is None, the factor by which the schedule multiplies the base rate.
    """
    rows, columns = height - 1, width - GUTTER - 1
    text, unit = Text(no_wrap=True), base or 1.0
    try:
        points = schedules.curve(spec, remaining, points=2 * columns)
    except ValueError as error:
        return text.append(f"{'':{GUTTER}} {error}", colours.DIM)
    values = [factor * unit for _, factor in points]
    axis = Axis.linear(0.0, max(values))
    dots = [
        (k * (2 * columns - 1) / max(1, remaining), axis.position(value) * (4 * rows - 1))
        for (k, _), value in zip(points, values, strict=True)
    ]
    labels = axis.labels(rows)
    for n, row in enumerate(braille.canvas([braille.Curve(braille.reduced(dots), colours.CURVE)], columns, rows)):
        text.append(f"{labels.get(n, ''):>{GUTTER - 1}} ", colours.DIM).append("│", colours.FAINT)
        for segment in merge_segments(row):
            text.append(segment.text, segment.style or colours.TEXT)
        text.append("\n")
    first, last = f"now, {axis_step(step)}", axis_step(step + remaining)
    what = "learning rate by step" if base is not None else "factor on the base rate by step"
    between = max(1, columns - len(first) - len(last))
    text.append(f"{'':{GUTTER}} {first}{what:^{between}}{last}", colours.DIM)
    return text


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
