"""The registry names binarizers and parsers by strings, which PyInstaller does not see.

Of the libraries only those come along that are small and read most models; a frozen program that loads others names them
itself (`--hidden-import lightgbm`), because a framework is gigabytes.
"""

from __future__ import annotations

import importlib.util

from PyInstaller.utils.hooks import collect_submodules

hiddenimports = [
    *collect_submodules("mlup_stream", filter=lambda name: ".__pyinstaller" not in name),
    *(name for name in ("numpy", "joblib") if importlib.util.find_spec(name) is not None),
]
