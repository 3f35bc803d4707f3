"""The one exception that a user is meant to read."""

from __future__ import annotations


class BapoError(Exception):
    """Something the user can mend, in one sentence: what is wrong, where, and what to do.

    The command line prints the message alone, without a traceback, and exits with code 2.
    """
