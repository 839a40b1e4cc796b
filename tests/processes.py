"""Programs that tests start."""

import os


def outside_xdist():
    """The environment without the variables of pytest-xdist: under it pytest-benchmark refuses to time."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
