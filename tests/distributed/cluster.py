"""A cluster of one machine: stand-ins for slurm's commands and for pdsh and ssh, to be put first on PATH."""

from __future__ import annotations

import sys
from pathlib import Path

# All of slurm's are one program, which acts by the name it is called by. The file N in its folder is job N's state.
SLURM = """#!{python}
import os, pathlib, re, signal, subprocess, sys

home, name, arguments = pathlib.Path(__file__).parent, pathlib.Path(sys.argv[0]).name, sys.argv[1:]
job = home / re.sub(r".*=", "", arguments[-1]) if arguments else home

if name == "sbatch":
    if "FAKE_REFUSAL" in os.environ:
        sys.exit("sbatch: error: " + os.environ["FAKE_REFUSAL"])
    text = pathlib.Path(arguments[1]).read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", text, re.M))
    pending = "FAKE_PENDING" in os.environ
    job = home / str(os.getpid())
    job.write_text("PENDING" if pending else "RUNNING")
    with open(home / "submitted", "a") as file:
        file.write(arguments[1] + "\\n")
    if not pending and not os.fork():
        os.setsid()
        variables = {{"SLURM_JOB_ID": job.name, "SLURM_JOB_NODELIST": "here", "SLURM_SUBMIT_DIR": os.getcwd()}}
        variables |= {{"SLURM_JOB_NUM_NODES": options["nodes"], "SLURM_NTASKS": options["ntasks-per-node"]}}
        with open(options.get("output", "/dev/null").replace("%j", job.name), "a") as log:
            done = subprocess.Popen(
                ["bash", arguments[1], *arguments[2:]],
                cwd=options.get("chdir", "."), env={{**os.environ, **variables}},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )
            os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
            (home / "batch").write_text(str(done.pid))
            done.wait()
        job.unlink(missing_ok=True)
        os._exit(0)
    print(job.name + ";cluster")
elif name == "squeue":
    if not job.exists():
        sys.exit("slurm_load_jobs error: Invalid job id specified")
    print(job.read_text())
elif name == "sacct":
    print("TIMEOUT")
elif name == "scancel":
    with open(home / "cancelled", "a") as file:
        file.write(" ".join(arguments) + "\\n")
    if job.exists() and (len(arguments) == 1 or job.read_text() == "PENDING"):
        job.unlink()
elif name == "scontrol":
    print("127.0.0.1")
elif name == "srun":
    command = arguments[next(place for place, word in enumerate(arguments) if not word.startswith("--")) :]
    if "FAKE_RANKS" in os.environ:
        command = ["bash", "-c", os.environ["FAKE_RANKS"], "ranks", command[-1]]
    count = int(os.environ["SLURM_NTASKS"])
    place = lambda rank: {{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0"}}
    ranks = [subprocess.Popen(command, env={{**os.environ, **place(rank)}}) for rank in range(count)]
    sys.exit(max(abs(rank.wait()) for rank in ranks))
"""

PDSH = """#!/usr/bin/env bash
# pdsh -S -f FANOUT -w HOSTS COMMAND...: the command for every host, %n being its place in the list.
set -euo pipefail
hosts=$5
shift 5
echo "$hosts $*" >>"$(dirname "$0")/pdsh.log"
n=0 status=0 children=()
for host in ${{hosts//,/ }}; do
    HOST=$host bash -c "${{*//%n/$n}}" &
    children+=($!)
    n=$((n + 1))
done
for child in "${{children[@]}}"; do wait "$child" || status=$?; done
exit "$status"
"""

SSH = """#!/usr/bin/env bash
case "$*" in *"hostname -I") echo "127.0.0.1" ;; esac
"""


def _program(path: Path, text: str) -> None:
    path.write_text(text.format(python=sys.executable))
    path.chmod(0o755)


def slurm(folder: Path) -> Path:
    """Make slurm's commands there; returns the folder for PATH, which also keeps the jobs' states."""
    folder.mkdir()
    for name in ("sbatch", "squeue", "sacct", "scancel", "scontrol", "srun"):
        _program(folder / name, SLURM)
    return folder


def nodes(folder: Path) -> Path:
    """Make pdsh and ssh there; returns the folder for PATH."""
    folder.mkdir()
    _program(folder / "pdsh", PDSH)
    _program(folder / "ssh", SSH)
    return folder
