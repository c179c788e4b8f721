"""What importing each library takes beyond what it needs. Written by `profiling/framework_imports.py --write`.

2026-11-26: Linux 6.18.44-fc-v657 x86_64, 2 cores, 23.5 GiB of memory, load average 2.1; Python 3.11.7, numpy 2.4.6, joblib
1.6.0, pyarrow 26.0.1, pandas 3.1.1, matplotlib 3.11.2, onnx 1.23.2, onnxruntime 1.32.0, lightgbm 4.7.0, xgboost 3.2.0,
safetensors 0.8.0, gguf 0.19.0, skops 0.16.0, catboost 1.2.10, gensim 4.4.0, usearch 2.26.6, ai_edge_litert 2.3.0, h5py 3.14.0,
torch 2.13.0+cpu, keras 3.15.1.
"""

from __future__ import annotations

COSTS: dict[str, tuple[int, int, int, int, tuple[str, ...]]] = {
    # in MiB: private memory, private address space beyond it, the same for each further CPU, maps of files; what it imports
    "numpy": (7, 34, 40, 41, ()),
    "joblib": (10, 0, 0, 8, ("numpy",)),
    "pyarrow": (7, 18, 0, 138, ("numpy",)),
    "pandas": (32, 0, 0, 28, ("numpy", "pyarrow")),
    "matplotlib": (15, 0, 0, 12, ("numpy",)),
    "sklearn": (63, 38, 40, 80, ("numpy", "joblib", "pandas")),
    "onnx": (9, 0, 0, 10, ("numpy",)),
    "onnxruntime": (9, 7, 0, 35, ("numpy",)),
    "lightgbm": (2, 0, 0, 10, ("numpy", "sklearn")),
    "xgboost": (3, 0, 0, 191, ("numpy", "sklearn")),
    "safetensors": (1, 0, 0, 1, ("numpy",)),
    "gguf": (5, 0, 0, 1, ("numpy",)),
    "skops": (136, 0, 0, 355, ("numpy", "joblib", "sklearn")),
    "catboost": (13, 6, 0, 257, ("numpy", "pandas")),
    "faiss": (7, 129, 128, 67, ("numpy",)),
    "gensim": (57, 36, 40, 76, ("numpy",)),
    "usearch": (7, 0, 0, 19, ("numpy",)),
    "ai_edge_litert": (1, 0, 0, 21, ("numpy",)),
    "h5py": (4, 0, 0, 10, ("numpy",)),
    "torch": (131, 0, 0, 361, ("numpy",)),
    "tensorflow": (212, 29, 40, 728, ("numpy", "h5py", "pandas", "matplotlib")),
    "keras": (0, 0, 0, 0, ("numpy",)),
}
