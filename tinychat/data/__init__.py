"""Documents in, token batches out.

files (which files a path means) -> documents (text out of a file) -> sources (documents of one split) ->
cache (tokens in one memory-mapped file) -> packing (blocks of the context's length in a seeded order).
Importing this package is cheap; pyarrow, datasets and torch are imported where they are used.
"""
