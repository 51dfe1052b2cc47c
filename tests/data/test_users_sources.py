"""A class of the user's as a source of data: every shape, hold-out, choice, fingerprint; and what is wrong with one."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from tests.conftest import REPOSITORY
from tests.data.preferences.test_sources import config
from tinychat.config import checks, plugins, schema
from tinychat.config.schema import DataConfig, MixPart, OnBadRow
from tinychat.data.chats.sources import chat_source
from tinychat.data.documents.sources import text_source
from tinychat.data.look import code_hashes, fingerprints, look
from tinychat.data.preferences.prompts import prompt_source
from tinychat.data.preferences.sources import preference_source
from tinychat.errors import UserError

CHATS = """
from colours import COLOURS
class Mine:
    shape = "conversations"
    def __init__(self, more=0): self.more = more
    def rows(self, split):
        for n in range(100 + self.more):
            ask = {"role": "user", "content": f"Which colour has {n}?"}
            said = {"role": "assistant", "content": COLOURS[n % 2]}
            yield {"messages": [ask, said], "family": "colours", "answer": "word"} if n % 2 else [ask, said]
"""
SHAPES = {
    "documents": "f'text {n}' if n % 2 else {'text': f'text {n}'}",
    "conversations": "{'instruction': f'ask {n}', 'output': f'say {n}'}",
    "preferences": "{'prompt': f'ask {n}', 'chosen': 'yes', 'rejected': 'no', 'harmful': n % 2}",
    "prompts": "f'ask {n}' if n % 2 else {'prompt': f'ask {n}', 'reference': '7', 'answer': 'number'}",
}


def source(folder: Path, code: str, **changes: Any) -> DataConfig:
    """data=python with a file of this code, which says Mine."""
    sys.modules.pop("colours", None)  # of another test's folder
    (folder / "colours.py").write_text('COLOURS = ("red", "blue")')
    (folder / "mine.py").write_text(code)
    return config(source=f"{folder / 'mine.py'}:Mine", name="mine", judge_fraction=0, **{"options": {}, **changes})


def of_shape(shape: str, rows: str, more: str = "") -> str:
    return f"class Mine:\n    shape = '{shape}'\n{more}    def rows(self, split):\n        {rows}\n"


def rows_of(data: DataConfig, split: Any, shape: str) -> list[Any]:
    if shape == "documents":
        return list(text_source(data, split).documents())
    find: Any = {"conversations": chat_source, "preferences": preference_source, "prompts": prompt_source}[shape]
    return list(find(data, split).rows())


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_every_shape_are_held_out_and_chosen_as_those_of_files_are(shape: str, tmp_path: Path) -> None:
    data = source(tmp_path, of_shape(shape, f"yield from ({SHAPES[shape]} for n in range(100))"))
    train, validation = (rows_of(data, split, shape) for split in ("train", "validation"))
    assert len(train) + len(validation) == 100
    assert 2 <= len(validation) <= 25
    fewer = dataclasses.replace(data, max_rows=7, max_docs=7)
    assert len(rows_of(fewer, "train", shape)) == 7
    assert plugins.source_of(data).has == (shape,)
    assert plugins.gives(data, "prompts") is (shape != "documents")


def test_a_class_may_have_its_own_validation(tmp_path: Path) -> None:
    rows = "yield from (f'{split} {n}' for n in range(5))"
    data = source(tmp_path, of_shape("documents", rows, "    own_validation = True\n"))
    assert rows_of(data, "train", "documents") == [f"train {n}" for n in range(5)]
    assert rows_of(data, "validation", "documents") == [f"validation {n}" for n in range(5)]


def test_conversations_say_how_their_replies_are_checked_and_are_added_to_others(tmp_path: Path) -> None:
    data = source(tmp_path, CHATS, options={"more": 2})
    rows = rows_of(data, "train", "conversations")
    assert {(row.family, row.answer, row.messages[1]["content"]) for row in rows} == {
        ("colours", "word", "blue"),
        ("", "", "red"),
    }
    (tmp_path / "own.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "c", "output": "d"}\n')
    mixed = config(tmp_path / "own.jsonl", source="chat", val_fraction=0.5, mix={"mine": MixPart(data.source, None, 5)})
    assert len(rows_of(mixed, "train", "conversations")) == 1 + 5


def test_code_options_and_files_are_in_the_fingerprint(tmp_path: Path) -> None:
    """In processes of their own a changed file is read anew; here another folder stands for it."""

    def print_of(name: str, code: str = CHATS, colours: str = "red", **changes: Any) -> str:
        (tmp_path / name).mkdir()
        data = source(tmp_path / name, code, **changes)
        (tmp_path / name / "colours.py").write_text(f'COLOURS = ("{colours}", "blue")')
        return chat_source(data, "train").fingerprint()

    first = print_of("a")
    assert print_of("b") == first, "where the file lies means nothing"
    others = [
        print_of("c", CHATS.replace("Which colour", "What colour")),
        print_of("d", options={"more": 1}),
        print_of("e", seed=2),
        print_of("f", colours="green"),
    ]
    assert len({first, *others}) == 5
    taken = "    def __init__(self, path): self.path = path\n    def fingerprint(self): return '{}'\n"
    texts = []
    for name, content, said in (("g", "x", 1), ("h", "y", 1), ("i", "x", 2)):
        (tmp_path / f"{name}.txt").write_text(content)
        code = of_shape(
            "documents", "yield from ['one', 'two', open(self.path).read()]", taken.replace("{}", str(said))
        )
        (tmp_path / name).mkdir()
        data = source(tmp_path / name, code, path=str(tmp_path / f"{name}.txt"))
        found = [text for split in ("train", "validation") for text in rows_of(data, split, "documents")]
        assert sorted(found) == sorted(["one", "two", content])
        texts.append(text_source(data, "train").fingerprint())
    assert len(set(texts)) == 3


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("class Mine\n    pass", r"SyntaxError while it is loaded: .*mine.py, line 1"),
        ("x = 1\ny = z", r"NameError while it is loaded: name 'z' is not defined \(.*mine.py, line 2\)"),
        ("class Mines:\n    shape = 'prompts'", r"mine.py has no 'Mine'; it has Mines. Did you mean Mines\?"),
        ("Mine = 7", r"is a int; a source is a class with `shape`"),
        ("class Mine:\n    def rows(self, split): return []", r"the class has no `shape`; .* documents, conversations"),
        ("class Mine:\n    shape = 'text'\n    def rows(self, split): return []", r"the class has shape = \"text\"; "),
        ("class Mine:\n    shape = 'documents'", r"the class has no method rows\(self, split\)"),
    ],
)
def test_a_class_that_is_no_source_is_one_line(code: str, says: str, tmp_path: Path) -> None:
    data = source(tmp_path, code)
    with pytest.raises(UserError, match=says) as caught:
        text_source(data, "train")
    assert str(caught.value).startswith(f"data.source={data.source}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "rows", "says"),
    [
        ("documents", "yield 5", r"mine.py:Mine, row 1: 5 is no document, a text or \{\"text\": ...\}"),
        ("documents", "yield {'txt': 'a'}", r"row 1: \{\"txt\": \"a\"\} is no document"),
        ("documents", "return iter(())", "no documents in documents of .*mine.py:Mine"),
        ("documents", "return None", r"TypeError: rows\('train'\) gives null, not rows one after the other"),
        ("documents", "return 'abc'", r"TypeError: rows\('train'\) gives \"abc\", not rows"),
        ("documents", "yield 'a'\n        yield 1 / 0", r"ZeroDivisionError: division by zero \(.*mine.py, line 5\)$"),
        ("documents", "import sys; sys.exit()", r"sys.exit \(.*mine.py, line 4\)$"),
        ("conversations", "yield 'Hello'", r"row 1: \"Hello\" is no conversation: a list of"),
        ("conversations", "yield [{'role': 'user', 'content': 'a'}]", "row 1: no message of the assistant"),
        ("preferences", "yield ('a', 'b')", r"row 1: \[\"a\", \"b\"\] is no pair: \{\"prompt\""),
        ("preferences", "yield {'prompt': 'a', 'chosen': 'b'}", "row 1: no preference in the columns prompt, chosen"),
        ("prompts", "yield 3", "row 1: 3 is no prompt: a text, or"),
        ("prompts", "return []", "no prompts in prompts of .*mine.py:Mine"),
    ],
)
def test_rows_of_another_shape_none_and_errors_are_one_line_before_a_job_begins(
    shape: str, rows: str, says: str, tmp_path: Path
) -> None:
    job: Any = SimpleNamespace(
        data=source(tmp_path, of_shape(shape, rows)),
        reward=SimpleNamespace(parts={}),
        stage=SimpleNamespace(name="sft"),
    )
    with pytest.raises(UserError, match=says) as caught:
        look(job, shape)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_rows_that_cannot_be_used_may_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = source(
        tmp_path,
        of_shape("documents", "yield from (n if n % 10 == 3 else f'text {n}' for n in range(50))"),
        on_bad_row=OnBadRow.skip,
    )
    assert len(rows_of(data, "train", "documents")) + len(rows_of(data, "validation", "documents")) == 45
    assert "5 rows that cannot be used left out, the first at" in caplog.text


def test_other_options_than_the_class_takes_are_one_line(tmp_path: Path) -> None:
    data = source(tmp_path, CHATS, options={"les": 1})
    with pytest.raises(UserError, match=r"TypeError when it is made: .*unexpected keyword argument 'les'"):
        chat_source(data, "train")


def test_what_a_finished_run_learnt_from_is_compared_with_the_class_of_now(tmp_path: Path) -> None:
    data = source(tmp_path, CHATS)
    job: Any = SimpleNamespace(
        data=data, stage=SimpleNamespace(name="sft"), paths=SimpleNamespace(cache=str(tmp_path / "cache"))
    )
    assert set(fingerprints(job, "conversations")) == {"train", "validation"}


def test_a_misspelt_name_is_told_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"data.source=alpacca: no such data source; there are .*Did you mean alpaca\?"):
        plugins.source_of(config(source="alpacca"))
    with pytest.raises(UserError, match=r"reward.parts.a.kind=pyton: no such kind of reward; .*Did you mean python\?"):
        plugins.reward_kind("a", schema.RewardPart("pyton", 1.0, None))


@pytest.mark.parametrize(
    ("code", "names", "says"),
    [
        ("def number(reply, expected): return True", ["number"], "the name number is taken by tinychat's own; rename"),
        ("def even(reply, expected): return True", ["even", "even"], "the name even is taken by another of yours"),
        ("class Even: pass", ["Even"], r"is no function; a verifier is a function \(reply, expected\)"),
        ("def odd(reply, expected): return True", ["even"], r"has no 'even'; it has odd"),
    ],
)
def test_kinds_of_answer_that_cannot_be_taken(code: str, names: list[str], says: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(UserError, match=says):
        use_verifiers(tmp_path, *names)
    plugins.VERIFIERS.use([], "data.verifiers")


def test_a_kind_of_answer_of_the_users_is_asked_by_its_name(tmp_path: Path) -> None:
    from tinychat.evaluation.answers import is_correct

    (tmp_path / "mine.py").write_text(
        "def ends(reply, expected):\n    if not reply: raise ValueError('none')\n    return reply[-1] == expected\n"
        "def odd(reply, expected): return 'yes'\n"
    )
    use_verifiers(tmp_path, "ends", "odd")
    assert is_correct("ends", "cat", "t")
    assert not is_correct("ends", "cat", "a")
    with pytest.raises(
        UserError, match=r"data.verifiers: .*:ends: ValueError: none \(.*mine.py, line 2\), for the reply"
    ):
        is_correct("ends", "", "t")
    with pytest.raises(UserError, match="gave 'yes' where True or False is needed"):
        is_correct("odd", "cat", "t")
    with pytest.raises(UserError, match="no such kind of answer"):  # what data say is a name, never code
        is_correct(f"{tmp_path / 'mine.py'}:ends", "cat", "t")
    plugins.VERIFIERS.use([], "data.verifiers")
    with pytest.raises(UserError, match="no such kind of answer"):
        is_correct("ends", "cat", "t")


GREEDY = {
    "loops": "def bad(reply, expected):\n    while reply == 'bad': pass\n    return True",
    "sleeps": "import time\ndef bad(reply, expected):\n    if reply == 'bad': time.sleep(60)\n    return True",
    "eats memory": "def bad(reply, expected):\n    return len('x' * 10**10) > 0 if reply == 'bad' else True",
    "ends its process": "import os\ndef bad(reply, expected):\n    if reply == 'bad': os._exit(3)\n    return True",
}


@pytest.mark.parametrize("code", GREEDY.values(), ids=GREEDY)
def test_a_verifier_that_takes_too_much_is_wrong_once_and_an_error_when_it_goes_on(
    code: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tinychat.evaluation.answers import is_correct

    (tmp_path / "mine.py").write_text(f"print('loaded')\n{code}")
    use_verifiers(tmp_path, "bad", seconds=0.1, memory=1e9)
    assert is_correct("bad", "good", "")
    assert not is_correct("bad", "bad", "")
    assert "for the reply 'bad': counted as wrong (1 so far)" in caplog.text
    assert is_correct("bad", "good", "")  # a good one ends the row
    assert not any(is_correct("bad", "bad", "") for _ in range(2))
    with pytest.raises(UserError, match=r"mine.py:bad: took more than .* for 3 replies in a row, the last 'bad'"):
        is_correct("bad", "bad", "")
    plugins.VERIFIERS.use([], "data.verifiers")


def use_verifiers(folder: Path, *names: str, seconds: float = 5.0, memory: float = 1e9) -> None:
    addresses = [f"{folder / 'mine.py'}:{name}" for name in names]
    plugins.VERIFIERS.use(addresses, "data.verifiers", seconds=seconds, memory=memory)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("jinja", "{% for m in messages %}\n{{ m.content }", r"my.jinja, line 2: "),
        ("jinja", " \n", "the file is empty"),
        ("jinja", None, "no such file"),
        ("chatml", "{{ messages }}", "the name chatml is taken by tinychat's own; template=jinja"),
        ("instuct", "", r"no such chat template; there are instruct, chatml, own.*Did you mean template=instruct\?"),
    ],
)
def test_templates_that_cannot_be_taken(name: str, content: str | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "my.jinja"
    if content is not None:
        path.write_text(content)
    template = schema.TemplateConfig(name, None if name == "instuct" else str(path))
    (line,) = checks._template(SimpleNamespace(template=template))  # type: ignore[arg-type]
    assert re.search(says, line), line


def test_code_that_a_job_learns_by_has_a_hash_that_follows_its_files(tmp_path: Path) -> None:
    """A reward and a kind of answer, with what they import from beside them; of a stage without rewards the latter."""
    (tmp_path / "lengths_of.py").write_text("def words(text): return len(text.split())")
    (tmp_path / "short.py").write_text(
        "from lengths_of import words\ndef score(prompts, replies): return [0.0 for _ in replies]"
    )
    (tmp_path / "rhymes.py").write_text("def rhymes(reply, reference): return True")
    reward, verifier = f"{tmp_path}/short.py:score", f"{tmp_path}/rhymes.py:rhymes"
    schema.register()
    words = ["reward=python", f"reward.parts.python.path={reward}", f"data.verifiers=[{verifier}]"]
    with initialize_config_dir(str(REPOSITORY / "conf")):
        ppo, sft = (schema.to_config(compose("config", [f"stage={stage}", *words])) for stage in ("ppo", "sft"))
    before = code_hashes(ppo)
    assert list(before) == [reward, verifier]
    assert code_hashes(ppo) == before
    assert code_hashes(sft) == {verifier: before[verifier]}
    (tmp_path / "lengths_of.py").write_text("def words(text): return 2 * len(text.split())")
    after = code_hashes(ppo)
    assert after[reward] != before[reward]
    assert after[verifier] == before[verifier]
