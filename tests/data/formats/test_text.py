import numpy as np
import pytest
import torch

from pointpeft.data import DataError, read_points
from pointpeft.data.formats.columns import coordinate_columns


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


# The points are (0.5, -2, 3) and (4, 5.25, -6) wherever they stand in a row.
SAME = {
    "time first": "GPSTime,X,Y,Z\n900.1,0.5,-2,3\n900.2,4,5.25,-6\n",
    "a comment names the columns": "//GpsTime X Y Z\n1.5 0.5 -2 3\n2.5 4 5.25 -6\n",
    "a comment with a mark": "# t, x, y, z\n1,0.5,-2,3\n2,4,5.25,-6\n",
    "fields": "# Fields: t x y z\n1 0.5 -2 3\n2 4 5.25 -6\n",
    "index": "index x y z\n0 0.5 -2 3\n1 4 5.25 -6\n",
    "words before": "label x y z\nchair 0.5 -2 3\ntable 4 5.25 -6\n",
    "colours before": "R G B X Y Z\n255 0 0 0.5 -2 3\n255 0 0 4 5.25 -6\n",
    "normals before": "nx;ny;nz;x;y;z\n1;0;0;0.5;-2;3\n1;0;0;4;5.25;-6\n",
    "other order": "z y x\n3 -2 0.5\n-6 5.25 4\n",
    "quoted names": '"id";"x";"y";"z"\n1;0.5;-2;3\n2;4;5.25;-6\n',
    "quoted cells": '"id","x","y","z"\n"1","0.5","-2","3"\n"2","4","5.25","-6"\n',
    "an index without a name": ",x,y,z\n0,0.5,-2,3\n1,4,5.25,-6\n",
    "numbers as names": ",0,1,2\n0,0.5,-2,3\n1,4,5.25,-6\n",
    "row numbers of R": '"x" "y" "z"\n"1" 0.5 -2 3\n"2" 4 5.25 -6\n',
    "spelt otherwise": "id,x_coord,y_coord,z_coord\n1,0.5,-2,3\n2,4,5.25,-6\n",
    "parts of a vector": "a,Points:0,Points:1,Points:2\n1,0.5,-2,3\n2,4,5.25,-6\n",
    "a topic of ROS": "%time,field.x,field.y,field.z\n1,0.5,-2,3\n2,4,5.25,-6\n",
    "names in brackets": "(id) (x) (y) (z)\n1 0.5 -2 3\n2 4 5.25 -6\n",
    "units": "t [s];X [m];Y [m];Z [m]\n1;0.5;-2;3\n2;4;5.25;-6\n",
    "blanks in names": "Point ID,X coord,Y coord,Z coord\n7,0.5,-2,3\n8,4,5.25,-6\n",
    "survey": "Point Easting Northing Height\n7 0.5 -2 3\n8 4 5.25 -6\n",
    "survey, north first": "Northing,Easting,Elevation\n-2,0.5,3\n5.25,4,-6\n",
    "an empty cell before": "id\tname\tx\ty\tz\n1\t\t0.5\t-2\t3\n2\tb\t4\t5.25\t-6\n",
    "bars": "t|x|y|z\n1|0.5|-2|3\n2|4|5.25|-6\n",
    "words behind": "0.5 -2 3 chair\n4 5.25 -6 a table\n",
    "commas at the end": "0.5,-2,3,\n4,5.25,-6,\n",
    "semicolons at the end": "0.5;-2;3;\r\n4;5.25;-6;\r\n",
    "an empty cell behind": "0.5,-2,3,\n4,5.25,-6,a\n",
    "two lines of header": "Scan 1\nX Y Z\n0.5 -2 3\n4 5.25 -6\n",
    "a count in words": "2 points\n0.5 -2 3\n4 5.25 -6\n",
    "names and a count": "//X Y Z R\n2\n0.5 -2 3 9\n4 5.25 -6 9\n",
    "old line ends": "0.5 -2 3\r4 5.25 -6\r",
    "blank lines": "\n\n0.5 -2 3\n  \n4 5.25 -6\n\n\x1a",
    "comments between": "0.5 -2 3  # one\n# two\n4 5.25 -6\n",
    "a sentence": "# scanned by hand, x is east\n0.5 -2 3\n4 5.25 -6\n",
    "blanks around commas": "0.5 , -2 , 3\n4 , 5.25 , -6\n",
    "aligned by tabs": "0.5\t\t-2\t3\n4\t\t5.25\t-6\n",
    "decimal commas and blanks": "0,5 -2,0 3,0\n4 5,25 -6\n",
    "decimal commas and semicolons": "x;y;z\n0,5;-2;3\n4,0;5,25;-6\n",
    "decimal commas and tabs": "0,5\t-2\t3\n4,0\t5,25\t-6\n",
    "decimal commas and commas": "0,5, -2,0, 3,0\n4,0, 5,25, -6,0\n",
    "decimal commas in quotes": '"0,5","-2,0","3,0"\n"4,0","5,25","-6,0"\n',
}  # fmt: skip


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
@pytest.mark.parametrize("name", ["a.txt", "a.asc"])
def test_the_coordinates_are_found_however_they_are_written(text, name, tmp_path):
    assert read_points(write(tmp_path / name, text)).tolist() == [[0.5, -2, 3], [4, 5.25, -6]]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "latin-1", "utf-32", "cp1252"])
def test_the_encoding_of_names_is_no_matter(encoding, tmp_path):
    text = "Zähler x y z\n7 0.5 -2 3\n"
    assert read_points(write(tmp_path / "a.xyz", text, encoding)).tolist() == [[0.5, -2, 3]]


def test_names_that_say_nothing_leave_the_first_three_columns(tmp_path):
    assert read_points(write(tmp_path / "a.xyz", "Höhe Breite Länge\n0.5 -2 3\n", "latin-1")).tolist() == [[0.5, -2, 3]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("time range angle\n1 2 3\n", "names no x, y and z.*time, range, angle are none"),
        ("id,p,q,s\n1,2,3,4\n", "names no x, y and z.*id is none"),
        ("lat lon alt\n1 2 3\n", "lat, lon are angles on the globe"),
        ("Longitude,Latitude,Height\n1,2,3\n", "angles on the globe"),
        ("x y intensity\n1 2 3\n", "no x, y and z, only x, y, intensity: of the coordinates x, y alone"),
        ("x x y z\n1 2 3 4\n", "name x twice"),
        ("t x y z\n1 2 3\n", r"names 4 columns \(t, x, y, z\), its rows have 3"),
        ("0,25,1,5,2,75\n0,5,1,75,2,25\n", "decimal commas; write decimal points"),
        ("0,25,1,5,2,75,9\n0,5,1,75,2,25,9\n", "decimal commas; write decimal points"),
        ("x,y,z\n0,25,1,5,2,75\n", "decimal commas"),
        ("0,5;1.5;2\n", "decimal commas .0,5., others points .1.5."),
        ("chair 1 2 3\n", "line 1: column 1 is 'chair', not a number"),
        ("1.0D+00 2 3\n", "column 1 is '1.0D.00', not a number"),
        ("1 2 3\n4 5\n", "line 2 has 2 columns, the first point has 3"),
        ("1 2 3\n4 5 6 7\n", "line 2 has 4 columns"),
        ("1,2,3\n4,,6\n", "line 2: column 2 is ''"),
        ("40 points\n1 2 3\n", "announces 40 points, it has 1"),
        ("1 2 3\n1\n4 5 6\n", "line 2 has 1 columns"),
        ("ncols 3\nnrows 2\n1 2 3\n4 5 6\n", "is a raster"),
        ("1 -nan(ind) 3\n4 5 6\n", "1 of 2 points are not finite"),
        ("a\n" * 70 + "1 2 3\n", "first 64 lines hold no row of numbers"),
    ],
)
def test_what_is_not_understood_is_refused_with_the_reason(text, words, tmp_path):
    with pytest.raises(DataError, match=rf"a\.asc: .*{words}"):
        read_points(write(tmp_path / "a.asc", text))


def test_a_comment_separated_as_the_rows_names_what_is_no_coordinate(tmp_path):
    for mark in ",;":
        text = "%time,field.a,field.b,field.c\n1,0.5,-2,3\n2,4,5.25,-6\n".replace(",", mark)
        with pytest.raises(DataError, match=r"names no x, y and z.* time is none"):
            read_points(write(tmp_path / "a.txt", text))
    for comment in ("# made by hand, in metres, 2020", "# a, b and c, of scan 3", "// u,v,w"):
        assert read_points(write(tmp_path / "a.txt", f"{comment}\n0.5,-2,3\n4,5.25,-6\n")).tolist()[0] == [0.5, -2, 3]


def test_utf_16_without_a_mark_is_refused(tmp_path):
    with pytest.raises(DataError, match="NUL bytes, so it is no text, or UTF-16 without"):
        read_points(write(tmp_path / "a.txt", "1 2 3\n", "utf-16-le"))


def test_a_table_of_pandas_without_names_keeps_its_numbers_out(tmp_path):
    path = write(tmp_path / "a.txt", "0,1,2\n0.5,0.25,0.125\n1.5,2.5,3.5\n")
    assert read_points(path).tolist() == [[0.5, 0.25, 0.125], [1.5, 2.5, 3.5]]
    assert read_points(write(path, "0,1,2\n3,4,5\n")).tolist() == [[0, 1, 2], [3, 4, 5]]  # whole numbers are points


def test_many_rows_are_read_as_few(tmp_path):
    points = np.random.default_rng(0).normal(size=(3000, 3)).astype(np.float32)
    rows = [f"{i},{x:.9g},{y:.9g},{z:.9g},w{i}" for i, (x, y, z) in enumerate(points)]
    path = write(tmp_path / "a.txt", "\n".join(["id,x,y,z,word", *rows]))
    assert torch.equal(read_points(path), torch.from_numpy(points))


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        ("x y z", (0, 1, 2)),
        ("pos.x pos.y pos.z", (0, 1, 2)),
        ("id POINT_X POINT_Y POINT_Z", (1, 2, 3)),
        ("t x_utm y_utm z", (1, 2, 3)),
        ("X_m Y_m Z_m", (0, 1, 2)),
        ("E N U", (0, 1, 2)),
        ("N E H", (1, 0, 2)),
        ("X Y Elevation", (0, 1, 2)),
        ("x y z x_local y_local z_local", (0, 1, 2)),
        ("nx ny nz", None),
        ("a b c", None),
    ],
)
def test_names_of_coordinates(names, columns):
    assert coordinate_columns(names.split()) == columns
