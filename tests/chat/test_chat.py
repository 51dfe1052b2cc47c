"""python -m tinychat.chat: argument and pipe, one-line errors, quick help."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.chat_models import COMMAND, ENVIRONMENT, saved
from tinychat.chat import __main__ as chat
from tinychat.errors import UserError
from tinychat.models.generation.sampling import SamplingOptions
from tinychat.text.chat_template import set_template


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A run folder's one checkpoint: a tiny model that babbles on for long."""
    return saved(tmp_path_factory.mktemp("run") / "checkpoints" / "step-000010")


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return chat.load(str(checkpoint), "cpu", "outputs")


@pytest.fixture
def ran(loaded, monkeypatch, capsys):
    """Run the program in this process with the model already loaded (CHAT: with a chat template); returns what it
    printed."""

    def load(name: str, *_: str):
        model, tokenizer = copy.deepcopy(loaded)
        if name == "CHAT":
            set_template(tokenizer, "chatml")
        return model, tokenizer

    def run(*arguments: str, stdin: bytes | None = None, checkpoints: tuple[str, ...] = ("BASE",)) -> str:
        monkeypatch.setattr(chat, "load", load)
        monkeypatch.setattr(sys, "stdin", None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setattr(sys, "argv", ["chat", *checkpoints, "--max_new_tokens", "12", *arguments])
        chat.main()
        return capsys.readouterr().out

    return run


def program(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, env=ENVIRONMENT, timeout=120)


# --- the program itself


@pytest.mark.slow
def test_argument_and_pipe_print_the_same_text_from_checkpoint_and_run_folder(checkpoint):
    piped = program(checkpoint, "--greedy", "--max-new-tokens", 8, stdin="the cat 从前".encode())
    given = program(checkpoint.parent.parent, "--prompt", "the cat 从前", "--greedy", "--max_new_tokens=8")
    assert piped.returncode == given.returncode == 0, piped.stderr.decode() + given.stderr.decode()
    assert piped.stdout == given.stdout
    text = piped.stdout.decode()
    assert text.startswith("the cat 从前")
    assert len(text) > len("the cat 从前\n")
    assert piped.stderr == b""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nowhere/at/all"], "/nowhere/at/all"),
        (["no-such/model"], "no-such/model"),
        ([], "CKPT"),
        (["x", "--temperature", "0"], "temperature=0.0: must be above 0"),
        (["x", "--temperature", "hot"], "--temperature"),
        (["x", "--top-p", "1.5"], "top_p=1.5"),
        (["x", "--top_k", "-1"], "top_k=-1"),
        (["x", "--max_new_tokens", "0"], "max_new_tokens=0"),
        (["x", "--temprature", "1"], "--temprature"),
        (["x", "--device", "tpu"], "--device"),
        (["x", "--mode", "talk"], "--mode"),
        (["x", "--lines"], "leave out --prompt"),
        (["a_file"], "a_file: is a file; give the folder it is in"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_1(arguments, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").touch()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "argv", ["chat", *arguments, "--prompt", "a"])
    with pytest.raises(SystemExit) as exit_:
        chat.main()
    message = str(exit_.value.code)  # sys.exit prints a text to stderr and makes the status 1
    assert message.startswith("error: ")
    assert words in message
    assert "\n" not in message


def test_errors_leave_with_status_1_and_nothing_on_stdout():
    done = program("/nowhere", "--prompt", "a")
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.decode().startswith("error: ")
    assert done.stderr.count(b"\n") == 1


def test_a_checkpoint_cut_short_is_one_line(warm, checkpoint, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in checkpoint.iterdir():
        content = file.read_bytes()
        (broken / file.name).write_bytes(content[:-50] if file.suffix == ".safetensors" else content)
    done = warm.run("tinychat.chat", tmp_path, str(broken), "--prompt", "a")
    assert done.returncode == 1
    assert "cut short" in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_answers_without_torch():
    script = (
        "import sys\nfrom tinychat.chat import __main__ as chat\n"
        "try: chat.parse(['--help'])\n"
        "except SystemExit: pass\n"
        "chat.sampling_options(chat.parse(['x']))\n"
        "assert not {'torch', 'transformers', 'hydra'} & set(sys.modules), sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=ENVIRONMENT, text=True)
    assert done.returncode == 0, done.stderr
    for option in (
        "--temperature",
        "--top_k",
        "--top_p",
        "--repetition_penalty",
        "--greedy",
        "--seed",
        "--prompt",
        "--lines",
    ):
        assert option in done.stdout
    assert done.stdout.index("examples:") < done.stdout.index("--prompt TEXT  ")


# --- prompts and options


def test_every_option_reaches_the_model_with_dashes_and_underscores():
    line = "x --temperature .5 --top-k 7 --top_p 0.9 --repetition-penalty=1.3 --greedy --seed 4 --max-new-tokens 9"
    expected = SamplingOptions(
        temperature=0.5, top_k=7, top_p=0.9, repetition_penalty=1.3, greedy=True, seed=4, max_new_tokens=9
    )
    assert chat.sampling_options(chat.parse(line.split())) == expected
    assert chat.sampling_options(chat.parse(line.replace("-p", "_p").split())) == expected
    assert chat.sampling_options(chat.parse(["x"])) == SamplingOptions()
    assert chat.parse(["x", "--prompt=--top-k"]).prompt == "--top-k"


def test_greedy_and_seeds_repeat_and_other_seeds_do_not(ran):
    assert ran("--prompt", "the", "--greedy") == ran("--prompt", "the", "--greedy")
    seeded = ran("--prompt", "the", "--seed", "1")
    assert seeded == ran("--prompt", "the", "--seed", "1")
    assert seeded != ran("--prompt", "the", "--seed", "2")


def test_a_pipe_is_one_prompt_without_its_last_line_end(ran):
    assert ran("--greedy", stdin=b"the\ncat\n") == ran("--greedy", "--prompt", "the\ncat")
    assert ran("--greedy", "--prompt", "the", stdin=b"not read") == ran("--greedy", "--prompt", "the")


def test_the_empty_prompt_starts_from_nothing(ran):
    assert len(ran("--greedy", "--prompt", "")) > 1


def test_a_chat_checkpoint_prints_its_reply_alone_and_forced_modes_differ(ran):
    reply = ran("--greedy", "--prompt", "the cat", checkpoints=("CHAT",))
    assert not reply.startswith("the cat")
    assert reply == ran("--greedy", stdin=b"the cat\n", checkpoints=("CHAT",))
    text = ran("--greedy", "--prompt", "the cat", "--mode", "text", checkpoints=("CHAT",))
    assert text == ran("--greedy", "--prompt", "the cat")
    assert ran("--greedy", "--prompt", "the cat", "--mode", "chat") not in (reply, text)
    changed = [("--system", "a mat"), ("--input", "a mat")]
    assert len({ran("--greedy", "--prompt", "the cat", *more, checkpoints=("CHAT",)) for more in [(), *changed]}) == 3


def test_several_checkpoints_answer_one_after_the_other_under_their_names(ran):
    both = ran("--greedy", "--prompt", "the cat", checkpoints=("BASE", "CHAT"))
    base = ran("--greedy", "--prompt", "the cat")
    reply = ran("--greedy", "--prompt", "the cat", checkpoints=("CHAT",))
    assert both == f"[BASE] {base}[CHAT] {reply}"


def test_lines_are_answered_line_by_line_without_memory(ran):
    lines = "the cat\n\nthe dog 从前\r\nthe cat".encode()
    replies = ran("--greedy", "--lines", stdin=lines, checkpoints=("CHAT",)).split("\n")
    assert len(replies) == 5
    assert replies[0] == replies[3] == ran("--greedy", "--prompt", "the cat", checkpoints=("CHAT",)).rstrip("\n")
    assert replies[1] == replies[4] == ""
    assert replies[2] not in ("", replies[0])
    columns = ran("--greedy", "--lines", stdin=lines, checkpoints=("CHAT", "BASE")).split("\n")
    continuation = ran("--greedy", "--prompt", "the cat").removeprefix("the cat").removesuffix("\n")
    assert columns[0] == f"{replies[0]}\t{continuation}"
    assert columns[1] == "\t"


def test_a_reply_of_lines_stays_on_one_line():
    assert chat._on_one_line("a\nb\tc\\n\r") == "a\\nb\\tc\\\\n\\r"


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        (["--lines"], b"the\n\xff\n", "line 2: is not UTF-8"),
        (["--prompt", " "], None, "the message is empty"),
        (["--lines"], b"a\n" + b"the cat " * 3000, "line 2: the message takes"),
        (["--input", "x"], None, "--prompt TEXT too"),
        (["--system", "x", "--mode", "text", "--prompt", "a"], None, "--system is for chats, not for --mode text"),
    ],
)
def test_what_a_chat_cannot_answer_is_one_line(ran, arguments, stdin, words):
    with pytest.raises(SystemExit) as exit_:
        ran(*arguments, stdin=stdin, checkpoints=("CHAT",))
    assert words in str(exit_.value.code)
    assert "\n" not in str(exit_.value.code)


@pytest.mark.parametrize(("content", "words"), [(b"", "empty"), (b" \n", "empty"), (b"\xff\xfe\xff", "not UTF-8")])
def test_pipes_without_text_are_refused(content, words, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(UserError, match=words):
        chat.piped_prompt()


def test_a_gpu_that_is_not_there_is_named(checkpoint, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="use --device cpu"):
        chat.load(str(checkpoint), "cuda", "outputs")
