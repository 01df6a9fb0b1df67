.PHONY: help quick check format heavy
PY ?= .venv/bin

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quick: ## while working, under a minute: tests of units and architecture, a numerics smoke test
	$(PY)/pytest -q -n 3 tests/architecture tests/protocol tests/scenario tests/telemetry tests/keeper \
		tests/training/watch/test_fast_steps.py --ignore tests/telemetry/diagnosis \
		--ignore tests/architecture/test_wheel.py --ignore tests/telemetry/test_history_size.py

check: ## everything a change must pass: lint, format, types, import contracts, all tests
	$(PY)/ruff check .
	$(PY)/ruff format --check .
	$(PY)/mypy
	$(PY)/lint-imports
	$(PY)/pytest -n 3

format: ## fix what the linter can fix, and format
	$(PY)/ruff check --fix .
	$(PY)/ruff format .

heavy: ## the tests that take minutes each, and further cases of the usual ones
	$(PY)/pytest -m heavy
