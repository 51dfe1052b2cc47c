"""Chat templates that came with a tokenizer and do harm, or nothing of use: one line that names the tokenizer, within
bounds of memory and time."""

from __future__ import annotations

import resource
import time

import pytest

from tinychat.errors import UserError
from tinychat.runtime import limited
from tinychat.runtime.limited import LimitedProcess
from tinychat.text import template_process
from tinychat.text.chat_render import Refused
from tinychat.text.chat_template import encode_chats, encode_prompts, end_token_id, set_template, try_chats
from tinychat.text.template_process import Failed, Filled, fill
from tinychat.text.tokenizer import train_bpe

CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
GOOD = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WIDE = "10000000000"
NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
ENDS = "{% endfor %}" * 3
DOUBLED = "{% for i in range(60) %}{% set x.y = BODY %}{% endfor %}{{ x.y }}"

# What the template does -> the words its error has.
WRONG = {
    "adds a number to a text": ("{{ messages[0].content + 1 }}", "TypeError"),
    "divides by nothing": ("{{ 1 // (messages | length - messages | length) }}", "ZeroDivisionError"),
    "calls itself": ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "RecursionError"),
    "calls what is no function": ("{{ messages(1) }}", "TypeError"),
    "uses what is not there": ("{{ nothing.at.all }}", "undefined"),
    "asks for a key that is not there": ("{{ messages[0]['name'].upper() }}", "no attribute"),
    "loops over a number": ("{% for m in 5 %}{{ m }}{% endfor %}", "TypeError"),
    "sorts what has no order": ("{{ [1, messages[0].content] | sort }}", "TypeError"),
    "includes a file": ("{% include 'other.jinja' %}", "TypeError"),
    "imports a file": ("{% import '/etc/passwd' as p %}{{ p }}", "TypeError"),
    "extends a file": ("{% extends 'base.jinja' %}", "TypeError"),
    "has a range that is too big": ("{% for i in range(10000000) %}{% endfor %}", "OverflowError"),
    "writes nothing": ("{# nothing #}", "writes no text"),
    "writes nothing for these messages": ("{% for m in messages if m.role == 'tool' %}x{% endfor %}", "writes no text"),
    "refuses": ("{{ raise_exception('no\nsystem role') }}", "no system role"),
    "reaches for the machine": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe|undefined|Security"),
    "changes the messages": ("{{ messages.append(1) }}", "unsafe|Security"),
    "has a filter that is not there": ("{{ messages | nosuchfilter }}", "No filter named"),
    "is not closed": ("{% for m in messages %}{{ m.content }}", "is no valid Jinja"),
    "is no Jinja": ("{{ 1 + }}", "is no valid Jinja"),
    "nests too deeply": ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "RecursionError|nested|memory"),
    "nests blocks too deeply": ("{% if 1 %}" * 2000 + "x" + "{% endif %}" * 2000, "RecursionError|valid Jinja|nested"),
}
GREEDY = {
    "multiplies a text": "{{ 'x' * " + WIDE + " }}",
    "multiplies a message": "{{ messages[0].content * " + WIDE + " }}",
    "multiplies a list": "{{ ([1] * " + WIDE + ") | length }}",
    "centres a text": "{{ messages[0].content.center(" + WIDE + ") }}",
    "centres with a filter": "{{ messages[0].content | center(" + WIDE + ") }}",
    "indents far": "{{ messages[0].content | indent(" + WIDE + ", true) }}",
    "fills with zeros": "{{ messages[0].content.zfill(" + WIDE + ") }}",
    "formats wide": "{{ '{:>" + WIDE + "}'.format(messages[0].content) }}",
    "formats wide with a filter": "{{ '%" + WIDE + "s' | format(messages[0].content) }}",
    "doubles by joining": "{% set x = namespace(y='xx') %}" + DOUBLED.replace("BODY", "[x.y, x.y] | join"),
    "doubles by ~": "{% set x = namespace(y='xx') %}" + DOUBLED.replace("BODY", "x.y ~ x.y"),
    "doubles by replacing": "{% set x = namespace(y='xx') %}" + DOUBLED.replace("BODY", "x.y | replace('x', 'xx')"),
    "doubles blocks": "".join(
        f"{{% set x{i + 1} %}}{{{{ x{i} }}}}{{{{ x{i} }}}}{{% endset %}}" for i in range(60)
    ).replace("{{ x0 }}", "xx")
    + "{{ x60 }}",
    "takes a power": "{{ 10 ** (10 ** 10) }}",
    "loops": NESTED + ENDS,
    "loops and writes": NESTED + "xxxxxxxxxxxxxxxx" + ENDS,
    "sums loops": "{% set n = namespace(v=0) %}" + NESTED + "{% set n.v = n.v + a %}" + ENDS,
    "calls twice each time": "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(80) }}",
    "writes too much": "{% for m in messages %}{% for i in range(90000) %}{{ m.content }}{% endfor %}{% endfor %}",
    "writes much latin": "{{ lipsum(n=900) }}",
}


@pytest.fixture(scope="module")
def tokenizer():
    found = train_bpe(["the cat and the dog sat on the mat. " * 20], 300, progress=False)
    found.name_or_path = "models/odd"
    return found


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "SECONDS", 0.3)
    monkeypatch.setattr(template_process, "MEMORY", 1 << 26)


def refusal(tokenizer, call) -> str:
    with pytest.raises(UserError) as error:
        call(tokenizer)
    message = str(error.value)
    assert "models/odd" in message
    assert "\n" not in message
    assert len(message) < 800
    return message


@pytest.mark.parametrize(("template", "words"), WRONG.values(), ids=WRONG)
def test_a_template_that_fails_is_one_line(tokenizer, template, words, tight):
    tokenizer.chat_template = template
    for call in (lambda it: encode_chats(it, [CHAT]), lambda it: encode_prompts(it, [CHAT[:1]])):
        message = refusal(tokenizer, call)
        assert any(word in message for word in words.split("|")), message


@pytest.mark.parametrize("template", GREEDY.values(), ids=GREEDY)
def test_a_template_that_takes_too_much_is_stopped(tokenizer, template, tight):
    tokenizer.chat_template = template
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = refusal(tokenizer, lambda it: encode_prompts(it, [CHAT[:1]]))
    reasons = ("takes more than 0.3 s", "more memory", "characters where", "OverflowError", "ended the process")
    assert any(reason in message for reason in reasons), message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 18  # kB: none of it in this process
    assert "refuses" in message or "use template=instruct" in message


def test_a_good_template_follows_a_bad_one(tokenizer, tight, monkeypatch):
    tokenizer.chat_template = GREEDY["loops"] + "{# another #}"
    refusal(tokenizer, lambda it: encode_prompts(it, [CHAT[:1]]))
    monkeypatch.undo()
    before = LimitedProcess._now.get(template_process.__name__)
    refusal(tokenizer, lambda it: encode_prompts(it, [CHAT[:1]]))  # known already: nothing is started
    assert LimitedProcess._now.get(template_process.__name__) is before
    tokenizer.chat_template = GOOD
    (encoded,) = encode_chats(tokenizer, [CHAT])
    assert tokenizer.decode(encoded.ids[encoded.trained]) == "Hi<|im_end|>"


def test_one_conversation_that_is_refused_leaves_the_others(tokenizer):
    tokenizer.chat_template = "{% if messages[0].content == 'bad' %}{{ 1 + 'x' }}{% endif %}" + GOOD
    bad = [{"role": "user", "content": "bad"}, CHAT[1]]
    found = list(try_chats(tokenizer, [CHAT, bad, CHAT]))
    assert [isinstance(one, Refused) for one in found] == [False, True, False]
    assert "TypeError" in str(found[1])
    assert found[0].ids.tolist() == found[2].ids.tolist()


def test_long_conversations_are_no_harm(tokenizer):
    tokenizer.chat_template = GOOD
    chat = [{"role": role, "content": "the cat " * 20_000} for _ in range(4) for role in ("user", "assistant")]
    (encoded,) = encode_chats(tokenizer, [chat])
    assert encoded.trained.sum() > 4 * 20_000


def test_own_templates_need_no_process(tokenizer, monkeypatch):
    monkeypatch.setattr(template_process, "LimitedProcess", None)
    for name in template_process.TEMPLATES:
        set_template(tokenizer, name)
        assert end_token_id(tokenizer) in tokenizer.all_special_ids


def test_an_answer_that_nobody_waited_for_is_never_read(monkeypatch):
    """Ctrl-C between question and answer: the next question has its own answer."""
    process = LimitedProcess.of(template_process.__name__)
    read = limited.json.loads
    monkeypatch.setattr(limited.json, "loads", lambda line: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fill("{{ messages[0].content }}", {}, [([{"role": "user", "content": "first"}], True)])
    monkeypatch.setattr(limited.json, "loads", read)
    assert fill("{{ messages[0].content }}", {}, [([{"role": "user", "content": "second"}], True)]) == [
        Filled("second", [])
    ]
    assert process._process.poll() is not None


def test_a_forked_process_asks_one_of_its_own(monkeypatch):
    job = [([{"role": "user", "content": "x"}], True)]
    fill("{{ messages[0].content }}", {}, job)
    mine = LimitedProcess.of(template_process.__name__)
    monkeypatch.setattr(limited.os, "getpid", lambda: -1)
    assert LimitedProcess.of(template_process.__name__) is not mine
    monkeypatch.undo()
    LimitedProcess._now[template_process.__name__] = mine
    assert fill("{{ messages[0].content }}", {}, job) == [Filled("x", [])]


def test_a_process_that_was_killed_is_started_again():
    job = [([{"role": "user", "content": "x"}], True)]
    fill("{{ messages[0].content }}", {}, job)
    LimitedProcess.of(template_process.__name__)._process.kill()
    time.sleep(0.05)
    assert fill("{{ messages[0].content }}", {}, job) == [Filled("x", [])]


def test_many_conversations_are_fast(tokenizer):
    """5,000 answers of a template with thousands of letters; a bound that only forgetting to batch would break."""
    jobs = [([{"role": "user", "content": f"{number}"}], True) for number in range(5000)]
    fill("{{ messages[0].content }}", {}, jobs[:1])
    start = time.process_time()
    found = fill("{{ messages[0].content }}", {}, jobs)
    assert time.process_time() - start < 1.5
    assert [one.text for one in found] == [str(number) for number in range(5000)]
    assert not any(isinstance(one, Failed) for one in found)
