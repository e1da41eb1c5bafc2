# The commands of a newcomer and of a developer. `make quickstart` and `make test` make .venv if needed.
PYTHON ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: quickstart test test-all check format env clean

quickstart: .venv/.complete  ## the whole recipe on real data and a real model; ends with the results table
	$(BIN)/recloom run configs/llama4rec_quickstart.yaml

env: .venv/.complete  ## only make the environment

.venv/.complete: setup.py tools/make_env.py
	$(PYTHON) tools/make_env.py

test: .venv/.complete check browser  ## lint, types, tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=15

test-all: .venv/.complete check browser  ## also what is long, and what needs a GPU where there is one
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=30 -m "slow or not slow"

.PHONY: browser
browser: .venv/.complete  ## a headless browser for the report's test
	$(BIN)/python tools/get_browser.py

# scripts that import what lies beside them, so each folder is checked by itself
SIDES := $(addprefix benchmarks/,bulk_sides tuning_sides data_sides peers)
FOLDERS := data_shards kernels trainer launcher tools tests benchmarks

check: .venv/.complete typecheck-links  ## ruff, mypy, codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell $(FOLDERS) docs configs README.md CONTRIBUTING.md
	MYPYPATH=.typecheck $(BIN)/mypy -p recloom
	MYPYPATH=.typecheck:benchmarks $(BIN)/mypy benchmarks/*.py benchmarks/kernel_ops/*.py
	@for folder in $(SIDES); do \
		echo "mypy $$folder"; MYPYPATH=.typecheck:$$folder $(BIN)/mypy $$folder/*.py || exit 1; done

# mypy does not follow package_dir, so it is shown a tree of links in which the import name is a folder.
.PHONY: typecheck-links
typecheck-links:
	@mkdir -p .typecheck/recloom
	@for folder in data_shards kernels trainer launcher tools; do \
		ln -sfn ../../$$folder .typecheck/recloom/$$folder; done

format: .venv/.complete
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## forget the environment and all caches; runs stay
	rm -rf .venv .typecheck .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
