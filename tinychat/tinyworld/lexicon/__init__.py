"""The words of tinyworld as typed tables: one module a subject, one row a word with what the world knows of
it.

Rules for the tables, which the tests hold:

- a trait, a place, a topic and a name can be told from the text alone, so no two rows share the written form
  that stories use for them;
- nouns start with a sound that their first letter shows ("hour" or "unicorn" would need an exception in
  `article`).
"""
