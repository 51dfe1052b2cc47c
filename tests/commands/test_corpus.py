"""stage=corpus as a command: its report and its chunks, a tokenizer and a model from them; and what it refuses."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import run_train, start_train
from tests.data.corpus.test_collect import content
from tests.data.corpus.test_collect import folder as texts  # noqa: F401 - a fixture

SMALL = ("tokenizer.vocab_size=300", "model.n_layer=1", "model.n_embd=32", "model.n_head=1", "model.context_length=64")
STEPS = ("stage.max_steps=2", "stage.samples=[]", "stage.log_every=1", "data.val_fraction=0.2", "device=cpu")


def collect(texts: Path, *settings: str) -> list[str]:  # noqa: F811
    sources = ", ".join(f"{name}: {{source: text, path: {texts}/{name}.jsonl}}" for name in ("web", "zh"))
    quick = ("stage.language.identify=false", "stage.workers=0", "tracker=none")
    return ["stage=corpus", f"+stage.sources={{{sources}}}", *quick, *settings]


@pytest.mark.slow
def test_collected_tokenized_and_learnt(texts: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "mine.py").write_text(
        "def keep(text, language):\n    return text.replace('the', 'THE') if 'a' in text or '的' in text else False\n"
    )
    done = run_train(tmp_path, *collect(texts, "stage.function=mine.py:keep"))
    assert done.returncode == 0, done.stderr
    assert "web: 60 of 79 documents" in done.stderr and "left out by stage.near: 6" in done.stderr
    assert "next:       python -m tinychat.train stage=tokenizer data=corpus" in done.stderr
    (run,) = (tmp_path / "outputs" / "tinychat").glob("corpus-web+zh/*")
    report = json.loads((run / "corpus_report.json").read_text())
    rules = {one["rule"]: one for one in report["left out"]}
    assert rules["stage.near"]["documents"] == 6 and len(rules["stage.near"]["examples"]) == 3
    assert report["changed"]["changed by stage.function"]["documents"] == 60
    page = (run / "report.md").read_text()
    assert "What was left out" in page and "stage.c4.braces" in page and "% like web:" in page
    assert not (run / "corpus-unfinished").exists()

    done = run_train(tmp_path, "stage=tokenizer", "data=corpus", "data.val_fraction=0.2", "tracker=none", SMALL[0])
    assert done.returncode == 0, done.stderr
    done = run_train(
        tmp_path, "stage=pretrain", "data=corpus", "+data.weights={web: 1, zh: 3}", "tracker=none", *SMALL, *STEPS
    )
    assert done.returncode == 0, done.stderr
    assert "data.path=null took outputs/tinychat/corpus-web+zh" in done.stderr
    assert "zh: 75.0% of the tokens read" in done.stderr and "held-out perplexity" in done.stderr
    (run,) = (tmp_path / "outputs" / "tinychat").glob("pretrain-mini-corpus/*")
    assert "corpus-web+zh" in json.loads((run / "lineage.json").read_text())["parents"]["corpus"]
    assert [row[0] for row in json.loads((run / "tables" / "sources.json").read_text())["rows"]] == ["web", "zh"]


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_bytes(texts: Path, tmp_path: Path) -> None:  # noqa: F811
    # Slow enough to be killed on its way.
    (tmp_path / "slow.py").write_text("import time\ndef keep(text, language):\n    time.sleep(0.02)\n    return True\n")
    words = collect(texts, "stage.chunk_mb=0.003", "stage.function=slow.py:keep", "resume=auto")
    assert run_train(tmp_path, *words, "run_dir=whole").returncode == 0
    started = start_train(tmp_path, *words, "run_dir=killed")
    unfinished = tmp_path / "killed" / "corpus-unfinished"
    while not (unfinished / "state.json").exists() and started.poll() is None:
        time.sleep(0.01)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert unfinished.exists()
    done = run_train(tmp_path, *words, "run_dir=killed")
    assert done.returncode == 0 and "goes on after" in done.stderr, done.stderr
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def own(rules: str) -> str:
    return f"+stage.sources={{a: {{source: text, path: {__file__}, rules: {rules}}}}}"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["+stage.sources={a: {source: text, path: none.txt}}"], "stage.sources.a.path=none.txt: no such file"),
        (["+stage.sources={a: {source: tinyworld}}"], "stage.sources.a.max_docs=null: tinyworld never ends"),
        (["+stage.sources.a={source: text}"], "names of your own are given all at once: '+stage.sources={a: {...}}'"),
        (["stage.sources={a: {source: text}}"], "names of your own are added with a plus: '+stage.sources=...'"),
        (["stage.blocklist=none.txt"], "stage.blocklist=none.txt: no such file"),
        (["stage.language.allowed=[english]"], "english is no language that py3langid names"),
        (["stage.near.threshold=1.5"], "stage.near.threshold=1.5: a similarity from 0.2 to 1"),
        (["stage.repetition.duplicate_lines=3.0"], "stage.repetition.duplicate_lines=3: a share, from 0 to 1"),
        (["stage.personal.kinds=[mail]"], "stage.personal.kinds: mail is none; there are email, phone"),
        (["stage.function=none.py:keep"], "stage.function=none.py:keep: no such file"),
        (["data=corpus"], "data=corpus: a corpus already"),
        (
            [own("{near: {use: false}}")],
            "stage.sources.a.rules.near: no rule of one source; there are normalise, length",
        ),
        ([own("{c4: {brace: false}}")], "stage.sources.a.rules.c4.brace: Key 'brace' not in 'C4Rules'"),
        ([own("{c4: {use: maybe}}")], "stage.sources.a.rules.c4.use: Value 'maybe' is not a valid bool"),
        ([own("{language: {allowed: [en]}}")], "rules.language.allowed: say stage.sources.a.languages=[...]"),
        ([own("{code: {min_alphanumeric: 3}}")], "stage.sources.a.rules.code.min_alphanumeric=3: a share, from 0 to 1"),
        ([own("{blocklist: none.txt}")], "stage.sources.a.rules.blocklist=none.txt: no such file"),
        ([own("{function: none.py:keep}")], "stage.sources.a.rules.function=none.py:keep: no such file"),
    ],
)
def test_what_cannot_be_is_said_in_a_line_and_nothing_is_written(words: list[str], says: str, tmp_path: Path) -> None:
    done = run_train(tmp_path, "stage=corpus", "tracker=none", *words)
    assert done.returncode == 1 and says in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "outputs").exists()
