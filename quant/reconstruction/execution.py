"""Faster ways to run an optimisation step: compiled, or captured as CUDA graphs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from common.errors import first_line

EAGER_STEPS = 3  # before a capture, to warm up libraries and caches

logger = logging.getLogger(__name__)


class Compiled:
    """The loss of one unit compiled by ``torch.compile``; if that fails, the plain loss is used.

    A failure is logged. Code compiled for the previous unit is discarded first.
    """

    def __init__(self, function: Callable[[bool], Tensor]):
        torch.compiler.reset()
        self.plain = function
        self.call: Callable[[bool], Tensor] = torch.compile(function, dynamic=False)

    def __call__(self, with_penalty: bool) -> Tensor:
        try:
            return self.call(with_penalty)
        except Exception as error:
            if self.call is self.plain:
                raise
            logger.warning("--compile given up for this unit: %s", first_line(error))
            self.call = self.plain
            return self.plain(with_penalty)


class Graphs:
    """The update captured as CUDA graphs, one with and one without the rounding penalty.

    If a capture fails, the failure is logged and the plain update is used.
    """

    def __init__(self, update: Callable[[bool], None], device: torch.device):
        self.update = update
        self.device = device
        self.graphs: dict[bool, torch.cuda.CUDAGraph] = {}
        self.eager_steps = {False: 0, True: 0}
        self.stream = torch.cuda.Stream(device)
        self.failed = False

    def run(self, with_penalty: bool) -> None:
        with torch.cuda.device(self.device):
            self._run(with_penalty)

    def _run(self, with_penalty: bool) -> None:
        if self.failed:
            self.update(with_penalty)
            return
        if self.eager_steps[with_penalty] < EAGER_STEPS:
            self.eager_steps[with_penalty] += 1
            self._run_aside(with_penalty)
            return
        if with_penalty not in self.graphs:
            self._capture(with_penalty)
        if self.failed:
            self.update(with_penalty)
        else:
            self.graphs[with_penalty].replay()

    def _run_aside(self, with_penalty: bool) -> None:
        """Run an eager step on the stream that is used for the capture, as CUDA requires."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="This instance was constructed with capturable"
            )
            self.update(with_penalty)
        torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def _capture(self, with_penalty: bool) -> None:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.update(with_penalty)
        except RuntimeError as error:
            torch.cuda.set_stream(stream)  # a failed capture may leave its own stream current
            torch.cuda.synchronize()
            logger.warning("CUDA graph given up for this unit: %s", first_line(error))
            self.failed = True
            return
        self.graphs[with_penalty] = graph
