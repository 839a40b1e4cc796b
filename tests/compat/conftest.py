import sys

import pytest

import pointpeft.compat

ROOTS = {name.partition(".")[0] for name in pointpeft.compat.MODULES}


def forget():
    for name in [name for name in sys.modules if name.partition(".")[0] in ROOTS]:
        del sys.modules[name]


@pytest.fixture
def bare():
    """No module of these names is imported, before and after."""
    forget()
    yield
    forget()


@pytest.fixture
def installed(bare):
    """Ours answer to every name, also where a package is installed."""
    pointpeft.compat.install(replace=True)
