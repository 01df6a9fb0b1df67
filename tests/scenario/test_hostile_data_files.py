"""Data files that are broken, or meant to break the reader: one short error that says what is allowed, and at once."""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from own_data_files import idx, write_images
from small_scenario import SMALL, TEXT

from tui_descent.scenario.own_data import images, points, text
from tui_descent.scenario.spec import OwnImagesData, OwnPointsData, OwnTextData
from tui_descent.scenario.toml import ScenarioError, read

QUICK_S = 10.0  # measured: below 0.5 s
MOST = 10_000_000
BOMB = gzip.compress(bytes(80_000_000), 1)
GOOD = [f"{n},{n * n % 11},{'ab'[n % 2]}" for n in range(30)]
POINTS = "\n".join(GOOD) + "\n"

ANY_FILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "has"),
    "a gzip bomb": (BOMB, "when uncompressed"),
    "a broken gzip file": (b"\x1f\x8b" + b"x" * 100, "is not a valid gzip file"),
    "half a gzip file": (gzip.compress(os.urandom(5000))[:3000], "is a gzip file that ends too early"),
    "a wrong checksum": (gzip.compress(POINTS.encode())[:-8] + bytes(8), "is not a valid gzip file"),
    "two gzip files": (gzip.compress(b"a") + gzip.compress(b"b"), "has more bytes after the end of its gzip data"),
}
TEXTS: dict[str, tuple[bytes, str]] = ANY_FILE | {
    "empty": (b"", "has 0 characters; a context of 32 needs at least 396"),
    "too short": (b"abc " * 98, "has 392 characters; a context of 32 needs at least 396"),
    "too large": (b"a" * (MOST + 1), "is larger than 10,000,000 bytes, the limit"),
    "not UTF-8": (b"fine\n" * 100 + b"\xff\xfe", "line 101 is not UTF-8; save the file as UTF-8"),
    "UTF-16": (("good text\n" * 100).encode("utf-16"), "line 1 is not UTF-8"),
    "zeros": (bytes(5000), "characters that do not fit into one column of a terminal; they are 100%"),
    "control codes": (b"\x1b[2J" * 500, "characters that do not fit into one column of a terminal; they are 25%"),
    "wide characters": (("深層学習\n" * 500).encode(), "they are 80% of the text"),
    "combining characters": (("a\u0301\u0302\u0303" * 500).encode(), "they are"),
    "too many different": (
        ("".join(chr(0x400 + n) for n in range(130)) * 20).encode(),
        "has 130 different characters, and those beyond the 96 most frequent are 27% of the text; allowed: 5%",
    ),
}
BIG = 2**32 - 1
IMAGES: dict[str, tuple[bytes, str]] = ANY_FILE | {
    "empty": (b"", "is not an IDX file: it does not begin with 0, 0, 8 and 3"),
    "too large": (bytes(64_000_001), "is larger than 64,000,000 bytes, the limit"),
    "a PNG": (b"\x89PNG\r\n\x1a\n" + bytes(500), "is not an IDX file"),
    "labels": (idx((40,), bytes(40)), "has 1 dimensions; images need 3: number, rows, columns"),
    "colours": (idx((40, 4, 4, 3), bytes(40 * 48)), "has 4 dimensions; images need 3"),
    "floats": (idx((40, 4, 4), bytes(40 * 64), kind=13), "has floats; allowed: bytes (type 8)"),
    "only a header": (idx((40, 4, 4), b"")[:10], "ends within its header"),
    "too few bytes": (idx((40, 4, 4), bytes(639)), "has 639 bytes after its header; 40 × 4 × 4 images are 640"),
    "too many bytes": (idx((40, 4, 4), bytes(641)), "has 641 bytes after its header; 40 × 4 × 4 images are 640"),
    "sizes that lie": (idx((BIG, BIG, BIG), bytes(100)), "has 100 bytes after its header; 4,294,967,295 ×"),
    "no images": (idx((0, 4, 4), b""), "has no images"),
    "few images": (idx((19, 4, 4), bytes(19 * 16)), "has 19 images; allowed: 20 to 100,000"),
    "many images": (idx((100_001, 2, 2), bytes(400_004)), "has 100,001 images; allowed: 20 to 100,000"),
    "large images": (idx((40, 65, 4), bytes(40 * 260)), "images of 65 rows; allowed: 2 to 64"),
    "thin images": (idx((40, 4, 1), bytes(160)), "images of 1 columns; allowed: 2 to 64"),
}
LABELS: dict[str, tuple[bytes, str]] = {
    "missing": (b"", "no such file"),
    "one too few": (idx((39,), bytes(39)), "has 39 labels, but there are 40 images"),
    "images": (idx((40, 4, 4), bytes(640)), "has 3 dimensions; labels need 1"),
    "one class": (idx((40,), b"\x03" * 40), "all labels are 3; needs at least two classes"),
    "a large label": (idx((40,), bytes(38) + b"\x64\x01"), "label 39 is 100; allowed: 0 to 99"),
}
TABLES: dict[str, tuple[bytes, str]] = ANY_FILE | {
    "empty": (b"", "has 0 points; needs at least 20"),
    "only a heading": (b"x,y,label\n", "has 0 points; needs at least 20"),
    "too large": (b"1,2,a\n" * 1_700_000, "is larger than 10,000,000 bytes, the limit"),
    "too many points": (b"1,2,a\n" * 100_001, "has more than 100,000 points, the limit"),
    "two columns": (POINTS.encode() + b"1,2\n", "line 31 has 2 columns; allowed: three, x,y,label"),
    "four columns": (b"1,2,3,a\n" * 30, "line 1 has 4 columns; allowed: three, x,y,label"),
    "one column": (b"hello\n" * 30, "line 1 has one column"),
    "a word": (POINTS.encode() + b"1,two,a\n", 'line 31: y is "two"; allowed: a number up to 1e+09'),
    "NaN": (POINTS.encode() + b"nan,2,a\n", 'line 31: x is "nan"'),
    "infinite": (POINTS.encode() + b"-inf,2,a\n", 'line 31: x is "-inf"'),
    "1e308": (POINTS.encode() + b"1e308,2,a\n", 'line 31: x is "1e308"'),
    "1e999": (POINTS.encode() + b"1,-1e999,a\n", 'line 31: y is "-1e999"'),
    "a decimal comma": (b"1,5;2,5;a\n1,6;2,6;b\n" * 20, 'line 2: x is "1,6"; allowed: a number'),
    "an underscore": (POINTS.encode() + b"1_000,2,a\n", 'line 31: x is "1_000"'),
    "Arabic digits": (POINTS.encode() + "١,2,a\n".encode(), "line 31: x is"),
    "a second heading": (b"x,y,label\nx,y,label\n" + POINTS.encode(), 'line 2: x is "x"'),
    "no label": (POINTS.encode() + b"1,2,\n", "line 31 has no label; allowed: 1 to 40 characters"),
    "a long label": (POINTS.encode() + b"1,2," + b"a" * 41 + b"\n", "line 31 has a label of 41 characters"),
    "a long line": (POINTS.encode() + b"1,2," + b"a" * 9_000_000, "line 31 has 9,000,004 characters; allowed: 1,000"),
    "one label": (POINTS.replace("b", "a").encode(), "has 1 different labels (a); allowed: 2"),
    "three labels": ((POINTS + "1,2,c\n").encode(), "has 3 different labels (a, b, c); allowed: 2"),
    "a label a point": (
        "\n".join(f"{n},{n % 11},l{n}" for n in range(50_000)).encode(),
        "has 50000 different labels (l0, l1, l10, l100, …); allowed: 2",
    ),
    "control codes": ((POINTS + "1,2,\x1b[2J\n1,2,c\n").encode(), "has 4 different labels (\\x1b[2J, a, b, c)"),
    "NUL": (POINTS.encode() + b"1\0,2,a\n", 'line 31: x is "1\\x00"'),
    "the same x": ("\n".join(f"5,{n},{'ab'[n % 2]}" for n in range(30)).encode(), "x is 5 for all points; it must"),
    "quotes": (POINTS.encode() + b'"1","2,a\n', "line 31 has 2 columns"),
}


def message(read_it: Callable[[], object]) -> str:
    begun = time.process_time()
    with pytest.raises(ValueError) as caught:
        read_it()
    assert time.process_time() - begun < QUICK_S
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    return str(caught.value)


@pytest.mark.parametrize(("content", "said"), TEXTS.values(), ids=TEXTS.keys())
def test_a_bad_text_is_one_short_error(content: bytes, said: str, home: Path) -> None:
    (path := home / "t.txt").write_bytes(content)
    assert said in message(lambda: text.read(OwnTextData(path=str(path)), 32))


@pytest.mark.parametrize(("content", "said"), IMAGES.values(), ids=IMAGES.keys())
def test_bad_images_are_one_short_error(content: bytes, said: str, home: Path) -> None:
    path = write_images(home)
    path.write_bytes(content)
    assert said in message(lambda: images.read(OwnImagesData(path=str(path))))


@pytest.mark.parametrize(("content", "said"), LABELS.values(), ids=LABELS.keys())
def test_bad_labels_are_one_short_error(content: bytes, said: str, home: Path) -> None:
    path = write_images(home)
    labels = home / "train-labels-idx1-ubyte"
    labels.write_bytes(content) if content else labels.unlink()
    assert said in message(lambda: images.read(OwnImagesData(path=str(path))))


@pytest.mark.parametrize(("content", "said"), TABLES.values(), ids=TABLES.keys())
def test_bad_points_are_one_short_error(content: bytes, said: str, home: Path) -> None:
    (path := home / "p.csv").write_bytes(content)
    assert said in message(lambda: points.read(OwnPointsData(path=str(path))))


def test_what_is_not_a_file_is_not_opened(home: Path) -> None:
    os.mkfifo(home / "images.fifo")
    for path, said in (
        (home, "is a folder; give a file"),
        (home / "images.fifo", "is not a regular file; give a file"),
        (Path("/dev/zero"), "is not a regular file; give a file"),
        (home / "images.none", "no such file"),
        (home / ("images" * 100), "cannot be read: File name too long"),
        (Path(f"{home}/t.txt/x"), "no such file"),
    ):
        assert said in message(lambda path=path: points.read(OwnPointsData(path=str(path))))  # type: ignore[misc]
        assert said in message(lambda path=path: text.read(OwnTextData(path=str(path)), 32))  # type: ignore[misc]
    assert "null" in message(lambda: points.read(OwnPointsData(path="a\0b")))


def test_images_whose_labels_cannot_be_found_ask_for_them(home: Path) -> None:
    said = message(lambda: images.read(OwnImagesData(path=str(home / "digits.idx"))))
    assert said.endswith('its name has no "images" to find the labels by; set data.labels, too')


def test_more_images_than_there_are_cannot_be_asked_for(home: Path) -> None:
    data = OwnImagesData(path=str(write_images(home)), subset=41)
    assert "has 40 images; subset asks for 41" in message(lambda: images.read(data))


def test_the_error_of_a_scenario_names_its_file_and_the_place(home: Path) -> None:
    file = home / "s.toml"
    file.write_text(SMALL.replace("digits", "own-points"))
    with pytest.raises(ScenarioError) as caught:
        read(file, overrides=["data.path=/no/such.csv"])
    assert str(caught.value) == f"{file}: data.path: /no/such.csv: no such file"
    file.write_text(TEXT.replace('"text"', f'"own-text"\npath = "{"x" * 5000}"'))
    with pytest.raises(ScenarioError, match=r"data\.path: found .*allowed: text of 0 to 4096 characters"):
        read(file)
