"""Checks a data set file by file: its contents, and missing and broken files."""

from pathlib import Path

from pointpeft.data.dataset import DataError
from pointpeft.data.findings import CheckReport, Findings
from pointpeft.data.registry import Labels, parse_source

__all__ = ["CheckReport", "check"]


def check(path: str | Path, *, labels: Labels = "clouds", drop_non_finite: bool = False) -> CheckReport:
    """Reads every file of a data set and lists all problems.

    Args:
        path: A source as `load_dataset` takes it, or `load_segments` or `load_scenes`.
        labels: What is labelled: whole "clouds", points of "parts" or points of "scenes".
        drop_non_finite: Points that are not finite are counted, and no problem.
    """
    findings = Findings()
    try:
        parse_source(path, labels).check(findings, drop_non_finite=drop_non_finite)
    except DataError as error:
        findings.problems.append(str(error))
    return findings.report()
