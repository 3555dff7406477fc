#!/usr/bin/env bash
# Sourced by the other scripts: makes or reuses .venv with segjax[$1] in it and sets $PY to its python.
#   PYTHON=python3.12 chooses an interpreter (each version has a folder of its own).
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
extra="${1:-}"
python="${PYTHON:-python3}"
version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" || {
  echo "segjax: '$python' does not run; set PYTHON to a Python 3.11 or newer" >&2; exit 1; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "segjax: Python $version is too old; set PYTHON to a Python 3.11 or newer" >&2; exit 1; }
venv="$root/.venv"
if [ -x "$venv/bin/python" ] && [ "$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" != "$version" ]; then
  venv="$root/.venv-$version"
fi
PY="$venv/bin/python"
stamp="$venv/.segjax-$extra-$(cksum < setup.py | cut -d' ' -f1)"
if [ ! -e "$stamp" ]; then
  [ -x "$PY" ] || "$python" -m venv "$venv" || { echo "segjax: could not make $venv (is the venv module installed?)" >&2; exit 1; }
  echo "segjax: installing into $venv (once)"
  if "$python" -m uv --version >/dev/null 2>&1; then
    installer=("$python" -m uv pip install --quiet --python "$PY")
  else
    "$PY" -m pip --version >/dev/null 2>&1 || "$PY" -m ensurepip >/dev/null
    installer=("$PY" -m pip install --quiet --disable-pip-version-check)
  fi
  "${installer[@]}" -e ".${extra:+[$extra]}" || { echo "segjax: the install failed; the lines above say why (network? package index?)" >&2; exit 1; }
  touch "$stamp"
fi
export PY
