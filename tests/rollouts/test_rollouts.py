"""python -m tinychat.rollouts: the replies of a run, from its files alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tokenizers import Tokenizer

from tests.rollouts.runs import PROMPTS, REPLIES, make, write
from tinychat.errors import UserError
from tinychat.report.rollouts import chosen_steps, page
from tinychat.rollouts import __main__ as program
from tinychat.rollouts import show
from tinychat.runs.rollouts import Words, ranges, read, steps_of, words_of


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    make(folder, tokenizer_folder)
    make(folder, tokenizer_folder, "grpo", values=False)
    return folder


@pytest.fixture(scope="module")
def run_dir(outputs: Path) -> Path:
    return outputs / "mine" / "ppo" / "1"


@pytest.fixture
def said(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def of(*arguments: object) -> str:
        program.run([str(run_dir), *map(str, arguments)])
        return capsys.readouterr().out

    return of


def blocks(text: str) -> list[str]:
    """The replies, without the lines above them."""
    return text.strip().split("\n\n")[1:]


def test_a_step_s_replies_by_reward(said: Callable[..., str]) -> None:
    out = said()
    assert "step 4: 3 replies; mean reward 0.5, KL" in out and "model 0.5, gold -0.5" in out
    best, middle, worst = blocks(out)
    assert [re.findall(r"reward (\S+)", block) for block in (best, middle, worst)] == [["2"], ["0.5"], ["-1"]]
    assert f"{PROMPTS[2]} 4\n" in best and "Instruction" not in out and "Response" not in out


@pytest.mark.parametrize(
    ("order", "wanted"),
    [("reward", [3, 1, 2]), ("gold", [2, 1, 3]), ("length", [2, 3, 1]), ("advantage", [3, 1, 2]), ("kl", [1, 2, 3])],
)
def test_replies_are_sorted_by_what_is_asked(said: Callable[..., str], order: str, wanted: list[int]) -> None:
    out = said("--sort", order, "--step", 4)
    values = [float(x) for block in blocks(out) for x in re.findall(rf"^\d\. (?:KL|{order}) (\S+)", block)]
    if order not in ("length", "kl"):  # which depend on the tokenizer
        assert re.findall(r"\(reply (\d)\)", out) == [str(number) for number in wanted]
    assert values == sorted(values, reverse=True) and len(values) == 3


def test_some_of_the_highest_and_of_the_lowest(said: Callable[..., str]) -> None:
    assert re.findall(r"reply (\d)", said("--top", 1)) == ["3"]
    assert re.findall(r"reply (\d)", said("--bottom", 2)) == ["1", "2"]
    both = said("--top", 1, "--bottom", 1)
    assert re.findall(r"reply (\d)", both) == ["3", "2"] and "... 1 between" in both


@pytest.mark.parametrize("by", ["logprob", "kl", "advantage", "value", "entropy"])
def test_below_each_token_its_number_where_there_is_no_terminal(
    said: Callable[..., str], by: str, run_dir: Path
) -> None:
    *_, above, below = blocks(said("--by", by, "--step", 1, "--top", 1))[0].splitlines()
    reply = read(run_dir, 1).replies[2]
    assert [float(x) for x in below.split()] == pytest.approx(reply.numbers[by], abs=0.006)
    assert "".join(above.split()).replace("∅", "") == REPLIES["step-000001"][2].replace(" ", "·")
    for number in re.finditer(r"\S+", below):
        assert above[number.start()] != " ", "each number begins below its token"


def test_on_a_terminal_colours_say_it(run_dir: Path) -> None:
    rollout, words = read(run_dir, 1), words_of(run_dir)
    arguments = program.parse(["RUN", "--by", "kl"])
    console = Console(force_terminal=True, color_system="truecolor", no_color=False, width=100)
    look = show.look_of(arguments, console, words, rollout.replies)
    assert not look.numbers
    text = show.tokens(rollout.replies[0], look)
    assert text.plain == REPLIES["step-000001"][0]
    styles = {str(span.style) for span in text.spans if span.style}
    assert styles == {f"bold reverse {show.UP}", f"bold reverse {show.DOWN}"}, "KL is 1 and -1 in turn"
    assert show.look_of(program.parse(["RUN", "--numbers"]), console, words, []).numbers


def test_equal_replies_to_a_prompt_stand_once(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = make(tmp_path, tokenizer_folder)
    write(run_dir, "step-000004", [{}, GOOD, GOOD | {"response": [3, 2]}, GOOD | {"prompt": [2]}, GOOD])
    program.run([str(run_dir)])
    assert re.findall(r"\(reply .*\)", capsys.readouterr().out) == [
        "(reply 1 and 1 like it)",
        "(reply 2)",
        "(reply 3)",
    ]


def test_controls_and_directions_are_shown(said: Callable[..., str]) -> None:
    out = said("--bottom", 1)
    assert "\x1b" not in out and "\u202e" not in out and "␛" in out and "\\u202e" in out


def test_steps_with_the_same_prompts_stand_beside_each_other_by_prompt(said: Callable[..., str]) -> None:
    out = said("--held-out", "--step", 0, "--against", 4)
    assert "the start" in out and "other prompts" not in out
    for prompt, number in zip(PROMPTS, (1, 2, 3), strict=True):
        block = next(block for block in blocks(out) if block.startswith(prompt))
        assert re.search(rf"step 0: .*\(reply {number}\) +\d\. step 4: .*\(reply {number}\)", block)
    out = said("--step", 1, "--against", 4)
    assert "these steps had other prompts" in out
    assert re.search(r"1\. step 1: reward 2 .* 1\. step 4: reward 2 ", out)


def test_two_steps_below_each_other_where_it_is_narrow(
    said: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    out = said("--held-out", "--step", 0, "--against", 4)
    assert max(map(len, out.splitlines())) <= 60
    assert re.search(r"^1\. step 0: .*\n(?:.*\n)*?1\. step 4: ", out, re.M)


def test_a_prompt_over_time(said: Callable[..., str]) -> None:
    out = said("--prompt", 3)
    assert PROMPTS[2] in out and PROMPTS[0] not in out
    assert re.findall(r"step (\d)", out) == ["0", "4"]
    first, last = out.split("step 0")[1].split("step 4")
    assert "+" not in first
    assert "".join(re.findall(r"\+(\S+)", last)).replace("·", " ") == " not"
    assert "reward 2 → 2" in out
    assert "the same reply" in said("--prompt", 1)


def test_prompts_with_a_text_over_time(said: Callable[..., str]) -> None:
    out = said("--prompt", "CAT")  # at each evaluation, which is more than the prompts of training came up
    assert f"\n{PROMPTS[0]}\n" in out and "2 more prompts have that text" in out
    alone = said("--prompt", f"{PROMPTS[0]} ")  # those of training: one step each
    assert re.findall(r"step (\d)", alone) == ["1", "4"] and "at one step only" in alone


@pytest.mark.parametrize(
    ("name", "arguments", "wanted"),
    [
        ("ppo", ["--step", "3"], r"--step 3: .*steps with rollouts: 1 and 4"),
        ("ppo", ["--against", "9", "--held-out"], r"--against 9: .*held-out replies: 0 and 4"),
        ("grpo", ["--by", "value"], r"--by value: step-000004\.jsonl has no such numbers; it has logprob, kl, adv"),
        ("ppo", ["--by", "advantage", "--held-out"], r"--by advantage: held-out-000004\.jsonl has no such numbers"),
        ("ppo", ["--sort", "golden"], r"--sort golden: .*it has reward, advantage, kl, length, model, gold"),
        ("ppo", ["--top", "-1"], r"--top -1: must be 0 or more"),
        ("ppo", ["--prompt", "nowhere"], r"--prompt nowhere: no prompt of .* has that text"),
        ("ppo", ["--prompt", "4"], r"--prompt 4: held-out-000000\.jsonl has prompts 1 to 3"),
        ("ppo", ["--prompt", "a", "--against", "1"], r"--against shows two steps"),
        ("ppo", ["--html", "."], r"--html \.: is a folder"),
        ("ppo", ["--html", "nowhere/page.html"], r"--html nowhere/page\.html: no folder nowhere"),
    ],
)
def test_bad_input_is_one_line(outputs: Path, name: str, arguments: list[str], wanted: str) -> None:
    with pytest.raises(UserError, match=wanted) as error:
        program.run([str(outputs / "mine" / name / "1"), *arguments])
    assert "\n" not in str(error.value)


GOOD = {"prompt": [1], "response": [2, 3], "score": 1.0, "logprobs": [0.1, 0.2]}


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ("", "is empty"),
        ("{}\n", "holds no replies"),
        ('{}\n{"prompt": [1], "resp', r"line 2: cut short or no JSON"),
        ("{}\n[1]\n", "line 2: prompt, response or score is missing"),
        (f"{{}}\n{json.dumps(GOOD)}\n{json.dumps(GOOD | {'logprobs': [0.1]})}", "line 3: logprobs has another length"),
        (f"{{}}\n{json.dumps(GOOD | {'response': ['a', 3]})}", "line 2: response is no list of numbers"),
        (f"{{}}\n{json.dumps(GOOD | {'score': 'high'})}", "line 2: score or parts is no number"),
        (b"\xff\xfe", "is no text"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, tokenizer_folder: Path, lines: Any, wanted: str) -> None:
    run_dir = make(tmp_path, tokenizer_folder)
    path = run_dir / "rollouts" / "step-000004.jsonl"
    path.write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    with pytest.raises(UserError, match=wanted) as error:
        program.run([str(run_dir)])
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    program.run([str(run_dir), "--step", "1"])  # the others can be read


def test_names_of_runs(outputs: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = outputs / "mine" / "grpo" / "1"
    for folder, number in ((run_dir, 1), (newest, 2)):
        created = {"number": number, "time": f"2026-01-0{number}T00:00:00Z"}
        (folder / "created.json").write_text(json.dumps(created))
    assert program.find(str(run_dir / "checkpoints" / "step-000004"), outputs) == run_dir
    assert program.find("mine/ppo", outputs) == run_dir
    assert program.find("mine", outputs) == program.find("latest", outputs) == newest
    assert f"note: latest is {newest}" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"no such run, study or experiment, did you mean mine\?"):
        program.find("mime", outputs)


def test_a_run_without_rollouts(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "sft" / "1"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("stage: {name: sft}\n")
    for name in (str(folder), "mine", "latest"):
        with pytest.raises(UserError, match=r"has no rollouts/; runs of stage=ppo, grpo, rlvr write it"):
            program.find(name, tmp_path)
    with pytest.raises(UserError, match="there are no runs in"):
        program.find("latest", tmp_path / "empty")


def test_without_a_tokenizer_ids_are_shown(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = make(tmp_path, tokenizer_folder)
    (run_dir / "checkpoints" / "step-000004" / "tokenizer.json").unlink()
    program.run([str(run_dir), "--top", "1"])
    captured = capsys.readouterr()
    assert "ids are shown" in captured.err and re.search(r"⟨\d+⟩", captured.out)
    (run_dir / "checkpoints" / "step-000004" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json: cannot be read as a tokenizer"):
        program.run([str(run_dir)])


def test_missing_rewards_are_last_and_say_so(tmp_path: Path, tokenizer_folder: Path, capsys: Any) -> None:
    run_dir = make(tmp_path, tokenizer_folder)
    none, nan = {"score": None}, {"score": float("nan"), "response": [3, 3]}
    write(run_dir, "step-000004", [{}, GOOD | none, GOOD | nan, GOOD])
    program.run([str(run_dir)])
    out = capsys.readouterr().out
    assert re.findall(r"reward (\S+) .*reply (\d)", out) == [("1", "3"), ("missing", "1"), ("missing", "2")]
    assert "mean reward 1," in out


def test_pieces_make_the_text(tokenizer_folder: Path) -> None:
    words = Words(Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json")))
    ids = words.tokenizer.encode(" a 龙 🙂 dog").ids  # type: ignore[union-attr]
    for end in range(len(ids) + 1):  # within a character too
        pieces = words.pieces(ids[:end])
        assert len(pieces) == end and "".join(pieces) == words.text(ids[:end])
    assert words.pieces(ids).count("") >= 2, "a character of several tokens stands with its last"


def test_what_a_template_writes_is_left_out_of_prompts() -> None:
    class Spelled(Words):
        def text(self, ids: Any) -> str:
            return "".join(map(chr, ids))

    def texts(*prompts: str) -> list[str]:
        return list(Spelled(None).prompts([tuple(map(ord, prompt)) for prompt in prompts]).values())

    assert texts("<u>how<e>", "<u>what<e>", "<u>ho?<e>") == ["how", "what", "ho?"]
    assert texts("how do I", "how can I") == ["how do I", "how can I"], "no end of a line or a mark"
    assert texts("A:\nB", "A:\n") == ["B", "A:\n"], "nothing would be left"
    assert texts("A:\nB") == ["A:\nB"]


def test_ranges() -> None:
    assert [ranges(steps) for steps in ([1, 2, 3], [0, 5, 6], [4], [])] == ["1 to 3", "0 and 5 to 6", "4", "none"]


# ---- the page


def content_of(text: str) -> dict[str, Any]:
    (found,) = re.findall(r'<script id="content" type="application/json">(.*?)</script>', text, re.S)
    return json.loads(found)


def test_a_page_of_all_steps(run_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    arguments = [str(run_dir), "--html", str(file), "--held-out", "--against", "0", "--by", "kl"]
    program.run(arguments)
    assert "<a " not in file.read_text(), "no report lies beside it"
    content = content_of(file.read_text())
    assert content["view"] | {"heldOut": True, "step": 4, "against": 0, "by": "kl"} == content["view"]
    rollouts = content["rollouts"]
    assert [(one["step"], one["heldOut"]) for one in rollouts] == [(1, False), (4, False), (0, True), (4, True)]
    for one in rollouts:
        name = f"{'held-out' if one['heldOut'] else 'step'}-{one['step']:06d}"
        texts = ["".join(content["texts"][token] for token in reply["tokens"]) for reply in one["replies"]]
        assert texts == [text.replace("\u202e", "\\u202e").replace("\x1b", "␛") for text in REPLIES[name]]
    reply, wanted = rollouts[0]["replies"][2], read(run_dir, 1).replies[2]
    assert content["prompts"][reply["prompt"]] == f"{PROMPTS[2]} 1"
    assert reply["numbers"]["kl"] == pytest.approx(wanted.numbers["kl"], abs=0.001)
    assert reply["sums"]["advantage"] == pytest.approx(wanted.of("advantage"), rel=0.01)
    with pytest.raises(UserError, match="exists; --force overwrites it"):
        program.run(arguments)
    program.run([str(run_dir), "--html", str(file), "--force", "--prompt", "3"])
    content = content_of(file.read_text())
    assert content["prompts"][content["view"]["prompt"]] == PROMPTS[2] and content["view"]["find"] == ""
    program.run([str(run_dir), "--html", str(file), "--force", "--prompt", "dog"])
    assert content_of(file.read_text())["view"]["find"] == "dog"


def test_a_page_has_room_for_so_many_steps_and_tokens(tmp_path: Path, run_dir: Path) -> None:
    (tmp_path / "rollouts").mkdir()
    for step in range(1, 101):
        write(tmp_path, f"step-{step:06d}", [{}])
    write(tmp_path, "held-out-000000", [{}])
    chosen = [step for step, held_out in chosen_steps(tmp_path, [(50, False)], most=4) if not held_out]
    assert [step for step, _ in chosen_steps(tmp_path, most_bytes=1)][:2] == [1, 100], "large files: the ends"
    assert chosen == [1, 34, 50, 67, 100] and (0, True) in chosen_steps(tmp_path)
    assert steps_of(tmp_path, held_out=True) == [0]
    rollouts = [read(run_dir, 1), read(run_dir, 4, held_out=True)]
    content = content_of(page(run_dir, rollouts, words_of(run_dir), tokens=1))
    numbers = [[reply["number"] for reply in one["replies"]] for one in content["rollouts"]]
    assert numbers == [[2, 3], [1, 2]], "the best and the worst; of evaluations the first"
    assert [one["all"] for one in content["rollouts"]] == [3, 3]
