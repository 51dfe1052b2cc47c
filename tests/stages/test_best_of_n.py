"""data=best_of_n: the best of a policy's replies, on models of a few thousand parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.chat_models import babbler, saved
from tests.commands.test_ppo import COUNT
from tests.config.test_compose import composed
from tests.conftest import TORCHRUN, result_of, run_train, write_rows
from tests.reward_models import reward_model, write
from tinychat.config import checks
from tinychat.config.schema import Config
from tinychat.config.stages import MixPart
from tinychat.data.chats.best_of_n import Choice, choice_of, choose
from tinychat.data.chats.sources import chat_source
from tinychat.errors import UserError
from tinychat.runs.parents import find_parents
from tinychat.runtime.world import World
from tinychat.stages import Context, StopFlag
from tinychat.stages.best_of_n import with_replies
from tinychat.text.chat_template import set_template

STEP = (
    "stage=sft",
    "data=best_of_n",
    "data.prompts=prompts",
    "data.samples=4",
    "data.max_new_tokens=12",
    "data.val_fraction=0.2",
    "data.batch_size=16",
    "reward=python",
    "template=own",
    "stage.max_steps=2",
    "stage.eval_first=false",
    "stage.generate_rows=2",
    "stage.generate_tokens=4",
    "precision=fp32",
    "tracker=none",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a policy that ends half of its replies, 80 prompts and a reward function."""
    folder = tmp_path_factory.mktemp("best_of_n")
    model, tokenizer = babbler(context=64)
    set_template(tokenizer, "instruct")
    ids = torch.tensor([tokenizer("the cat and the dog sat on the mat").input_ids])
    with torch.no_grad():
        hidden = model.model(ids).last_hidden_state[0].mean(0)
        wanted = model(ids).logits.logsumexp(-1).mean() - 2.0  # an end at one token of eight or so
        model.get_output_embeddings().weight[tokenizer.eos_token_id] = hidden * wanted / hidden.square().sum()
    write(model, folder / "sft")
    (folder / "prompts.txt").write_text("\n".join(f"the {word} {n}" for word in ("cat", "dog") for n in range(40)))
    (folder / "count.py").write_text(COUNT.replace('word == "cat"', 'word != "cat"'))
    return folder


def given(made: Path, folder: Path, *more: str) -> tuple[str, ...]:
    """A command's words."""
    own = (*STEP, f"init_from={made / 'sft'}", f"data.path={made / 'prompts.txt'}", f"paths.cache={folder / 'cache'}")
    own = (*own, f"reward.parts.python.path={made / 'count.py'}:score")
    replaced = {word.partition("=")[0] for word in more}
    return (*(word for word in own if word.partition("=")[0] not in replaced), *more)


def answered(made: Path, folder: Path, *more: str) -> Config:
    """What with_replies makes of a command's configuration. Raises UserError."""
    config = composed(*given(made, folder, *more))
    checks.check(config)
    world = World(0, 0, 1, torch.device("cpu"))
    return with_replies(config, Context(folder, world, None, find_parents(config), StopFlag(folder)))


def replies_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("cache/best_of_n/*/*.jsonl")}


def test_the_best_replies_are_learnt_from_and_made_once(made: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    data = answered(made, tmp_path).data
    assert torch.equal(state, torch.get_rng_state())
    before = replies_in(tmp_path)
    assert set(before) == {"train.jsonl", "validation.jsonl"}
    lines = [json.loads(line) for line in before["train.jsonl"].splitlines()]
    assert len(lines) > 64 and len({line["messages"][-1]["content"] for line in lines}) == len(lines)
    usable = [[r for r in line["replies"] if r["ended"] and r["text"]] for line in lines]
    rows = {row.messages[0]["content"]: row.messages[-1]["content"] for row in chat_source(data, "train").rows()}
    for line, own in zip(lines, usable, strict=True):
        best = max(own, key=lambda r: r["reward"])["text"] if own else None
        assert rows.get(line["messages"][-1]["content"]) == best
        for r in line["replies"]:
            assert r["reward"] == sum(word != "cat" for word in r["text"].replace("cat", " cat ").split())
    counts = choice_of(data, "train").facts()
    assert counts["kept"] == len(rows) > 10 and counts["replies"] == 4 * counts["prompts"] == 4 * len(lines)
    assert counts["tokens"] == sum(r["tokens"] for line in lines for r in line["replies"])
    best = [max(r["reward"] for r in own) for own in usable if own]
    assert counts["reward_kept"] == pytest.approx(sum(best) / len(best))
    # A part that was lost is made again; the others, and what is kept otherwise, are not.
    (folder,) = (tmp_path / "cache" / "best_of_n").iterdir()
    (folder / "train.jsonl").unlink()
    (folder / "train" / "000000.jsonl").unlink()
    stamp = (folder / "train" / "000001.jsonl").stat().st_mtime_ns
    other = answered(made, tmp_path, "data.keep=all", "data.threshold=3", "data.batch_size=5").data
    assert replies_in(tmp_path) == before
    assert (folder / "train" / "000001.jsonl").stat().st_mtime_ns == stamp
    kept = [{r["text"] for r in own if r["reward"] >= 3} for own in usable]
    assert choice_of(other, "train").kept == sum(map(len, kept)) > 0
    assert chat_source(other, "train").fingerprint() != chat_source(data, "train").fingerprint()
    # Another seed, another number of replies, other contents of the policy: other replies.
    answered(made, tmp_path, "seed=2")
    assert len(list((tmp_path / "cache" / "best_of_n").iterdir())) == 2


def test_held_out_are_the_conversations_of_the_prompts_source(made: Path, tmp_path: Path) -> None:
    chats = tmp_path / "chats.jsonl"
    write_rows(chats, [{"prompt": f"the mat {n}", "response": "sat"} for n in range(20)])
    data = answered(made, tmp_path, "data.prompts=chat", f"data.path={chats}").data
    assert set(replies_in(tmp_path)) == {"train.jsonl"}
    held = [row.messages[0]["content"] for row in chat_source(data, "validation").rows()]
    asked = [json.loads(line)["messages"][0]["content"] for line in replies_in(tmp_path)["train.jsonl"].splitlines()]
    assert held and not set(held) & set(asked) and len(held) + len(asked) == 20
    assert all(row.messages[-1]["content"] == "sat" for row in chat_source(data, "validation").rows())


@pytest.mark.slow
def test_ranks_share_the_work_and_learn_the_same(made: Path, tmp_path: Path) -> None:
    for folder, more in (("one", ()), ("two", TORCHRUN)):
        (tmp_path / folder).mkdir()
        own = ("run_dir=run", "stage.batch_size=4", "stage.micro_batch_size=2", "stage.context_length=64")
        own += ("data.samples=12", "data.max_new_tokens=24")  # of 13 held-out prompts too some replies end
        done = run_train(tmp_path / folder, *given(made, tmp_path / folder, *own, *more))
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (replies_in(tmp_path / folder) for folder in ("one", "two"))
    assert one == two
    losses = [result_of(tmp_path / folder / "run")["metrics"]["eval/response_loss"] for folder in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def reply(text: str, reward: float | None, ended: bool = True) -> dict[str, Any]:
    return {"text": text, "tokens": 3, "ended": ended, "reward": reward}


def test_what_is_kept_and_why_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [
        reply("a", 1.0),
        reply("b", 2.0),
        reply("b", 2.0),
        reply("c", 2.0),
        reply("d", 9.0, ended=False),
        reply(" ", 9.0),
        reply("e", None),
    ]
    for words, kept, left in (
        ((), ["b"], {"not the best": 2}),
        (("data.keep=all",), ["a", "b", "c"], {}),
        (("data.keep=all", "data.threshold=1.5"), ["b", "c"], {"below data.threshold": 1}),
        (("data.threshold=3",), [], {"below data.threshold": 4}),
    ):
        choice = Choice()
        data: Any = composed("stage=sft", "data=best_of_n", *words).data
        assert [one["text"] for one in choose(said, data, choice)] == kept
        shared = {"cut at data.max_new_tokens": 1, "empty": 1, "without a reward": 1}
        again = {} if words == ("data.threshold=3",) else {"said again": 1}
        assert choice.left_out == {**shared, **again, **left}
        assert sum(choice.left_out.values()) + choice.kept == choice.replies == 7
        assert (choice.tokens, choice.without, choice.best) == (21, int(not kept), 9.0)


def test_earlier_turns_of_a_prompt_are_not_learnt_from(tmp_path: Path) -> None:
    turns = [{"role": role, "content": said} for role, said in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    write_rows(tmp_path / "train.jsonl", [{"messages": turns, "place": "here", "replies": [reply("d", 1.0)]}])
    data = composed("stage=sft", "data=best_of_n", f"data.replies={tmp_path}").data
    (row,) = chat_source(data, "train").rows()
    assert [message["content"] for message in row.messages] == ["a", "b", "c", "d"] and row.untrained == (1,)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("data.samples=0",), "data.samples=0: must be at least 1"),
        (("data.temperature=0",), "data.temperature=0.0: must be above 0"),
        (("data.prompts=best_of_n",), "data.prompts=best_of_n: has no prompts of its own"),
        (("data.prompts=tinystories",), "data.prompts=tinystories has documents, no prompts; use tinyworld"),
        (("data.prompts=nowhere",), "data.prompts"),
        (("data.replies=nowhere",), "data.replies=nowhere: no such folder"),
        (("stage=ppo",), "data=best_of_n makes conversations to learn from, which stage=ppo does not"),
        (("reward=oracle", "data.prompts=alpaca"), "the oracle knows only tinyworld's requests"),
        (("reward=regex", "reward.parts.regex.options.pattern="), "pattern"),
    ],
)
def test_settings_that_cannot_be(words: tuple[str, ...], said: str) -> None:
    from tests.config.test_compose import composed

    stage = () if words[0].startswith("stage=") else ("stage=sft",)
    with pytest.raises(UserError, match=r"data|reward") as error:
        checks.check(composed(*stage, "data=best_of_n", *words))
    assert said in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("stage.context_length=65",), "stage.context_length=65 is longer than the model's 64; lower it to at most 64"),
        (("stage.teacher={rm}", "stage.context_length=64"), "is a reward model, not a language model"),
    ],
)
def test_what_refuses_the_stage_does_so_before_anything_is_sampled(
    made: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    if "{rm}" in words[0]:
        words = (words[0].format(rm=reward_model(tmp_path / "rm")), *words[1:])
    done = run_train(tmp_path, *given(made, tmp_path, f"paths.outputs={tmp_path / 'outputs'}", *words))
    assert done.returncode == 1 and said in done.stderr, done.stderr
    assert not (tmp_path / "cache" / "best_of_n").exists()


def test_it_is_no_part_of_other_data() -> None:
    config = composed("stage=sft", "data=tinyworld")
    config.data.mix = {"more": MixPart(source="best_of_n", path=None, max_rows=1)}
    with pytest.raises(UserError, match=r"data.mix.more.source=best_of_n: no part of others"):
        checks.check(config)


def test_bad_input_is_one_line(made: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text("def score(prompts, replies):\n    return [1.0]\n")
    for words, said in (
        ((f"init_from={reward_model(tmp_path / 'rm')}",), "is a reward model, not a language model"),
        ((f"init_from={saved(tmp_path / 'pretrained')}",), "brings no chat template, so it was not trained to reply"),
        (("data.max_new_tokens=60",), "leave less than data.max_new_tokens=60 of the 64 tokens"),
        ((f"reward.parts.python.path={tmp_path / 'wrong.py'}:score",), "gave 1 scores for"),
        (("init_from=null",), "init_from=null: stage=sft starts from a checkpoint"),
        (("data.policy=nowhere",), "nowhere"),
    ):
        with pytest.raises(UserError) as error:
            answered(made, tmp_path, "data.max_rows=9", *words)
        assert said in str(error.value) and "\n" not in str(error.value)
    data = answered(made, tmp_path, "data.max_rows=9", "data.threshold=1000").data
    with pytest.raises(UserError, match=r"none of \d+ replies is kept: .* below data.threshold.*the highest reward is"):
        list(chat_source(data, "train").rows())
