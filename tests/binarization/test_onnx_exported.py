"""Networks that torch exported to ONNX, in place: torch's own answers, and bit for bit those of onnxruntime's own session."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from child import run_child
from given import Given, deserialize

numpy = pytest.importorskip("numpy", reason="needs the onnx extra")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the onnx extra")
if importlib.util.find_spec("torch") is None:
    pytest.skip("needs the torch extra", allow_module_level=True)

from mlup_stream.constants import Optimize  # noqa: E402  # after what decides whether to be here
from mlup_stream.formats.onnx.layout import walk  # noqa: E402
from mlup_stream.ml.binarization.onnx import InferenceSessionBinarizer  # noqa: E402
from mlup_stream.ml.binarization.onnx_runtime.policy import policy_for  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what is mapped is read from /proc"),
]

# In a child, because torch warns of its older exporter, and is not imported by whoever loads the file.
EXPORT = """
    import warnings
    warnings.simplefilter("ignore")
    import numpy, torch
    torch.manual_seed(0)

    class Transformer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(1000, 128)
            layer = torch.nn.TransformerEncoderLayer(128, 4, 512, batch_first=True, activation="gelu")
            self.layers = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = torch.nn.Linear(128, 100)
        def forward(self, x):
            return self.head(self.layers(self.embedding(x)))

    class Convolutions(torch.nn.Module):
        def __init__(self):
            super().__init__()
            def block(inputs, outputs):
                return [torch.nn.Conv2d(inputs, outputs, 3, padding=1), torch.nn.BatchNorm2d(outputs), torch.nn.ReLU()]
            self.layers = torch.nn.Sequential(*block(3, 64), *block(64, 128), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
            self.head = torch.nn.Linear(128, 100)
        def forward(self, x):
            return self.head(self.layers(x))

    torch.backends.mha.set_fastpath_enabled(False)
    for network, inputs in ((Transformer, torch.randint(0, 1000, (2, 16))), (Convolutions, torch.randn(2, 3, 16, 16))):
        model = network().eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.05)  # copies of a layer begin alike, and the exporter would keep one of them
        name = folder + "/" + network.__name__
        with torch.no_grad():
            numpy.save(name + ".outputs.npy", model(inputs).numpy())
        numpy.save(name + ".inputs.npy", inputs.numpy())
        torch.onnx.export(model, (inputs,), name + ".torchscript.onnx", dynamo=False, opset_version=17)
        if has_onnxscript:
            torch.onnx.export(
                model, (inputs,), name + ".dynamo.onnx", dynamo=True, opset_version=18, external_data=False, verbose=False
            )
    answer(torch.__version__)
"""

NETWORKS = ("Transformer", "Convolutions")
HAS_ONNXSCRIPT = importlib.util.find_spec("onnxscript") is not None
needs_onnxscript = pytest.mark.skipif(not HAS_ONNXSCRIPT, reason="torch's newer exporter needs onnxscript")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks, each as both exporters write it, and inputs with torch's answers."""
    folder = tmp_path_factory.mktemp("exported")
    run_child(EXPORT, folder=str(folder), has_onnxscript=HAS_ONNXSCRIPT)
    return folder


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("exporter", ["torchscript", pytest.param("dynamo", marks=needs_onnxscript)])
def test_exported_networks_stay_in_their_files(folder: Path, network: str, exporter: str) -> None:
    """At least 95% of the payload is mapped, and the answers are those of onnxruntime (bit for bit) and torch (to 1e-4)."""
    path = folder / f"{network}.{exporter}.onnx"
    x, y = numpy.load(folder / f"{network}.inputs.npy"), numpy.load(folder / f"{network}.outputs.npy")
    loaded = Given(path=path)
    session = deserialize(InferenceSessionBinarizer, loaded)
    placement = loaded.placement
    loaded.release()
    assert placement is not None
    assert placement.mapped_bytes >= 0.95 * (placement.mapped_bytes + placement.copied_bytes) > 0, placement.reasons
    (found,) = session.predict(x)
    assert found.tobytes() == _own(path, Optimize.MEMORY, x).tobytes()
    assert numpy.allclose(found, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_exported_networks_for_speed(folder: Path, network: str) -> None:
    """`optimize="speed"` answers as onnxruntime's defaults do, bit for bit."""
    path = folder / f"{network}.torchscript.onnx"
    x = numpy.load(folder / f"{network}.inputs.npy")
    loaded = Given(path=path, optimize=Optimize.SPEED)
    session = deserialize(InferenceSessionBinarizer, loaded)
    assert session.predict(x)[0].tobytes() == onnxruntime.InferenceSession(path).run(None, _feed(session, x))[0].tobytes()


def _own(path: Path, optimize: Optimize, x: Any) -> Any:
    policy = policy_for(optimize, walk(path))
    options = onnxruntime.SessionOptions()
    for key, value in policy.entries.items():
        options.add_session_config_entry(key, value)
    options.log_severity_level = 3
    own = onnxruntime.InferenceSession(path, options, disabled_optimizers=set(policy.disabled_optimizers))
    return own.run(None, _feed(own, x))[0]


def _feed(session: Any, x: Any) -> dict[str, Any]:
    return {session.get_inputs()[0].name: x}
