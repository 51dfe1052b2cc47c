"""Dialogues: replies with a kept cache are those without, only new tokens are computed, nothing grows out of step."""

from __future__ import annotations

import json
import random
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.chat_models import babbler
from tinychat.chat.session import ChatSession, TextSession, open_session, short_names
from tinychat.errors import UserError
from tinychat.models.generation.generate import KeptCache, stream_text
from tinychat.models.generation.sampling import SamplingOptions
from tinychat.models.kernels.kv_cache import CACHE
from tinychat.text.chat_template import encode_prompts, end_token_id, set_template

GREEDY = SamplingOptions(max_new_tokens=8, greedy=True)


def chat(arch: str = "llama", template: str = "instruct", context: int = 2048, system: str = "") -> ChatSession:
    model, tokenizer = babbler(arch, context)
    set_template(tokenizer, template)
    session = open_session(model, tokenizer, "tiny", "auto", system)
    assert isinstance(session, ChatSession)
    return session


def say(session, line: str, options: SamplingOptions = GREEDY, **more) -> str:
    return "".join(session.reply(line, options, **more))


def stop_after(session, line: str, pieces: int) -> None:
    """As Ctrl-C does."""
    reply = session.reply(line, GREEDY)
    for _ in range(pieces):
        next(reply)
    reply.close()


def by_hand(session: ChatSession, messages: list[dict[str, str]], new: int = GREEDY.max_new_tokens) -> str:
    """The likeliest token, one at a time, the whole dialogue computed again for each."""
    model, tokenizer = session._model, session._tokenizer
    (ids,) = encode_prompts(tokenizer, [messages])
    start = len(ids)
    while len(ids) < start + new and ids[-1] != end_token_id(tokenizer):
        with torch.no_grad():
            ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1, : len(tokenizer)].argmax())]
    return tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


def prompt_length(session: ChatSession, messages: list[dict[str, str]]) -> int:
    return len(encode_prompts(session._tokenizer, [messages])[0])


class Fed:
    """Counts the tokens that a session's model is given."""

    def __init__(self, session: ChatSession):
        self.tokens = 0
        embedding = session._model.get_input_embeddings()
        embedding.register_forward_pre_hook(lambda _, inputs: setattr(self, "tokens", self.tokens + inputs[0].numel()))

    def take(self) -> int:
        tokens, self.tokens = self.tokens, 0
        return tokens


@pytest.mark.parametrize("template", ["instruct", "chatml"])
@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_twenty_turns_are_those_without_a_kept_cache_and_only_new_tokens_are_computed(arch, template):
    session = chat(arch, template, system="sit on the mat")
    fed = Fed(session)
    counts, lengths, messages = [], [], [{"role": "system", "content": "sit on the mat"}]
    for turn in range(20):
        messages.append({"role": "user", "content": f"the cat sat {turn} 从前"})
        reply = say(session, messages[-1]["content"])
        counts.append(fed.take())
        lengths.append(prompt_length(session, messages))
        if turn % 4 == 1:
            assert reply == by_hand(session, messages)
            fed.take()
        messages.append({"role": "assistant", "content": reply})
    # What the prompt grew by (the reply before, whose text may be other tokens than were generated, and the line), and
    # all of the new reply but its last token.
    for turn in range(1, 20):
        assert counts[turn] <= lengths[turn] - lengths[turn - 1] + GREEDY.max_new_tokens - 1
    assert lengths[-1] > 8 * max(counts[1:])  # what the last turn would cost without


def test_sampled_replies_with_a_seed_are_those_without_a_kept_cache():
    session, other = chat(), chat()
    for turn in range(5):
        options = SamplingOptions(max_new_tokens=30, temperature=1.0, seed=turn)
        other._cache.clear()
        assert say(session, f"the dog {turn}", options) == say(other, f"the dog {turn}", options)


@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_undone_stopped_or_forgotten_the_next_reply_is_that_of_the_dialogue_shown(seed):
    chance = random.Random(seed)
    session = chat(system="a mat")
    for step in range(30):
        deed = chance.choice(["say", "say", "say", "undo", "stop", "stop at once", "reset", "system"])
        if deed == "undo":
            session.undo()
        elif deed == "stop":
            stop_after(session, f"stop {step}", chance.randint(1, 3))
        elif deed == "stop at once":
            stop_after(session, f"at once {step}", 0)
        elif deed == "reset" and chance.random() < 0.3:
            session.reset()
        elif deed == "system":
            session.system = chance.choice(["", "a mat", "the dog"])
        else:
            rows = session.rows()
            system = [{"role": "system", "content": session.system}] if session.system else []
            messages = rows[0]["messages"] if rows else system
            line = f"the cat {step}"
            assert say(session, line) == by_hand(session, [*messages, {"role": "user", "content": line}])


def test_a_stopped_reply_stays_marked_and_cached_and_can_be_taken_back():
    session = chat()
    say(session, "the cat")
    stop_after(session, "the dog", 3)
    assert [turn.stopped for turn in session.turns] == [False, True]
    partial = session.turns[-1].reply
    assert partial
    assert by_hand(session, [*session.rows()[0]["messages"][:2], {"role": "user", "content": "the dog"}]).startswith(
        partial
    )
    fed = Fed(session)
    say(session, "the mat")
    [row] = session.rows()
    growth = prompt_length(session, row["messages"][:5]) - prompt_length(session, row["messages"][:3])
    assert fed.take() <= growth + GREEDY.max_new_tokens - 1
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * 3
    assert row["stopped"] == [3]
    session.system = "a mat"
    assert session.rows()[0]["stopped"] == [4]  # the message's place moves with the system message
    session.undo()
    session.undo()
    assert "stopped" not in session.rows()[0]


def test_an_error_in_the_model_leaves_a_dialogue_that_goes_on():
    session = chat()
    say(session, "the cat")
    layer = session._model.model.layers[1]  # after the first layer's cache has grown

    def fail(*_):
        raise RuntimeError("out of memory")

    handle = layer.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        say(session, "the dog")
    handle.remove()
    messages = session.rows()[0]["messages"]
    assert len(messages) == 2
    assert say(session, "the dog") == by_hand(session, [*messages, {"role": "user", "content": "the dog"}])


def test_a_long_dialogue_drops_its_oldest_turns_says_so_once_and_keeps_the_system_message(monkeypatch):
    import tinychat.text.chat_template as chat_template

    session = chat(context=160, system="on the mat")
    prompts: list[list[dict[str, str]]] = []
    encode = chat_template.encode_prompts
    monkeypatch.setattr(
        chat_template, "encode_prompts", lambda tokenizer, chats: prompts.append(chats[0]) or encode(tokenizer, chats)
    )
    fed = Fed(session)
    notes, counts = [], []
    for turn in range(30):
        assert say(session, f"the cat {turn}")
        notes += session.turns[-1].notes
        counts.append(fed.take())
    assert all(len(encode(session._tokenizer, [prompt])[0]) <= 160 for prompt in prompts[-5:])
    assert sum("outgrown" in note for note in notes) == 1
    assert prompts[-1][0] == {"role": "system", "content": "on the mat"}
    assert prompts[-1][1]["role"] == "user"
    assert prompts[-1][-1] == {"role": "user", "content": "the cat 29"}
    assert 3 < len(prompts[-1]) < 20
    assert len(session.rows()[0]["messages"]) == 1 + 2 * 30  # nothing is lost for the person
    assert sum(counts[10:]) / 20 < 110  # most turns reuse the cache: not every turn drops one
    session.reset()
    say(session, "the dog")
    assert prompts[-1] == [{"role": "system", "content": "on the mat"}, {"role": "user", "content": "the dog"}]


def test_undoing_everything_the_model_still_saw_shows_it_the_older_turns_again():
    session = chat(context=160)
    for turn in range(12):
        say(session, f"the cat {turn}")
    assert session._first > 0
    while len(session.turns) > 2:
        session.undo()
    line = {"role": "user", "content": "the dog"}
    messages = session.rows()[0]["messages"]
    assert say(session, "the dog") == by_hand(session, [*messages, line])


def test_new_tokens_give_way_to_the_context_and_a_message_beyond_it_is_refused():
    session = chat(context=64)
    everything = SamplingOptions(max_new_tokens=1000, greedy=True)
    assert say(session, "the cat", everything)
    assert session.turns[-1].notes[-1].startswith("cut after ")
    with pytest.raises(UserError, match=r"takes \d+ tokens with its template, tiny sees 64 at once"):
        say(session, "the cat sat on the mat 从前从前 " * 20)
    with pytest.raises(UserError, match="empty"):
        say(session, "  ")
    assert len(session.turns) == 3  # each can be taken back
    assert len(session.rows()[0]["messages"]) == 2  # but is not in the dialogue
    assert say(session, "the dog", everything)


def test_a_reply_ends_at_the_templates_end_token_without_outer_blanks():
    model, tokenizer = babbler()
    set_template(tokenizer, "chatml")
    session = ChatSession(model, tokenizer, "tiny")
    end = end_token_id(tokenizer)
    blank, word = tokenizer(" ")["input_ids"][0], tokenizer("the")["input_ids"][0]
    script = iter([blank, blank, word, blank, word, blank, end, word])

    def speak(_module, _inputs, output):
        output.logits[:, -1] = torch.nn.functional.one_hot(torch.tensor(next(script)), output.logits.shape[-1]) * 9.0
        return output

    model.register_forward_hook(speak)
    assert say(session, "hello", SamplingOptions(max_new_tokens=50, greedy=True)) == "the the"
    assert session.turns[-1].notes == []


def test_an_empty_reply_is_no_part_of_the_dialogue():
    session = chat()
    say(session, "the cat")
    weights = session._model.get_output_embeddings().weight
    kept = weights.detach().clone()
    with torch.no_grad():
        weights.zero_()  # the end of text, token 0, is the likeliest
    assert say(session, "the dog") == ""
    with torch.no_grad():
        weights.copy_(kept)
    messages = session.rows()[0]["messages"]
    assert len(messages) == 2
    assert say(session, "on") == by_hand(session, [*messages, {"role": "user", "content": "on"}])


def test_an_input_field_reaches_the_template_and_the_saved_row():
    session = chat()
    reply = say(session, "Sort them.", input_text="the, cat")
    message = {"role": "user", "content": "Sort them.", "input": "the, cat"}
    assert reply == by_hand(session, [message])
    assert session.rows()[0]["messages"][0] == message


def test_an_adapter_chats_with_a_kept_cache():
    model, tokenizer = babbler()
    set_template(tokenizer, "instruct")
    adapted = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    session = open_session(adapted, tokenizer, "tiny")
    fed, messages = Fed(session), []
    for turn in range(3):
        messages.append({"role": "user", "content": f"the cat {turn}"})
        fed.take()
        reply = say(session, f"the cat {turn}")
        assert fed.take() < 60
        assert reply == by_hand(session, messages)
        messages.append({"role": "assistant", "content": reply})


# --- texts


def test_a_checkpoint_without_a_template_continues_each_line_by_itself():
    model, tokenizer = babbler()
    session = open_session(model, tokenizer, "tiny")
    assert isinstance(session, TextSession)
    expected = "".join(stream_text(model, tokenizer, "the cat", GREEDY))
    assert [say(session, "the cat"), say(session, "the cat")] == [expected, expected]
    stop_after(session, "the dog", 1)
    user, reply = {"role": "user", "content": "the cat"}, {"role": "assistant", "content": expected}
    rows = session.rows()
    assert rows[:2] == [{"messages": [user, reply]}] * 2
    assert rows[2]["stopped"] == [1]
    json.dumps(rows)


def test_the_mode_can_be_forced():
    model, tokenizer = babbler()
    forced = open_session(model, tokenizer, "tiny", "chat")
    assert say(forced, "the cat") == by_hand(forced, [{"role": "user", "content": "the cat"}])
    assert tokenizer.chat_template
    assert isinstance(open_session(model, tokenizer, "tiny", "text"), TextSession)


# --- the cache by itself


def test_the_cache_is_cut_to_what_the_prompts_share():
    model, _ = babbler()

    def run(prompt: list[int]) -> tuple[int, torch.Tensor]:
        past = cache.begin(prompt)
        known = past.get_seq_length()
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt[known:]]), **{CACHE: past}).logits[0, -1]
            whole = model(input_ids=torch.tensor([prompt])).logits[0, -1]
        cache.end(prompt)
        torch.testing.assert_close(logits, whole, atol=1e-4, rtol=1e-4)
        return known, logits

    cache = KeptCache(model.config)
    assert run([5, 6, 7, 8])[0] == 0
    assert run([5, 6, 7, 8, 9, 10])[0] == 4
    assert run([5, 6, 20, 21])[0] == 2
    assert run([5, 6, 20, 21])[0] == 3  # the last token is always computed
    assert run([30, 6, 20])[0] == 0
    cache.begin([30, 6, 20, 7])  # broken off: nothing is known of it
    assert run([30, 6, 20, 7])[0] == 0
    cache.clear()
    assert run([30, 6])[0] == 0


def test_a_window_that_has_moved_on_is_computed_again():
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(0)
    shape = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    config = Qwen3Config(
        vocab_size=320, num_key_value_heads=2, use_sliding_window=True, sliding_window=8, max_window_layers=1, **shape
    )
    model, (_, tokenizer) = AutoModelForCausalLM.from_config(config).eval(), babbler()
    set_template(tokenizer, "instruct")
    session, messages = open_session(model, tokenizer, "tiny"), []
    for turn in range(4):
        messages.append({"role": "user", "content": f"the cat {turn}"})
        assert say(session, f"the cat {turn}") == by_hand(session, messages)
        messages.append({"role": "assistant", "content": session.turns[-1].reply})


# --- names


@pytest.mark.parametrize(
    ("specs", "names"),
    [
        (["outputs/default/pretrain-mini-tinyworld/T1"], ["T1"]),
        (
            [
                "outputs/default/pretrain-mini-tinyworld/2026-11-02_10-00-00",
                "outputs/default/sft-mini-tinyworld/2026-11-02",
            ],
            ["pretrain", "sft"],
        ),
        (["o/sft-mini/2026-1/checkpoints/step-000010", "o/pretrain-mini/2026-2"], ["sft", "pretrain"]),
        (["o/r/2026-1/checkpoints/step-000010", "o/r/2026-1/checkpoints/step-000020"], ["step-000010", "step-000020"]),
        (["o/r/2026-1", "o/r/2026-2"], ["2026-1", "2026-2"]),
        (["/a/base", "/b/c/d/sft-lora", "Qwen/Qwen3-0.6B"], ["base", "sft-lora", "Qwen3-0.6B"]),
        (["/a/same", "/a/same"], ["same#1", "same#2"]),
    ],
)
def test_names_tell_checkpoints_apart(specs, names):
    assert short_names(specs) == names


def test_a_reply_warns_of_nothing() -> None:
    """transformers from 5.24 on says before each reply that generate's past_key_values is called cache."""
    model, tokenizer = babbler()
    session = open_session(model, tokenizer, "it", mode="chat")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert list(session.reply("Hello!", SamplingOptions(max_new_tokens=3, seed=1)))
