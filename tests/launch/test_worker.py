"""One rank from its configuration to result.json, with a function in place of a stage."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.config.test_compose import CONF
from tinychat.config import schema
from tinychat.errors import UserError
from tinychat.launch import worker
from tinychat.runs import folders, parents


def ran(run_dir: Path, monkeypatch: pytest.MonkeyPatch, stage: Callable[..., object]) -> int:
    schema.register()
    with initialize_config_dir(str(CONF)):
        node = compose("config", ["tracker=none", "device=cpu", f"paths.outputs={run_dir}"])
    (run_dir / folders.CONFIG).write_text(OmegaConf.to_yaml(node, resolve=True))
    parents.write(run_dir, {}, run_dir)
    monkeypatch.setitem(sys.modules, "tinychat.stages.pretrain", SimpleNamespace(run=stage))
    return worker.run(run_dir)


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit("usage"), KeyboardInterrupt()])
def test_what_would_end_the_command_without_a_word_is_an_error(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stage(*_: object) -> None:
        raise error

    with pytest.raises(RuntimeError, match=f"{type(error).__name__}.* was raised in stage=pretrain") as caught:
        ran(tmp_path, monkeypatch, stage)
    assert caught.value.__cause__ is error, "the traceback shows where"
    result = json.loads((tmp_path / folders.RESULT).read_text())
    assert result["status"] == "failed"
    assert type(error).__name__ in result["error"]


@pytest.mark.parametrize("mine", [True, False])
def test_a_folder_in_the_place_of_a_file_is_one_line(
    mine: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the run's own folder; elsewhere it may be anything, and the traceback shows where."""

    def stage(*_: object) -> None:
        (tmp_path / folders.LINEAGE).mkdir()
        folders.write_text_atomic((tmp_path if mine else tmp_path.parent) / folders.LINEAGE, "{}")
        (tmp_path.parent / "none" / "file").read_text()

    with pytest.raises(
        UserError if mine else FileNotFoundError, match=r"lineage.json: Is a directory; mend" if mine else "none/file"
    ):
        ran(tmp_path, monkeypatch, stage)
