"""Imports go one way, and the parent process stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "tinychat"
# Each layer may import from itself and from the layers before it. docs/architecture.md tells why.
LAYERS: list[set[str]] = [
    {"errors", "extras", "library_output", "passwords", "program", "run_files", "terminal"}
    | {"schema_stages", "schema_sweep", "schema_launch"},
    {"schema", "explain", "words", "completion"},
    {"ds_config", "hub", "seeding", "malloc", "orphans", "hostfile", "signals", "user_code", "outer_launcher"}
    | {"checksums", "manifest"},
    {"checks", "checks_data", "checks_launch", "checks_sizes", "runs", "trial", "next_steps", "failures", "world"},
    {"text"},
    {"models", "data"},
    {"evaluation", "rl"},
    {"engine", "tracking", "parents", "console", "lineage", "curves", "headline"},
    {"report", "checkpoint", "context", "chosen", "preflight"},
    {"plan_devices", "plan_models"},
    {"plan_memory"},
    {"plan_time"},
    {"plan_estimate"},
    {"plan"},
    {"stages"},
    {"worker"},
    {"guard", "agents", "ranks"},
    {"slurm"},
    {"launch"},
    {"compare_runs", "compare_settings", "comparison", "compare_pairs", "compare_table", "compare_curves"}
    | {"compare_report", "sweeps"},
    {"chat_session", "chat_input", "chat_target", "chat_examples"},
    {"repl"},
    {"train", "chat", "merge", "score", "compare", "gates"},
    {"recipe"},
    {"pipeline_jobs", "pipeline_process", "pipeline_samples"},
    {"pipeline_report", "pipeline_tracking"},
    {"pipeline"},
]
# What the parent may load before a job starts.
LIGHT = {"train", "checks", "ds_config", "errors", "launch", "orphans", "parents", "runs", "schema", "schema_stages"}
LIGHT |= {"run_files", "checksums", "manifest", "checks_data", "gates", "pipeline", "recipe", "compare"}
LIGHT |= {"agents", "checks_launch", "failures", "guard", "hostfile", "ranks", "schema_launch", "slurm"}
LIGHT |= {"explain", "library_output", "program", "schema_sweep", "words", "sweeps/__init__", "sweeps/sweeper", "trial"}
LIGHT |= {"passwords", "terminal", "completion", "checks_sizes", "next_steps", "outer_launcher", "signals", "user_code"}
LIGHT |= {"extras", "preflight"}
LIGHT |= {f"pipeline_{part}" for part in ("jobs", "process", "report", "samples", "tracking")}
HEAVY = {"torch", "transformers", "tokenizers", "datasets", "deepspeed", "mlflow", "numpy", "matplotlib", "peft"}


def unit(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imports(path: Path, inside_functions: bool) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if inside_functions else iter(tree.body)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_imports_go_one_way() -> None:
    rank = {name: index for index, names in enumerate(LAYERS) for name in names}
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        own = unit(path)
        if own == "__init__":
            continue
        assert own in rank, f"tinychat/{own} has no layer: add it to LAYERS and to docs/architecture.md"
        for name in imports(path, inside_functions=True):
            if not name.startswith("tinychat."):
                continue
            other = name.split(".")[1]
            # launch hands over to the worker and parents asks the tracker for a run, both inside a function
            if other in rank and rank[other] > rank[own]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert wrong == []


def test_the_parent_process_imports_nothing_heavy() -> None:
    for name in LIGHT:
        loaded = {module.split(".")[0] for module in imports(PACKAGE / f"{name}.py", inside_functions=False)}
        assert not loaded & HEAVY, f"{name}.py"


def test_ranks_import_no_hydra() -> None:
    for path in PACKAGE.rglob("*.py"):
        if unit(path) not in ("train", "launch", "schema", "words", "sweeps", "pipeline_jobs"):
            assert not any(name.startswith("hydra") for name in imports(path, inside_functions=True)), path


def test_a_rank_loads_no_hydra_by_any_way() -> None:
    code = "import sys, tinychat.worker; sys.exit(any(name.partition('.')[0] == 'hydra' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_modules_stay_readable() -> None:
    long = {path.name: lines for path in PACKAGE.rglob("*.py") if (lines := len(path.read_text().splitlines())) > 500}
    assert long == {}
