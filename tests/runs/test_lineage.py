"""What a resumed run's lineage says of data that changed meanwhile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tinychat.errors import UserError
from tinychat.runs.parents import earlier_data

OLD = {"train": {"fingerprint": "a" * 64, "documents": 9}, "validation": {"fingerprint": "b" * 64, "documents": 1}}
NEW = {"train": {"fingerprint": "c" * 64, "documents": 8}, "validation": OLD["validation"]}


def checkpoint(folder: Path, step: int, **lineage: Any) -> Path:
    path = folder / f"step-{step:06d}"
    path.mkdir()
    (path / "lineage.json").write_text(json.dumps(lineage))
    return path


def test_the_same_data_are_nothing_to_speak_of(tmp_path: Path) -> None:
    assert earlier_data(None, NEW, may_change=False) == []
    assert earlier_data(checkpoint(tmp_path, 4, data=OLD), OLD, may_change=False) == []
    # a split that an older version did not write down
    assert earlier_data(checkpoint(tmp_path, 5, data={"train": OLD["train"]}), OLD, may_change=False) == []


def test_other_data_are_refused_unless_told(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 4, data=OLD)
    with pytest.raises(UserError) as caught:
        earlier_data(path, NEW, may_change=False)
    said = str(caught.value)
    assert said.startswith(f"{path} learnt from other train data (train documents: 9 then, 8 now)")
    assert "resume_data=changed" in said
    assert "step 4" in said
    with pytest.raises(UserError, match="train aaaaaaaa then, cccccccc now"):
        earlier_data(path, {"train": {**NEW["train"], "documents": 9}}, may_change=False)


def test_what_was_learnt_from_before_stays_in_the_lineage(tmp_path: Path) -> None:
    first = earlier_data(checkpoint(tmp_path, 4, data=OLD), NEW, may_change=True)
    assert first == [{"until_step": 4, "data": OLD}]
    later = checkpoint(tmp_path, 8, data=NEW, earlier_data=first)
    assert earlier_data(later, NEW, may_change=False) == first
    assert earlier_data(later, OLD, may_change=True) == [*first, {"until_step": 8, "data": NEW}]


def test_code_of_the_users_that_changed_is_as_data_that_did(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 4, data=OLD, code={"short.py:score": "a", "gone.py:score": "x"})
    same = {"short.py:score": "a", "new.py:score": "y"}
    assert earlier_data(path, OLD, may_change=False, code=same) == []
    other = {"short.py:score": "b"}
    with pytest.raises(UserError) as caught:
        earlier_data(path, OLD, may_change=False, code=other)
    assert f"{path} learnt with other code of yours (short.py:score): the file, or one that it" in str(caught.value)
    with pytest.raises(
        UserError, match=r"from other train data \(.*\) and with other code of yours \(short.py:score\)"
    ):
        earlier_data(path, NEW, may_change=False, code=other)
    before = {"until_step": 4, "data": OLD, "code": {"short.py:score": "a", "gone.py:score": "x"}}
    assert earlier_data(path, OLD, may_change=True, code=other) == [before]
