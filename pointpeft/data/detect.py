"""Detection of the data set at a path."""

from pathlib import Path

from pointpeft.data.registry import Labels, parse_source


def detect(path: str | Path, labels: Labels = "clouds") -> str:
    """Says which registered data set reads a path, such as "modelnet40", "scanobjectnn", "shards", "csv" or "folder".

    A folder that is none of the published layouts is taken for one of classes.

    Args:
        path: A file or a folder.
        labels: What is labelled: whole "clouds", points of "parts" or points of "scenes".

    Raises:
        DataError: Nothing is there, or a file that is no list of clouds.
    """
    return parse_source(path, labels).data_set.name
