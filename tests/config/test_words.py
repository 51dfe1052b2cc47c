"""A command line reaches Hydra's grammar in a form that it reads, and says what its words may have meant."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.conftest import REPOSITORY
from tinychat.config.explain import known_keys, nearest_key
from tinychat.config.words import as_value, for_shell, quoted, ready
from tinychat.errors import UserError

CONF = REPOSITORY / "conf"


def value_of(word: str) -> object:
    read = OverridesParser.create().parse_override(quoted(word))
    return list(read.sweep_string_iterator()) if read.is_sweep_override() else read.value()


@pytest.mark.parametrize(
    "name",
    [
        *("语料.jsonl", "café.jsonl", "a=b", "texts (1).jsonl", "it's", 'a "b"', "a&b;c", "x#y", "a:b=c", "(", "[x"),
        *("a}b", "back\\slash é\\", "'", "\\'é", "d'é\\", "naïve, [draft].txt", "~nobody-here/x"),
    ],
)
def test_a_file_name_of_any_letters_reaches_hydra_whole(name: str, tmp_path: Path, monkeypatch: object) -> None:
    (tmp_path / "naïve, [draft].txt").touch()
    monkeypatch.chdir(tmp_path)  # type: ignore[attr-defined]
    assert str(value_of(f"data.path={name}")) == (f"./{name}" if name[0] == "~" else name)
    assert str(value_of(f"run_name={name}")) == name
    assert str(value_of(f"x={as_value(name)}")) == name  # as one job hands it to the next


def test_what_hydra_reads_is_left_alone() -> None:
    for word in (
        "stage.lr=1e-3,3e-3",
        "seed=range(1,4)",
        "stage.lr=tag(log,interval(1e-5,1e-3))",
        "data.path=${paths.outputs}/x",
        "stage.samples=[a,'b c']",
        "+ds.config.a={b:1,c:[1,2]}",
        "~tracker",
        "model=mini",
        "tracker.uri=http://u:p@h:1/a?b",
    ):
        assert quoted(word) == word


def test_lists_sweeps_functions_and_interpolations_keep_their_form_around_other_letters() -> None:
    assert value_of("data.path=语料.jsonl,b c é.txt,d") == ["'语料.jsonl'", "'b c é.txt'", "d"]
    assert value_of("data.path=choice(语料.jsonl,b)") == ["语料.jsonl", "b"]
    assert [str(one) for one in value_of("stage.samples=[语料, 'x, y',a=b]")] == ["语料", "x, y", "a=b"]  # type: ignore[attr-defined]
    assert quoted("x={a:é,b:[ü,1]}") == "x={a:'é',b:['ü',1]}"
    assert quoted("data.path=${paths.outputs}/é") == "data.path='${paths.outputs}/é'"


def test_a_file_with_a_comma_is_no_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a,b.txt").touch()
    monkeypatch.chdir(tmp_path)
    assert quoted("data.path=a,b.txt") == "data.path='a,b.txt'"
    assert quoted("data.path=a,c.txt") == "data.path=a,c.txt"


def test_without_sweeps_a_comma_belongs_to_the_name() -> None:
    assert quoted("run_name=a=b, né", sweeps=False) == "run_name='a=b, né'"
    assert quoted("stage.samples=[a=b, né]", sweeps=False) == "stage.samples=['a=b','né']"
    assert ready(["data.path=a=b, né"], CONF) == ["data.path='a=b, né'"]
    assert ready(["-m", "data.path=a=b, né"], CONF) == ["-m", "data.path='a=b','né'"]


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert value_of("paths.outputs=~/runs é") == f"{tmp_path}/runs é"


@pytest.mark.parametrize("text", ["null", "True", "1e3", "12", "-1", "nan", "", "a b", "1_0", "é", "x,y", "${x}"])
def test_a_text_stays_a_text(text: str) -> None:
    assert str(value_of(f"x={as_value(text)}")) == text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pretrain"], "pretrain: a setting is written KEY=VALUE (see --help). Did you mean stage=pretrain?"),
        (["stage=sft", "mini"], "Did you mean model=mini?"),
        (["--max_steps", "10"], "--max_steps: no such flag; .* Did you mean stage.max_steps=10?"),
        (["--max-steps=10"], "Did you mean stage.max_steps=10?"),
        (["--learning_rate", "1e-3", "seed=1"], "Did you mean stage.lr=1e-3?"),
        (["--output_dir=x"], "Did you mean paths.outputs=x?"),
        (["-lr", "3"], "Did you mean stage.lr=3?"),
        (["tuned=sft_tinyword_mini"], "Did you mean tuned=sft_tinyworld_mini?"),
        (["data.path=caf\udce9.txt"], r"data.path=caf\udce9.txt: is not UTF-8 text"),
    ],
)
def test_a_slip_names_what_was_meant(words: list[str], expected: str) -> None:
    with pytest.raises(UserError) as found:
        ready(words, CONF)
    start, _, end = expected.partition(" .* ")
    assert str(found.value).startswith(start) or start in str(found.value)
    assert end in str(found.value)


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("data.path=texts (1).jsonl", "'data.path=texts (1).jsonl'"),
        ("data.path=语料.jsonl", "'data.path=语料.jsonl'"),
        ("data.path=it's", shlex.quote("data.path=it's")),
        ("run_name='1'", shlex.quote("run_name='1'")),  # without quotes it is a number
        ("stage.samples=['a b',é]", shlex.quote("stage.samples=['a b','é']")),
        ("seed=1", "seed=1"),
    ],
)
def test_a_command_is_shown_as_it_was_typed(typed: str, line: str) -> None:
    assert for_shell([quoted(typed)]) == line
    assert quoted(shlex.split(line)[0]) == quoted(typed)


def test_flags_and_their_values_pass() -> None:
    words = [
        "-m",
        "--cfg",
        "job",
        "--config-dir",
        "a é=b",
        "--info",
        "config",
        "--multi",
        "--shell-completion",
        "seed=1",
    ]
    assert ready([*words, "~sweep"], CONF) == [*words, "~sweep"]


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("lr", "stage.lr"),
        ("stage.learning_rate", "stage.lr"),
        ("learning_rate", "stage.lr"),
        ("stage.num_train_epochs", "stage.max_steps"),
        ("max_step", "stage.max_steps"),
        ("stag.lr", "stage.lr"),
        ("trainer.max_steps", "stage.max_steps"),
        ("model.hidden_size", "model.n_embd"),
        ("stage.every", "checkpoint.every"),
        ("stage.wibble", None),
        ("optim.learning_rate", "stage.lr"),
    ],
)
def test_the_key_that_was_meant(key: str, near: str | None) -> None:
    assert nearest_key(key, known_keys("pretrain")) == near
