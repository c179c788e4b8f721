"""`Config`: every setting, validated in one place, and its way to and from a YAML or JSON file.

The file has the sections of an `mlup` configuration, or the fields of `ml` directly:

    version: '1'
    ml:
      storage_type: disk
      storage_kwargs: {path_to_files: models/, file_mask: model.onnx}
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Literal

from mlup_stream.constants import BinarizationType, Optimize, StorageType
from mlup_stream.delivery.kinds import MappingMode
from mlup_stream.errors import ConfigError
from mlup_stream.memory.budget import Budget
from mlup_stream.registry import AUTO, binarizer_class, storage_class
from mlup_stream.trust.policy import Policy, Trust, parse_global

__all__ = [
    "Config",
    "config_from_dict",
    "config_from_json",
    "config_from_yaml",
    "config_to_dict",
    "config_to_json",
    "config_to_yaml",
]

FILE_VERSION = "1"

# Settings of the old package's server and of its data transformers. They mean nothing to a loader; a configuration file that
# has them is read with a warning, so that moving over needs no editing.
_OF_THE_SERVER = frozenset(
    {"type", "columns", "auto_detect_predict_params", "use_thread_loop", "max_thread_loop_workers"}
    | {"data_transformer_for_predict", "data_transformer_for_predicted", "dtype_for_predict"}
)


@dataclass
class Config:
    """The settings of one model. Every field may be changed until `load`, which validates them again.

    Attributes:
        name: What to call the model in logs.
        version: The version of the model, for logs.
        predict_method_name: The method of the model object that `predict` calls. With dots it is one of an attribute, or an
            entry of it, as the signatures of a SavedModel are: `signatures.serving_default`.
        storage_type: Where the model lies: a `StorageType`, its name, a class, or an import path.
        storage_kwargs: The arguments of the storage's constructor.
        binarization_type: What builds the model: `"auto"` (by content; what was found is written back here), a
            `BinarizationType`, its name or a short one such as `"onnx"`, a class, or an import path.
        binarization_kwargs: Options of the binarizer.
        optimize: `"memory"` or `"speed"`, where a format lets one choose.
        snapshot: Whether a private copy of the file is made first, for places where files are overwritten in place.
        memory_budget: What a load may take: `"auto"` (what the container, the process's limits and the host leave), bytes,
            `"512MiB"`, a fraction (`0.8`), or None: refuse nothing.
        memory_limit: `"soft"`, or `"hard"`: an allocation beyond the budget fails, in libraries too.
        memory_ticket: Whether loads of several processes wait for their turn where they would not fit together.
        memory_learned: Whether what a load took is remembered for the next estimate; None leaves it to MLUP_STREAM_LEARNED.
        trust: `"full"`: a pickle may import and call whatever it names; `"listed"`: what stands on the ready lists of
            `mlup_stream.trust` and in `trusted_globals`; `"none"`: only formats that carry no code are loaded.
        trusted_globals: What a file may name beside the ready lists: `["package.module.Name"]`, exact names.
        sha256: The digest that the file has to have, 64 hexadecimal digits; `"beside"`: the one that `NAME.sha256` or
            `SHA256SUMS` beside it says. Of the file alone, not of shards or external data.
        mapping: `"auto"`, `"read-only"` or `"copy-on-write"`: what a program may do to payloads that stay in the mapped file.
            With `"auto"` it may write to them, and arrays that are not aligned to their items do not stay; else they do.

    Raises:
        ConfigError: A field is not known or not valid; the message names it, the value, and what is allowed.
    """

    name: str = "MyFirstMLupModel"
    version: str = "1.0.0.0"
    predict_method_name: str = "predict"
    storage_type: str | StorageType | type[Any] = StorageType.memory
    storage_kwargs: dict[str, Any] = field(default_factory=dict, repr=False)
    binarization_type: str | BinarizationType | type[Any] = AUTO
    binarization_kwargs: dict[str, Any] = field(default_factory=dict, repr=False)
    optimize: Literal["memory", "speed"] | Optimize = Optimize.MEMORY
    mapping: Literal["auto", "read-only", "copy-on-write"] | MappingMode = MappingMode.AUTO
    snapshot: bool = False
    memory_budget: str | int | float | None = "auto"
    memory_limit: Literal["soft", "hard"] = "soft"
    memory_ticket: bool = False
    memory_learned: bool | None = None
    trust: Literal["full", "listed", "none"] | Trust = Trust.FULL
    trusted_globals: Sequence[str] = ()
    sha256: str | None = None
    _is_detected: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.validate()
        # Copies: the caller's own dictionaries stay as they are, whatever is done to these.
        self.storage_kwargs = dict(self.storage_kwargs)
        self.binarization_kwargs = dict(self.binarization_kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name == "binarization_type":
            object.__setattr__(self, "_is_detected", False)

    def validate(self) -> None:
        """Checks every field, and turns the text of a choice into its enum member."""
        for name, check in _CHECKS.items():
            given = getattr(self, name)
            checked = check(name, given)
            if checked is not given:
                setattr(self, name, checked)

    def note_detected(self, kind: Any) -> None:
        """Writes what detection found to `binarization_type`; the next load, of whichever file, detects anew."""
        self.binarization_type = kind
        object.__setattr__(self, "_is_detected", True)

    @property
    def policy(self) -> Policy:
        """What `trust` and `trusted_globals` allow a file."""
        return Policy.of(self.trust, self.trusted_globals)

    @property
    def asked_binarization_type(self) -> str | BinarizationType | type[Any]:
        """What somebody set `binarization_type` to; `"auto"` where detection did."""
        return AUTO if self._is_detected else self.binarization_type


_generated_init = Config.__init__


@functools.wraps(_generated_init)  # its signature is what `help` and editors show
def _init(self: Config, *args: Any, **values: Any) -> None:
    refuse_unknown(values, "Config")  # the generated one's TypeError would suggest nothing
    _generated_init(self, *args, **values)


Config.__init__ = _init  # type: ignore[method-assign]


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _wrong(name, value, "a text that is not empty")
    return value


def _keywords(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _wrong(name, value, "a dictionary whose keys are names")
    return value


def _choice(kind: type[Enum]) -> Callable[[str, Any], Enum]:
    def check(name: str, value: Any) -> Enum:
        try:
            return kind(value)
        except ValueError as error:
            raise _wrong(name, value, ", ".join(repr(member.value) for member in kind)) from error

    return check


def _one_of(*allowed: Any) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        if not any(value is each or (isinstance(value, str) and value == each) for each in allowed):
            raise _wrong(name, value, ", ".join(map(repr, allowed)))
        return value

    return check


def _budget(name: str, value: Any) -> Any:
    Budget.of(value)
    return value


def _storage(name: str, value: Any) -> Any:
    storage_class(value)
    return value


def _binarization(name: str, value: Any) -> Any:
    if value != AUTO:
        binarizer_class(value)
    return value


def _globals(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
        raise _wrong(name, value, 'a list of names, such as ["package.module.Name"]')
    for each in value:
        parse_global(each)
    return tuple(value)


def _digest(name: str, value: Any) -> str | None:
    from mlup_stream.trust.digest import parse_digest

    if value is not None and not isinstance(value, str):
        raise _wrong(name, value, "a text of 64 hexadecimal digits, 'beside', or None")
    return None if value is None else parse_digest(value)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "name": _text,
    "version": _text,
    "predict_method_name": _text,
    "storage_type": _storage,
    "storage_kwargs": _keywords,
    "binarization_type": _binarization,
    "binarization_kwargs": _keywords,
    "optimize": _choice(Optimize),
    "mapping": _choice(MappingMode),
    "snapshot": _one_of(True, False),
    "memory_budget": _budget,
    "memory_limit": _one_of("soft", "hard"),
    "memory_ticket": _one_of(True, False),
    "memory_learned": _one_of(True, False, None),
    "trust": _choice(Trust),
    "trusted_globals": _globals,
    "sha256": _digest,
}


def _wrong(name: str, value: Any, allowed: str) -> ConfigError:
    return ConfigError(f"{name}={value!r} is not valid; expected {allowed}", field=name, value=value, allowed=allowed)


def refuse_unknown(values: Mapping[Any, Any], where: str) -> None:
    """Raises ConfigError for the first key that is no field of `Config`, with the nearest one that is."""
    known = [each.name for each in dataclasses.fields(Config)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(sorted(known))}"
            raise ConfigError(
                f"{where}: unknown setting {name!r}; {hint}", field=str(name), value=values[name], allowed=tuple(known)
            )


def config_from_dict(values: Any, source: str = "configuration") -> Config:
    """The configuration in a dictionary, sectioned as in a file or with the fields directly.

    Raises:
        ConfigError: As `Config`; or the dictionary is none, or of a version that is not known.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected a mapping of settings, found {type(values).__name__}", value=values)
    sections = dict(values)
    if "ml" in sections:
        version = str(sections.pop("version", FILE_VERSION))
        if version != FILE_VERSION:
            raise ConfigError(
                f"{source}: version={version!r} is not valid; expected {FILE_VERSION!r}", field="version", value=version
            )
        ignored = [name for name in ("web",) if sections.pop(name, None)]
        fields = sections.pop("ml") or {}
        if not isinstance(fields, dict):
            raise ConfigError(f"{source}: ml={fields!r} is not valid; expected a mapping of settings", field="ml", value=fields)
        refuse_unknown(sections, source)
        ignored += sorted(_OF_THE_SERVER & fields.keys())
        fields = {name: value for name, value in fields.items() if name not in _OF_THE_SERVER}
        if ignored:
            warnings.warn(f"{source}: settings of the mlup server are ignored: {', '.join(ignored)}", UserWarning, stacklevel=3)
    else:
        fields = sections
    refuse_unknown(fields, source)
    return Config(**fields)


def config_to_dict(conf: Config) -> dict[str, Any]:
    """The configuration as plain values, sectioned as a file. A model that is held in memory is left out."""
    left_out = {"storage_kwargs"} if getattr(storage_class(conf.storage_type), "gives_models", False) else set()
    names = [each.name for each in dataclasses.fields(conf) if each.name not in left_out]
    return {"version": FILE_VERSION, "ml": {name: _plain(name, getattr(conf, name)) for name in names}}


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, re.Pattern):
        return value.pattern
    if isinstance(value, dict):
        return {key: _plain(name, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(name, item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise _wrong(name, value, "what a configuration file can hold: text, numbers, lists and mappings")


def config_from_yaml(path: str | os.PathLike[str]) -> Config:
    """The configuration in a YAML file."""
    import yaml

    text = _read(path)
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{os.fspath(path)}: not valid YAML: {' '.join(str(error).split())}") from error
    return config_from_dict(values, os.fspath(path))


def config_to_yaml(conf: Config, path: str | os.PathLike[str]) -> None:
    import yaml

    text = yaml.safe_dump(config_to_dict(conf), sort_keys=False)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def config_from_json(path: str | os.PathLike[str]) -> Config:
    """The configuration in a JSON file."""
    try:
        values = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{os.fspath(path)}: not valid JSON: {error}") from error
    return config_from_dict(values, os.fspath(path))


def config_to_json(conf: Config, path: str | os.PathLike[str]) -> None:
    text = json.dumps(config_to_dict(conf), indent=2)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text + "\n")


def _read(path: str | os.PathLike[str]) -> str:
    from mlup_stream.delivery.files import checked_stat, explain_os_error

    checked_stat(path)
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise explain_os_error(error, path) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{os.fspath(path)}: expected UTF-8 text: {error}") from error
