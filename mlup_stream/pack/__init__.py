"""Rewrites a model file once so that every array in it is aligned and can stay in the mapped file."""

from mlup_stream.pack.packed import Packed
from mlup_stream.pack.packing import pack

__all__ = ["Packed", "pack"]
