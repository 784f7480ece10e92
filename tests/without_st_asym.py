"""What the process of ``run_without_st_asym`` does."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from multiprocessing.connection import Connection


def answer(requests: Connection, other_end: Connection) -> None:
    """Run the code of each request, and answer with what it printed and its error, until nobody asks any more."""
    other_end.close()
    sys.modules["st_asym"] = None  # type: ignore[assignment]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    while True:
        try:
            code, *arguments = requests.recv()
        except EOFError:
            return
        sys.argv, printed, error = ["-c", *arguments], io.StringIO(), ""
        try:
            with contextlib.redirect_stdout(printed):
                exec(code, {"__name__": "__main__", "sys": sys})  # noqa: S102 - of our tests
        except BaseException:
            error = traceback.format_exc()
        requests.send((printed.getvalue(), error))
