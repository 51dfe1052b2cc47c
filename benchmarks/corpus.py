"""stage=corpus on generated text with planted faults: recall and precision of each rule, speed, memory, and whether a
run that was killed and resumed gives the same bytes.

python benchmarks/corpus.py --mb 200          (some minutes on two cores; --mb 20 for a try)

Two thirds of the text are English, a third Chinese: real words in no order, among which the function words stand as
often as they do in running text, no two documents alike. Every eighth document is a fault of one kind. A fault counts
as found where it is left out by whatever rule; of each rule it is said how many of those it left out were planted for
it, planted at all, or sound. How alike a near duplicate is to its original is computed from their shingles.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

EN_STOP = "the the the of and to a in is that it was for on are as with his they be at have this from or had by".split()
ZH_STOP = list(
    "的的的的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里"
)
NEAR = {
    0.9: "near duplicate, 0.9 alike or more",
    0.85: "near duplicate, 0.85 to 0.9",
    0.8: "near duplicate, 0.8 to 0.85",
}
UNLIKE = "copy less than 0.8 alike, sound"
PERSONAL = "personal data, to be masked"
# Rule that a kind of fault is planted for.
RULES = {
    "exact duplicate": "exact",
    **dict.fromkeys(NEAR.values(), "near"),
    "too short": "gopher.min_words",
    "symbols": "gopher.max_symbols_per_word",
    "bullets": "gopher.max_bullet_lines",
    "ellipses": "gopher.max_ellipsis_lines",
    "numbers": "gopher.min_alphabetic_words",
    "no stop words": "gopher.min_stop_words",
    "repeated lines": "repetition.duplicate_lines",
    "repeated phrase": "repetition.top_ngrams",
    "repeated passage": "repetition.duplicate_ngrams",
    "placeholder text": "c4.lorem_ipsum",
    "code": "c4.braces",
    "one sentence": "c4.min_sentences",
    "another language": "language",
    "blocked word": "blocklist",
    "contamination": "decontaminate.tests",
}
GERMAN = (
    "Der Fuchs läuft durch den Wald und sucht Freunde.", "Am Abend sitzen alle zusammen und erzählen Geschichten.",
    "Niemand weiß, warum die Brücke gestern verschwunden ist.", "Die Kinder spielen im Garten, obwohl es regnet.",
    "Wir haben das Buch schon gelesen, aber nicht verstanden.", "Morgen fährt der Zug früher ab als sonst.",
    "Sie schreibt jeden Tag einen langen Brief an ihre Mutter.", "Über dem Fluss liegt am Morgen dichter Nebel.",
)  # fmt: skip


def similarity(one: str, other: str, chinese: bool) -> float:
    """Jaccard similarity of the sets of shingles, exact."""
    kind, span = (r"[\u4e00-\u9fff]", 8) if chinese else (r"\w+", 5)
    found = []
    for text in (one, other):
        units = re.findall(kind, text.lower())
        found.append({tuple(units[place : place + span]) for place in range(len(units) - span + 1)})
    return len(found[0] & found[1]) / len(found[0] | found[1])


class Writer:
    """Makes documents of one language."""

    def __init__(self, chinese: bool, rng: random.Random) -> None:
        self.chinese, self.rng = chinese, rng
        if chinese:  # the characters of GB 2312's first level, the 3,755 most common ones
            codes = (bytes((high, low)) for high in range(0xB0, 0xD8) for low in range(0xA1, 0xFF))
            self.words = [char for code in codes if (char := code.decode("gb2312", "ignore"))]
            self.stop, self.end, self.gap = ZH_STOP, "。", ""
        else:
            from tinychat.tinyworld import documents

            texts = " ".join(documents(1, "train", 1500, 0)).lower()
            self.words = sorted(set(re.findall(r"[a-z]{3,}", texts)) - set(EN_STOP))
            self.stop, self.end, self.gap = EN_STOP, ".", " "

    def sentence(self, n: int | None = None) -> list[str]:
        n = n or self.rng.randrange(8, 25)
        rare, common = iter(self.rng.choices(self.words, k=n)), iter(self.rng.choices(self.stop, k=n))
        return [next(common) if self.rng.random() < 0.45 else next(rare) for _ in range(n)]

    def text(self, sentences: list[list[str]]) -> str:
        return self.gap.join(self.gap.join(words) + self.end for words in sentences)

    def document(self) -> list[list[str]]:
        return [self.sentence() for _ in range(self.rng.randrange(8, 40))]


def generate(folder: Path, megabytes: float, seed: int) -> None:
    """en.jsonl, zh.jsonl, tests.jsonl (what is evaluated on), blocked.txt, and truth.json: file -> kind of each."""
    rng = random.Random(seed)
    truth: dict[str, list[str]] = {}
    blocked = ["zorblatt", "违禁词语"]
    (folder / "blocked.txt").write_text("\n".join(blocked))
    tests: list[str] = []
    for name, share in (("en", 2 / 3), ("zh", 1 / 3)):
        write = Writer(name == "zh", rng)
        asked = [write.text([write.sentence(30)]) for _ in range(500)]
        tests += asked
        kinds, earlier, size = [], [], 0.0
        faults = {
            kind: make for kind, make in planted(write, blocked, asked, earlier).items() if kind not in skipped(name)
        }
        names = list(faults)
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            while size < megabytes * share * 1e6:
                kind = names[len(kinds) // 8 % len(names)] if len(kinds) % 8 == 7 and len(earlier) > 100 else ""
                if kind:
                    text = faults[kind]()
                    if isinstance(text, tuple):
                        text, kind = text
                else:
                    sentences = write.document()
                    text = write.text(sentences)
                    # Some of the sound documents are what is copied later; a few thousand are enough.
                    if len(earlier) < 3000 or rng.random() < 0.01:
                        earlier.append(sentences)
                kinds.append(kind)
                size += len(text.encode())
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        truth[name] = kinds
    (folder / "tests.jsonl").write_text(
        "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in tests)
    )
    (folder / "truth.json").write_text(json.dumps(truth))


def skipped(name: str) -> tuple[str, ...]:
    return ("no stop words",) if name == "zh" else ()


def planted(write: Writer, blocked: list[str], asked: list[str], earlier: list) -> dict[str, Callable[[], str]]:
    rng = write.rng

    def changed() -> tuple[str, str]:
        """A copy with some words changed, and what it is by how alike the two are."""
        original = rng.choice(earlier)
        sentences = [list(words) for words in original]
        for _ in range(max(1, round(sum(map(len, sentences)) * rng.uniform(0.0, 0.04) / (1 + write.chinese)))):
            words = rng.choice(sentences)
            words[rng.randrange(len(words))] = rng.choice(write.words)
        text = write.text(sentences)
        alike = similarity(write.text(original), text, write.chinese)
        return text, next((kind for least, kind in NEAR.items() if alike >= least), UNLIKE)

    def personal() -> str:
        number = "".join(rng.choices("0123456789", k=8))
        return with_insert(f"me{number}@mail.example.com {write.gap} 138{number}")

    def with_insert(piece: str) -> str:
        sentences = write.document()
        place = rng.randrange(len(sentences))
        return write.text(sentences[:place]) + write.gap + piece + write.gap + write.text(sentences[place:])

    def lines(n: int, before: str = "", after: str = "") -> str:
        return "\n".join(before + write.text([write.sentence()]) + after for _ in range(n))

    def numbers(n: int) -> list[str]:
        return [str(rng.randrange(10**4)) for _ in range(n)]

    phrase = lambda: write.gap.join(write.sentence(3))  # noqa: E731
    return {
        "exact duplicate": lambda: write.text(rng.choice(earlier)),
        "near duplicate": changed,
        "near duplicate too": changed,
        PERSONAL: personal,
        "too short": lambda: write.text([write.sentence(7) for _ in range(4)]),
        "symbols": lambda: write.text(write.document()) + " #" * 400,
        "bullets": lambda: lines(12, before="- "),
        "ellipses": lambda: lines(12, after="..."),
        "numbers": lambda: "\n".join(write.text([write.sentence(6)]) + " ".join(numbers(25)) + "." for _ in range(9)),
        "no stop words": lambda: write.text([rng.choices(write.words, k=12) for _ in range(12)]),
        "repeated lines": lambda: "\n".join([*lines(6).split("\n"), *[lines(1)] * 8]),
        "repeated phrase": lambda: write.text([*write.document(), *[[phrase_] for phrase_ in [phrase()] * 150]]),
        "repeated passage": lambda: write.text((one := write.document()[:12]) + one[:6] + write.document()[:2]),
        "placeholder text": lambda: with_insert("Lorem ipsum dolor sit amet, consectetur."),
        "code": lambda: with_insert("if (a) { return b; }"),
        "one sentence": lambda: write.gap.join(write.sentence(120)) + write.end,
        "another language": lambda: " ".join(rng.choices(GERMAN, k=14)) + f" {rng.randrange(10**9)}",
        "blocked word": lambda: with_insert(blocked[write.chinese]),
        "contamination": lambda: with_insert(rng.choice(asked)),
    }


def near_pairs(folder: Path, like: dict[str, dict[str, str]]) -> str:
    """How many pairs of documents that stage.near took for the same are how alike."""
    wanted = {f"{name}:{number}" for name, pairs in like.items() for number in pairs}
    wanted |= {other for pairs in like.values() for other in pairs.values()}
    texts: dict[str, str] = {}
    for name in like:
        with open(folder / f"{name}.jsonl", encoding="utf-8") as file:
            for number, line in enumerate(file):
                if f"{name}:{number}" in wanted:
                    texts[f"{name}:{number}"] = json.loads(line)["text"]
    bounds, count = (0.8, 0.75, 0.7, 0.0), Counter[float]()
    for name, pairs in like.items():
        for number, other in pairs.items():
            exact = similarity(texts[f"{name}:{number}"], texts[other], name == "zh")
            count[next(bound for bound in bounds if exact >= bound)] += 1
    names = ("0.8 or more", "0.75 to 0.8", "0.7 to 0.75", "less")
    return ", ".join(f"{name} {count[bound]:,}" for name, bound in zip(names, bounds, strict=True))


PERSONAL_KINDS = ("email", "phone", "ip", "china_id")
SETTINGS = ["stage.language.allowed=[en,zh]", "stage.chunk_mb=16", "tracker=none"]


def settings(folder: Path, workers: int) -> list[str]:
    sources = ", ".join(f"{name}: {{source: text, path: {folder}/{name}.jsonl}}" for name in ("en", "zh"))
    return [
        *SETTINGS,
        f"+stage.sources={{{sources}}}",
        f"+stage.decontaminate.sets={{tests: {{source: text, path: {folder}/tests.jsonl}}}}",
        f"stage.blocklist={folder}/blocked.txt",
        f"stage.workers={workers}",
        f"paths.outputs={folder}/outputs",
    ]


def measure(folder: Path, workers: int) -> None:
    """A run in this process that notes what every document was left out by; measured.json."""
    from hydra import compose, initialize_config_dir

    from tinychat import train
    from tinychat.config import schema
    from tinychat.data.corpus import collect, evaluation_sets
    from tinychat.data.corpus.sources import corpus_sources

    train.register()
    with initialize_config_dir(train.config_folder()):
        config = schema.to_config(compose("config", ["stage=corpus", *settings(folder, workers)]))
    rules: dict[str, dict[int, str]] = defaultdict(dict)
    like: dict[str, dict[int, str]] = defaultdict(dict)  # source -> number -> the document that it was found like
    note = collect.Found.note

    def noted(self: collect.Found, rule: str, place: str, why: str, text: str) -> None:
        name, _, number = place.partition(":")
        rules[name][int(number)] = rule
        if rule == collect.NEAR:
            like[name][int(number)] = why.rpartition(" ")[2]
        note(self, rule, place, why, text)

    collect.Found.note = noted  # type: ignore[method-assign]
    contamination = evaluation_sets.contamination(config.stage.decontaminate, config.data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    run_dir = folder / "whole"
    run_dir.mkdir()
    made = collect.Collector(run_dir, config.stage, corpus_sources(config), contamination, [], None)
    made.run(lambda: False)
    own, helpers = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    kept = sum(tally.held.documents for tally in made.found.tallies.values())
    (folder / "measured.json").write_text(
        json.dumps(
            {
                "rules": rules,
                "like": like,
                "wall": time.perf_counter() - begin,
                "cpu": own.ru_utime + own.ru_stime + helpers.ru_utime + helpers.ru_stime,
                "peak_mb": own.ru_maxrss / 1e3,
                "before_mb": before / 1e3,
                "helper_mb": helpers.ru_maxrss / 1e3,
                "kept": kept,
                "masked": sum(
                    tally.taken_out.get(f"{kind} masked", [0])[0]
                    for tally in made.found.tallies.values()
                    for kind in PERSONAL_KINDS
                ),
                "read_bytes": sum(tally.read_bytes for tally in made.found.tallies.values()),
            }
        )
    )


def told(folder: Path, workers: int) -> None:
    truth = json.loads((folder / "truth.json").read_text())
    found = json.loads((folder / "measured.json").read_text())
    planted_of, out_of, right, by_rule = Counter(), Counter(), Counter(), defaultdict(Counter)
    sound = lost = personal = 0
    copies: Counter[str] = Counter()
    for name, kinds in truth.items():
        rules = {int(number): rule for number, rule in found["rules"][name].items()}
        for number, kind in enumerate(kinds):
            rule = rules.get(number, "")
            personal += kind == PERSONAL
            if kind in (UNLIKE, PERSONAL):
                copies[kind] += 1
                copies[f"{kind} out"] += bool(rule)
                kind = ""
            if kind:
                planted_of[kind] += 1
                out_of[kind] += bool(rule)
                right[kind] += rule.startswith(RULES[kind])
            else:
                sound += 1
                lost += bool(rule)
            if rule:
                by_rule[next((one for one in RULES.values() if rule.startswith(one)), rule)][kind] += 1
    print(f"\n{'planted':<44}{'number':>8}{'left out':>10}{'by its own rule':>17}")
    for kind in RULES:
        if planted_of[kind]:
            shares = (out_of[kind] / planted_of[kind], right[kind] / planted_of[kind])
            print(f"{kind:<44}{planted_of[kind]:>8,}{shares[0]:>10.1%}{shares[1]:>17.1%}")
    for kind in (UNLIKE, PERSONAL):
        print(f"{kind:<44}{copies[kind]:>8,}{copies[f'{kind} out'] / max(1, copies[kind]):>10.1%}")
    print(f"{'sound documents, those two among them':<44}{sound:>8,}{lost / sound:>10.3%}")
    print(f"masked: {found['masked']:,} of {2 * personal:,} addresses and numbers that were planted")
    print(f"\n{'rule':<44}{'left out':>8}{'planted for it':>16}{'planted':>10}{'sound':>8}")
    for rule, kinds in sorted(by_rule.items(), key=lambda item: -sum(item[1].values())):
        total = sum(kinds.values())
        own = sum(count for kind, count in kinds.items() if kind and RULES[kind] == rule)
        print(f"{rule:<44}{total:>8,}{own / total:>16.1%}{1 - kinds[''] / total:>10.2%}{kinds['']:>8,}")
    print(f"near duplicates by the exact similarity of the two documents: {near_pairs(folder, found['like'])}")
    megabytes = found["read_bytes"] / 1e6
    print(
        f"\n{megabytes:.0f} MB, {sum(map(len, truth.values())):,} documents, {found['kept']:,} kept; {workers} helpers "
        f"{found['wall']:.0f} s, {megabytes / found['wall']:.2f} MB/s; {found['cpu']:.0f} s of processors, "
        f"{megabytes / found['cpu']:.2f} MB/s of one"
    )
    each = (found["peak_mb"] - found["before_mb"]) * 1e6 / found["kept"]
    print(
        f"peak memory {found['peak_mb']:.0f} MB ({found['before_mb']:.0f} before): {each:,.0f} bytes for each document "
        f"kept, a chunk of 16 MB included; largest helper {found['helper_mb']:.0f} MB"
    )


def resumed(folder: Path, workers: int, kills: int) -> None:
    """Kill a run, as often as said, each time after another chunk; and compare."""
    run_dir = folder / "killed"
    words = ["stage=corpus", *settings(folder, workers), f"run_dir={run_dir}", "resume=auto"]
    command = [sys.executable, "-m", "tinychat.train", *words]
    for number in range(kills):
        child = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        there = len(list(run_dir.glob("corpus-unfinished/corpus/*.parquet")))
        while child.poll() is None and len(list(run_dir.glob("corpus-unfinished/corpus/*.parquet"))) <= there + number:
            time.sleep(0.05)
        time.sleep(0.2 * number)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    whole, again = (
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (run / "corpus").iterdir()}
        for run in (folder / "whole", run_dir)
    )
    print(
        f"killed {kills} times and resumed: {len(again)} files, {'the same bytes' if whole == again else 'OTHER BYTES'}"
    )
    if whole != again:
        sys.exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=200.0, help="megabytes of text")
    parser.add_argument("--workers", type=int, default=2, help="stage.workers")
    parser.add_argument("--kills", type=int, default=2, help="how often the second run is killed; 0: there is none")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", help="where to work; kept (else a temporary folder, removed)")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(Path(arguments.folder), arguments.workers)
        return
    folder = Path(arguments.folder or tempfile.mkdtemp(prefix="corpus-")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        generate(folder, arguments.mb, arguments.seed)
        # A process of its own, so that its memory is that of the stage alone.
        child = [sys.executable, __file__, "--measure", "--folder", str(folder), "--workers", str(arguments.workers)]
        subprocess.run(child, check=True)
        told(folder, arguments.workers)
        if arguments.kills:
            resumed(folder, arguments.workers, arguments.kills)
    finally:
        if not arguments.folder:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
