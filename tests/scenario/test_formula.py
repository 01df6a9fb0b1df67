"""The grammar of formulas: what is accepted, and what each error says."""

from __future__ import annotations

import pytest

from tui_descent.scenario.formula import MAX_CHARACTERS, MAX_DEPTH, FormulaError, parse, uses_y
from tui_descent.scenario.spec import SurfaceModel, about
from tui_descent.scenario.toml import ScenarioError, from_text

ERRORS = {
    "": "column 1: the formula ends here; allowed: a number, x, y, (, - or a function",
    "2x": 'column 2: found "x"; allowed: + - * / ^ or the end; for a product write *x',
    "x(y)": 'column 2: found "("; allowed: + - * / ^ or the end; for a product write *(',
    "x +": "column 4: the formula ends here; allowed: a number, x, y, (, - or a function",
    "(x": "column 3: the formula ends here; allowed: + - * / ^ or )",
    "x)": 'column 2: found ")"; allowed: + - * / ^ or the end',
    "sin x": 'column 5: found "x"; allowed: (, as in sin(x)',
    "x +  tahn(y)": 'column 6: found "tahn"; allowed: x, y, pi, e, abs, ',
    "x $ y": 'column 3: found "$"; allowed: ',
    "x, y": 'column 2: found ","; allowed: ',
    "3": "column 1: the formula has neither x nor y; ",
    "1e999 + x": 'column 1: found "1e999"; allowed: a number below 1.8e308',
    "__import__('os')": 'column 1: found "__import__"; allowed: ',
    "x.real": 'column 2: found "."; allowed: ',
    "x if y else x": 'column 3: found "if"; allowed: ',
    "x\u00b2": 'column 2: found "\u00b2"; allowed: ',
    "(" * 50 + "x" + ")" * 50: f"column {MAX_DEPTH + 1}: more than {MAX_DEPTH} brackets, signs and powers",
    "-" * 100 + "x": f"column {MAX_DEPTH + 1}: more than {MAX_DEPTH} brackets, signs and powers",
    "x^" * 100 + "x": f"column {2 * MAX_DEPTH + 1}: more than {MAX_DEPTH} brackets, signs and powers",
    "x+" * 300 + "x": "column 401: found 601 characters; allowed: at most 400",
    "x" * 10**6: "column 401: found 1,000,000 characters; allowed: at most 400",
}


@pytest.mark.parametrize("formula", ERRORS, ids=lambda text: text[:12])
def test_error_names_the_column_and_what_is_allowed(formula: str) -> None:
    with pytest.raises(FormulaError) as error:
        parse(formula)
    assert str(error.value).startswith(ERRORS[formula])
    assert "\n" not in str(error.value)


def test_misspelt_function_is_suggested() -> None:
    with pytest.raises(FormulaError, match='did you mean "sqrt"'):
        parse("sqr(y)")


def test_longest_and_deepest_formulas_are_accepted() -> None:
    longest = "x" + "+x" * ((MAX_CHARACTERS - 1) // 2)
    assert len(parse(longest)) == len(longest)
    parse("(" * (MAX_DEPTH - 1) + "x" + ")" * (MAX_DEPTH - 1))


def test_uses_y() -> None:
    assert uses_y(parse("x*y"))
    assert not uses_y(parse("x^2"))


def scenario(model: str) -> str:
    return f'title = "t"\n[model]\nname = "surface"\n{model}'


def test_a_scenario_may_have_a_formula() -> None:
    found = from_text(scenario('formula = "x^2 - y^2"\nstart = [1.0, 0.1]'), source="f.toml")
    assert found.model == SurfaceModel(formula="x^2 - y^2", start=(1.0, 0.1))
    assert about(found) == "surface x^2 - y^2"
    long = from_text(scenario(f'formula = "{"x + " * 50}x"'), source="f.toml")
    assert len(about(long)) < 60


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ('formula = "x^2 + foo"', 'model.formula: column 7: found "foo"; allowed: x, y, '),
        ('formula = "x*y"', "model.start: found 1 value; allowed: 2, because the formula depends on y"),
        ('formula = "x"\nfunction = "bowl"', 'model.formula: found function = "bowl", too; allowed: one of the two'),
        ("formula = 3", "model.formula: found 3; allowed: text"),
        ('function = "bowl"', "model.start: found 1 values; allowed: 2 for bowl"),
        ('function = "himelblau"\nstart = [1.0, 2.0]', 'did you mean "himmelblau"'),
        ('formula = "x"\nstart = [1.0, 2.0, 3.0]', "model.start: found 3 values; allowed: 1 to 2"),
    ],
)
def test_errors_in_a_scenario(model: str, said: str) -> None:
    with pytest.raises(ScenarioError) as error:
        from_text(scenario(model), source="f.toml")
    assert said in str(error.value)
