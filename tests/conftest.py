"""What every test needs: a cache folder of its own, so that nothing is learned from the user's loads, and one TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        # On some processors TensorFlow keeps a packed copy of the weights of a model that has predicted, after it is gone too:
        # 249 MiB of 256. The equations are those of the others. `docs/process.md` says it.
        patch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
        yield
