"""Files of run folders: whatever lies in their place gives a value of the right type, None, or one line."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tinychat import merge, score
from tinychat.chat import session
from tinychat.chat.repl import history_file
from tinychat.compare import runs as compare_runs
from tinychat.data.files.splits import find_files
from tinychat.errors import UserError
from tinychat.models.load import model_folder
from tinychat.pipeline.recipe import load_recipe
from tinychat.runs import folders
from tinychat.runtime import run_files, user_code
from tinychat.runtime.run_files import Unreadable
from tinychat.text.tokenizer import load_saved_tokenizer


def bomb(path: Path) -> None:
    lines = ["a: &x0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"b{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 12)]
    path.write_text("\n".join(lines))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_text(""),
    "zeros": lambda path: path.write_bytes(b"\0" * 4096),
    "cut": lambda path: path.write_text('{"a": [1, {"b": '),
    "garbage": lambda path: path.write_bytes(bytes(range(256))),
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
    "list": lambda path: path.write_text("[1, 2]"),
    "number": lambda path: path.write_text("7"),
    "deep": lambda path: path.write_text("[" * 200_000),
    "loop": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("read", [run_files.read_json, run_files.read_yaml], ids=["json", "yaml"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_line_that_names_the_file(read: Callable[[Path], object], damage: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert read(path) is None, "none there is no damage"
    DAMAGE[damage](path)
    with pytest.raises(Unreadable, match="file: ") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_yaml_aliases_and_sizes_are_bounded(tmp_path: Path) -> None:
    bomb(tmp_path / "config.yaml")
    with pytest.raises(Unreadable, match=r"config\.yaml"):
        run_files.read_yaml(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("a: &a [*a]\n")
    with pytest.raises(Unreadable, match=r"config\.yaml"):
        run_files.read_yaml(tmp_path / "config.yaml")
    (tmp_path / "large").write_bytes(b"x" * 101)
    with pytest.raises(Unreadable, match="larger than the 100 bytes"):
        run_files.read_text(tmp_path / "large", 100)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"b": None}, "a is missing"),
        ({"a": "1"}, "a is '1', not int or float"),
        ({"a": True}, "a is True"),
        ({"a": 1, "b": {}}, "b is {}, not str or null"),
    ],
)
def test_values_have_the_types_asked_for(content: dict, words: str, tmp_path: Path) -> None:
    kinds = {"a": run_files.NUMBER, "b": (str, type(None))}
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(Unreadable, match=r"x\.json: ") as caught:
        run_files.read_json(tmp_path / "x.json", kinds)
    assert words in str(caught.value)
    (tmp_path / "x.json").write_text('{"a": 1.5, "more": []}')
    assert run_files.read_json(tmp_path / "x.json", kinds) == {"a": 1.5, "more": []}


def test_a_reader_without_permission_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_arguments: object, **_options: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", closed)
    with pytest.raises(Unreadable, match=r"a.json: may not be read by this user \(Permission denied\)"):
        run_files.read_json(tmp_path / "a.json")


def test_damage_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.json").write_text("{")
    for _ in range(3):
        assert run_files.if_readable(lambda: run_files.read_json(tmp_path / "a.json")) is None
    assert len(caplog.messages) == 1 and "a.json" in caplog.messages[0]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_new_files_have_the_mode_of_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        run_files.write_text_atomic(tmp_path / "a.json", "{}")
        run_files.write_text_atomic(tmp_path / "secret", "x", private=True)
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep" / "weights").write_bytes(b"x")
        (tmp_path / "deep" / "weights").chmod(0o600)
        run_files.follow_umask(tmp_path / "deep")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "deep" / "weights").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_a_failed_write_names_the_file_and_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    run_files.write_text_atomic(path, "old")

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        run_files.write_text_atomic(path, "new")
    assert run_files.said_of(caught.value) == f"{path}: disk full (No space left on device)"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"] and path.read_text() == "old"


def test_a_full_disk_in_the_words_of_libraries() -> None:
    torch_says = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\n# trace")
    assert run_files.said_of(torch_says, Path("engine.pt")) == "engine.pt: disk full (No space left on device)"
    safetensors_says = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert "disk full" in run_files.said_of(safetensors_says)
    outer = ValueError("failed")
    outer.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert run_files.disk_full(outer) == "disk full (Disk quota exceeded)"
    assert run_files.disk_full(ValueError("shape")) is None
    assert run_files.said_of(PermissionError(13, "Permission denied", "/x")) == "/x: Permission denied"


def test_leftovers_of_killed_writers_go(tmp_path: Path) -> None:
    kept = ["metrics.jsonl", "trial.json", ".started", "notes.tmp"]
    gone = [".config.yaml.1a2b3c4d.tmp", "metrics.jsonl.4711.tmp", "mlflow.db.12.tmp", "mlflow.db.12.tmp-journal"]
    for name in kept + gone:
        (tmp_path / name).write_text("x")
    run_files.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


NOBODY = "~nobody-here/x"
USES: dict[str, Callable[[], object]] = {
    "chat": lambda: session.find(NOBODY, Path("outputs")),
    "compare": lambda: compare_runs.find([NOBODY], Path("outputs")),
    "checkpoint": lambda: folders.resolve_checkpoint(f"{NOBODY}/best"),
    "merge": lambda: merge.run([NOBODY, "merged"]),
    "score": lambda: list(score.read(NOBODY)),
    "data": lambda: find_files(NOBODY),
    "recipe": lambda: load_recipe(f"{NOBODY}.yaml", Path("conf/pipeline")),
    "model": lambda: model_folder(NOBODY),
    "tokenizer": lambda: load_saved_tokenizer(NOBODY),
    "reward": lambda: user_code.load(f"{NOBODY}.py"),
}


@pytest.mark.parametrize("use", USES)
def test_the_home_of_a_user_who_does_not_exist_is_one_line(use: str) -> None:
    with pytest.raises((UserError, user_code.UserCodeError), match=r"no such|no Python file|nobody-here"):
        USES[use]()


def test_a_path_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert run_files.at_home("~/a b/c") == Path("/home/someone/a b/c")
    assert run_files.at_home(Path("x/~")) == Path("x/~")
    assert run_files.at_home(NOBODY) == Path(NOBODY)


def test_a_user_without_a_home_keeps_no_history(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_STATE_HOME", "TINYCHAT_HISTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_123_456)
    assert history_file() is None
