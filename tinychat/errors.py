"""The one exception whose message is meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user can mend. The message is one line: the key or file, the value found, what would work.

    Entry points print it without a traceback and exit with status 1.
    """
