"""Calls a function in a fresh interpreter, because a process that has loaded something already cannot measure a load.

    used = call_fresh("my_module:measure", path="model.onnx")

Arguments and answer travel as JSON, the answer on a descriptor of its own: what a library prints to standard output goes to
standard error, and cannot be taken for an answer.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["ChildFailed", "call_fresh"]


class ChildFailed(Exception):
    """The child gave no answer.

    Attributes:
        returncode: Its exit code; negative for the signal that ended it; None when it took too long.
        stderr: What it wrote to standard error.
    """

    def __init__(self, function: str, returncode: int | None, stderr: str) -> None:
        ended = "took too long and was ended" if returncode is None else f"ended with exit code {returncode}"
        said = stderr.strip().splitlines()
        super().__init__(f"{function} {ended}" + (f": {said[-1]}" if said else ""))
        self.returncode = returncode
        self.stderr = stderr


def call_fresh(
    function: str,
    *,
    timeout_seconds: float | None = None,
    environment: Mapping[str, str] | None = None,
    before_exec: Callable[[], None] | None = None,
    on_start: Callable[[int], None] | None = None,
    **arguments: Any,
) -> Any:
    """What `function` returns when a fresh interpreter calls it.

    An exception here, Ctrl-C among them, ends the child before it goes on.

    Args:
        function: `"module:name"`, importable in the child.
        timeout_seconds: After which the child is ended; None waits for good.
        environment: Variables on top of this process's own.
        before_exec: Called in the child before the interpreter starts, for limits. Not on Windows.
        on_start: Called here with the child's process id, before it has its arguments.
        arguments: The function's arguments; JSON values.

    Raises:
        ChildFailed: The child died, raised, or took too long.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "mlup_stream.cli.fresh_process", function],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
        preexec_fn=before_exec,
    )
    with child:
        try:
            if on_start is not None:
                on_start(child.pid)
            answer, said = child.communicate(json.dumps(arguments).encode(), timeout=timeout_seconds)
        except subprocess.TimeoutExpired as error:
            child.kill()
            raise ChildFailed(function, None, (error.stderr or b"").decode("utf-8", "replace")) from error
        except BaseException:
            child.kill()
            raise
    if child.returncode != 0 or not answer:
        raise ChildFailed(function, child.returncode, said.decode("utf-8", "replace"))
    return json.loads(answer)


def _answer() -> None:
    """The child's side: arguments from standard input, the answer to what was standard output."""
    arguments = json.loads(sys.stdin.buffer.read())
    answer_fd = os.dup(1)
    os.dup2(2, 1)
    module, _, name = sys.argv[1].partition(":")
    answer = getattr(importlib.import_module(module), name)(**arguments)
    with os.fdopen(answer_fd, "w", encoding="utf-8") as pipe:
        json.dump(answer, pipe)


if __name__ == "__main__":
    _answer()
