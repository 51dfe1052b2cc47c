"""The pages say what is there: short enough to read, files and modules that exist, links that lead somewhere, commands
whose settings compose."""

from __future__ import annotations

import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from tests.conftest import REPOSITORY
from tests.test_architecture import HYDRA, LIGHT, ROWS
from tinychat.config import schema

CONF = REPOSITORY / "conf"
ROOTS = ("README.md", "README.zh-CN.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")
PAGES = [*(REPOSITORY / name for name in ROOTS), *sorted((REPOSITORY / "docs").glob("*.md"))]
PRESENT = [page for page in PAGES if page.name != "CHANGELOG.md"]  # a changelog may name what is gone
FOLDERS = ("tinychat", "conf", "docs", "tests", "launchers", "benchmarks", "examples", *set.union(*ROWS))
FILE = re.compile(rf"(?:[\w.-]+/)*[\w-]+\.(?:py|sh|sbatch|j2|jinja|cfg|toml)|(?:{'|'.join(FOLDERS)})/[\w./-]*")
OF_A_USER = re.compile(r"(?:my\w*|short|FILE|X)\.(?:py|jinja)")
# What such a name stands for, and what is in a run's folder, is no file of the repository.
STANDS_FOR = re.compile(r"[A-Z]{2,}|\bX\b|\*|\.\.\.|^conf/local/|^chat_template\.jinja$")
METRICS = re.compile(r"(?:train|eval|rl|data|perf|schedule|tokenizer)/\w+")
REFUSED = "model=minni"  # a typing mistake that a page shows
OF_USERS_YAML = "data=poems"  # whose file tests/test_extending.py writes
COMMANDS = re.compile(r"^```sh\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def commands_of(page: Path) -> list[str]:
    """The lines of its sh blocks, without what they say about themselves."""
    lines = [line for block in COMMANDS.findall(page.read_text()) for line in block.replace("\\\n", " ").splitlines()]
    return [told for line in lines if (told := re.split(r"(?:^|\s)#", line)[0].strip())]


def prose_of(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)


@cache
def there() -> list[str]:
    """Every file and folder (with a / at its end), from the repository on."""
    skipped = (".git", ".venv", "outputs", "__pycache__")
    found = []
    for path in REPOSITORY.rglob("*"):
        place = path.relative_to(REPOSITORY)
        if not any(part in skipped or part.endswith("_cache") for part in place.parts):
            found.append(f"/{place.as_posix()}" + "/" * path.is_dir())
    return found


def exists(name: str) -> bool:
    """A path from the repository on, or its last parts: stages/sft.py, sft.py."""
    return any(path.endswith((f"/{name}", f"/{name}/")) for path in there())


@pytest.mark.parametrize(
    ("name", "lines"), [("README.md", 130), ("README.zh-CN.md", 130), ("docs/architecture.md", 150)]
)
def test_pages_stay_short(name: str, lines: int) -> None:
    assert len((REPOSITORY / name).read_text().splitlines()) <= lines


def test_both_readmes_have_the_same_commands_and_links() -> None:
    english, chinese = PAGES[:2]
    assert commands_of(english) == commands_of(chinese)
    links = [
        [link for link in LINK.findall(page.read_text()) if not link.startswith("README")]
        for page in (english, chinese)
    ]
    assert sorted(links[0]) == sorted(links[1])


def test_architecture_has_the_rows_of_the_test() -> None:
    page = (REPOSITORY / "docs/architecture.md").read_text()
    told = [set(re.findall(r"`(\w+)`", line)) for line in re.findall(r"^\d+\. (`\w+`.*)$", page, re.M)]
    assert told == ROWS
    light = re.search(r"So files in (.*?) import nothing", page, re.S)
    assert light and set(re.findall(r"`(\w+)`", light.group(1))) == LIGHT
    hydra = re.search(r"Hydra is imported by (.*?) alone", page, re.S)
    assert hydra and {name.rstrip("/") for name in re.findall(r"`([\w./]+)`", hydra.group(1))} == HYDRA
    tree = page[page.index("```\nconf/") : page.index("## Imports go one way")]
    rooms = set(re.findall(r"^  (\w+)(?:/|\.py)(?: |$)", tree, re.M))
    assert rooms == set.union(*ROWS), "every folder has its line in the tree"


@pytest.mark.parametrize("page", PRESENT, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    told = [word for code in re.findall(r"`([^`\n]+)`", prose_of(page)) if "=" not in code for word in code.split()]
    told += [word for command in commands_of(page) for word in command.split() if "=" not in word]
    missing = set()
    for word in told:
        name = word.strip("'\"(),;:").partition("#")[0]
        if (
            FILE.fullmatch(name)
            and not METRICS.fullmatch(name)
            and not OF_A_USER.fullmatch(name)
            and not STANDS_FOR.search(name)
        ):
            whole = name.rstrip("/.")
            if not exists(whole):
                missing.add(name)
    assert missing == set()


def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("page", PRESENT, ids=lambda page: page.name)
def test_modules_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    called = set(re.findall(r"python -m (tinychat[\w.]*\w)", " ".join(text.split())))
    assert [name for name in called if not is_module(name)] == []
    code = " ".join(re.findall(r"`([^`\n]+)`", text))
    named = set(re.findall(r"\btinychat(?:\.[a-z_]\w*)+", code)) - tags()
    assert [name for name in named if not is_module(name) and not is_module(name.rpartition(".")[0])] == []


@cache
def tags() -> set[str]:
    """Names that MLflow's pages show, not modules."""
    sources = "\n".join(path.read_text() for path in (REPOSITORY / "tinychat").rglob("*.py"))
    return set(re.findall(r'"(tinychat\.\w+)"', sources))


def anchors_of(page: Path) -> set[str]:
    """The names under which GitHub finds the headings of a page."""
    heads = re.findall(r"^#+ (.+)$", prose_of(page), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(target), link


# --- settings

BASES = ("stage", "data", "experiment", "sweep")  # what other settings depend on


def settings_of_commands() -> list[dict[str, str]]:
    """{key: setting} of the commands of tinychat.train in the pages. Those that stand on the same bases and contradict
    each other in nothing are one: composing takes its time. Values that a sweep ranges over are left out."""
    told: list[dict[str, str]] = []
    for page in PRESENT:
        for command in commands_of(page):
            words = shlex.split(command)
            if words[:3] != ["python", "-m", "tinychat.train"] or REFUSED in command or OF_USERS_YAML in command:
                continue
            swept = "-m" in words
            given = {word.partition("=")[0]: word for word in words[3:] if "=" in word}
            given = {key: word for key, word in given.items() if not (swept and re.search(r"=.*[,(]", word))}
            for other in told:
                same = [other.get(key) for key in BASES] == [given.get(key) for key in BASES]
                if same and all(other.get(key, word) == word for key, word in given.items()):
                    other.update(given)
                    break
            else:
                told.append(given)
    return told


def test_the_settings_of_the_pages_commands_compose() -> None:
    schema.register()
    told = settings_of_commands()
    assert len(told) > 20
    wrong = []
    with initialize_config_dir(str(CONF)):
        for given in told:
            try:
                compose("config", list(given.values()))
            except Exception as error:
                wrong.append(f"{' '.join(given.values())}: {error}")
    assert wrong == []
