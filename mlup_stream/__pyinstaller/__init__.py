"""What PyInstaller asks for, by the entry point `pyinstaller40`: where the hook lies that names what is imported by strings."""

from __future__ import annotations

import os

__all__ = ["hook_folders"]


def hook_folders() -> list[str]:
    return [os.path.dirname(__file__)]
