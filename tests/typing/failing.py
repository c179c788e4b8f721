"""Callers in which `mypy --strict` must find a mistake, in each line that has a comment, of the kind that it says."""

from __future__ import annotations

import mlup_stream as mlup

mlup.laod("m")  # error: attr-defined
mlup.ml.modle  # error: attr-defined
mlup.load("m", optimise="speed")  # error: call-arg
mlup.load("m", optimize="sped")  # error: arg-type
mlup.load("m", delivery="viwe")  # error: arg-type
mlup.load(3)  # error: arg-type
mlup.load("m", framwork="torch")  # error: call-arg
mlup.open("m", memory_limit="firm")  # error: arg-type
mlup.plan("m", snapshot="yes")  # error: arg-type
mlup.Config(optimize="sped")  # error: arg-type
mlup.Config(optimise="speed")  # error: call-arg
mlup.Config(mapping="rw")  # error: arg-type
mlup.UP(config=None)  # error: call-arg
mlup.pack("a")  # error: call-arg
mlup.errors.MemoryBudgetExceeded().would_fitt  # error: attr-defined
with mlup.open("m") as loaded:
    loaded.modle  # error: attr-defined
