"""What the ranks of a job are given by the command that starts them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.config.test_compose import composed
from tinychat.launch import ranks

READS = """
import json, os, sys
lines = open(os.environ["DS_ENV_FILE"]).read().splitlines()
assert os.path.isfile(os.environ["DS_ENV_FILE"]), "DeepSpeed asks so"
json.dump(lines, open(sys.argv[1] + "/carried.json", "w"))
"""


def test_no_secret_is_carried_to_other_nodes_and_none_lies_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("node0 slots=1\nnode1 slots=1\n")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in {"HF_TOKEN": "hf_secret", "HF_TOKEN_PATH": "/a/file", "TORCH_HOME": "/b"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".deepspeed_env").write_text("MINE=1\n")
    monkeypatch.setattr(ranks, "command", lambda _config, folder: [sys.executable, "-c", READS, str(folder)])
    config = composed("launch=deepspeed", f"launch.hostfile={hosts}", "launch.nnodes=2", "launch.nproc=1")
    ranks.run(config, run_dir)
    carried = json.loads((run_dir / "carried.json").read_text())
    assert {"HF_TOKEN_PATH=/a/file", "TORCH_HOME=/b", "MINE=1"} <= set(carried)
    assert not any("hf_secret" in line for line in carried)
    assert [path.name for path in run_dir.iterdir()] == ["carried.json"]
    assert "note: not carried to other nodes, where command lines would show it: HF_TOKEN;" in capfd.readouterr().err
