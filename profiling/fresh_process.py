"""Calls a function in a fresh interpreter, because a process that has loaded something already cannot measure a load.

    used = call_fresh("my_module:measure", path="model.onnx")

Where imports take longer than what is measured, several interpreters may import at the same time and then go on one by one:

    with FreshCall("my_module:measure", path="a.onnx") as first, FreshCall("my_module:measure", path="b.onnx") as second:
        first.ready(), second.ready()
        used = first.answer(), second.answer()

Arguments and answer travel as JSON, the answer on a descriptor of its own: what a library prints to standard output goes to
standard error, and cannot be taken for an answer.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

__all__ = ["ChildFailed", "FreshCall", "call_fresh"]

_READY = b"ready\n"
_GO = b"go\n"
PREPARE = "prepare"
"""The function of the same module that is called first, with the same arguments, if there is one: for imports."""


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


class FreshCall:
    """A call of a function in a fresh interpreter, which it starts; a context, at whose end the child is gone.

    Args:
        function: `"module:name"`, importable in the child.
        timeout_seconds: After which the child is ended; None waits for good.
        environment: Variables on top of this process's own.
        before_exec: Called in the child before the interpreter starts, for limits. Not on Windows.
        arguments: The function's arguments; JSON values.

    Attributes:
        pid: The child's process id.
    """

    def __init__(
        self,
        function: str,
        *,
        timeout_seconds: float | None = None,
        environment: Mapping[str, str] | None = None,
        before_exec: Callable[[], None] | None = None,
        **arguments: Any,
    ) -> None:
        self._function = function
        self._is_ready = False
        self._took_too_long = False
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed by __exit__; a pipe could fill while nobody reads
        self._child = subprocess.Popen(
            [sys.executable, __file__, function, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**os.environ, **(environment or {})},
            preexec_fn=before_exec,
        )
        self.pid = self._child.pid
        self._timer: threading.Timer | None = None
        if timeout_seconds is not None:
            self._timer = threading.Timer(timeout_seconds, self._give_up)
            self._timer.daemon = True
            self._timer.start()

    def _give_up(self) -> None:
        self._took_too_long = True
        self._child.kill()

    def ready(self) -> None:
        """Waits until the child has imported what it needs, and has called its module's `prepare`.

        Raises:
            ChildFailed: It died, raised, or took too long.
        """
        assert self._child.stdout is not None  # a pipe was asked for
        if not self._is_ready:
            self._is_ready = self._child.stdout.readline() == _READY
            if not self._is_ready:
                raise self._failed()

    def answer(self) -> Any:
        """Lets the child go on, and waits for what the function returns. Once only.

        Raises:
            ChildFailed: It died, raised, or took too long.
        """
        self.ready()
        answer, _ = self._child.communicate(_GO)
        if self._child.returncode != 0 or not answer:
            raise self._failed()
        return json.loads(answer)

    def _failed(self) -> ChildFailed:
        returncode: int | None = self._child.wait()
        self._said.seek(0)
        said = self._said.read().decode("utf-8", "replace")
        return ChildFailed(self._function, None if self._took_too_long else returncode, said)

    def __enter__(self) -> FreshCall:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._child.kill()  # does nothing once it has ended
        with self._child:
            pass  # closes the pipes and waits
        self._said.close()


def call_fresh(function: str, **arguments: Any) -> Any:
    """What `function` returns when a fresh interpreter calls it; see `FreshCall`.

    An exception here, Ctrl-C among them, ends the child before it goes on.

    Raises:
        ChildFailed: The child died, raised, or took too long.
    """
    with FreshCall(function, **arguments) as call:
        return call.answer()


def _serve(function: str, arguments: str) -> None:
    """The child's side: the answer goes to what was standard output."""
    answer_fd = os.dup(1)
    os.dup2(2, 1)
    module_name, _, name = function.partition(":")
    module, values = importlib.import_module(module_name), json.loads(arguments)
    if hasattr(module, PREPARE):
        getattr(module, PREPARE)(**values)
    with os.fdopen(answer_fd, "wb", buffering=0) as pipe:
        pipe.write(_READY)
        if sys.stdin.buffer.readline() != _GO:
            return  # whoever asked has gone
        answer = json.dumps(getattr(module, name)(**values)).encode()
        while answer:
            answer = answer[pipe.write(answer) :]


if __name__ == "__main__":
    _serve(*sys.argv[1:])
