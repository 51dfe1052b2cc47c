"""Around the job of a command: completion, what a refused one leaves, and what is said where it ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.config.test_compose import composed
from tests.conftest import environment_of
from tinychat.config import words
from tinychat.errors import UserError
from tinychat.launch import job
from tinychat.runs import next_steps

ASKED = """
{script}
PATH="{folder}:$PATH"
COMP_WORDBREAKS=" ="
COMP_LINE="{line}"; COMP_POINT=${{#COMP_LINE}}
_tinychat_completion
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("python -m tinychat.train stage=pretrain model=gp", ["gpt2_100m", "gpt6x512"]),
        ("python -m tinychat.train sta", ["stage="]),
        ("python -m tinychat.doctor stage=pretrain model=gp", ["gpt2_100m", "gpt6x512"]),
        ("python -m tinychat.chat mod", [""]),
        ("python other.py mod", [""]),
    ],
)
def test_tab_completes_the_module_as_it_is_started(line: str, expected: list[str], tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\n[ "$COMP_LINE" ] && echo "model=gpt2_100m model=gpt6x512 model= stage="\n')
    program.chmod(0o755)
    script = words.script(["--shell-completion", "install=bash"])
    text = ASKED.format(script=script, folder=tmp_path, line=line)
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == expected, done.stderr
    assert words.script(["--shell-completion", "query=bash"]) is None
    assert words.script(["install=bash"]) is None


@pytest.mark.parametrize("arguments", [["--help"], ["--shell-completion", "install=bash"]])
def test_a_reader_that_has_read_enough_is_no_error(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "tinychat.train", *arguments],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=environment_of(),
        timeout=120,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_refused_command_leaves_no_folder(tmp_path: Path) -> None:
    config = composed("stage=sft", f"paths.outputs={tmp_path}/new/outputs", "resume=auto")
    with pytest.raises(UserError, match="no finished pretrain run"):
        job.run_job(config, OmegaConf.structured(config))
    assert list(tmp_path.iterdir()) == []
    there = tmp_path / "there"
    there.mkdir()
    config = composed("stage=sft", f"paths.outputs={there}", f"run_dir={there}/mine/run")
    with pytest.raises(UserError, match="no finished pretrain run"):
        job.run_job(config, OmegaConf.structured(config))
    assert list(tmp_path.iterdir()) == [there]
    assert list(there.iterdir()) == []


def test_a_run_that_was_stopped_names_what_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    next_steps.tell_stopped()
    assert "resume=auto goes on" in capsys.readouterr().err
    next_steps.leave_to("recipe")
    next_steps.tell_stopped()
    next_steps._parts.clear()
    assert capsys.readouterr().err == ""
