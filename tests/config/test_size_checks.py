"""Numbers that no machine could hold, and names that no folder should have, are one line before anything is built."""

from __future__ import annotations

import time

import pytest

from tests.config.test_compose import composed
from tests.conftest import configured_parameters
from tinychat.config import checks, size_checks
from tinychat.errors import UserError


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["seed=100000000000000000000000"], "seed="),
        (["seed=-1"], "seed=-1: must not be negative"),
        (["data.seed=18446744073709551616"], "data.seed="),
        (["stage.lr=nan"], "stage.lr=nan: must be a finite number"),
        (["optim.betas=[0.9,inf]"], "optim.betas.1=inf: must be a finite number"),
        (["launch.nproc=0"], "launch.nproc=0: must be at least 1"),
        (["launch.nnodes=-3"], "launch.nnodes=-3: must be at least 1"),
        (["model.rope_theta=0"], "model.rope_theta=0.0: must be above 0"),
        (["stage.batch_size=0"], "stage.batch_size=0: must be at least 1"),
        (["stage.micro_batch_size=0"], "stage.micro_batch_size=0: must be at least 1"),
        (["stage.batch_size=1000000000000"], "stage.batch_size=1000000000000: must be at most 1000000000"),
        (["stage.batch_size=900000001", "stage.micro_batch_size=2"], "stage.batch_size=900000001"),
        (
            ["stage.batch_size=900000000"],
            "stage.batch_size=900000000: its sequences of 256 tokens take at least 1,843 GB",
        ),
        (["stage.micro_batch_size=400000", "stage.batch_size=400000", "device=cpu"], "stage.micro_batch_size=400000"),
        (["model.n_embd=1000000000"], "model.n_embd=1000000000: must be at most"),
        (["model.n_embd=3000000"], "model.n_embd=3000000: training"),
        (["model.n_layer=1000000000"], "model.n_layer=1000000000: must be at most"),
        (["model.n_layer=9000", "model.n_embd=3072"], "model.n_layer=9000 model.n_embd=3072: training"),
        (["model.n_inner=100000000"], "training 1.73e+11 weights takes at least 2,074 GB, this machine has 16.0 GB"),
        (["tokenizer.vocab_size=1000000000000"], "tokenizer.vocab_size=1000000000000: must be at most"),
        (["stage.max_steps=1000000000000000000"], "stage.max_steps=1000000000000000000: must be at most 1000000000"),
        (["stage.eval_every=10000000000000000000000"], "stage.eval_every=100... (23 digits): must be at most"),
        (["data.max_docs=1000000000000"], "tinyworld makes at most 100,000,000"),
        (["launch=torchrun", "launch.nproc=100000", "stage.batch_size=100000"], "as many processes take at least"),
        (["launch.timeout_minutes=1e300"], "launch.timeout_minutes=1e+300: must be at most"),
    ],
)
def test_a_number_beyond_the_machine_is_one_line_at_once(
    overrides: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(size_checks, "machine_memory", lambda: 16e9)
    config = composed(*overrides)
    began = time.process_time()
    with pytest.raises(UserError) as found:
        checks.check(config)
    assert expected in str(found.value)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("model", ["mini", "gpt2_100m", "minimind2_104m"])
def test_every_model_that_ships_fits_a_small_machine(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(size_checks, "machine_memory", lambda: 8e9)
    checks.check(composed(f"model={model}", "device=cpu"))


def test_the_weights_are_counted_as_the_model_has_them() -> None:
    for name in ("mini", "gpt6x512", "minimind2_104m"):
        config = composed(f"model={name}", "tokenizer.vocab_size=640")
        real = configured_parameters(config.model, 640).total
        counted = size_checks.weights_of(config)
        assert counted is not None
        assert 0.97 * real <= counted <= real


def test_another_machine_may_be_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(size_checks, "machine_memory", lambda: 1e9)
    large = ("model.n_embd=30000", "model.n_layer=100")
    checks.check(composed(*large, "plan=h200"))
    with pytest.raises(UserError, match="weights takes at least"):
        checks.check(composed(*large))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("run_name='a\nb'", "run_name='a\\nb': control characters"),
        ("experiment_name='\x1b[31mx'", "experiment_name='\\x1b[31mx': control characters"),
        ("run_name='a\x00b'", "run_name='a\\x00b': control characters"),
        ("experiment_name=a/b", "must be a plain folder name"),
        ("run_name=..", "must be a plain folder name"),
        ("run_name=' '", "must be a plain folder name"),
        ("run_name=" + "x" * 300, "300 bytes; a folder's name has at most 200"),
        ("paths.outputs=''", "paths.outputs='': a folder"),
        ("paths.outputs='a\nb'", "paths.outputs='a\\nb': control characters"),
        ("run_dir=''", "run_dir='': a folder, or null"),
    ],
)
def test_a_name_that_would_act_is_refused(override: str, expected: str) -> None:
    with pytest.raises(UserError) as found:
        checks.check(composed(override))
    assert expected in str(found.value)


def test_names_in_any_language_pass() -> None:
    checks.check(composed("run_name='语料 café'", "experiment_name='a?b%20~'"))
