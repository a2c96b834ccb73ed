# make setup | run | test | services | test-services | test-long | chaos-cluster | lint | bench | help
PYTHON ?= python3
UV := .tools/uv/bin/uv
UV_RUN := UV_PYTHON_PREFERENCE=only-system UV_PROJECT_ENVIRONMENT=.venv PYTHONPATH=.tools/uv $(UV)
STAMP := .venv/.synced

.DEFAULT_GOAL := help
.PHONY: help setup run demo test services test-services test-long chaos-cluster lint bench clean

help: ## what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## bootstrap uv, sync the lock into .venv

$(UV):
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --target .tools/uv 'uv>=0.13,<0.14'

$(STAMP): $(UV) pyproject.toml uv.lock
	$(UV_RUN) sync --frozen --quiet --system-certs --python $(PYTHON)
	@touch $@

run: setup ## start the gateway (the first time it shows itself at work); Ctrl-C ends it
	@exec .venv/bin/gateway run --demo

demo: setup ## show the running gateway at work again
	@.venv/bin/gateway demo

test: setup ## the tests; what a service is missing for is skipped, and said
	.venv/bin/python -m pytest -q -n 2 --dist worksteal -m "not long"

services: ## install what the tests need and PyPI cannot give (apt, root): chromium, postfix, rabbitmq, postgresql …
	@tests/services/install.sh

test-services: setup services ## the tests with every service there; a skip is a failure
	TEST_SERVICES=required .venv/bin/python -m pytest -q -n 4 --dist worksteal -m "not long"

test-long: setup ## every test, the long ones and the large numbers of examples too
	HYPOTHESIS_PROFILE=long .venv/bin/python -m pytest -q

chaos-cluster: setup ## RabbitMQ: twenty faults in a cluster of three, mail and email through the doors; half an hour
	.venv/bin/python -m pytest -q -s tests/chaos

lint: setup ## ruff, mypy --strict, the layers
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: setup ## measure, side by side; prints ratios and percentiles
	.venv/bin/python -m bench

clean: ## remove what setup made; mail and settings stay
	rm -rf .venv .tools
