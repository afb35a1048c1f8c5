# Names for the project's commands. The checks themselves are written in scripts/check.sh, which continuous integration
# runs too: as `make check` or one by one.
.DEFAULT_GOAL := help
.PHONY: help setup format lint words types layers docs wheel test check fix quickstart versions

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv with everything the checks need
	@bash scripts/setup.sh

format: ## check that the formatter would change nothing
lint: ## run the linters over code, YAML, TOML and workflows
words: ## find words that the prose avoids, and class names that are there twice
types: ## check the types
layers: ## check which package imports which
docs: ## build the documentation into site/, warnings are errors
wheel: ## build the wheel and run it from another folder
test: ## run the tests
fix: ## let formatter and linter change the files
format lint words types layers docs wheel test fix:
	@bash scripts/check.sh $@

check: ## run all checks, as continuous integration does
	@bash scripts/test.sh

quickstart: ## make data, train, export and talk, at a small size
	@bash scripts/quickstart.sh

versions: ## run the tests on the oldest and newest Python and torch
	@bash scripts/test_versions.sh
