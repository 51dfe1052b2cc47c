"""What is refused about launchers, each in a line with the value found and what works."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.test_compose import composed, refusal
from tinychat.config import checks, launch_checks
from tinychat.errors import UserError
from tinychat.launch import ranks


def hosts(folder: Path, text: str) -> str:
    (folder / "hosts").write_text(text)
    return str(folder / "hosts")


def test_a_hostfile_in_order_without_comments(tmp_path: Path) -> None:
    path = hosts(tmp_path, "# ours\nnode1 slots=8\n\n  node0   slots=4 # the small one\n")
    assert list(launch_checks.read(path).items()) == [("node1", 8), ("node0", 4)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("node0 slots=8\nnode1 slot=8\n", "line 2 is 'node1 slot=8'; write HOST slots=N"),
        ("node0 slots=0\n", "line 1 is 'node0 slots=0'"),
        ("node0 slots=two\n", "line 1"),
        ("node0\n", "line 1 is 'node0'"),
        ("node0 slots=1\nnode0 slots=2\n", "line 2 names node0 again"),
        ("# nobody\n", "names no host"),
    ],
)
def test_a_hostfile_with_a_mistake_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        launch_checks.read(hosts(tmp_path, text))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hostfile_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match=r"hostfile\.sample"):
            launch_checks.read(str(path))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["launch=inline", "launch.nproc=2"], "launch=inline is one process"),
        (["launch=torchrun", "launch.node_rank=1"], "launch.node_rank=1: from 0 to launch.nnodes-1=0"),
        (["launch=torchrun", "launch.hostfile=x"], "launch=torchrun reads none; use launch=deepspeed"),
        (["launch=torchrun", "launch.wait=false"], "only launch=slurm returns before"),
        (["launch=torchrun", "launch.timeout_minutes=0"], "launch.timeout_minutes=0.0: above 0"),
        (["launch=torchrun", "launch.rdzv_endpoint=node0"], "HOST:PORT of node 0, as node0:29500"),
        (["launch=deepspeed", "launch.nnodes=2"], "needs launch.hostfile=FILE"),
        (["launch=deepspeed", "launch.hostfile=/none"], "launch.hostfile=/none: No such file"),
        (["launch=deepspeed", "launch.node_rank=1"], "only launch=torchrun is started on each node"),
        (["launch=slurm", "launch.slurm.time=4h"], "launch.slurm.time=4h: a limit as 04:00:00"),
        (
            ["launch=slurm", "launch.nproc=2", "launch.slurm.gpus=1"],
            "gpus=1: one for each of launch.nproc=2",
        ),
        (["launch=slurm", "launch.slurm.extra=[qos]"], "'qos' is no option of sbatch"),
        (["launch=slurm", "launch.slurm.cpus=0"], "launch.slurm.cpus=0"),
        (["launch=slurm", 'launch.slurm.job_name="a\nb"'], "launch.slurm.job_name='a\\nb': a word that sbatch takes"),
        (["launch=slurm", "launch.slurm.poll_seconds=0"], "launch.slurm.poll_seconds=0"),
    ],
)
def test_refused(overrides: list[str], said: str) -> None:
    assert said in refusal(*overrides)


def test_ranks_must_fit_the_hostfile(tmp_path: Path) -> None:
    path = hosts(tmp_path, "node0 slots=4\nnode1 slots=2\n")
    few = ["launch=deepspeed", f"launch.hostfile={path}", "launch.dry_run=true", "stage.micro_batch_size=1"]
    assert "use launch.nnodes=2 launch.nproc=2" in refusal(*few)
    assert "names 2; use launch.nnodes=2" in refusal(*few, "launch.nnodes=3", "launch.nproc=2")
    assert "node1 has slots=2" in refusal(*few, "launch.nnodes=2", "launch.nproc=4")
    checks.check(composed(*few, "launch.nnodes=2", "launch.nproc=2"))


def test_programs_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "launch=slurm needs sbatch, squeue, scancel, not found here" in refusal("launch=slurm")
    path = hosts(tmp_path, "node0 slots=2\nnode1 slots=2\n")
    nodes = ["launch=deepspeed", f"launch.hostfile={path}", "launch.nnodes=2", "stage.micro_batch_size=1"]
    assert "not found: pdsh and ssh; install them, or start launchers/torchrun.sh" in refusal(*nodes)
    checks.check(composed("launch=slurm", "launch.dry_run=true"))


@pytest.mark.parametrize("time", ["30", "30:00", "04:00:00", "2-12", "2-12:30:00", "UNLIMITED"])
def test_limits_as_sbatch_takes_them(time: str) -> None:
    checks.check(composed("launch=slurm", "launch.dry_run=true", f"launch.slurm.time='{time}'"))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("0", "launch.nproc=2 is more than the 1 GPUs of CUDA_VISIBLE_DEVICES=0; lower it, or use device=cpu"),
        ("1,-1,0", "launch.nproc=2 is more than the 1 GPUs of CUDA_VISIBLE_DEVICES=1,-1,0"),
        ("-1", "CUDA_VISIBLE_DEVICES=-1 hides all GPUs from launch=deepspeed; say device=cpu"),
        ("", "CUDA_VISIBLE_DEVICES= hides all GPUs from launch=deepspeed; say device=cpu"),
        ("GPU-8932f937,GPU-1", "launch=deepspeed takes numbers of GPUs; use them, or launch=torchrun"),
    ],
)
def test_deepspeed_has_the_gpus_that_are_visible(value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert said in refusal("launch=deepspeed")
    checks.check(composed("launch=deepspeed", "device=cpu", "stage.micro_batch_size=1"))
    checks.check(composed("launch=torchrun", "stage.micro_batch_size=1"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 0,1")
    config = composed("launch=deepspeed", "stage.micro_batch_size=1")
    checks.check(config)
    assert "--include=localhost:2,0" in ranks.command(config, Path("run"))
