"""What lies at a path."""

from pathlib import Path

from pointpeft.data.dataset import DataError
from pointpeft.data.formats.readers import EXTENSIONS
from pointpeft.data.sets import modelnet40, scanobjectnn, shards

FORMS = (
    "a folder with one sub-folder of clouds per class (optionally below train/ and test/), "
    "a CSV file path,label[,split], .tar or .h5 shards, furniture, modelnet40:PATH or scanobjectnn:PATH[:VARIANT]"
)


def detect(path: str | Path) -> str:
    """Says which layout a path has: "modelnet40", "scanobjectnn", "shards", "csv" or "folder".

    A folder that is none of the published layouts is taken for one of classes.

    Raises:
        DataError: Nothing is there, or a file that is no list of clouds.
    """
    path = Path(path)
    if path.is_dir():
        if modelnet40.form(path) is not None:
            return "modelnet40"
        if scanobjectnn.variants(path):
            return "scanobjectnn"
        return "shards" if shards.is_shards(path) else "folder"
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; a data set is {FORMS}")
    if path.suffix.lower() == ".csv":
        return "csv"
    if shards.is_shards(path):
        return "shards"
    what = "one cloud without a label" if path.suffix.lower() in EXTENSIONS else f"a file of kind {path.suffix!r}"
    raise DataError(f"{path}: is {what}; a data set is {FORMS}")
