"""In which precision a frozen network runs, and by what: torch, or OpenVINO where it pays for its conversion."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import nn

from machine import computes_bfloat16

ENGINES = ("torch", "openvino")
KEPT = 2  # converted networks in memory
WORTH = 2e8  # pixels of all frames that are to be seen, from which the seconds of a conversion are regained


def choose_precision(asked: str, device: str | torch.device) -> str:
    """The precision of a frozen network: the one asked for, or, for `auto`, bfloat16 where the hardware has its
    arithmetic, else float32; a rule, so that the same machine gives the same bits.

    Raises:
        ValueError: no such precision.
    """
    if asked not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"unknown precision {asked!r}: auto, float32, bfloat16")
    return asked if asked != "auto" else "bfloat16" if computes_bfloat16(device) else "float32"


def choose_engine(asked: str, converts: Sequence[str], device: str | torch.device, precision: str,
                  pixels: float) -> str:
    """The engine for a network: the one asked for, or, for `auto`, by rule, so that the same data on the same machine
    give the same bits: OpenVINO on a CPU, where it is installed, for a network and a precision in which it was measured
    to be faster (`config.Network.converts`), if as many pixels are to be seen that it regains its conversion.

    Raises:
        ValueError: no such engine, or one that is not installed or can't run there.
    """
    able = torch.device(device).type == "cpu" and importlib.util.find_spec("openvino") is not None
    if asked == "auto":
        return "openvino" if able and precision in converts and pixels >= WORTH else "torch"
    if asked not in ENGINES or (asked == "openvino" and not able):
        raise ValueError(f"engine {asked!r}: there are auto, torch, and, on a CPU with the package openvino, openvino")
    return asked


class Compiled:
    """A module in evaluation mode as OpenVINO runs it, in `float32` or `bfloat16`.

    It is converted when it is first called with inputs of a shape. `many`: whether several inputs come at once, to be
    worked on side by side with a thread each, rather than one after another with all threads.
    """

    def __init__(self, module: nn.Module, precision: str, many: bool):
        self.module, self.precision, self.many, self.requests = module, precision, many, {}

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The module's output for each input, all of one shape."""
        if inputs[0].shape not in self.requests:
            self.requests[inputs[0].shape] = self._convert(inputs[0])
        requests, outputs = self.requests[inputs[0].shape], [None] * len(inputs)

        def keep(request, place: int) -> None:
            outputs[place] = torch.from_numpy(request.get_output_tensor(0).data.copy())

        requests.set_callback(keep)
        for place, x in enumerate(inputs):
            requests.start_async({0: x.contiguous().numpy()}, place)
        requests.wait_all()
        return outputs

    def _convert(self, example: torch.Tensor):
        sys.modules.setdefault("openvino_telemetry", None)  # it would report each conversion to its makers
        import openvino

        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # of tracing: sizes are constants here, and meant to be
            model = openvino.convert_model(self.module, example_input=example, input=[tuple(example.shape)])
        settings = {"INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[self.precision],
                    "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                    "PERFORMANCE_HINT": "THROUGHPUT" if self.many else "LATENCY"}
        return openvino.AsyncInferQueue(openvino.Core().compile_model(model, "CPU", settings))


_COMPILED: dict[tuple, Compiled] = {}  # of this process, the last few: a conversion takes seconds


def compiled(key: tuple, module: Callable[[], nn.Module], precision: str, many: bool) -> Compiled:
    """A `Compiled`, the same for the same key, which stands for the module that `module` gives."""
    key = (*key, precision, many)
    if key not in _COMPILED:
        while len(_COMPILED) >= KEPT:
            del _COMPILED[next(iter(_COMPILED))]
        _COMPILED[key] = Compiled(module(), precision, many)
    return _COMPILED[key]
