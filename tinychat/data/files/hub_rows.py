"""Rows of a hub data set, or a refusal at once: `datasets` alone would try for half a minute."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from tinychat.errors import UserError
from tinychat.runtime import hub


class HubRows:
    """One split of a hub data set. Making it asks for the revision and downloads no rows."""

    def __init__(self, repository: str, split: str, instead: str, file: str | None = None) -> None:
        """`instead` ends every error: what to pass when the hub cannot be read. `file`: the one file of the
        repository that is meant, its rows being the split."""
        self.repository, self.split, self.instead = repository, split, instead
        self._files = {"data_files": {split: file}} if file else {}
        self._builder = self._open()

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.repository}\0{self.split}\0{self._builder.hash}".encode()).hexdigest()

    def rows(self, stream: bool) -> Iterator[dict[str, Any]]:
        """The rows by column; `stream` reads over the network instead of downloading the data set first."""
        try:
            if stream and not hub.is_offline():
                rows = self._builder.as_streaming_dataset(split=self.split)
            else:
                self._builder.download_and_prepare()
                rows = self._builder.as_dataset(split=self.split)
            yield from rows
        except Exception as error:  # of datasets, the hub's client and its HTTP library, which share no base
            raise self._refused(error) from error

    def _open(self) -> Any:
        if not hub.is_offline() and not hub.is_reachable():
            raise UserError(
                f"the hub does not answer, so {self.repository} cannot be read; {self.instead}, "
                "or set HF_HUB_OFFLINE=1 to use a copy downloaded before"
            )
        import datasets

        try:
            return datasets.load_dataset_builder(self.repository, **self._files)
        except Exception as error:  # as in rows()
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> UserError:
        why = "HF_HUB_OFFLINE is set and no copy was downloaded before"
        if not hub.is_offline():
            why = _first_line(error)
        return UserError(f"{self.repository} cannot be read from the hub ({why}); {self.instead}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
