"""The version, where the packaging finds it without importing anything else."""

__version__ = "0.1.0"
