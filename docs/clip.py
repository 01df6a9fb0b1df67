"""Make docs/vanishing.gif: the preset vanishing in a real terminal, with `r` pressed at about step 150.

python docs/clip.py            (needs the extra `docs`, and what docs/pictures.py needs; takes half a minute)
"""

from __future__ import annotations

import io
import subprocess
import sys

from pictures import ROOT, running, svg, wait_for_step
from PIL import Image

COLUMNS, ROWS = 80, 24
STEPS = (*range(30, 150, 30), 149, *range(160, 260, 10), *range(260, 441, 30))  # one frame each
PRESS_AT = 150
COLOURS = 200
FRAME_MS, PAUSE_MS, END_MS = 250, 1200, 4000


def frames() -> list[str]:
    """The screen at each of the steps, as SVG."""
    pictures = []
    with running(["vanishing"], COLUMNS, ROWS) as terminal:
        pressed = False
        for step in STEPS:
            if step >= PRESS_AT and not pressed:
                terminal.press("r")
                pressed = True
            wait_for_step(terminal, step)
            pictures.append(svg(terminal.screen))
    return pictures


def image(picture: str) -> Image.Image:
    """The pixels of an SVG."""
    done = subprocess.run(["rsvg-convert"], input=picture.encode(), capture_output=True, check=True)
    return Image.open(io.BytesIO(done.stdout)).convert("RGB")


def main() -> int:
    """Record, draw and save the clip, with one palette for all frames so that unchanged cells cost nothing."""
    images = [image(picture) for picture in frames()]
    palette = images[-1].quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE)
    drawn = [one.quantize(palette=palette, dither=Image.Dither.NONE) for one in images]
    times = [PAUSE_MS if step == PRESS_AT - 1 else FRAME_MS for step in STEPS[:-1]] + [END_MS]
    target = ROOT / "docs" / "vanishing.gif"
    drawn[0].save(target, save_all=True, append_images=drawn[1:], duration=times, loop=0, optimize=False)
    print(f"{target.name}: {len(drawn)} frames, {target.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
