"""The interactive chat: its commands, and a person at a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest

from tests.chat_models import COMMAND, ENVIRONMENT, babbler, saved
from tinychat.chat import __main__ as chat
from tinychat.chat.repl import Repl, as_utf8, history_file, with_params
from tinychat.chat.session import open_session
from tinychat.errors import UserError
from tinychat.models.generation.sampling import SamplingOptions
from tinychat.text.chat_template import set_template


def make(*kinds: str, **options) -> Repl:
    sessions = []
    for kind in kinds:
        model, tokenizer = babbler()
        if kind == "chat":
            set_template(tokenizer, "instruct")
        sessions.append(open_session(model, tokenizer, kind))
    return Repl(sessions, SamplingOptions(**{"max_new_tokens": 6, "greedy": True, **options}))


@pytest.fixture
def printed(capsys):
    def take() -> str:
        return capsys.readouterr().out

    return take


# --- commands


def test_every_session_has_its_own_dialogue_and_undo_takes_the_same_line_from_each(printed):
    repl = make("text", "chat")
    repl.take("the cat")
    first = printed()
    assert first.startswith("[text] ")
    assert "\n[chat] " in first
    repl.take("")  # starts a text from nothing; no message to a chat
    assert "error: the message is empty" in printed()
    repl.take("the dog")
    printed()
    text, chat = repl.sessions
    assert [turn.line for turn in text.turns] == [turn.line for turn in chat.turns] == ["the cat", "", "the dog"]
    for line in ("the dog", "", "the cat"):
        repl.take("/undo")
        assert printed() == f"took back: {line}\n"
    repl.take("/undo")
    assert printed() == "nothing to take back\n"
    repl.take("the cat")
    assert printed() == first
    repl.take("/reset")
    printed()
    assert not text.turns
    assert not chat.turns


def test_retry_draws_another_reply_to_the_last_line_and_a_seed_repeats_the_tries(printed):
    def replies() -> list[str]:
        repl = make("chat", greedy=False, seed=5, max_new_tokens=12)
        repl.take("the cat")
        repl.take("/retry")
        repl.take("/retry")
        assert [turn.line for turn in repl.sessions[0].turns] == ["the cat"]
        return printed().splitlines()[::2]

    assert replies() == replies()
    assert len(set(replies())) == 3


def test_the_system_message_is_shown_set_and_taken_away(printed):
    repl = make("text", "chat")
    repl.take("/system")
    repl.take("/system  Answer in one word. ")
    assert printed() == "system message: none\nsystem message: Answer in one word.\n"
    assert [session.system for session in repl.sessions] == ["", "Answer in one word."]
    repl.take("/system -")
    assert repl.sessions[1].system == ""
    with pytest.raises(UserError, match="no checkpoint here has a chat template"):
        make("text").take("/system hello")


def test_params_are_shown_and_set(printed):
    repl = make("chat")
    repl.take("/params")
    assert "max_new_tokens=6 temperature=0.8 top_k=0" in printed()
    repl.take("/params temperature=0.5 --top-k=3 greedy=off seed=7")
    assert repl.options == SamplingOptions(max_new_tokens=6, temperature=0.5, top_k=3, seed=7)
    repl.take("/params seed=none greedy=ON")
    assert repl.options == SamplingOptions(max_new_tokens=6, temperature=0.5, top_k=3, greedy=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("temprature=1", "did you mean temperature"),
        ("colour=1", "one of max_new_tokens, temperature"),
        ("temperature", "temperature=0.8"),
        ("temperature=", "temperature=0.8"),
        ("temperature=hot", "must be a number"),
        ("temperature=0", "must be above 0"),
        ("top_k=1.5", "must be a whole number"),
        ("seed=x", "whole number or none"),
        ("greedy=yes", "on or off"),
        ("top_k=3 top_p=2", "top_p=2.0"),
    ],
)
def test_params_that_cannot_work_are_named_and_change_nothing(text, words):
    repl = make("chat")
    before = repl.options
    with pytest.raises(UserError, match=words):
        repl.take(f"/params {text}")
    assert repl.options == before
    with pytest.raises(UserError, match=words):
        with_params(SamplingOptions(), text)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/sytem x", "did you mean /system"),
        ("/xyz", "/help lists them"),
        ("/", "no command /;"),
        ("/retry", "nothing was said yet"),
        ("/save", "give a file"),
        ("/save talk", "name it .json or .jsonl"),
        ("/save talk.json", "no reply to save"),
    ],
)
def test_commands_that_cannot_work_say_so(line, words):
    with pytest.raises(UserError, match=words):
        make("chat").take(line)


def test_help_names_every_command(printed):
    repl = make("chat")
    repl.take("/help")
    shown = printed()
    assert all(f"/{name}" in shown for name in repl.commands)
    assert max(map(len, shown.splitlines())) <= 120


def test_save_writes_canonical_rows_and_overwrites_only_when_told(tmp_path, printed):
    repl = make("text", "chat")
    repl.take("/system a mat")
    repl.take("the cat 从前")
    file = tmp_path / "talk.json"
    repl.take(f"/save {file}")
    assert "saved 2 dialogues" in printed()
    text, chat = json.loads(file.read_text(encoding="utf-8"))
    assert "从前" in file.read_text(encoding="utf-8")
    assert [message["role"] for message in text["messages"]] == ["user", "assistant"]
    assert chat["messages"][0] == {"role": "system", "content": "a mat"}
    assert chat["messages"][2]["content"] == repl.sessions[1].turns[0].reply
    assert [text["checkpoint"], chat["checkpoint"]] == ["text", "chat"]
    with pytest.raises(UserError, match="exists; /save! "):
        repl.take(f"/save {file}")
    repl.take("/undo")
    repl.take("the dog")
    repl.take(f"/save! {file}")
    assert json.loads(file.read_text())[0]["messages"][0]["content"] == "the dog"
    lines = tmp_path / "talk.jsonl"
    repl.take(f"/save {lines}")
    assert [json.loads(line) for line in lines.read_text().splitlines()] == json.loads(file.read_text())
    with pytest.raises(UserError, match="there is no folder"):
        repl.take(f"/save {tmp_path / 'no' / 'talk.json'}")


def test_an_error_in_one_model_lets_the_other_answer(printed):
    repl = make("chat", "text")
    repl.sessions[0]._model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of\nmemory")))
    repl.take("the cat")
    first, second = printed().splitlines()[:2]
    assert first == "[chat] error: out of memory"
    assert second.startswith("[text] ")
    assert repl.sessions[1].turns[0].reply


def test_where_the_history_is_kept(monkeypatch, tmp_path):
    monkeypatch.delenv("TINYCHAT_HISTORY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert history_file() == tmp_path / "tinychat" / "history"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert history_file() == tmp_path / ".local" / "state" / "tinychat" / "history"
    monkeypatch.setenv("TINYCHAT_HISTORY", "~/lines")
    assert history_file() == tmp_path / "lines"
    for off in ("", "0"):
        monkeypatch.setenv("TINYCHAT_HISTORY", off)
        assert history_file() is None


def test_bytes_that_python_did_not_decode_become_text():
    assert as_utf8("猫".encode().decode("ascii", "surrogateescape") + "\udcff") == "猫\ufffd"
    assert as_utf8("猫 🎉") == "猫 🎉"


# --- the terminal


def become_the_program(arguments: list[str], variables: dict[str, str]) -> NoReturn:
    """In a fork of this process, which has loaded torch and transformers, without the seconds that takes."""
    status: object = 1
    try:
        os.environ.clear()
        os.environ.update(variables)
        sys.argv = ["tinychat.chat", *arguments]
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout, sys.stderr = (open(fd, "w", 1, encoding="utf-8", closefd=False) for fd in (1, 2))  # noqa: SIM115
        chat.main()
        status = 0
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
    finally:
        sys.stdout.flush()
        os._exit(status if isinstance(status, int) else 1)


class Terminal:
    """The program on a pseudo-terminal: in a new Python, or where that is not what is tested in a fork of this one."""

    def __init__(self, *arguments: object, forked: bool = False, **environment: str):
        pid, self.fd = pty.fork()
        if pid == 0:
            variables = {**ENVIRONMENT, "TERM": "dumb", **environment}
            if forked:
                become_the_program(list(map(str, arguments)), variables)
            os.execve(sys.executable, [*COMMAND, *map(str, arguments)], variables)
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

    def say(self, line: str) -> str:
        """What is shown between a line and the next prompt."""
        self.type(line + "\n")
        return self.wait_for("\r\n> ")

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


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    runs = tmp_path_factory.mktemp("runs")
    return tuple(
        saved(runs / f"{stage}-mini", template) for stage, template in (("pretrain", None), ("sft", "instruct"))
    )


@pytest.fixture
def terminal():
    opened: list[Terminal] = []

    def start(*arguments: object, forked: bool = False, **environment: str) -> Terminal:
        opened.append(Terminal(*arguments, forked=forked, **environment))
        opened[-1].wait_for("> ")
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_a_person_talks_stops_corrects_and_saves(terminal, folders, tmp_path):
    """In the C locale, where readline alone would edit bytes."""
    history, talk = tmp_path / "state" / "history", tmp_path / "talk.json"
    variables = {"LC_ALL": "C", "PYTHONIOENCODING": "", "TINYCHAT_HISTORY": str(history)}
    session = terminal(folders[1], "--greedy", "--max_new_tokens", 10**6, **variables)
    assert "did you mean /system" in session.say("/sytem be brief")
    session.type("猫狗\x7f在\n")  # a character, then Backspace
    session.wait_for("\r\n")
    session.wait_for("a")  # it has begun; within a second it would have filled its context
    session.type("\x03")
    session.wait_for("[stopped]")
    session.wait_for("> ")
    session.say("/params max_new_tokens=5")
    session.say("the cat")
    session.type("half a line")
    session.wait_for("half a line")  # a Ctrl-C before readline listens would wait for the next key
    time.sleep(0.2)
    session.type("\x03")
    session.wait_for("\r\n> ")
    assert "saved 1 dialogue" in session.say(f"/save {talk}")
    session.type("\x04")
    assert session.leave() == 0
    [row] = json.loads(talk.read_text(encoding="utf-8"))
    assert [message["content"] for message in row["messages"][::2]] == ["猫在", "the cat"]
    assert row["messages"][1]["content"]
    assert row["stopped"] == [1]
    lines = history.read_text(encoding="utf-8").splitlines()
    assert lines == ["/sytem be brief", "猫在", "/params max_new_tokens=5", "the cat", f"/save {talk}"]
    assert history.stat().st_mode & 0o077 == 0


def test_two_checkpoints_side_by_side_and_a_history_from_last_time(terminal, folders, tmp_path):
    history = tmp_path / "history"
    history.write_text("the cat\n")
    session = terminal(*folders, "--greedy", "--max_new_tokens", 5, forked=True, TINYCHAT_HISTORY=str(history))
    session.type("\x10")  # Up
    session.wait_for("the cat")
    first = session.say("")
    assert first.index("[pretrain] ") < first.index("[sft] ")
    second = session.say("the cat")
    label = "[sft] "
    assert first.split(label)[0].split("[pretrain]")[1] == second.split(label)[0].split("[pretrain]")[1]
    session.type("/un\t\n")  # Tab
    assert "took back: the cat" in session.wait_for("\r\n> ")
    session.type("/quit\n")
    assert session.leave() == 0
    assert history.read_text().splitlines() == ["the cat", "/undo", "/quit"]
