"""Foreign text acts on no terminal: its controls are shown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment_of
from tinychat.errors import UserError
from tinychat.runtime.console import main_of
from tinychat.runtime.terminal import as_text, error_line, is_plain


def test_controls_are_shown_and_letters_stay() -> None:
    assert as_text("\x1b[31mred\x00\x7f\r\n\tsecond\x9b2J\u202eabc") == "␛[31mred␀␡␍\n\tsecond\\x9b2J\\u202eabc"
    kept = "naïve 语料 שלום 👩\u200d🔬 a\u200cb\n\t"
    assert as_text(kept) == kept


@pytest.mark.parametrize("text", ["a\nb", "a\tb", "\x1b[1m", "a\x00", "a\x85b", "a\u2028b", "\u202eabc", "a\udc80"])
def test_what_ends_a_line_or_acts_is_not_plain(text: str) -> None:
    assert not is_plain(text)


def test_names_of_people_are_plain() -> None:
    assert is_plain("语料 café ~x a?b a%20b a\u200cb 👩\u200d🔬")


def test_a_program_ends_in_a_line_without_controls_or_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: list[str]) -> None:
        raise UserError("row 3 of http://u:secret@h: \x1b[2Jbad")

    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit) as found:
        main_of(fails)
    assert found.value.code == error_line("row 3 of http://u:secret@h: \x1b[2Jbad")
    assert found.value.code == "error: row 3 of http://u:***@h: ␛[2Jbad"


def test_nothing_prints_foreign_text_as_it_is() -> None:
    """Of the places that print replies, errors, rows and names, none goes around as_text."""
    package = Path(error_line.__code__.co_filename).parent
    found = subprocess.run(
        ["grep", "-rnE", r"(print\((f\"error|piece|note|line|text)|sys\.exit\(f\")", "--include=*.py", package],
        capture_output=True,
        text=True,
    ).stdout
    assert found == ""


def test_replies_are_printed_without_what_acts(capsys: pytest.CaptureFixture[str]) -> None:
    from tinychat.chat import __main__ as chat
    from tinychat.models.generation.sampling import SamplingOptions

    class Spoken:
        name, kind = "a", "text"

        def reply(self, line: str, options: SamplingOptions, input_text: str = "") -> list[str]:
            return [" \x1b[31mred", "\x1b[0m\r", "end"]

    chat.answer_once([Spoken()], "say\x07", "", SamplingOptions())  # type: ignore[list-item]
    assert capsys.readouterr().out == "say␇ ␛[31mred␛[0m␍end\n"
    assert chat._on_one_line("a\x1b[2J\nb\tc\x9b") == "a␛[2J\\nb\\tc\\x9b"


@pytest.mark.parametrize(
    ("printed", "status"),
    [
        ("print('a line')", 0),  # written when Python ends
        ("print('a line'); sys.exit(3)", 3),
        ("print('much' * 100_000); sys.exit(3)", 0),  # not reached: what nobody reads is not made
        ("console = output_console(); console.print('a table'); console.print('another'); sys.exit(3)", 3),
    ],
)
def test_a_reader_that_has_gone_is_no_error(printed: str, status: int) -> None:
    code = f"""import sys
from tinychat.runtime.console import main_of
from tinychat.runtime.terminal import output_console
def run(_):
    {printed}
main_of(run)"""
    read, write = os.pipe()
    os.close(read)
    try:
        env = {**environment_of(), "PYTHONUNBUFFERED": ""}
        done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, env=env)
    finally:
        os.close(write)
    assert (done.stderr.decode(), done.returncode) == ("", status)
