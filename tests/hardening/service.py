"""Runs the service on a port of this machine with few open files: `python -m tests.hardening.service PORT FILES`."""

import resource
import sys

import torch
import uvicorn

from pointpeft import create_model
from pointpeft.tasks.adapted import Adapted
from pointpeft.view.service import Limits, create_app, server_config

HEADER_SECONDS = 12  # a connection may take so long to send its header


def main(port: int, files: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    torch.set_num_threads(1)
    model = create_model("point_mae_tiny", "linear", 2, depth=1, num_groups=8, group_size=8)
    limits = Limits(megabytes=1, seconds=3, header_seconds=HEADER_SECONDS)
    app = create_app(Adapted(model.eval(), ("a", "b"), 64, True), limits)
    uvicorn.Server(server_config(app, limits, "127.0.0.1", port)).run()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
