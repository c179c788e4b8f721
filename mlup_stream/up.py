"""`UP`, the object that a program holds."""

from __future__ import annotations

import os
from typing import Any

from mlup_stream.calls import load
from mlup_stream.config import (
    Config,
    config_from_dict,
    config_from_json,
    config_from_yaml,
    config_to_dict,
    config_to_json,
    config_to_yaml,
)
from mlup_stream.errors import ConfigError, ModelLoadError
from mlup_stream.ml.empty import EmptyModel
from mlup_stream.ml.model import MLupModel
from mlup_stream.registry import storage_class

__all__ = ["UP", "load"]


class UP:
    """A model and its settings.

        up = UP(conf=Config(storage_type="disk", storage_kwargs={"path_to_files": "models/", "file_mask": "model.onnx"}))
        up.ml.load()
        up.predict(X=rows)
        up.ml.unload()

    Args:
        ml_model: The model object itself, for `StorageType.memory`; or an `MLupModel`.
        conf: The settings; the default is a model in memory, or those of the `MLupModel`.

    Raises:
        ModelLoadError: The storage is `memory` and there is no model.
        ConfigError: There is a model, and a storage that finds another one.

    An `UP` that is not loaded can be pickled; the model that it was given goes with it.

    Attributes:
        ml: Loads, holds and unloads the model.
        conf: The settings: those of `ml`.
    """

    def __init__(self, ml_model: Any = None, conf: Config | None = None) -> None:
        if isinstance(ml_model, MLupModel):
            self.ml = ml_model
            self.ml.conf = conf if conf is not None else ml_model.conf
            return
        conf = conf if conf is not None else Config()
        gives_models = getattr(storage_class(conf.storage_type), "gives_models", False)
        if gives_models and ml_model is None and "model" not in conf.storage_kwargs:
            raise ModelLoadError(
                f"storage_type={conf.storage_type!r} needs the model itself: UP(ml_model=...);"
                ' for a file set storage_type="disk" and storage_kwargs={"path_to_files": ...}'
            )
        if not gives_models and ml_model is not None:
            raise ConfigError(
                f"storage_type={conf.storage_type!r} finds the model itself, and ml_model is a {type(ml_model).__name__};"
                ' leave ml_model out, or set storage_type="memory"',
                field="storage_type",
                value=conf.storage_type,
            )
        self.ml = MLupModel(ml_model=ml_model, conf=conf)

    @property
    def conf(self) -> Config:
        return self.ml.conf

    @conf.setter
    def conf(self, conf: Config) -> None:
        self.ml.conf = conf

    def __repr__(self) -> str:
        return f"UP(conf={self.conf!r}, loaded={self.ml.loaded})"

    def predict(self, **predict_data: Any) -> Any:
        """Calls the model's `conf.predict_method_name`. See `MLupModel.predict`."""
        return self.ml.predict(**predict_data)

    @classmethod
    def load_from_dict(cls, conf: dict[str, Any], load_model: bool = True) -> UP:
        """The `UP` that a dictionary of settings describes, with its model loaded unless `load_model` is False."""
        return cls._of(config_from_dict(conf), load_model)

    @classmethod
    def load_from_yaml(cls, conf_path: str | os.PathLike[str], load_model: bool = True) -> UP:
        """The `UP` that a YAML file describes, with its model loaded unless `load_model` is False."""
        return cls._of(config_from_yaml(conf_path), load_model)

    @classmethod
    def load_from_json(cls, conf_path: str | os.PathLike[str], load_model: bool = True) -> UP:
        """The `UP` that a JSON file describes, with its model loaded unless `load_model` is False."""
        return cls._of(config_from_json(conf_path), load_model)

    @classmethod
    def _of(cls, conf: Config, load_model: bool) -> UP:
        # A file cannot hold a model object: one that says `memory` gets the empty one, as it always did.
        gives_models = getattr(storage_class(conf.storage_type), "gives_models", False)
        up = cls(ml_model=EmptyModel() if gives_models and "model" not in conf.storage_kwargs else None, conf=conf)
        if load_model:
            up.ml.load()
        return up

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values."""
        return config_to_dict(self.conf)

    def to_yaml(self, path_to_file: str | os.PathLike[str]) -> None:
        """Writes the settings to a YAML file."""
        config_to_yaml(self.conf, path_to_file)

    def to_json(self, path_to_file: str | os.PathLike[str]) -> None:
        """Writes the settings to a JSON file."""
        config_to_json(self.conf, path_to_file)
