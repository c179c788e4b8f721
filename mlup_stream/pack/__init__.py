"""Rewrites a model file once so that every array in it is aligned and can stay in the mapped file.

The module can be called: `mlup_stream.pack(source, destination)` is `mlup_stream.pack.pack`, whether or not somebody imported
this module, whose name is the function's, before.
"""

import sys
import types

from mlup_stream.pack.packed import Packed
from mlup_stream.pack.packing import pack

__all__ = ["Packed", "pack"]


class _Called(types.ModuleType):
    __call__ = staticmethod(pack)


sys.modules[__name__].__class__ = _Called
