"""Convert a TOML table to a struct.

Reports every error: its place, what was found, what is allowed, the closest word.
"""

from __future__ import annotations

import difflib
import functools
import math
import types
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

# A name alone may replace a table: `activation = "gelu"` means `activation = { name = "gelu" }`.
SHORTHAND = "name"
MAX_SHOWN = 20  # problems of one scenario
# An allowed word is suggested for a wrong one if it begins with the wrong one, or if the two are similar enough. For
# example, "sgdd" and "sgd" are similar enough, "mnist" and "moons" are not.
MIN_PREFIX, MIN_SIMILARITY = 3, 0.7


class Problem(msgspec.Struct, frozen=True):
    """One error and its place, as in `optimizer.lr`."""

    place: str
    text: str

    def __str__(self) -> str:
        return escape_controls(f"{shorten(self.place, 200)}: {self.text}" if self.place else self.text)


def escape_controls(text: str) -> str:
    """Make text from a file or a user safe to print: escape control characters."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shorten(text: str, limit: int) -> str:
    """The first characters of `text` if it is longer than `limit`."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def convert(kind: Any, value: Any, place: str, problems: list[Problem]) -> Any:
    """Convert `value` to `kind`. On an error, append it to `problems` and return None."""
    kind, meta = _unwrap(kind)
    if value is None:
        problems.append(Problem(place, f"found nothing; allowed: {_allowed(kind, meta)}"))
        return None
    structs = [t for t in _members(kind) if isinstance(t, type) and issubclass(t, msgspec.Struct)]
    if structs and (isinstance(value, Mapping | str)):
        return _table(structs, value, place, problems)
    if get_origin(kind) is tuple and isinstance(value, list):
        return _array(kind, meta, value, place, problems)
    if isinstance(value, float) and not math.isfinite(value):
        problems.append(Problem(place, f"found {value}; allowed: {_allowed(kind, meta)}"))
        return None
    try:
        return msgspec.convert(value, Annotated[kind, meta] if meta else kind)
    except (msgspec.ValidationError, OverflowError):
        text = f"found {_show(value)}; allowed: {_allowed(kind, meta)}"
        problems.append(Problem(place, text + nearest(value, _words(kind))))
        return None


def nearest(word: Any, words: Iterable[Any]) -> str:
    """The text ` — did you mean …?` with the closest of `words`, or an empty string if none is close."""
    known = [str(w) for w in words]
    typed = str(word)[:60].lower()
    hits = [w for w in known if len(typed) >= MIN_PREFIX and w.startswith(typed)]
    hits += difflib.get_close_matches(typed, known, n=1, cutoff=MIN_SIMILARITY)
    return f' — did you mean "{hits[0]}"?' if hits else ""


def _table(
    structs: list[type[msgspec.Struct]], value: Mapping[str, Any] | str, place: str, problems: list[Problem]
) -> Any:
    short = isinstance(value, str)
    table = {SHORTHAND: value} if isinstance(value, str) else dict(value)
    struct = structs[0]
    tag_field = struct.__struct_config__.tag_field
    if tag_field:
        by_tag = {s.__struct_config__.tag: s for s in structs}
        tag = table.pop(tag_field, None)
        if not isinstance(tag, str) or tag not in by_tag:
            found = "nothing" if tag is None else _show(tag)
            text = f"found {found}; allowed: {', '.join(map(str, by_tag))}"
            problems.append(
                Problem(
                    place if short else _join(place, tag_field), text + ("" if tag is None else nearest(tag, by_tag))
                )
            )
            any_kind = {f.encode_name: None for s in structs for f in _fields(s)}
            for key in table:
                if key not in any_kind:
                    _report_unknown(key, any_kind, place, problems)
            return None
        struct = by_tag[tag]
    fields = {f.encode_name: f for f in _fields(struct)}
    kept: dict[str, Any] = {}
    before = len(problems)
    for key, item in table.items():
        if key not in fields:
            _report_unknown(key, fields, place, problems)
            continue
        inner = place if short else _join(place, key)
        kept[fields[key].name] = convert(fields[key].type, item, inner, problems)
    for key, field in fields.items():
        if field.required and key not in table:
            problems.append(Problem(_join(place, key), f"missing; allowed: {_allowed(*_unwrap(field.type))}"))
    return struct(**kept) if len(problems) == before else None


# msgspec would evaluate the annotations, which are strings, at every call: half of the time that a scenario takes.
_fields = functools.cache(msgspec.structs.fields)


def _report_unknown(key: str, known: Collection[str], place: str, problems: list[Problem]) -> None:
    allowed = ", ".join(known) or "none"
    hint = nearest(key, known) if len(problems) < MAX_SHOWN else ""  # the search is slow, and only these are shown
    problems.append(Problem(_join(place, key), f"unknown key; allowed here: {allowed}{hint}"))


def _array(kind: Any, meta: Any, value: list[Any], place: str, problems: list[Problem]) -> Any:
    items = get_args(kind)
    same = len(items) == 2 and items[1] is Ellipsis
    low = (meta.min_length if meta else None) or 0
    high = (meta.max_length if meta else None) or len(value)
    if not same:
        low = high = len(items)
    if not low <= len(value) <= high:
        many = f"{low}" if low == high else f"{low} to {high}"
        problems.append(Problem(place, f"found {len(value)} values; allowed: {many}"))
        return None
    kinds = [items[0]] * len(value) if same else items
    return tuple(convert(k, v, f"{place}[{n}]", problems) for n, (k, v) in enumerate(zip(kinds, value, strict=True)))


def _unwrap(kind: Any) -> tuple[Any, msgspec.Meta | None]:
    if get_origin(kind) is Annotated:
        inner, *metas = get_args(kind)
        return inner, next((m for m in metas if isinstance(m, msgspec.Meta)), None)
    if get_origin(kind) in (Union, types.UnionType):
        members = [t for t in get_args(kind) if t is not type(None)]
        if len(members) == 1:
            return _unwrap(members[0])
    return kind, None


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _words(kind: Any) -> list[Any]:
    return [w for t in _members(kind) if get_origin(t) is Literal for w in get_args(t)]


def _allowed(kind: Any, meta: msgspec.Meta | None) -> str:
    if len(members := _members(kind)) > 1:
        return " or ".join(dict.fromkeys(_allowed(*_unwrap(t)) for t in members if t is not type(None)))
    if get_origin(kind) is Literal:
        return ", ".join(f'"{w}"' for w in get_args(kind))
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return "a table"
    if get_origin(kind) is tuple:
        return "a list"
    noun = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(kind, str(kind))
    if meta is None:
        return noun
    bounds = [
        f"{sign} {bound:g}" if isinstance(bound, float) or bound < 10**6 else f"{sign} {bound:,}"
        for sign, bound in ((">", meta.gt), ("≥", meta.ge), ("<", meta.lt), ("≤", meta.le))
        if bound is not None
    ]
    if meta.pattern:
        return "auto, cpu, mps, cuda or cuda:N"
    if meta.min_length or meta.max_length:
        return f"{noun} of {meta.min_length or 0} to {meta.max_length} characters"
    return f"{noun} {' and '.join(bounds)}"


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, int) and value.bit_length() > 1000:  # Python refuses to write out a very long number
        return f"a number of {value.bit_length():,} bits"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _join(place: str, key: str) -> str:
    key = shorten(key, 40) if key.isidentifier() else ascii(key[:40])
    return f"{place}.{key}" if place else key
