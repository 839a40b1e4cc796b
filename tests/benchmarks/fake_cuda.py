"""In the place of torch.cuda: a host and a device with clocks of their own, events, streams and graphs."""

from contextlib import contextmanager
from types import SimpleNamespace


class FakeCuda:
    """A launch takes the host 25 us and the device as long as the kernel; work waits for the device to be free."""

    LAUNCH = 25e-6
    L2 = 4096

    def __init__(self):
        self.host = self.device = 0.0
        self.default, self.current = object(), None
        self.captured = None
        self.mode = 0
        self.launched = []

    # ---- what benchmarked code does ----

    def launch(self, seconds, what=None):
        """A kernel."""
        if self.captured is not None:
            self.captured.append((seconds, what))
            return
        self.host += self.LAUNCH
        self._execute(seconds, what)

    def item(self):
        """Waits for the device."""
        if self.captured is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        if self.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation\nsecond line")
        self.synchronize()

    def allocate_outside(self):
        """What only a capture refuses."""
        if self.captured is not None:
            raise RuntimeError("operation not permitted when stream is capturing")

    def _execute(self, seconds, what):
        self.device = max(self.device, self.host) + seconds
        self.launched.append(what)

    # ---- what the harness asks of torch.cuda ----

    def synchronize(self):
        self.host = max(self.host, self.device)

    def get_device_properties(self, device):
        return SimpleNamespace(L2_cache_size=self.L2)

    def get_sync_debug_mode(self):
        return self.mode

    def set_sync_debug_mode(self, mode):
        self.mode = mode

    def default_stream(self):
        return self.default

    def current_stream(self):
        return self.current or SimpleNamespace(wait_stream=lambda stream: None)

    def set_stream(self, stream):
        self.current = stream

    def Stream(self):
        return SimpleNamespace(wait_stream=lambda stream: None)

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def Event(self, enable_timing):
        def record():
            event.at = max(self.host, self.device)

        event = SimpleNamespace(record=record, synchronize=self.synchronize)
        event.elapsed_time = lambda end: 1e3 * (end.at - event.at)
        return event

    def CUDAGraph(self):
        def replay():
            self.host += 2e-6
            for seconds, what in graph.kernels:
                self._execute(seconds, what)

        graph = SimpleNamespace(kernels=None, replay=replay)
        return graph

    @contextmanager
    def graph(self, graph, stream):
        before, self.current, self.captured = self.current, stream, []
        try:
            yield
        except RuntimeError:
            self.captured = None
            raise RuntimeError("the capture is invalidated") from None  # and torch leaves its stream as the current one
        graph.kernels, self.captured, self.current = self.captured, None, before
