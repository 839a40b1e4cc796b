"""Data sets: layouts of many labelled clouds on disk. Every file here is imported, which registers its data sets."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
