.PHONY: check format heavy
PY ?= .venv/bin

check:
	$(PY)/ruff check .
	$(PY)/ruff format --check .
	$(PY)/mypy
	$(PY)/lint-imports
	$(PY)/pytest

format:
	$(PY)/ruff check --fix .
	$(PY)/ruff format .

heavy:
	$(PY)/pytest -m heavy
