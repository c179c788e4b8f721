"""The load cycle, its parts, storages and binarizers. Each module is imported when it is first used (PEP 562)."""

from typing import TYPE_CHECKING

__all__ = ["binarization", "inspection", "model", "plan", "report", "storage"]

if TYPE_CHECKING:
    from mlup_stream.ml import binarization, inspection, model, plan, report, storage
else:

    def __getattr__(name):
        import importlib

        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return __all__
