"""The model that is loaded, and the method that answers for it: found by name, and asked how it takes its data."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mlup_stream.errors import ConfigError

__all__ = ["Held"]

_DEFAULT_METHOD = "predict"
_LISTED = 10


class Held(NamedTuple):
    """What is loaded, in one value: whoever predicts reads it once, and another thread's `unload` takes nothing from under him.

    Attributes:
        model: The model object.
        name: The method's name; with dots that of a method of an attribute, or of an entry of one: `signatures.serving_default`.
        method: The method, or None.
        x_name: The keyword by which the method takes what `predict` calls `X`; None where it is its first argument.
    """

    model: Any
    name: str
    method: Any
    x_name: str | None

    @classmethod
    def of(cls, model: Any, name: str) -> Held:
        method = _find(model, name)
        return cls(model, name, method, None if method is None else _keyword_of_x(method))

    @property
    def has_no_method(self) -> str:
        return f"the model, a {type(self.model).__name__}, has no method {self.name!r}"

    def listed(self) -> str:
        """The names of what can be called on this object, rather than on every one of its class, for a message; or nothing."""
        names = list(dict.fromkeys(_own_methods(self.model)))
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        return f": {', '.join(names[:_LISTED])}{more}" if names else ""

    def check(self, file: str) -> None:
        """Refuses a name that somebody set and that leads to nothing; a model without the default's method may be meant so.

        Raises:
            ConfigError: The model has no such method.
        """
        if self.name == _DEFAULT_METHOD or callable(self.method):
            return
        names = [name for name in dir(type(self.model)) if not name.startswith("_")]
        near = difflib.get_close_matches(self.name, [*names, *_own_methods(self.model)], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"set predict_method_name to one it has{self.listed()}"
        raise ConfigError(f"{file}: {self.has_no_method}; {hint}", field="predict_method_name", value=self.name)


def _find(model: Any, name: str) -> Any:
    method = _attribute(model, name)
    head, _, rest = name.partition(".")
    if method is not None or not rest:
        return method
    inner = _attribute(model, head)
    return inner[rest] if isinstance(inner, Mapping) and rest in inner else _find(inner, rest)


def _attribute(model: Any, name: str) -> Any:
    """The attribute, or None. A property that raises is asked again by each call: the model may only have to be fitted first."""
    try:
        return getattr(model, name, None)
    except Exception:
        return lambda *arguments, **keywords: getattr(model, name)(*arguments, **keywords)


def _own_methods(model: Any) -> Iterator[str]:
    for name, value in getattr(model, "__dict__", {}).items():
        if name.startswith("_"):
            continue
        if isinstance(value, Mapping):
            yield from (f"{name}.{key}" for key, each in value.items() if callable(each))
        elif callable(value):
            yield name


def _keyword_of_x(method: Any) -> str | None:
    """The keyword that `X` is given as: its own name where there is one, the only one there is; None if it comes first."""
    try:
        # TensorFlow's functions take `*args, **kwargs`, and say what these may be in an attribute.
        own = getattr(method, "function_type", None)
        parameters = (own if isinstance(own, inspect.Signature) else inspect.signature(method)).parameters
    except (TypeError, ValueError):  # a method of an extension that says nothing of itself
        return None
    kinds = {each.kind for each in parameters.values()}
    if "X" in parameters:
        return "X" if parameters["X"].kind in _BY_KEYWORD else None
    if kinds & _POSITIONAL:
        return None
    keywords = [name for name, each in parameters.items() if each.kind is inspect.Parameter.KEYWORD_ONLY]
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return "X"
    return keywords[0] if len(keywords) == 1 else None


_BY_KEYWORD = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
_POSITIONAL = {
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
}
