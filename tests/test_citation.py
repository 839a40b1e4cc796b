from pathlib import Path

import yaml

from pointpeft import __version__
from pointpeft.backbones import backbone_names
from pointpeft.methods import method_names

CITATION = yaml.safe_load((Path(__file__).resolve().parent.parent / "CITATION.cff").read_text())
OWN = {"full", "linear"}  # no paper's methods


def named(kind):
    notes = [reference["notes"].split(maxsplit=1) for reference in CITATION["references"]]
    return {names for said, names in notes if said == kind}


def test_every_method_has_its_paper():
    assert named("method") == set(method_names()) - OWN


def test_every_family_of_backbones_has_its_paper():
    assert {
        next((family for family in named("backbone") if name.startswith(family)), name) for name in backbone_names()
    } == (named("backbone"))


def test_the_version_is_that_of_the_package():
    assert CITATION["version"] == __version__
