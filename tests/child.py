"""Runs a piece of code in a fresh interpreter, because a process that has already loaded something cannot measure a load.

    used = run_child('''
        import mlup_stream as mlup
        answer(mlup.load(path).shape)
    ''', path=str(path))

The values given by keyword are variables in the code (anything that `repr` can write); `answer(value)` sends a JSON value back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

_PROLOGUE = """
import json as _json, os as _os, sys as _sys
def answer(value):
    with _os.fdopen(_os.dup({fd}), "w") as pipe:
        pipe.write(_json.dumps(value) + "\\n")
"""


class ChildFailed(AssertionError):
    """The child ended without an answer: `returncode` (negative for a signal), `stderr`."""

    def __init__(self, returncode: int, stderr: str) -> None:
        super().__init__(f"the child ended with {returncode}:\n{stderr}")
        self.returncode = returncode
        self.stderr = stderr


def run_child(
    code: str,
    *,
    timeout_seconds: float = 120,
    environment: dict[str, str] | None = None,
    before_exec: Any = None,
    **values: Any,
) -> Any:
    """What `code` answered, run in a fresh interpreter.

    Args:
        code: Python source, indented as you like; it calls `answer(value)` once.
        timeout_seconds: After which the child is killed and the test fails.
        environment: Variables to set on top of this process's own.
        before_exec: Called in the child before the interpreter starts, for limits.
        values: Variables of the code.

    Raises:
        ChildFailed: The child died, or answered nothing.
    """
    read_end, write_end = os.pipe()
    assignments = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    source = _PROLOGUE.format(fd=write_end) + assignments + "\n" + textwrap.dedent(code)
    try:
        done = subprocess.run(
            [sys.executable, "-c", source],
            pass_fds=(write_end,),
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            env={**os.environ, **(environment or {})},
            preexec_fn=before_exec,
            check=False,
        )
    finally:
        os.close(write_end)
    with os.fdopen(read_end) as pipe:
        lines = pipe.read().splitlines()
    if done.returncode != 0 or not lines:
        raise ChildFailed(done.returncode, done.stderr)
    return json.loads(lines[-1])


def write_from_outside(path: str | Path, content: bytes, *, whole: bool = False) -> None:
    """Writes to a file in place as another process does, of which nothing in this one hears.

    Args:
        path: The file.
        content: What to write over its beginning.
        whole: Whether the file is truncated to that.
    """
    code = "import os, sys; file = open(sys.argv[1], 'r+b'); file.write(sys.stdin.buffer.read())"
    code += "; file.truncate()" if whole else ""
    subprocess.run([sys.executable, "-S", "-E", "-c", code, str(path)], input=content, check=True)
