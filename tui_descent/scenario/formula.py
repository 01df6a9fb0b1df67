"""Formulas of x and y, as in `x^2 - y^2 + y^4/4`: a small grammar with its own parser, and nothing else.

A formula is never run as code. It is parsed into a short program for a machine with a stack, which `training/` runs on
tensors.

    sum     = product { ("+" | "-") product }
    product = sign { ("*" | "/") sign }
    sign    = { "+" | "-" } power                      -x^2 is -(x^2)
    power   = atom [ ("^" | "**") sign ]               2^3^2 is 2^(3^2)
    atom    = number | "x" | "y" | "pi" | "e" | function "(" sum ")" | "(" sum ")"
"""

from __future__ import annotations

import math
import re
from typing import Literal

import msgspec

from tui_descent.scenario.validate import nearest

FUNCTIONS = ("abs", "atan", "cos", "cosh", "exp", "log", "sin", "sinh", "sqrt", "tan", "tanh")
CONSTANTS = {"pi": math.pi, "e": math.e}
MAX_CHARACTERS = 400
MAX_DEPTH = 40  # of brackets, signs and powers inside each other
WHAT_BEGINS = "a number, x, y, (, - or a function"
WHAT_FOLLOWS = "+ - * / ^"

_TOKEN = re.compile(
    r"\s*(?:(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|([A-Za-z_]\w*)|(\*\*|[-+*/^()]))", re.ASCII
)
Kind = Literal["number", "word", "sign", "end"]


class Operation(msgspec.Struct, frozen=True):
    """One step of the program: push a number or a variable, or replace the top of the stack by a result.

    `name` is "number", "x", "y", one of `FUNCTIONS`, "negate", or one of `+ - * / ^`, which take two values.
    """

    name: str
    number: float = 0.0


class FormulaError(ValueError):
    """An invalid formula. `column` counts from 1."""

    def __init__(self, column: int, text: str) -> None:
        super().__init__(f"column {column}: {text}")
        self.column = column


def parse(text: str) -> tuple[Operation, ...]:
    """The program that computes the formula; its result is the only value left on the stack.

    Raises `FormulaError` with the column, what was found there and what is allowed.
    """
    if len(text) > MAX_CHARACTERS:
        raise FormulaError(MAX_CHARACTERS + 1, f"found {len(text):,} characters; allowed: at most {MAX_CHARACTERS}")
    parser = _Parser(text)
    parser.sum()
    parser.end()
    if not any(operation.name in ("x", "y") for operation in parser.program):
        raise FormulaError(1, "the formula has neither x nor y; allowed: a formula that depends on x, or on x and y")
    return tuple(parser.program)


def uses_y(program: tuple[Operation, ...]) -> bool:
    """Whether the formula depends on y."""
    return any(operation.name == "y" for operation in program)


class _Parser:
    def __init__(self, text: str) -> None:
        self._text, self._depth = text, 0
        self.program: list[Operation] = []
        self._next = 0
        self._advance()

    def _advance(self) -> None:
        """Read the next token."""
        rest = self._text[self._next :]
        self._start = self._next + len(rest) - len(rest.lstrip())
        self.kind: Kind = "end"
        self.token = ""
        if self._start == len(self._text):
            return
        found = _TOKEN.match(self._text, self._next)
        if found is None:
            raise self._error(f'found "{self._text[self._start]}"; allowed: {WHAT_BEGINS}, or {WHAT_FOLLOWS}')
        number, word, sign = found.groups()
        self.token = number or word or sign
        self.kind = "number" if number else "word" if word else "sign"
        self._next = found.end()

    def _error(self, text: str) -> FormulaError:
        return FormulaError(self._start + 1, text)

    def _found(self) -> str:
        return f'found "{self.token[:20]}"' if self.kind != "end" else "the formula ends here"

    def _take(self, *signs: str) -> str:
        """The current token, if it is one of `signs`; it is then consumed. Otherwise an empty text."""
        taken = self.token if self.kind == "sign" and self.token in signs else ""
        if taken:
            self._advance()
        return taken

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"more than {MAX_DEPTH} brackets, signs and powers inside each other")

    def end(self) -> None:
        """Check that nothing follows the formula."""
        if self.kind == "end":
            return
        times = f"; for a product write *{self.token[:20]}" if self.kind != "sign" or self.token == "(" else ""
        raise self._error(f"{self._found()}; allowed: {WHAT_FOLLOWS} or the end{times}")

    def sum(self) -> None:
        self._product()
        while sign := self._take("+", "-"):
            self._product()
            self.program.append(Operation(sign))

    def _product(self) -> None:
        self._sign()
        while sign := self._take("*", "/"):
            self._sign()
            self.program.append(Operation(sign))

    def _sign(self) -> None:
        self._deeper()
        if sign := self._take("+", "-"):
            self._sign()
            if sign == "-":
                self.program.append(Operation("negate"))
        else:
            self._power()
        self._depth -= 1

    def _power(self) -> None:
        self._atom()
        if self._take("^", "**"):
            self._sign()
            self.program.append(Operation("^"))

    def _atom(self) -> None:
        if self.kind == "number":
            value = float(self.token)
            if not math.isfinite(value):
                raise self._error(f"{self._found()}; allowed: a number below 1.8e308")
            self.program.append(Operation("number", value))
            self._advance()
        elif self.kind == "word":
            self._word()
        elif self._take("("):
            self.sum()
            self._close()
        else:
            raise self._error(f"{self._found()}; allowed: {WHAT_BEGINS}")

    def _word(self) -> None:
        word = self.token
        if word in ("x", "y"):
            self.program.append(Operation(word))
            self._advance()
        elif word in CONSTANTS:
            self.program.append(Operation("number", CONSTANTS[word]))
            self._advance()
        elif word in FUNCTIONS:
            self._advance()
            if not self._take("("):
                raise self._error(f"{self._found()}; allowed: (, as in {word}(x)")
            self.sum()
            self._close()
            self.program.append(Operation(word))
        else:
            allowed = ("x", "y", *CONSTANTS, *FUNCTIONS)
            raise self._error(f"{self._found()}; allowed: {', '.join(allowed)}{nearest(word, allowed)}")

    def _close(self) -> None:
        if not self._take(")"):
            raise self._error(f"{self._found()}; allowed: {WHAT_FOLLOWS} or )")
