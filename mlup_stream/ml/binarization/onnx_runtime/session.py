"""The model objects of ONNX files: onnxruntime's session with the two documented `predict`, and its options.

This module imports onnxruntime; only who has made sure of it (`require`) imports this module.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import onnxruntime

from mlup_stream.errors import ConfigError, ModelBinarizationError

__all__ = [
    "PredictSession",
    "PredictSessionFullReturn",
    "as_providers",
    "config_entry",
    "configured",
    "session_options",
    "start_runtime",
]


class PredictSession(onnxruntime.InferenceSession):  # type: ignore[misc]  # onnxruntime has no type information
    """An `InferenceSession` with `predict`, which leaves out the last output where there are several.

    Classifiers that were converted from scikit-learn give labels first and probabilities last.
    """

    payload: Any = None
    """The memory that the weights lie in, where the session only borrows it: it lives as long as the session."""
    can_be_built_again: bool = True

    def predict(self, input_data: Any) -> list[Any]:
        """The outputs for `input_data`, which is given to the first input."""
        return self.format_predict(self.run(None, {self.get_inputs()[0].name: input_data}))

    def format_predict(self, outputs: list[Any]) -> list[Any]:
        """What `predict` returns of the outputs."""
        return outputs[:-1] if len(outputs) > 1 else outputs

    def set_providers(self, providers: Any = None, provider_options: Any = None) -> None:
        """Builds the session anew on other providers, where onnxruntime opened the file by its path.

        Raises:
            ModelBinarizationError: What it was built from was let go, to save its memory.
        """
        if not self.can_be_built_again:
            raise ModelBinarizationError(
                "this session cannot be built again on other providers, because what it was built from was let go;"
                ' load the model with binarization_kwargs={"providers": [...]}'
            )
        super().set_providers(providers, provider_options)


class PredictSessionFullReturn(PredictSession):
    """The same with a `predict` that returns all outputs."""

    def format_predict(self, outputs: list[Any]) -> list[Any]:
        return outputs


def session_options(given: Any) -> Any:
    """The `SessionOptions` that a configuration means.

    Args:
        given: None for onnxruntime's defaults; a `SessionOptions`; or a mapping, as a YAML file can hold it, of its attributes
            (`intra_op_num_threads: 2`) and of its configuration entries, whose names have a dot
            (`session.dynamic_block_base: "4"`).

    Raises:
        ConfigError: It is something else, or names what a `SessionOptions` does not have.
    """
    if isinstance(given, onnxruntime.SessionOptions):
        return given
    options = onnxruntime.SessionOptions()
    if given is None:
        return options
    if not isinstance(given, Mapping):
        raise _not_valid(given, "onnxruntime.SessionOptions, or a mapping of its attributes and configuration entries")
    for name, value in given.items():
        if "." in name:
            options.add_session_config_entry(name, str(int(value) if isinstance(value, bool) else value))
            continue
        if not hasattr(options, name) or callable(getattr(options, name)):
            raise _not_valid({name: value}, "attributes of onnxruntime.SessionOptions, and entries, whose names have a dot")
        try:
            setattr(options, name, _of_enum(getattr(options, name), value))
        except (AttributeError, KeyError, TypeError) as error:
            raise _not_valid({name: value}, f"a value such as {getattr(options, name)!r}") from error
    return options


def as_providers(given: Any) -> Any:
    """The providers as onnxruntime takes them: names, and tuples of a name and its options.

    A file of settings has lists for tuples. onnxruntime takes no list there, says so on the terminal, and goes on with the CPU.
    """
    if isinstance(given, str):
        return [given]
    if isinstance(given, Mapping):
        return list(given.items())
    return given if given is None else [_provider(each) for each in given]


def _provider(given: Any) -> Any:
    if isinstance(given, list):
        return tuple(given) if len(given) == 2 else given[0] if len(given) == 1 else given
    return given


def _of_enum(current: Any, value: Any) -> Any:
    """`"ORT_ENABLE_BASIC"` as onnxruntime's enumeration has it, where the current value is of one; other values as they are."""
    members = getattr(type(current), "__members__", None)
    return members[value] if members and isinstance(value, str) else value


def _not_valid(value: Any, allowed: str) -> ConfigError:
    return ConfigError(
        f"binarization_kwargs: sess_options={value!r} is not valid; expected {allowed}",
        field="binarization_kwargs",
        value=value,
        allowed=allowed,
    )


def config_entry(options: Any, key: str) -> str:
    """The value of a configuration entry, empty where nobody has set it."""
    try:
        return str(options.get_session_config_entry(key))
    except RuntimeError:
        return ""


@contextlib.contextmanager
def configured(
    options: Any, entries: Mapping[str, str], log_severity_level: int | None = None, *, restored: bool = False
) -> Iterator[None]:
    """`options` with these settings while a session is opened; what is set already stays as it is.

    With `restored` the object is as before afterwards, because it is the user's. onnxruntime cannot remove an entry: one that
    nobody had set is left empty, which it reads as not set; and it writes a warning that the entry was overwritten.
    """
    added = {key: value for key, value in entries.items() if value and not config_entry(options, key)}
    severity = options.log_severity_level
    for key, value in added.items():
        options.add_session_config_entry(key, value)
    if log_severity_level is not None and severity == _DEFAULT_SEVERITY:
        options.log_severity_level = log_severity_level
    try:
        yield
    finally:
        if restored:
            options.log_severity_level = severity
            for key in added:
                options.add_session_config_entry(key, "")


# A ModelProto of IR version 8 and opset 13 whose one node, y = Identity(x), passes on a float.
_SMALLEST_MODEL = (
    b"\x08\x08:7\n\x10\n\x01x\x12\x01y\"\x08Identity\x12\x01g"
    b"Z\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01"
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)


@functools.cache
def start_runtime() -> None:
    """Opens a session over the smallest model, once in a process.

    onnxruntime makes what all sessions share with the first of them, and maps 9 MiB of its own code: no part of any model.

    Raises:
        ModelBinarizationError: It could not start its threads.
    """
    try:
        onnxruntime.InferenceSession(_SMALLEST_MODEL, providers=["CPUExecutionProvider"])
    except RuntimeError as error:
        if "thread" not in str(error):
            raise
        raise ModelBinarizationError(
            f"onnxruntime could not start its threads ({str(error).splitlines()[0]}); the limit on processes and threads is"
            " reached (pids.max of the control group, or ulimit -u): raise it"
        ) from error


_DEFAULT_SEVERITY = onnxruntime.SessionOptions().log_severity_level
