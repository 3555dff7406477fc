#!/usr/bin/env bash
# The whole test suite, in its own environment. Arguments go to pytest: bash scripts/test.sh tests/ops -x
set -euo pipefail
source "$(dirname "$0")/environment.sh" test
"$PY" -m ruff check segjax configs scripts tests
"$PY" -m ruff format --check segjax configs scripts tests
"$PY" -m pyright --pythonpath "$PY" segjax  # its own node comes with the package: no download
unset PYTHONDONTWRITEBYTECODE  # dozens of processes read the same sources
workers="${TEST_WORKERS:-2}"
exec "$PY" -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder "$@"  # in the order of tests/conftest.py
