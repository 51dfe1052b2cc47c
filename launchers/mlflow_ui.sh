#!/usr/bin/env bash
# MLflow's pages on the runs under outputs/, at http://127.0.0.1:5000 (`make ui` is the same).
#
#   launchers/mlflow_ui.sh                                   the runs of this checkout
#   OUTPUTS=/data/outputs PORT=5001 launchers/mlflow_ui.sh   other runs, another port
#   launchers/mlflow_ui.sh --host 0.0.0.0                    for other machines too: anybody there can read and write
#
# MLFLOW_TRACKING_URI, where it is set, wins over OUTPUTS. Further words go to `mlflow ui`. MLFLOW chooses the program.
# A run's files are served from where they were written, so move outputs/ only as a whole and start from the same place.
set -euo pipefail

: "${OUTPUTS:=outputs}" "${PORT:=5000}" "${MLFLOW:=mlflow}"
store="${MLFLOW_TRACKING_URI:-sqlite:///$OUTPUTS/mlflow.db}"
if [ "$store" = "sqlite:///$OUTPUTS/mlflow.db" ] && [ ! -f "$OUTPUTS/mlflow.db" ]; then
    echo "no $OUTPUTS/mlflow.db yet: run something first, or say where it is with OUTPUTS=FOLDER" >&2
    exit 1
fi
# Where the tables have their columns (headline, stage, model, data), for each experiment.
if [ -f "$OUTPUTS/mlflow.db" ] && command -v python3 >/dev/null; then
    python3 - "$OUTPUTS/mlflow.db" "$PORT" <<'PYTHON' || true
import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as store:
    query = "select name, experiment_id from experiments where lifecycle_stage = 'active' and experiment_id != 0"
    for name, number in store.execute(query):
        print(f"{name}: http://127.0.0.1:{sys.argv[2]}/#/experiments/{number}/runs?viewStateShareKey=tinychat")
PYTHON
fi
exec "$MLFLOW" ui --backend-store-uri "$store" --port "$PORT" "$@"
