#!/usr/bin/env bash
# Fresh clone -> trained, adapted, scored: installs into .venv, runs configs/quickstart.py on the embedded street scenes, prints the
# table and says where the report is. Again = finished stages are skipped, an interrupted one goes on. Needs no data and no accelerator.
#   PYTHON=python3.12 chooses an interpreter, WORKDIR=folder another place, arguments go to `segjax run` (--config.seed=1).
set -euo pipefail
source "$(dirname "$0")/environment.sh" ""  # an explicit argument: else it would see this script's own
workdir="${WORKDIR:-quickstart}"
begin=$SECONDS
doctor="$("$PY" -m segjax doctor)" || { echo "$doctor" >&2; exit 1; }
"$PY" -m segjax run --config=configs/quickstart.py --workdir="$workdir" "$@"
echo
echo "Done in $((SECONDS - begin)) s. Figures, curves and pictures: $workdir/report.html (open it in a browser)."
echo "Next: README.md, or \`$PY -m segjax --help\`; configs/camvid_day_dusk.py is the same job on real photographs."
