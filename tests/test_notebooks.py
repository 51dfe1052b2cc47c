"""The notebooks of examples/ run from the first cell to the last, and carry nothing of the machine they were run on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, environment_of

NOTEBOOKS = ("text_to_assistant.ipynb", "read_a_ppo_run.ipynb")  # the second reads what the first has made
MOST_BYTES = 40_000


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_are_small_and_of_no_machine(name: str) -> None:
    text = (REPOSITORY / "examples" / name).read_text(encoding="utf-8")
    assert len(text) < MOST_BYTES
    for place in ("/tmp/", "/home/", "/root/", "/Users/", str(Path.home()), str(REPOSITORY)):
        assert place not in text
    cells = json.loads(text)["cells"]
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code"), "run, in order"
    assert not any(one["output_type"] == "error" for cell in cells for one in cell.get("outputs", ()))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_they_run_from_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, client = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for key, value in environment_of().items():
        monkeypatch.setenv(key, value)
    for name in NOTEBOOKS:
        book = nbformat.read(REPOSITORY / "examples" / name, as_version=4)
        nbformat.validate(book)
        client.NotebookClient(
            book, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
        ).execute()
    runs = [path.parents[1].name for path in sorted(tmp_path.glob("outputs/tinychat/*/*/result.json"))]
    assert {"tokenizer-bpe-tinyworld", "pretrain-mini-tinyworld", "sft-mini-tinyworld", "ppo-mini-tinyworld"} <= set(
        runs
    )
