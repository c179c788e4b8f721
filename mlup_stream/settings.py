"""`LoadSettings`: the keywords that `load`, `open` and `plan` take, for type checkers and editors.

They are the fields of `Config`, which says what they mean, and the options of the binarizers, which `docs/api.md` lists. A test
holds this list against both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

from mlup_stream.delivery.kinds import MappingMode, Optimize
from mlup_stream.registry import BinarizationType, StorageType
from mlup_stream.trust.policy import Trust

__all__ = ["LoadSettings"]


class _Options(TypedDict, total=False):
    _extra_files: dict[str, Any]
    allow_pickle: bool
    buffers: Any
    compile: bool
    custom_objects: Any
    disabled_optimizers: Any
    enable_fallback: Any
    encoding: str
    ensure_native_byte_order: bool
    errors: str
    fix_imports: bool
    framework: str
    map_location: Any
    model_class: str
    num_threads: int
    params: dict[str, Any]
    provider_options: Any
    providers: Any
    read_config_from_model: Any
    safe_mode: bool
    sess_options: Any
    tags: Any
    trusted: list[Any]
    weights_only: bool


class LoadSettings(_Options, total=False):
    """Any field of `Config`, and any option of the format's binarizer."""

    name: str
    version: str
    predict_method_name: str
    storage_type: str | StorageType | type[Any]
    storage_kwargs: dict[str, Any]
    binarization_type: str | BinarizationType | type[Any]
    binarization_kwargs: dict[str, Any]
    optimize: Literal["memory", "speed"] | Optimize
    mapping: Literal["auto", "read-only", "copy-on-write"] | MappingMode
    snapshot: bool
    memory_budget: str | int | float | None
    memory_limit: Literal["soft", "hard"]
    memory_ticket: bool
    memory_learned: bool | None
    trust: Literal["full", "listed", "none"] | Trust
    trusted_globals: Sequence[str]
    sha256: str | None
