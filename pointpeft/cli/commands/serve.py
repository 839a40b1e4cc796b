"""`pointpeft serve`: a run's adapter behind HTTP, with a page that scans are dropped on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Serve:
    """Classify clouds or their parts sent over HTTP, and serve a page that scans are dropped on.

    Answers this machine alone unless --host says otherwise. There is no password: behind --host 0.0.0.0 everybody who
    reaches the port may send files.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """Run folder of `pointpeft finetune`, or its `adapter` folder alone."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on."""
    megabytes: float = 64.0
    """Largest file."""
    seconds: float = 30.0
    """Longest time for a request."""
    batch: int = 16
    """Largest batch of clouds."""
    drop_non_finite: bool = False
    """Drop points that are not finite, as depth cameras mark missing measurements; answers say how many."""
    device: Annotated[str, arg(metavar="cpu|cuda|cuda:N")] = "auto"
    """Where to compute; `auto` takes a GPU where there is one."""


def run(command: Serve) -> int:
    """Serves until Ctrl-C."""
    from pointpeft.runs.evaluate import load_run
    from pointpeft.training.loop import make_accelerator
    from pointpeft.view.service import LOOPBACK, REMEDY, Limits, create_app, server_config

    try:
        import uvicorn
    except ImportError as error:
        raise ImportError(REMEDY) from error
    limits = Limits(command.megabytes, command.seconds, command.batch)
    adapted = load_run(command.run, make_accelerator(command.device).device)
    # Whoever opens the service to others knows it under names that we do not.
    hosts = LOOPBACK if command.host in LOOPBACK else ("*",)
    app = create_app(adapted, limits, hosts, drop_non_finite=command.drop_non_finite)
    config = server_config(app, limits, command.host, command.port)
    print(f"http://{command.host}:{command.port}/ classifies clouds until Ctrl-C")
    uvicorn.Server(config).run()
    return 0
