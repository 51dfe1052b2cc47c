"""python -m tinychat.chat: argument, pipe and terminal, one-line errors, quick help."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tinychat import chat
from tinychat.errors import UserError
from tinychat.models.build import build_model
from tinychat.models.sampling import SamplingOptions
from tinychat.schema import Arch, ModelConfig
from tinychat.text.bpe import train_bpe

COMMAND = [sys.executable, "-m", "tinychat.chat"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A run folder with one checkpoint of a tiny model that babbles on for long."""
    run = tmp_path_factory.mktemp("run")
    folder = run / "checkpoints" / "step-000010"
    tokenizer = train_bpe(["the cat and the dog sat on the mat, 从前 🎉. " * 20], 300, progress=False)
    shape = ModelConfig(
        name="tiny",
        arch=Arch.llama,
        path=None,
        n_layer=2,
        n_embd=32,
        n_head=4,
        n_kv_head=2,
        n_inner=48,
        context_length=2048,
        vocab_size=None,
        tie_embeddings=False,
        dropout=0.0,
        rope_theta=10000.0,
        init_std=0.3,
        position_init_std=None,
    )
    torch.manual_seed(0)
    model = build_model(shape, 320, tokenizer.pad_token_id, tokenizer.eos_token_id)
    with torch.no_grad():  # scores of the other tokens are random, so the end of text is never the likeliest
        model.get_output_embeddings().weight[tokenizer.eos_token_id] = 0
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return chat.load(str(checkpoint), "cpu")


@pytest.fixture
def ran(loaded, monkeypatch, capsys):
    """Run the program in this process with the model already loaded; returns what it printed."""

    def run(*arguments: str, stdin: bytes | None = None) -> str:
        monkeypatch.setattr(chat, "load", lambda *_: loaded)
        monkeypatch.setattr(sys, "stdin", None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setattr(sys, "argv", ["chat", "CKPT", "--max_new_tokens", "12", *arguments])
        chat.main()
        return capsys.readouterr().out

    return run


def program(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, env=ENVIRONMENT, timeout=120)


# --- the program itself


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
    ],
)
def test_bad_input_is_one_line_and_exit_status_1(arguments, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
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


def test_a_checkpoint_cut_short_is_one_line(checkpoint, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in checkpoint.iterdir():
        content = file.read_bytes()
        (broken / file.name).write_bytes(content[:-50] if file.suffix == ".safetensors" else content)
    done = program(broken, "--prompt", "a")
    assert done.returncode == 1
    assert b"cut short" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_help_answers_without_torch():
    script = (
        "import sys, tinychat.chat as chat\n"
        "try: chat.parse(['--help'])\n"
        "except SystemExit: pass\n"
        "chat.sampling_options(chat.parse(['x']))\n"
        "assert not {'torch', 'transformers', 'hydra'} & set(sys.modules), sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=ENVIRONMENT, text=True)
    assert done.returncode == 0, done.stderr
    for option in ("--temperature", "--top_k", "--top_p", "--repetition_penalty", "--greedy", "--seed", "--prompt"):
        assert option in done.stdout


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


@pytest.mark.parametrize(("content", "words"), [(b"", "empty"), (b" \n", "empty"), (b"\xff\xfe\xff", "not UTF-8")])
def test_pipes_without_text_are_refused(content, words, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(UserError, match=words):
        chat.piped_prompt()


def test_a_gpu_that_is_not_there_is_named(checkpoint, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="use --device cpu"):
        chat.load(str(checkpoint), "cuda")


# --- the terminal


class Terminal:
    """The program on a pseudo-terminal."""

    def __init__(self, *arguments: object):
        pid, self.fd = pty.fork()
        if pid == 0:
            os.execve(sys.executable, [*COMMAND, *map(str, arguments)], {**ENVIRONMENT, "TERM": "dumb"})
        self.pid, self.seen = pid, ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def wait_for(self, words: str, seconds: float = 90) -> str:
        """Read until `words` appear; returns everything up to and with them, and forgets it."""
        end = time.monotonic() + seconds
        while words not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{words!r} did not come: {self.seen!r}"
            try:
                self.seen += os.read(self.fd, 4096).decode(errors="replace")
            except OSError:  # Linux: the other end is closed
                raise AssertionError(f"ended before {words!r}: {self.seen!r}") from None
        before, _, self.seen = self.seen.partition(words)
        return before + words

    def leave(self) -> int:
        """The exit status."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    os.read(self.fd, 4096)
                except OSError:
                    pass
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
        raise AssertionError("did not leave")

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.fixture
def terminal(checkpoint):
    opened: list[Terminal] = []

    def start(*arguments: object) -> Terminal:
        opened.append(Terminal(checkpoint, *arguments))
        opened[-1].wait_for("> ")
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_a_session_answers_again_and_again_and_quits(terminal):
    session = terminal("--greedy", "--max_new_tokens", 5)
    answers = []
    for _ in range(2):
        session.type("the cat\n")
        session.wait_for("the cat\r\n")
        answers.append(session.wait_for("\r\n> "))
    assert answers[0] == answers[1]
    assert len(answers[0]) > len("\r\n> ")
    session.type("/unknown\n")
    assert "/quit" in session.wait_for("\r\n> ")
    session.type("/quit\n")
    assert session.leave() == 0


def test_ctrl_c_stops_the_text_and_not_the_program_and_ctrl_d_leaves(terminal):
    session = terminal("--greedy", "--max_new_tokens", 2000)
    session.type("the cat\n")
    session.wait_for("the cat\r\n")
    time.sleep(0.5)
    session.type("\x03")
    session.wait_for("[stopped]")
    session.wait_for("> ")
    session.type("half a line")
    session.wait_for("half a line")  # a Ctrl-C before readline listens would wait for the next key
    time.sleep(0.2)
    session.type("\x03")
    session.wait_for("> ")
    session.type("\x04")
    assert session.leave() == 0
