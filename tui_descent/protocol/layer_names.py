"""Names of layers in sentences."""

from __future__ import annotations


def in_words(name: str) -> str:
    """The name of a layer in a sentence: `fc1`, but `layer 4`, since a number alone would look like a quantity."""
    return f"layer {name}" if name.replace(".", "").isdigit() else name


def pair_in_words(first: str, last: str) -> tuple[str, str]:
    """Two layers in one sentence, as short as they can be: `blocks.0` and `blocks.9`, but not one name for both."""
    short = shortened(first), shortened(last)
    one, other = short if short[0] != short[1] else (first, last)
    return in_words(one), in_words(other)


def shortened(name: str) -> str:
    """A module path up to the first number that follows a word, which is that of a block.

    `enc.layers.3.linear1` becomes `enc.layers.3`. Without such a number the whole path is kept.
    """
    parts = name.split(".")
    ends = (n for n in range(1, len(parts)) if parts[n].isdigit() and not parts[n - 1].isdigit())
    end = next(ends, None)
    return name if end is None else ".".join(parts[: end + 1])
