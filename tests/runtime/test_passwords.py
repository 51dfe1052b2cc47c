"""Passwords in addresses: hidden wherever a run writes, given back to its ranks and to a resume."""

from __future__ import annotations

import json
import logging
import stat
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.config.test_compose import composed
from tinychat.errors import UserError
from tinychat.launch import job
from tinychat.runs import folders
from tinychat.runtime import console, terminal
from tinychat.runtime.terminal import keep, masked, masked_tree, restored

URI = "postgresql://ann:pa/ss@w:rd@db.example:5432/mlflow"
SHOWN = "postgresql://ann:***@db.example:5432/mlflow"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (URI, SHOWN),
        (f"tracker.uri={URI}", f"tracker.uri={SHOWN}"),
        (f"+sweep.storage='{URI}'", f"+sweep.storage='{SHOWN}'"),
        ("tracker.uri='http://u:a b\"c@h/x'", "tracker.uri='http://u:***@h/x'"),
        (f"cannot reach {URI}: refused, nor http://u:p@h", f"cannot reach {SHOWN}: refused, nor http://u:***@h"),
        ("http://:p@h", "http://:***@h"),
        ("mysql://h/db?user=a&password=s%40x&ssl=1", "mysql://h/db?user=a&password=***&ssl=1"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:////a/b@c/mlflow.db", "sqlite:////a/b@c/mlflow.db"),
        ("https://glpat-x@host:80/", "https://***@host:80/"),
        ("tracker.uri='https://glpat-x@host'", "tracker.uri='https://***@host'"),
        ("from https://ghp_x:@h/a and HTTP://t:x-oauth-basic@h", "from https://***:***@h/a and HTTP://***:***@h"),
        ("see https://host/a@b", "see https://host/a@b"),
        ("postgresql://ann@h/db", "postgresql://ann@h/db"),
        ("a@b.c: d://e", "a@b.c: d://e"),
    ],
)
def test_a_password_is_three_stars_and_the_rest_stays(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_a_run_folder_shows_no_password_and_gives_it_back_to_its_ranks(tmp_path: Path) -> None:
    config = {"tracker": {"uri": URI, "name": "mlflow"}, "sweep": {"storage": URI}, "stage": {"samples": ["a", URI]}}
    shown = masked_tree(config)
    assert "pa/ss" not in json.dumps(shown)
    assert shown["tracker"] == {"uri": SHOWN, "name": "mlflow"}
    keep(tmp_path, config)
    assert stat.S_IMODE((tmp_path / terminal.FILE).stat().st_mode) == 0o600
    back = restored(shown, tmp_path)
    assert (back["tracker"]["uri"], back["sweep"]["storage"]) == (URI, URI)
    other = {"tracker": {"uri": "http://u:***@other"}}
    assert restored(other, tmp_path) == other  # never one address's password for another


def test_a_resume_by_the_shown_command_has_the_password_that_the_run_keeps(tmp_path: Path) -> None:
    keep(tmp_path, {"tracker": {"uri": URI}})
    keep(tmp_path, {"tracker": {"uri": SHOWN}})
    assert restored({"tracker": {"uri": SHOWN}}, tmp_path) == {"tracker": {"uri": URI}}
    keep(tmp_path, {"tracker": {"uri": "https://token@h"}})
    keep(tmp_path, {"tracker": {"uri": "https://***@h"}})
    assert restored({"tracker": {"uri": "https://***@h"}}, tmp_path) == {"tracker": {"uri": "https://token@h"}}
    with pytest.raises(UserError, match=r"tracker.uri=http://u:\*\*\*@h: \*\*\* stands for a password"):
        keep(tmp_path, {"tracker": {"uri": "http://u:***@h"}})


def test_without_passwords_there_is_no_file(tmp_path: Path) -> None:
    keep(tmp_path, {"tracker": {"uri": "http://127.0.0.1:5000"}, "data": {"path": "a:b@c"}})
    assert list(tmp_path.iterdir()) == []


def test_the_log_hides_passwords_and_shows_controls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console.setup_logging(tmp_path, rank=0)
    try:
        logging.getLogger("tinychat").info("sent to %s: \x1b]0;owned\x07 \x1b[2J\rhidden\n  next", URI)
    finally:
        console.setup_logging(None, rank=0)
    for text in (capsys.readouterr().err, (tmp_path / "log.txt").read_text()):
        assert "pa/ss" not in text
        assert SHOWN in text
        assert "␛]0;owned␇ ␛[2J␍hidden\n  next" in text


def test_what_a_start_writes_has_no_password_but_in_its_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = f"tracker.uri={URI}"
    monkeypatch.setattr(sys, "argv", ["tinychat.train", word])
    config = composed("stage=tokenizer", f"tracker.uri='{URI}'", f"paths.outputs={tmp_path}")
    resolved = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.structured(config))))
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    job._write_inputs(run_dir, config, resolved)
    written = {path.name: path.read_text() for path in run_dir.iterdir()}
    assert [name for name, text in written.items() if "pa/ss" in text] == [terminal.FILE]
    assert f"'tracker.uri={SHOWN}'" in written["command.txt"]
    assert f"uri: {SHOWN}" in written["config.yaml"]
    assert restored(folders.read_config(run_dir), run_dir)["tracker"]["uri"] == URI
