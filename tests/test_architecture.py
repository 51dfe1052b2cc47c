"""Imports go one way, and the parent process stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "tinychat"
# Rooms from the ground up: a file imports from its own row and the rows above it. docs/architecture.md tells why.
ROWS = [
    {"errors"},
    {"config", "runtime"},
    {"runs", "tracking", "report", "text", "tinyworld"},
    {"data", "models"},
    {"evaluation", "rl"},
    {"engine"},
    {"plan"},
    {"stages"},
    {"launch"},
    {"sweeps", "compare", "chat", "train", "score", "merge", "generate", "export", "serve", "rollouts"},
    {"api", "doctor", "inspect", "pipeline"},
]
# The same inside models/: opening whatever checkpoint there is stands above full models and above what is put on them.
MODEL_ROWS = [
    {"vocabulary", "word_judge"},
    {"kernels"},
    {"logprobs", "quantized"},
    {"load"},
    {"custom"},
    {"build"},
    {"adapters", "gguf"},
    {"checkpoints"},
    {"reward", "generation"},
    {"one_base"},
    {"actor_critic", "scorer"},
]
# Rooms of which the parent process loads something before a job starts: nothing heavy at the top of a file there.
LIGHT = {"errors", "config", "runs", "tracking", "report", "tinyworld", "launch", "compare", "pipeline", "train", "api"}
# and of those that a rank or a picture needs, these may
NOT_LIGHT = {"compare/report.py"}
HEAVY = {"torch", "transformers", "tokenizers", "datasets", "deepspeed", "mlflow", "numpy", "matplotlib", "peft"}
PROGRAMS = (
    "train",
    "chat.__main__",
    "compare.__main__",
    "doctor.__main__",
    "inspect.__main__",
    "pipeline.__main__",
    "score",
    "merge",
    "generate.__main__",
    "export.__main__",
    "serve.__main__",
    "rollouts.__main__",
    "api",
    "launch.guard",
    "launch.agents",
)
# Tables of what is plugged in by name (config/plugins.py), where the parent process asks what a name means.
TABLES = ("data.sources", "rl.rewards", "evaluation.answers", "text")
HYDRA = {"train.py", "config/schema.py", "config/words.py", "launch/job.py", "pipeline/jobs.py", "sweeps"}


def files() -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py"]


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


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


def loaded_with(module: str, seen: dict[str, set[str]]) -> None:
    """Into `seen`: the modules of tinychat that importing one loads, each with the packages that it names."""
    path = PACKAGE.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if module in seen or not path.is_file():
        return
    seen[module] = names = imports(path, inside_functions=False)
    parts = module.split(".")
    parents = {".".join(parts[:end]) for end in range(1, len(parts))}
    for name in {name.removeprefix("tinychat.") for name in names if name.startswith("tinychat.")} | parents:
        loaded_with(name, seen)
        loaded_with(name.rpartition(".")[0], seen)


def test_imports_go_one_way() -> None:
    rank = {name: index for index, names in enumerate(ROWS) for name in names}
    assert len(ROWS) <= 12
    wrong = []
    for path in files():
        own = room(path)
        assert own in rank, f"tinychat/{own} is in no row: add it to ROWS and to docs/architecture.md"
        for name in imports(path, inside_functions=True):
            if name.startswith("tinychat.") and rank.get(name.split(".")[1], 0) > rank[own]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert wrong == []


def test_inside_models_imports_go_one_way_and_stand_at_the_top() -> None:
    rank = {name: index for index, names in enumerate(MODEL_ROWS) for name in names}
    prefix, wrong = "tinychat.models.", []
    for path in (PACKAGE / "models").rglob("*.py"):
        own = path.relative_to(PACKAGE / "models").parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        assert own in rank, f"tinychat/models/{own} is in no row: add it to MODEL_ROWS"
        used = {name for name in imports(path, inside_functions=True) if name.startswith(prefix)}
        for name in used:
            there = name.removeprefix(prefix).split(".")[0]
            if there != own and rank[there] >= rank[own]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
        wrong += [f"{path.name} imports {name} late" for name in used - imports(path, inside_functions=False)]
    assert wrong == []


def test_the_embedded_world_is_a_source_of_data_among_others() -> None:
    """Its stories, its instructions and its exact judge come with the rows of data/."""
    users = {room(path) for path in files() if any("tinychat.tinyworld" in name for name in imports(path, True))}
    assert users == {"tinyworld", "data"}


def test_the_parent_process_imports_nothing_heavy() -> None:
    for path in files():
        if room(path) in LIGHT and str(path.relative_to(PACKAGE)) not in NOT_LIGHT:
            loaded = {module.split(".")[0] for module in imports(path, inside_functions=False)}
            assert not loaded & HEAVY, path
    for program in (*PROGRAMS, *TABLES):
        seen: dict[str, set[str]] = {}
        loaded_with(program, seen)
        assert len(seen) > 3 or program == "text"
        for module, names in seen.items():
            assert not {name.split(".")[0] for name in names} & HEAVY, f"{program} loads {module}"


def test_ranks_import_no_hydra() -> None:
    for path in files():
        if not {str(path.relative_to(PACKAGE)), room(path)} & HYDRA:
            assert not any(name.startswith("hydra") for name in imports(path, inside_functions=True)), path


def test_a_rank_loads_no_hydra_by_any_way() -> None:
    code = (
        "import sys, tinychat.launch.worker; sys.exit(any(name.partition('.')[0] == 'hydra' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_modules_stay_readable() -> None:
    long = {path.name: lines for path in PACKAGE.rglob("*.py") if (lines := len(path.read_text().splitlines())) > 500}
    assert long == {}
