"""plotext behind its wrapper: no input may raise or abort, and dots are where they should be."""

from __future__ import annotations

import math
import subprocess
import sys

from tui_descent.dashboard.charts import braille
from tui_descent.dashboard.charts.braille import Curve, ascii_chart, canvas, reduced

FUZZ = """
import math, random
from tui_descent.dashboard.charts.braille import Curve, ascii_chart, canvas, reduced
odd = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e308, -1e308, 5e-324, 1.0, -1.0]
draw = random.Random(SEED)
def number(): return draw.choice(odd) if draw.random() < 0.3 else draw.uniform(-20, 200)
for n in range(250):
    columns, rows = draw.randint(0, 40), draw.randint(0, 9)
    curves = []
    for _ in range(draw.randint(0, 3)):
        many = draw.choice([0, 1, 2, 3, 50])
        points = [(number(), number()) for _ in range(many)]
        if draw.random() < 0.3: points = [(float(k), 3.0) for k in range(many)]
        curves.append(Curve(points, (200, 100, 50)))
    lines = canvas(curves, columns, rows)
    assert len(lines) == rows, (len(lines), rows)
    for line in lines:
        assert sum(len(s.text) for s in line) == columns
    points = [(float(k), number()) for k in range(draw.choice([0, 1, 2, 30]))]
    ascii_chart(points, draw.randint(1, 90), draw.randint(1, 20), ascii_only=draw.random() < 0.5)
print("alive")
"""


def test_fuzzed_curves_never_crash_plotext() -> None:
    for seed in range(3):
        done = subprocess.run(
            [sys.executable, "-c", FUZZ.replace("SEED", str(seed))], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.strip() == "alive"


def test_each_point_sets_its_own_braille_dot() -> None:
    bits = ((0x40, 0x80), (0x04, 0x20), (0x02, 0x10), (0x01, 0x08))
    columns, rows = 7, 3
    for x in range(2 * columns):
        for y in range(4 * rows):
            lines = ["".join(s.text for s in line) for line in canvas([Curve([(x, y)], (1, 2, 3))], columns, rows)]
            assert lines[rows - 1 - y // 4][x // 2] == chr(0x2800 + bits[y % 4][x % 2])
            assert sum(c not in " \u2800" for line in lines for c in line) == 1


def test_a_nan_leaves_a_gap_in_the_line() -> None:
    line = canvas([Curve([(0.0, 2.0), (1.0, 2.0), (math.nan, 0.0), (18.0, 2.0), (19.0, 2.0)], (1, 2, 3))], 10, 2)[1]
    assert "".join(s.text for s in line)[2:8].strip(" \u2800") == ""


def test_reduced_keeps_the_lowest_and_highest_point_of_a_dot_column() -> None:
    points = [(k / 100, math.sin(k)) for k in range(1000)]
    few = reduced(points)
    assert len(few) <= 2 * 11
    assert max(y for _, y in few) == max(y for _, y in points)
    assert min(y for _, y in few) == min(y for _, y in points)


def test_ascii_chart_of_a_headless_run() -> None:
    points = [(float(k), 2.3 * math.exp(-k / 100) + 0.05) for k in range(600)]
    text = ascii_chart(points, 72, 14)
    assert "\x1b" not in text
    lines = text.splitlines()
    assert lines[0] == "loss (logarithmic)"
    assert len(lines) == 14
    assert max(map(len, lines)) <= 72
    assert any(line.lstrip().startswith("1.00│") for line in lines)
    assert lines[-1].split() == ["0", "599"]
    plain = ascii_chart(points, 72, 14, ascii_only=True)
    assert plain.isascii()
    assert "*" in plain


def test_ascii_chart_of_negative_losses_is_linear() -> None:
    assert ascii_chart([(0.0, 1.0), (1.0, -1.0)]).startswith("loss (linear)")
    assert "nothing" in ascii_chart([(0.0, math.nan)])


def test_segments_keep_the_curve_colour() -> None:
    line = canvas([Curve([(0.0, 0.0), (9.0, 0.0)], (10, 20, 30))], 5, 2)[1]
    style = line[0].style
    assert style is not None
    assert style.color is not None
    assert tuple(style.color.get_truecolor()) == (10, 20, 30)
    assert braille._SGR.sub("", line[0].text) == line[0].text
