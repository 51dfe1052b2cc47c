"""The keys and values of a dialogue, kept from one turn to the next, so that only new tokens are computed."""

from __future__ import annotations

from transformers import Cache, DynamicCache, PreTrainedConfig


class KeptCache:
    """The key-value cache of the last generation and the tokens it stands for.

    A generation calls begin() with its prompt, computes what the cache lacks, and calls end(). One that broke off
    in between leaves nothing to reuse, as its layers may hold different tokens.
    """

    def __init__(self, config: PreTrainedConfig):
        self._config = config
        self.clear()

    def clear(self) -> None:
        """Forget everything and free the memory."""
        self._cache: Cache | None = None
        self._ids: list[int] = []

    def begin(self, prompt: list[int]) -> Cache:
        """The cache, cut back to the tokens it has in common with the beginning of `prompt` (T >= 1 tokens).

        At most T - 1 of them: the last token must be computed for the scores of the next one.
        """
        common = 0
        for ours, wanted in zip(self._ids, prompt[:-1], strict=False):
            if ours != wanted:
                break
            common += 1
        cache = self._cut(common)
        self.clear()
        self._cache = cache or DynamicCache(config=self._config)
        return self._cache

    def end(self, ids: list[int]) -> None:
        """Say which tokens were generated from: the prompt and what followed. The last was perhaps not computed."""
        assert self._cache is not None
        self._ids = ids[: self._cache.get_seq_length()]

    def _cut(self, length: int) -> Cache | None:
        """The cache with its first tokens alone; None where there are none, or its layers cannot be cut."""
        if self._cache is None or length == 0:
            return None
        if length < len(self._ids):
            try:
                self._cache.crop(length - len(self._ids))
            except RuntimeError:  # a sliding window or a recurrent state has forgotten what was before
                return None
        return self._cache
