"""The exception for errors that the user can fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error that the user can fix.

    The message states what is wrong, where it is (file, line, object), and how to fix it. The command line prints only
    the message, without a traceback.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` with the name in `known` that is most similar to `name`, or '' if none is similar."""
    known = list(known)
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.6)
    return f" Did you mean '{by_lower[close[0]]}'?" if close else ""
