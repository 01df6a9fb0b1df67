"""The user's own text, images and points: what is read, and from where."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from own_data_files import idx, write_images

from tui_descent.scenario import own_data, presets
from tui_descent.scenario.own_data import images, points, text
from tui_descent.scenario.spec import OwnImagesData, OwnPointsData, OwnTextData
from tui_descent.scenario.toml import from_table, read, to_table

ROWS = [f"{n / 10},{n % 7},{'ab'[n % 2]}" for n in range(30)]
SCENARIO = 'title = "t"\n[data]\nname = "own-points"\npath = "{path}"\n[model]\nname = "mlp"\n'


def test_samples_are_valid_and_small() -> None:
    assert len(text.read(OwnTextData(), 64).characters) > 4000
    assert images.sizes(OwnImagesData()).classes == 4
    assert len(set(images.read(OwnImagesData()).labels)) == 4
    assert len(points.read(OwnPointsData()).x) == 300
    assert sum(path.stat().st_size for path in images.SAMPLES.iterdir()) < 20_000


def test_no_sample_image_is_there_twice() -> None:
    found = images.read(OwnImagesData())
    size = found.sizes.pixels
    count = len(found.labels)
    assert len({found.pixels[n * size : (n + 1) * size] for n in range(count)}) == count


def test_a_text_has_the_line_feed_and_its_most_frequent_characters(home: Path) -> None:
    path = home / "t.txt"
    path.write_bytes("\ufeffÄpfel\tund\r\nBirnen, né ".encode() * 100)
    found = text.read(OwnTextData(path=str(path)), 32)
    assert found.characters.startswith("Äpfel und\nBirnen, né")
    assert found.symbols == "\n" + "".join(sorted(set("Äpfel und" + "Birnen, né")))


def test_rare_characters_of_a_text_are_left_out(home: Path) -> None:
    path = home / "t.txt"
    rare = "".join(chr(0x0400 + n) for n in range(80))
    path.write_text("the quick brown fox jumps over the lazy dog 0123456789\n" * 100 + rare + "漢\x07", "utf-8")
    found = text.read(OwnTextData(path=str(path)), 32)
    assert len(found.symbols) == 96
    assert set(found.characters) == set(found.symbols)
    assert "漢" not in found.characters
    assert "\x07" not in found.characters


@pytest.mark.parametrize("separator", [",", ";", "\t", " , "])
@pytest.mark.parametrize("heading", ["", "x,y,label\n", "# made by hand\n\n"])
def test_points_with_any_separator_and_heading(separator: str, heading: str, home: Path) -> None:
    path = home / "p.csv"
    path.write_text((heading + "\n".join(ROWS)).replace(",", separator).replace("#", "#") + "\n", "utf-8")
    found = points.read(OwnPointsData(path=str(path)))
    assert found.x == [n / 10 for n in range(30)]
    assert found.y == [n % 7 for n in range(30)]
    assert (found.names, list(found.classes)) == (("a", "b"), [n % 2 for n in range(30)])


def test_labels_that_are_numbers_are_in_the_order_of_their_values(home: Path) -> None:
    path = home / "p.csv"
    path.write_text("\n".join(f"{n},{n * n},{'10' if n % 2 else '9'}" for n in range(30)), "utf-8")
    assert points.read(OwnPointsData(path=str(path))).names == ("9", "10")


@pytest.mark.parametrize("write", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_images_plain_and_compressed(write: Callable[[bytes], bytes], home: Path) -> None:
    path = write_images(home, count=50, height=3, width=5, classes=7, write=write)
    found = images.read(OwnImagesData(path=str(path)))
    assert (found.sizes.height, found.sizes.width, found.sizes.classes) == (3, 5, 7)
    assert (found.sizes.training, found.sizes.held_out) == (40, 10)
    assert found.pixels == bytes(n % 256 for n in range(50 * 15))
    assert found.labels == bytes(n % 7 for n in range(50))


def test_labels_may_have_any_name(home: Path) -> None:
    path = write_images(home, count=50)
    (home / "train-labels-idx1-ubyte").rename(home / "classes")
    data = OwnImagesData(path=str(path), labels=str(home / "classes"))
    assert images.sizes(data).training == 40
    assert images.sizes(OwnImagesData(path=data.path, labels=data.labels, subset=20)).training == 20


def test_a_changed_file_is_read_again(home: Path) -> None:
    path = home / "p.csv"
    path.write_text("\n".join(ROWS), "utf-8")
    data = OwnPointsData(path=str(path))
    assert points.training_count(data) == 24
    path.write_text("\n".join(ROWS[:25]), "utf-8")
    assert points.training_count(data) == 20


def test_a_path_in_a_scenario_file_begins_at_its_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "here").mkdir()
    (home / "here" / "p.csv").write_text("\n".join(ROWS), "utf-8")
    file = home / "here" / "s.toml"
    file.write_text(SCENARIO.format(path="p.csv"))
    monkeypatch.chdir("/")
    found = read(file)
    assert isinstance(found.data, OwnPointsData)
    assert found.data.path == str(home / "here" / "p.csv")
    assert from_table(to_table(found), source="x") == found


def test_a_path_on_the_command_line_begins_at_the_current_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "p.csv").write_text("\n".join(ROWS), "utf-8")
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    for path in ("p.csv", "./p.csv", "~/p.csv", str(home / "p.csv")):
        _, found = presets.find("own-points", overrides=[f"data.path={path}"])
        assert isinstance(found.data, OwnPointsData)
        assert found.data.path == str(home / "p.csv")


def test_only_scenarios_with_a_file_of_their_own_are_checked() -> None:
    assert own_data.check(presets.find("healthy")[1]) is None
    assert own_data.check(presets.find("first-descent")[1]) is None


def test_idx_files_of_the_tests_are_what_the_format_says() -> None:
    assert idx((2, 1, 3), b"abcdef").hex() == "00000803" + "00000002" + "00000001" + "00000003" + b"abcdef".hex()
