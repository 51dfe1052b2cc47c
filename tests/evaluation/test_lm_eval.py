"""Tasks by lm-eval itself (marker lm_eval: pip install -e '.[lm_eval]')."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.chat_models import babbler, saved
from tests.conftest import Command
from tinychat.evaluation.harness import HarnessModel
from tinychat.runtime.world import World
from tinychat.text.tokenizer import END_OF_TEXT, vocabulary_size

pytestmark = [pytest.mark.lm_eval, pytest.mark.timeout(900)]
SENTENCE = "the cat and the dog sat on the mat, "
PROBLEMS = [("Tom has 2 coins and finds 3.", "2 + 3 = 5\n#### 5"), ("Ann had 9 and lost 4.", "9 - 4 = 5\n#### 5")]
PLAIN = """
task: cats
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
output_type: OUTPUT
test_split: test
fewshot_split: test
doc_to_text: "{{text}}"
doc_to_target: "{{end}}"
metadata: {version: 1.0}
"""


@pytest.fixture(scope="module", autouse=True)
def there() -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is missing: pip install -e '.[lm_eval]'")


def measured(done: Any, folder: Path) -> tuple[dict[str, float], list[list[Any]]]:
    assert done.returncode == 0, done.stderr
    (run,) = folder.glob("outputs/*/eval-*/*/")
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    logged = json.loads((run / "metrics.jsonl").read_text())
    assert {name: logged.get(name) for name in metrics} == metrics
    return metrics, json.loads((run / "tables" / "tasks.json").read_text())["rows"]


def test_it_gives_what_lm_evals_own_model_gives(tmp_path: Path) -> None:
    """lm-eval's own puts nothing before a text that is not empty; what stands there in training is spelled for it."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    (model, tokenizer), folder = babbler(), tmp_path / "model"
    with torch.no_grad():  # rows that are no tokens: lm-eval's may draw them
        model.get_output_embeddings().weight[vocabulary_size(tokenizer) :] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ours = HarnessModel(model.eval(), tokenizer, 64, World(0, 0, 1, torch.device("cpu")), torch.float32, 3, 3, seed=1)
    theirs = HFLM(pretrained=str(folder), dtype="float32", batch_size=3, device="cpu", max_length=64)

    def asked(kind: str, *texts: tuple[Any, ...]) -> list[Instance]:
        return [Instance(kind, {}, text, 0, metadata=("t", 0, 1)) for text in texts]

    def both(kind: str, *texts: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
        spelled = [
            (END_OF_TEXT * (kind != "loglikelihood_rolling" and text[0] != "") + text[0], *text[1:]) for text in texts
        ]
        return getattr(ours, kind)(asked(kind, *texts)), getattr(theirs, kind)(asked(kind, *spelled), disable_tqdm=True)

    pairs = [
        ("the cat", " sat on the mat"),
        ("", "the dog sat"),
        ("the dog  ", "the cat 从前"),
        (SENTENCE * 9, "the cat"),
    ]
    own, other = both("loglikelihood", *pairs)
    assert [greedy for _, greedy in own] == [greedy for _, greedy in other]
    assert [score for score, _ in own] == pytest.approx([score for score, _ in other], abs=1e-3)
    own, other = both("loglikelihood_rolling", (SENTENCE,), (SENTENCE * 11,), ("🎉",))
    assert own == pytest.approx(other, abs=1e-2)
    settings = {"until": ["dog"], "max_gen_toks": 24, "do_sample": False}
    own, other = both("generate_until", (SENTENCE, settings), ("from the", settings), (SENTENCE * 9, settings))
    assert own == other and any(own)


def test_shipped_tasks_have_figures_with_standard_errors_in_metrics_table_and_report(
    train: Command, tmp_path: Path
) -> None:
    first, second = saved(tmp_path / "first", "instruct"), saved(tmp_path / "second")
    words = ["stage=eval", "tasks=[grammar,story_cloze]", "stage.task_rows=6", "stage.task_shots=2", "tracker=none"]
    done = train(*words, f"init_from={first}", f"stage.against=[{second}]", timeout=800)
    metrics, rows = measured(done, tmp_path)
    named = {row[1] for row in rows}
    assert {f"eval/task/{task}/acc{end}" for task in named for end in ("", "_stderr")} == metrics.keys()
    parts = [metrics[f"eval/task/{row[1]}/acc"] for row in rows[1:13]]
    assert metrics["eval/task/grammar/acc"] == pytest.approx(sum(parts) / 12)
    assert [row[1] for row in rows[:14]] == [row[1] for row in rows[14:]] and rows[0][7] == 72
    # a text is gone on with, whatever template there is; pairs stand alone, the cloze has its two examples
    assert {row[9] for row in rows} == {"plain text"} and {row[1]: row[8] for row in rows}["story_cloze"] == 2
    assert {row[8] for row in rows if row[1].startswith("grammar")} == {0}
    (report,) = tmp_path.glob("outputs/*/eval-*/*/report.md")
    assert (
        "Tasks of lm-eval" in report.read_text() and "standard error of acc of the task grammar" in report.read_text()
    )


@pytest.mark.parametrize("k", ["[]", "[1,4]"])
def test_answers_of_gsm8k_files_are_checked(train: Command, tmp_path: Path, k: str) -> None:
    problems = [{"question": f"{text} {number}", "answer": answer} for number in range(3) for text, answer in PROBLEMS]
    rows = [json.dumps(problem) for problem in problems]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows if name == "test" else rows[:2]))
    model = saved(tmp_path / "model", "instruct")
    words = [
        "stage=eval",
        "tasks=[checked_answers]",
        "data=gsm8k",
        f"data.path={tmp_path}/*.jsonl",
        f"init_from={model}",
    ]
    words += [f"stage.pass_k={k}", "stage.generate_tokens=5", "tracker=none", "stage.task_shots=1"]
    metrics, table = measured(train(*words), tmp_path)
    names = ["acc"] if k == "[]" else ["pass_at_1", "pass_at_4"]
    assert list(metrics) == [f"eval/task/checked_answers/{name}{end}" for name in names for end in ("", "_stderr")]
    assert all(row[7:] == [6, 1, "template instruct"] for row in table)


@pytest.mark.parametrize("output", ["generate_until", "loglikelihood_rolling"])
def test_a_task_of_the_users_is_found_by_its_folder_and_by_its_file(
    train: Command, tmp_path: Path, output: str
) -> None:
    model, folder = saved(tmp_path / "model"), tmp_path / "mine"
    folder.mkdir()
    rows = [{"text": f"the cat {number}", "end": "sat"} for number in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "cats.yaml").write_text(PLAIN.replace("ROWS", str(tmp_path / "rows.jsonl")).replace("OUTPUT", output))
    words = ["stage=eval", f"init_from={model}", "tracker=none", "precision=fp32", "stage.context_length=64"]
    by_folder, _ = measured(
        train(*words, "tasks=[cats]", f"stage.task_folder={folder}", "paths.outputs=outputs"), tmp_path
    )
    assert "exact_match" in str(by_folder) if output == "generate_until" else "word_perplexity" in str(by_folder)
    done = train(*words, f"tasks=[{folder}/cats.yaml]", "paths.outputs=other")
    (again,) = tmp_path.glob("other/*/eval-*/*/result.json")
    assert done.returncode == 0 and json.loads(again.read_text())["metrics"] == by_folder


def test_what_is_no_task_is_one_line_and_leaves_nothing(train: Command, tmp_path: Path) -> None:
    model, folder = saved(tmp_path / "model"), tmp_path / "mine"
    folder.mkdir()
    (folder / "broken.yaml").write_text("task: broken\noutput_type: nonsense\ndataset_path: json\n")
    before = sorted(tmp_path.iterdir())
    for words, said in (
        (
            ["tasks=[grammer]"],
            r"stage\.tasks=grammer: no such task; near it are grammar, .*; without a network .* checked_answers, .*",
        ),
        (["tasks=[broken]", f"stage.task_folder={folder}"], r"stage\.tasks=broken: cannot be loaded: \w+: .+"),
        (["tasks=[grammar]", "stage.task_folder=nowhere"], r"stage\.task_folder=nowhere: no such folder; .*"),
        (["tasks=[nowhere/my.yaml]"], r"stage\.tasks=nowhere/my\.yaml: no such file; .*"),
        (["tasks=[humaneval]"], r"stage\.tasks=humaneval: (cannot be loaded|runs code).*"),
    ):
        done = train("stage=eval", f"init_from={model}", *words)
        assert done.returncode == 1 and re.fullmatch(rf"error: {said}\n", done.stderr), done.stderr
    assert sorted(tmp_path.iterdir()) == before
