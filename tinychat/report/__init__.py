"""The report of a run: its page, curves and first figures."""
