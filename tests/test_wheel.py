"""What `pip wheel .` makes is whole: away from the checkout every module loads, and a stage runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, TINY_MODEL

IMPORT_ALL = """
import importlib, pkgutil, tinychat
assert tinychat.__file__.startswith({target!r}), tinychat.__file__
names = [module.name for module in pkgutil.walk_packages(tinychat.__path__, "tinychat.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
COMPOSE_ALL = """
from pathlib import Path
import tinychat
from hydra import compose, initialize_config_dir
from tinychat import train
from tinychat.config import schema
conf = Path(tinychat.__file__).parent / "conf"
train.register()
folder = conf / "experiment"
options = sorted(folder.rglob("*.yaml"))
with initialize_config_dir(str(conf)):
    for option in options:
        lines = option.read_text().splitlines()
        command = next(line for line in lines if line.startswith("# python -m tinychat.train "))  # how it is used
        words = [word for word in command.split()[4:] if "=" in word]
        assert any(word.startswith("experiment=") for word in words), option
        schema.to_config(compose("config", words))
print(len(options))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("setuptools", minversion="77", reason="builds with the environment's own setuptools")
    source, built = tmp_path_factory.mktemp("source") / "tinychat", tmp_path_factory.mktemp("wheel")
    skipped = shutil.ignore_patterns(".*", "outputs", "build", "*.egg-info", "__pycache__", "tests", "benchmarks")
    shutil.copytree(REPOSITORY, source, symlinks=True, ignore=skipped)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(built),
        ".",
    ]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=300)
    (path,) = built.glob("*.whl")
    return path


def test_it_holds_every_module_setting_and_template(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = {
        str(path.relative_to(REPOSITORY))
        for pattern in ("*.py", "*.j2", "*.jinja", "*.html", "*.jsonl", "evaluation/**/*.yaml")
        for path in (REPOSITORY / "tinychat").rglob(pattern)
    }
    conf = {f"tinychat/{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / "conf").rglob("*.yaml")}
    local = {name for name in conf if name.startswith("tinychat/conf/local/")}
    assert held - local == (package | conf) - local


def test_installed_alone_it_imports_composes_and_trains(wheel: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    target, away = tmp_path / "target", tmp_path / "away"
    away.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True, timeout=300)
    environment = {**os.environ, "PYTHONPATH": str(target)}

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=away, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    # lm-eval loads the modules of tasks by their paths.
    modules = [path for path in (target / "tinychat").rglob("*.py") if (path.parent / "__init__.py").is_file()]
    assert int(run("-c", IMPORT_ALL.format(target=str(target)))) == len(modules) - 1 > 280
    assert int(run("-c", COMPOSE_ALL)) == len(list((REPOSITORY / "conf" / "experiment").rglob("*.yaml"))) > 2
    assert "stage=pretrain" in run(str(target / "bin" / "tinychat-train"), "--help")
    words = ("data.max_docs=40", "data.max_val_docs=8", "stage.max_steps=3", "stage.warmup_steps=1", "tracker=none")
    run("-m", "tinychat.train", *TINY_MODEL, *words, f"tokenizer.path={tokenizer_folder}", "run_dir=run")
    assert (away / "run" / "checkpoints" / "step-000003" / "model.safetensors").is_file()
