"""Every option of every group composes, and what the command line gets wrong is said in one line."""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.conftest import REPOSITORY, environment_of
from tinychat.config import checks, schema
from tinychat.config.specs import SPECS
from tinychat.errors import UserError

CONF = REPOSITORY / "conf"
GROUPS = [
    path.name for path in sorted(CONF.iterdir()) if path.is_dir() and path.name not in ("hydra", "local", "pipeline")
]
MANDATORY = {  # what these options leave to the command line
    "tokenizer=pretrained": ["tokenizer.path=x"],
    "reward=python": ["reward.parts.python.path=x.py:score"],
    "reward=lagrangian": ["reward.parts.helpfulness.path=x", "reward.parts.cost.path=y"],
    "reward=by_kind": ["reward.parts.helpfulness.path=x"],
    "data=python": ["data.source=x.py:Rows"],
    "template=jinja": ["template.path=x.jinja"],
    "sweep=sft_lora": ["stage=sft"],
    "sweep=dpo_beta": ["stage=dpo"],
    **{f"tuned={path.stem}": [f"stage={path.stem.split('_')[0]}"] for path in (CONF / "tuned").glob("*_*.yaml")},
    "tuned=sft_best_of_n_mini": ["stage=sft", "data=best_of_n"],
    "sweep=grpo_bayes": ["stage=grpo"],
    **{f"sweep=ppo_{name}": ["stage=ppo"] for name in ("bayes", "grid", "pareto", "random", "tpe")},
}
TWO_RANKS = ("launch=torchrun", "launch.nproc=2")
FILES = [path for path in sorted(CONF.rglob("*.yaml")) if path.parent.name != "pipeline"]  # no group of a job

register = functools.cache(schema.register)


def composed(*overrides: str) -> schema.Config:
    register()
    with initialize_config_dir(str(CONF)):
        return schema.to_config(compose("config", list(overrides)))


once = functools.cache(composed)  # the files of an experiment have one command for a stage


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_every_file_composes_is_typed_and_begins_with_a_command_that_composes(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package ")]
    assert lines[0].startswith("# python -m tinychat.train"), "the first line shows how the file is used"
    words = [word for word in lines[0].split()[4:] if "=" in word and not word.startswith("-")]
    config = once(*words)
    group, option = path.parent.name, f"{path.parent.name}={path.stem}"
    if path.parent.parent != CONF or group not in GROUPS:
        return  # sizes of a stage in an experiment, data of a recipe
    if option not in words:
        config = composed(option, *MANDATORY.get(option, ()))
    if group in ("model", "tokenizer", "data", "optim", "ds", "tracker", "launch", "stage", "sweep"):
        assert getattr(config, group).name == path.stem


def test_stage_brings_its_defaults_and_the_command_line_wins() -> None:
    assert composed("stage=eval").init_from == "auto"
    assert composed("stage=eval", "init_from=x").init_from == "x"


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        checks.check(composed(*overrides))
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["stage.batch_size=6", "stage.micro_batch_size=4"],
            ["stage.batch_size=6", "micro_batch_size may be 1, 2, 3, 6"],
        ),
        (["stage.context_length=4096"], ["stage.context_length=4096", "model.context_length=512"]),
        (["model.n_head=5"], ["model.n_embd=192", "model.n_head=5"]),
        (["data=text"], ["data.path=null", "data.path=my_files/"]),
        (["data.path=/not/there"], ["data.path=/not/there", "no such file"]),
        (["data.val_fraction=0.9"], ["data.val_fraction=0.9", "0.5"]),
        (["launch.nproc=2"], ["launch=torchrun"]),
        (["device=cpu", "precision=fp16"], ["precision=fp16", "bf16"]),
        (
            ["ds=zero2", "+ds.config.zero_optimization.offload_param={device: cpu}"],
            ["offload_param", "stage 3", "stage 2"],
        ),
        (["ds=zero2", "+ds.config.train_batch_size=8"], ["train_batch_size", "stage.batch_size"]),
        (["ds=zero2", "+ds.config.zero_optimizaton={}"], ["zero_optimizaton", "did you mean zero_optimization?"]),
        (["ds=zero2", "+ds.config.zero_optimization.overlap_com=true"], ["did you mean overlap_comm?"]),
        (["ds=zero2", "+ds.config.zero_optimization.reduce_bucket_size=auto"], ["reduce_bucket_size=auto"]),
        (["ds=zero2", "+ds.config.fp16=1"], ["ds.config.fp16=1"]),
        (["ds=zero2", "+ds.config.zero_optimization.offload_optimizer=cpu"], ["offload_optimizer=cpu", "device: cpu"]),
        (
            ["launch=torchrun", "launch.nproc=3", "stage.batch_size=8", "stage.micro_batch_size=8"],
            ["batch_size may be 9"],
        ),
        (["stage.max_steps=0"], ["stage.max_steps=0"]),
        (["resume=perhaps"], ["resume=perhaps"]),
        (["stage=tokenizer", "tokenizer=gpt2"], ["tokenizer=bpe"]),
        (["launch=torchrun", "launch.nnodes=2"], ["rdzv_endpoint", "run_dir"]),
        (["optim.betas=[0.9]"], ["optim.betas"]),
        (["checkpoint.keep_last=0"], ["checkpoint.keep_last=0"]),
        (["stage=grpo", "stage.group_size=1"], ["stage.group_size=1", "at least 2"]),
        (["stage=grpo", "stage.group_size=6"], ["stage.batch_size=64 is no multiple of 6", "use 66"]),
        (
            [
                *("stage=rlvr", "stage.group_size=8", "stage.rollout_size=24", "stage.batch_size=24"),
                *("stage.micro_batch_size=8", *TWO_RANKS),
            ],
            ["stage.rollout_size=24 is no multiple of 16", "on each of 2 ranks", "use 32"],
        ),
        (["stage=grpo", "stage.beta=0", "stage.kl=adaptive"], ["stage.kl=adaptive", "above 0"]),
        (["stage=grpo", "stage.beta=0", "stage.objective_beta=0.1"], ["stage.objective_beta=0.1", "use null"]),
        (["stage=grpo", "stage.refill=-1"], ["stage.refill=-1"]),
        (["stage=grpo", "stage.entropy_share=0"], ["stage.entropy_share=0", "at most 1"]),
        (["stage=grpo", "stage.correction=tis", "stage.correction_cap=0.5"], ["stage.correction_cap=0.5", "1 or more"]),
        (["stage=grpo", "stage.correction_low=1.5"], ["stage.correction_low=1.5", "correction_high=5.0", "hold 1"]),
        (["stage=grpo", "stage.missing_end=soft", "stage.soft_length=99"], ["stage.soft_length=99", "1 to", "40"]),
        (
            ["stage=ppo", "reward.cost_limit=0.5", "reward.parts.model.kinds=[rude]"],
            ["reward.cost_limit=0.5: no part", "reward=lagrangian", "kinds: rude", "data=safe_and_helpful"],
        ),
        (["stage=ppo", "reward.parts.model.cost=true"], ["cost=true", "no limit", "reward.multiplier"]),
        (["stage=ppo", "stage.missing_end=mask"], ["stage.missing_end=mask", "subtract"]),
        (["stage=ppo", "stage.ptx.coef=-1"], ["stage.ptx.coef=-1", "must not be negative"]),
        (["stage=rlvr", "stage.ptx.coef=1"], ["stage.ptx.source=null", "stage.ptx.source=alpaca stage.ptx.path=FILES"]),
        (["stage=ppo", "stage.ptx.coef=1", "stage.ptx.source=text"], ["source=text has no conversations", "alpaca"]),
        (["stage=grpo", "stage.ptx.coef=1", "stage.ptx.source=chat"], ["stage.ptx.path=null: chat needs a file"]),
        (["stage=grpo", "stage.ptx.source=chat", "stage.ptx.path=no.jsonl"], ["stage.ptx.path=no.jsonl: no such file"]),
        (["stage=ppo", "stage.ptx.coef=1", "stage.ptx.source=tinyworld"], ["stage.ptx.max_rows=null", "never ends"]),
        (["stage=ppo", "stage.ptx.max_rows=0"], ["stage.ptx.max_rows=0: must be at least 1"]),
        (
            ["stage=grpo", "stage.ptx.source=refusals", "+stage.ptx.mix={x: {source: text, path: no/, max_rows: 0}}"],
            [
                "stage.ptx.mix.x.source=text has no conversations",
                "stage.ptx.mix.x.path=no/: no such",
                "stage.ptx.mix.x.max_rows=0",
            ],
        ),
        (
            ["stage=ppo", "stage.ptx.coef=1", "stage.ptx.source=alpaca", "stage.ptx.batch_size=7", *TWO_RANKS],
            ["stage.ptx.batch_size=7 does not divide over 2 ranks; use 8"],
        ),
        (["stage=grpo", "stage.normalise_parts=true", "stage.missing_end=floor"], ["stage.missing_end=floor"]),
        (["stage=sft", "stage.length_power=1.5"], ["stage.length_power=1.5", "from 0"]),
        (["stage=sft", "stage.label_smoothing=1"], ["stage.label_smoothing=1", "below 1"]),
    ],
)
def test_impossible_combination_is_refused_with_key_value_and_remedy(overrides: list[str], expected: list[str]) -> None:
    message = refusal(*overrides)
    for part in expected:
        assert part in message


def test_all_problems_are_reported_together() -> None:
    message = refusal("stage.max_steps=0", "checkpoint.keep_last=0")
    assert "stage.max_steps" in message
    assert "checkpoint.keep_last" in message


def test_the_defaults_pass_every_check() -> None:
    for stage in ("tokenizer", "corpus", "pretrain", "eval"):
        checks.check(composed(f"stage={stage}"))


def command(*arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tinychat.train", *arguments],
        env=environment_of(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done, time.perf_counter() - start


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["model=gpt6x51"], "Did you mean model=gpt6x512?"),
        (["data=tinystorys"], "Did you mean data=tinystories?"),
        (["stage.lrr=1"], "Did you mean: 'lr'?"),
        (["stage.lr=fast"], "stage.lr"),
        (["stage.schedule=cosin"], "Did you mean cosine?"),
        (["stage=grpo", "stage.loss=gsop"], "cispo, rloo]. Did you mean gspo?"),
        (["modle=mini"], "Did you mean: 'model'?"),
        (
            ["stage=ppo", "reward=python"],
            "path has no default: give reward.parts.python.path=",
        ),
        (["stage.batch_size=7", "stage.micro_batch_size=2"], "stage.batch_size=7"),
    ],
)
def test_a_typing_mistake_is_one_line_before_torch_loads(arguments: list[str], expected: str, tmp_path: Path) -> None:
    done, _ = command(*arguments, f"paths.outputs={tmp_path}")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 1
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert expected in lines[0] and "Structured config" not in lines[0]
    assert "| torch\n" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["--info", "defaults"]])
def test_help_answers_without_torch(arguments: list[str]) -> None:
    done, _ = command(*arguments)
    assert done.returncode == 0, done.stderr[-500:]
    assert not [line for line in done.stderr.splitlines() if line.endswith(("| torch", "| transformers", "| mlflow"))]


def test_help_names_groups_and_keys_in_plain_words() -> None:
    done, _ = command("--help")
    for word in ("what is trained", "gpt6x512", "stage.max_steps", "data.path", "resume=auto", "--cfg job"):
        assert word in done.stdout


def test_tab_completion_offers_options() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tinychat.train", "--shell-completion", "query=bash"],
        env=environment_of(COMP_LINE="tinychat-train model=gpt", COMP_POINT="24"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "model=gpt6x512" in done.stdout


def test_no_default_hides_in_the_dataclasses() -> None:
    groups = (schema.ModelConfig, schema.DataConfig, schema.OptimConfig, schema.PeftConfig, schema.RewardConfig)
    for node in (*(spec.settings for spec in SPECS.values()), *groups):
        missing = OmegaConf.structured(node)
        # A mapping whose keys are the user's own begins empty: OmegaConf could not merge into a missing one.
        values = [key for key in missing if OmegaConf.is_missing(missing, key) or missing[key] != {}]
        assert all(OmegaConf.is_missing(missing, key) for key in values), node


def test_a_forward_pass_is_no_larger_than_a_ranks_share_of_the_batch() -> None:
    config = composed("stage.batch_size=8", "stage.micro_batch_size=4", "launch=torchrun", "launch.nproc=4")
    checks.check(config)
    assert [config.stage.per_forward(ranks) for ranks in (1, 2, 4, 8)] == [4, 4, 2, 1]
    assert [config.stage.grad_accum_steps(ranks) for ranks in (1, 2, 4, 8)] == [2, 1, 1, 1]
    ptx = ("stage.ptx.coef=1", "stage.ptx.source=alpaca", "stage.ptx.batch_size=12", "stage.micro_batch_size=4")
    config = composed("stage=ppo", "tuned=none", "stage.batch_size=8", *ptx)
    assert [config.stage.grad_accum_steps(ranks) for ranks in (1, 2, 4)] == [2 + 3, 1 + 2, 1 + 1]
