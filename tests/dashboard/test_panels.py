"""Panels and their parts without an app: a history and a size in, strips out."""

from __future__ import annotations

import itertools
import math
import random
import re

import msgspec
import pytest
from factories import history_of, layers, reading, started, steps, turned, vanishing
from fake_run import view
from textual.geometry import Size

from tui_descent.dashboard.charts.axis import Axis, log_axis
from tui_descent.dashboard.charts.log_scale import LogScale
from tui_descent.dashboard.charts.time_axis import RECENT_STEPS, TimeAxis, gutter
from tui_descent.dashboard.panels.gradients import GradientsPanel
from tui_descent.dashboard.panels.heatmap import HeatmapPanel, layers_of_row, row_names
from tui_descent.dashboard.panels.knob_line import ENTRIES, knob_line
from tui_descent.dashboard.panels.loss_chart import LossPanel
from tui_descent.dashboard.panels.status import StatusPanel
from tui_descent.dashboard.panels.updates import UpdatesPanel
from tui_descent.dashboard.text.device_info import detail_lines, sparkline, status_texts
from tui_descent.dashboard.text.layer_names import block_of, layer_labels
from tui_descent.dashboard.text.numbers import axis_number, byte_size, scientific, short
from tui_descent.dashboard.text.safe_text import safe, shorten
from tui_descent.dashboard.view import View
from tui_descent.protocol.events import DeviceTaken, Gpu, KnobState, Layer, RunEnded, RunStarted, StateChanged
from tui_descent.scenario.keys import VIEW_KEYS
from tui_descent.telemetry.history import History


@pytest.mark.parametrize("recent", [False, True])
@pytest.mark.parametrize("columns", [1, 7, 58, 120])
def test_the_newest_step_is_always_on_the_time_axis(columns: int, recent: bool) -> None:
    run = History()
    for count in (1, 2, 57, 58, 59, 199, 200, 201, 1000, 123_457):
        run.steps = count
        line = TimeAxis.of(run, columns, recent=recent)
        assert line.bin_width & (line.bin_width - 1) == 0
        assert line.column(count - 1) is not None
        first = max(0, count - RECENT_STEPS) if recent and columns > 8 else 0
        if columns > 8 or not recent:
            assert line.column(first) is not None


def test_the_time_axis_changes_only_when_it_is_full() -> None:
    run = History()
    seen = set()
    for count in range(1, 3800):
        run.steps = count
        line = TimeAxis.of(run, 60, recent=False)
        seen.add((line.bin_width, line.first))
    assert seen == {(2**k, 0) for k in range(7)}


def test_a_short_run_is_spread_over_the_whole_axis() -> None:
    run = History()
    for count, planned, spread in ((3, 10, 6), (10, 10, 6), (11, 10, 3), (20, 10, 3), (3, 40, 1), (300, 10, 1)):
        run.steps = count
        line = TimeAxis.of(run, 70, recent=False, planned=planned)
        assert line.spread == spread, (count, planned)
        assert line.column(count - 1) == (count - 1) * spread // line.bin_width
        assert line.dot((count - 1) // line.steps_per_dot) // 2 == line.column(count - 1)
        assert line.column(line.end_step) is not None
        assert all(line.column(int(text)) == column for column, text in line.ticks().items())
    run.steps = 3
    assert TimeAxis.of(run, 70, recent=True, planned=10).spread == 1
    assert TimeAxis.of(run, 70, recent=False).spread == 1


def test_the_ten_steps_of_a_surface_are_spread_and_joined_by_one_line() -> None:
    parabola = started(0, scenario={"data": None, "model": {"name": "surface"}}, steps=10)
    rows = [s.text for s in LossPanel().draw(view([parabola, steps(0, [0.04**n for n in range(10)])]), 78, 10)]
    assert rows[-1].split()[:3] == ["0", "2", "4"]
    drawn = [any("\u2800" < row[x] < "\u28ff" for row in rows[:-1]) for x in range(8, 60)]
    assert all(drawn), "no gap between two steps"
    net = started(0, scenario={"data": {"name": "digits"}}, steps=10)
    assert "20" in [s.text for s in LossPanel().draw(view([net, steps(0, [1.0] * 10)]), 78, 10)][-1]


def test_loss_and_heatmap_share_their_columns() -> None:
    look = view(vanishing(300))
    loss = [s.text for s in LossPanel().draw(look, 80, 12)]
    heat = [s.text for s in HeatmapPanel().draw(look, 80, 12)]
    mark = {line.index("┊") for line in loss if "┊" in line}
    assert mark == {line.index("┊") for line in heat}
    assert len(mark) == 1
    assert loss[-1][mark.pop()] == "▲"


def test_step_numbers_keep_their_distance_from_intervention_names() -> None:
    for at in range(5, 380, 5):
        look = view([started(), steps(0, [1.0] * 400), turned(at, "0.1", "0.125", knob="lr")])
        row = LossPanel().draw(look, 80, 12)[-1].text
        assert "lr 0.125" in row
        assert not re.search(r"lr 0\.125 {1,2}\d|\d {0,2}▲|▲ {1,2}\d|\d {1,2}lr", row), row


def test_panels_fill_their_width() -> None:
    look = view(vanishing(60))
    for width, height in ((20, 3), (58, 6), (150, 40)):
        for panel in (LossPanel(), HeatmapPanel(), UpdatesPanel()):
            rows = panel.draw(look, width, height)
            assert len(rows) <= height
            assert {row.cell_length for row in rows} == {width}


def test_a_loss_chart_drawn_step_by_step_equals_one_drawn_at_once() -> None:
    rng, run, panel = random.Random(5), history_of([started()]), LossPanel()
    for step in range(330):
        run.apply(steps(step, [2.0 * math.exp(rng.uniform(-0.3, 0.3))]))
        if step % 3 == 0 or step > 320:
            drawn = panel.draw(View(history=run), 60, 9)
            assert drawn == LossPanel().draw(View(history=run), 60, 9)


def test_only_the_newest_columns_of_a_loss_chart_change() -> None:
    rng, run, panel = random.Random(7), history_of([started()]), LossPanel()
    run.apply(steps(0, [1.0, 3.0]))  # the limits of the axis
    before: list[str] = []
    width = changes = 0
    for step in range(2, 410):
        run.apply(steps(step, [2.0 + rng.uniform(-0.5, 0.5)]))
        look = View(history=run, log=False)
        left = gutter(look, 57)
        time_axis = TimeAxis.of(run, 57 - left, recent=False)
        rows = [strip.text for strip in panel.draw(look, 57, 9)[:-1]]
        newest = time_axis.column(step) or 0
        if time_axis.bin_width == width:
            final = slice(left, left + newest - 2)
            for old, new in zip(before, rows, strict=True):
                # Where the newest loss is written, or was, nothing else can be seen.
                both = [(a, b) for a, b in zip(old[final], new[final], strict=True) if not {a, b} & set("0123456789.┈")]
                assert all(a == b for a, b in both)
            changes += before != rows
        before, width = rows, time_axis.bin_width
    assert changes > 300


def test_heatmap_brightness_follows_the_gradient() -> None:
    panel, look = HeatmapPanel(), view(vanishing(300))
    rows = panel.draw(look, 80, 11)
    left = gutter(look, 80)

    def light(row: int, column: int) -> float:
        at = 0
        for segment in rows[row]:
            at += len(segment.text)
            if at > left + column:
                assert segment.style is not None
                assert segment.style.bgcolor is not None
                return sum(segment.style.bgcolor.get_truecolor())
        raise AssertionError

    assert light(1, 3) > light(5, 3) > light(9, 3)
    newest = TimeAxis.of(look.history, 80 - left, recent=False).column(299)
    assert newest is not None
    assert light(9, newest) > light(9, 3) * 2


def test_every_layer_has_a_heatmap_row() -> None:
    for count in (1, 2, 7, 22, 40, 203):
        for height in (1, 5, 11, 30):
            shown = [n for y in range(height) for n in layers_of_row(y, height, count)]
            assert set(shown) == set(range(count))
            assert count - 1 in layers_of_row(0, height, count)
            assert 0 in layers_of_row(height - 1, height, count)
    look = view([started(200)], selected=77)
    names = row_names(look, 12, 10)
    assert names[0][0] == "outlet"
    assert names[-1][0] == "inlet"
    assert ("blocks.76", True) in names


def test_a_log_scale_only_widens_and_ignores_the_floor() -> None:
    scale = LogScale(-6, 0)
    scale.widen([-7.2, math.nan, -40.0, math.inf], -40.0)
    assert (scale.low, scale.high) == (-8, 0)
    scale.widen([-3.0, 1.5], -40.0)
    assert (scale.low, scale.high) == (-8, 2)


def test_unhealthy_updates_are_marked_besides_their_colour() -> None:
    def marked(fall: float, top: float) -> list[bool]:
        rows = UpdatesPanel().draw(view([started(2), reading(0, fall, 2, top=top)]), 50, 4)
        return [row.text.endswith("!") for row in rows]

    assert marked(1.0, 2e-2) == [False] * 4
    assert marked(1e-3, 2e-2) == [False, False, True, True], "the lower layers hardly move"
    assert marked(1.0, 20.0) == [True] * 4, "the updates are larger than the weights"


def test_layer_labels_drop_common_parts_then_cut_the_middle() -> None:
    assert layer_labels(layers(3), 12) == ("inlet", "blocks.0", "blocks.1", "blocks.2", "outlet")
    deep = tuple(
        Layer(name=f"transformer.h.{n}.{part}", kind="L", params=1, block=n) for n in range(2) for part in "ab"
    )
    assert layer_labels(deep, 30) == tuple(layer.name for layer in deep)
    assert all(len(name) <= 10 for name in layer_labels(deep, 10))
    assert block_of(layers(3)[1]) == "blocks.0"
    assert block_of(layers(3)[0]) is None
    parts = ("attention.qkv", "attention.out", "up", "out")
    blocks = (Layer(name=f"blocks.{n}.{part}", kind="L", params=1, block=n) for n in (1, 10) for part in parts)
    net = (Layer(name="tokens", kind="L", params=1), *blocks, Layer(name="classifier", kind="L", params=1))
    assert layer_labels(net, 10)[1:9] == (
        *("1…qkv", "1.a…on.out", "1.up", "1.out"),
        *("10…qkv", "10.…on.out", "10.up", "10.out"),
    ), "1…out could be 1.out, too"
    assert layer_labels(net, 10)[0::9] == ("tokens", "classifier")
    assert layer_labels(net, 30) == tuple(layer.name for layer in net)
    for width in range(1, 24):
        assert all(len(name) <= width for name in layer_labels(net, width))
    assert len(set(layer_labels(net, 9))) == len(net)
    assert shorten("transformer.h.11.attn", 12) == "tra….11.attn"


def test_a_log_axis_has_a_position_for_extreme_limits() -> None:
    for low, high in ((1e-8, 3.0), (2.3, 2.31), (5e-324, 1e308), (1.0, 1.0)):
        axis = log_axis(low, high)
        assert 0 <= axis.position(low) <= axis.position(high) <= 1
        assert axis.labels(12)
    assert math.isnan(log_axis(1, 2).position(-1))
    assert math.isnan(log_axis(1, 2).position(math.nan))


def test_a_linear_axis_has_a_position_for_extreme_limits() -> None:
    for low, high in ((-1e308, 1e308), (0.0, 0.0), (-3.0, -2.9), (0.0, 1e-300)):
        axis = Axis.linear(low, high)
        assert 0 <= axis.position(low) <= axis.position(high) <= 1
        assert axis.labels(12) is not None


@pytest.mark.parametrize(
    ("low", "high"), [(-1.6e5, 0.0), (2.3001, 2.3012), (0.0011, 0.0016), (1e4, 1.3e4), (-1.0, 1.0)]
)
@pytest.mark.parametrize("rows", [4, 9, 18])
def test_axis_numbers_are_unique_and_in_their_rows(low: float, high: float, rows: int) -> None:
    axis = Axis.linear(low, high)
    texts = list(axis.labels(rows).values())
    assert len(set(texts)) == len(texts) >= 2
    assert all(len(text) <= 7 for text in texts), texts
    for row, text in axis.labels(rows).items():
        assert axis.row(float(text), rows) == row, "the number is accurate for its row"


@pytest.mark.parametrize(("low", "high"), [(0.7, 3.0), (2.0, 10.0), (2.3, 2.35)])
def test_a_tall_log_axis_below_a_decade_has_several_numbers(low: float, high: float) -> None:
    axis = log_axis(low, high)
    labels = axis.labels(20)
    assert len(labels) >= 4
    for row, text in labels.items():
        assert axis.row(float(text), 20) == row


def test_number_formats() -> None:
    assert [scientific(v) for v in (0.0, 3.14e-9, math.nan, -math.inf, None)] == ["0", "3.1e-09", "nan", "-inf", "–"]
    assert [short(v) for v in (2.31944, 0.04123, 1.234e-7, 12345.6)] == ["2.319", "0.04123", "1.2e-07", "12346"]
    assert [axis_number(v) for v in (2.0, 0.05, 1e-6, 40.0, 50000.0)] == ["2.00", "0.05", "1e-6", "40", "5e4"]


def test_safe_removes_control_codes() -> None:
    assert safe("\x1b[1;31mred\x1b[0m\tand\nmore") == "red and more"
    assert safe("a\u202eb\u200bc\x07") == "abc"
    assert safe("x" * 1000, 10) == "x" * 10
    assert safe("  indented  ") == "  indented"


def test_an_old_reading_is_shown_with_its_step() -> None:
    fresh = view([started(2), reading(0, 1.0, 2), steps(0, [1.0] * 5)])
    old = view([started(2), reading(0, 1.0, 2), steps(0, [1.0] * 400)])
    assert "now" in UpdatesPanel().heading(fresh)[0]
    assert "at step 0" in UpdatesPanel().heading(old)[0]
    row = HeatmapPanel().draw(old, 80, 4)[1]
    painted = [s for s in row if s.style and s.style.bgcolor and s.style.bgcolor.name != "#0f1115"]
    assert len(painted) == 2
    bright, dim = (s.style.bgcolor.get_truecolor() for s in painted if s.style and s.style.bgcolor)
    assert sum(dim) < sum(bright) * 0.6
    assert len(painted[0].text) <= 3


@pytest.mark.parametrize("now", [1.0, math.inf, math.nan])
def test_a_clipped_gradient_is_shown_with_its_norm_before_clipping(now: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GradientsPanel, "content_size", Size(60, 20))
    plain_reading = reading(0, 1.0, 2)
    clipped = msgspec.structs.replace(plain_reading, grad_norm_preclip=340.5, global_grad_norm=now)
    assert "‖g‖" not in GradientsPanel().heading(view([started(2), plain_reading]))[0]
    assert GradientsPanel().heading(view([started(2), clipped]))[0].endswith(f"‖g‖ 3.4e+02 → {now:g}")
    monkeypatch.setattr(GradientsPanel, "content_size", Size(30, 20))
    assert "‖g‖" not in GradientsPanel().heading(view([started(2), clipped]))[0], "its numbers would be cut"


def device(step: int, used: int, *, gpu: Gpu | None = None) -> DeviceTaken:
    return DeviceTaken(segment=0, step=step, device="cuda:0" if gpu else "cpu", allocated_bytes=used, gpu=gpu)


def test_the_status_line_shows_the_device_if_there_is_room() -> None:
    gpu = Gpu(name="H200", utilisation=0.87, power_w=240.4, temperature_c=61.0, used_bytes=10**9, total_bytes=10**11)
    events = [started(2), steps(0, [1.0] * 9), device(3, 1_230_000_000, gpu=gpu)]
    look = view(events)
    assert status_texts(look.history) == ("mem 1.2 GB", "GPU 87 %", "61 °C 240 W")
    assert "  ".join(status_texts(look.history)) in StatusPanel().draw(look, 200, 1)[0].text
    narrow = StatusPanel().draw(look, 80, 1)[0].text
    assert "240 W" not in narrow
    assert "loss" in narrow
    assert detail_lines(look.history, 60)[1] == "H200, 1.0 GB of 100.0 GB used by all processes"
    bare = view([started(2), device(3, 940_000_000, gpu=Gpu(name="part"))])
    assert status_texts(bare.history) == ("mem 940 MB", "", "")
    assert status_texts(view([started(2)]).history) == ("", "", "")


@pytest.mark.parametrize("width", range(60, 201))
def test_the_knob_line_is_never_cut_and_keeps_the_most_important_keys(width: int) -> None:
    named = started(20, knobs=(*started().knobs, *(KnobState(name=n, value=v) for n, v in LONG_VALUES.items())))
    for events in ([named], [named, StateChanged(state="paused")], [started(0)], vanishing(60)):
        for selected, tabs in itertools.product((None, 7), (False, True)):
            look = view(events, selected=selected)
            bar = knob_line(look, width, tabs=tabs)
            assert bar.width <= width
            words = f"{''.join(s.text for s in bar.segments)}  "
            assert words.endswith("  ? help  q leave  ")
            assert not (tabs and "123456789h" in words), "they have a row of their own"
            words = words.replace("123456789h", VIEW_KEYS)
            shown = [entry.rank for key, (entry, _) in ENTRIES.items() if f" {key} " in words]
            if look.history.state.state == "paused":
                assert "space resume" in words, "the most important key now"
                shown.remove(6)
            by_rank = [rank for rank in range(len(ENTRIES)) if not (tabs and rank == ENTRIES[VIEW_KEYS][0].rank)]
            assert set(shown) >= set(by_rank[: len(shown)]) - {6}, "by rank"
            assert len(shown) >= (3 if width < 80 else 5)
            assert len(shown) >= len(by_rank) - 1 or width < 190
            if width >= 120 and selected is None:
                assert " n norm " in words


LONG_VALUES = {
    "lr": "0.000128205",
    "activation": "leaky_relu",
    "residual": "on, branch 0.223607",
    "norm": "layer mid",
    "optimizer": "momentum",
    "schedule": "warmup_cosine",
}


def test_the_knob_line_omits_keys_and_values_that_cannot_act() -> None:
    ended = [started(2), steps(0, [1.0]), RunEnded(status="finished", step=1)]
    words = "".join(s.text for s in knob_line(view(ended), 200).segments)
    assert "undo" not in words
    assert "space" not in words
    away = started(2, knobs=(KnobState(name="lr", value="0.1"), KnobState(name="residual", unavailable="no blocks")))
    assert "residual –" in "".join(s.text for s in knob_line(view([away]), 200).segments)


@pytest.mark.parametrize(("name", "gpu"), [("vanishing", True), ("vanishing", False), ("edge-of-stability", False)])
def test_the_status_line_at_120_columns_shows_all_numbers_of_the_run(name: str, gpu: bool) -> None:
    card = Gpu(name="H200", utilisation=0.87, temperature_c=61.0, power_w=240.0) if gpu else None
    events = [*vanishing(420)[1:], device(3, 1_230_000_000, gpu=card)]
    events = [msgspec.structs.replace(e, name=name) if isinstance(e, RunStarted) else e for e in events]
    events.append(turned(400, "30", "max", knob="pace"))
    figures = [name, "420/2,000", "/s", "loss ", "val ", "acc ", "mem 1.2 GB", "watch 0.6%", "● running"]
    at_120, at_200, at_80 = (StatusPanel().draw(view(events), width, 1)[0].text for width in (120, 200, 80))
    assert [words for words in figures + ["GPU 87 %"] * gpu if words not in at_120] == []
    if not gpu and name == "vanishing":
        assert "watch" not in StatusPanel().draw(view(events[:-1]), 120, 1)[0].text
    assert [
        words for words in [*figures, "digits · mlp", "  cpu  "] + ["61 °C 240 W"] * gpu if words not in at_200
    ] == []
    assert [words for words in [name, "420/2,000", "loss ", "● running"] if words not in at_80] == []


@pytest.mark.parametrize("width", range(60, 140))
def test_the_status_line_is_never_cut(width: int) -> None:
    gpu = Gpu(name="H200", utilisation=0.87, temperature_c=61.0, power_w=240.0)
    line = StatusPanel().draw(view([*vanishing(70), device(3, 1_230_000_000, gpu=gpu)]), width, 1)[0].text
    assert len(line) == width
    assert "…" not in line
    assert line.endswith(" ● running ")


def test_the_device_sparkline_repeats_the_last_reading() -> None:
    run = history_of([started(2), steps(0, [1.0] * 8), device(0, 500), device(4, 1000)])
    assert sparkline(run, 0, 8) == "▅▅▅▅█"
    assert sparkline(run, 0, 4) == "▅▅█"
    assert sparkline(run, 1, 8) == "", "no GPU, no utilisation"


def test_byte_sizes_have_three_digits() -> None:
    assert [byte_size(n) for n in (0, 12_000, 999_400, 940_000_000, 999_600_000, 1_230_000_000)] == [
        "0 kB", "12 kB", "999 kB", "940 MB", "1.0 GB", "1.2 GB",
    ]  # fmt: skip


@pytest.mark.parametrize("rows", [5, 6, 12, 18, 40])
@pytest.mark.parametrize("decades", [(-9.3, 0.4), (0.5, 6.6), (-1.0, 2.1), (-30.0, 4.0)])
def test_a_log_axis_over_many_decades_has_evenly_spaced_powers_of_ten(decades: tuple[float, float], rows: int) -> None:
    axis = Axis(*decades, True)
    values = sorted(float(text) for text in axis.labels(rows).values())
    exponents = [round(math.log10(v)) for v in values]
    assert values == pytest.approx([10.0**e for e in exponents])
    assert len({b - a for a, b in itertools.pairwise(exponents)}) == 1
    assert len(values) >= min(rows // 4, math.floor(decades[1]) - math.ceil(decades[0]))
