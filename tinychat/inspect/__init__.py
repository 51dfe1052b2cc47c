"""Files that somebody brings: what is in them, what would read it, and what would be refused.

layouts (which layout a row has) -> survey (all rows counted, as a stream) -> measure (a sample in tokens, its
languages, how it is trained) -> show (tables for a terminal, or one JSON object).
"""
