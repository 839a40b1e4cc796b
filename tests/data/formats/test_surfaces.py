"""Surfaces as other programs write them."""

import struct

import numpy as np
import pytest

from pointpeft.data import DataError, read_points
from pointpeft.data.formats.readers import read_bytes

CORNERS = [(x, y, z) for z in (0, 1) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))]
SIDES = [(0, 3, 2, 1), (4, 5, 6, 7), (0, 1, 5, 4), (2, 3, 7, 6), (1, 2, 6, 5), (0, 4, 7, 3)]
V = "".join(f"v {x} {y} {z}\n" for x, y, z in CORNERS)
F = "".join("f " + " ".join(str(i + 1) for i in side) + "\n" for side in SIDES)
OFF_V = "".join(f"{x} {y} {z}\n" for x, y, z in CORNERS)
OFF_F = "".join("4 " + " ".join(map(str, side)) + "\n" for side in SIDES)
TRIANGLES = np.array([[CORNERS[i] for i in t] for a, b, c, d in SIDES for t in ((a, b, c), (a, c, d))], "<f4")


def stl(name="solid caf\xe9"):
    facets = "".join(
        "facet normal 0 0 0\nouter loop\n" + "".join("vertex {} {} {}\n".format(*p) for p in t) + "endloop\nendfacet\n"
        for t in TRIANGLES
    )
    return f"{name}\n{facets}end{name}\n"


def binary_stl(count=12, tail=b"", head=b""):
    body = b"".join(struct.pack("<12fH", 0, 0, 1, *t.reshape(-1), 0) for t in TRIANGLES)
    return head.ljust(80, b"\0") + struct.pack("<I", count) + body + tail


def ply(comment, encoding, newline="\n", head=b""):
    lines = ["ply", "format ascii 1.0", f"comment {comment}", f"obj_info {comment}", "element vertex 8"]
    lines += [f"property float {axis}" for axis in "xyz"]
    lines += ["element face 6", "property list uchar int vertex_indices", "end_header"]
    return head + (newline.join([*lines, *(OFF_V + OFF_F).splitlines()]) + newline).encode(encoding)


# All are the unit cube.
CUBES = {
    "latin1_comment.obj": ("# caf\xe9\n" + V + F).encode("latin-1"),
    "gbk_name.obj": ("o 椅子\nusemtl 木\n" + V + F).encode("gbk"),
    "bom.obj": ("\ufeff" + V + F).encode("utf-8"),
    "utf16.obj": (V + F).encode("utf-16"),
    "tabs.obj": (V + F).replace(" ", "\t").encode(),
    "indented.obj": ("  " + (V + F).replace("\n", " \n   ")).encode(),
    "comments_behind.obj": V.replace("\n", " # corner\n").encode() + F.replace("\n", " # side\n").encode(),
    "relative.obj": (V + "".join("f " + " ".join(str(i - 8) for i in side) + "\n" for side in SIDES)).encode(),
    "texture_and_normal.obj": (
        V + "vt 0 0\nvn 0 0 1\n" + "".join("f " + " ".join(f"{i + 1}/1/-1" for i in s) + "\n" for s in SIDES)
    ).encode(),
    "colours.obj": (V.replace("\n", " 0.5 0.5 0.5\n") + F).encode(),
    "continued.obj": (V + F.replace(" ", " \\\n")).encode(),
    "old_ends.obj": (V + F).replace("\n", "\r").encode(),
    "windows.obj": (V + F).replace("\n", "\r\n").encode(),
    "faces_before.obj": (F + V).encode(),
    "missing_material.obj": ("mtllib ../none.mtl\nusemtl a b\ng a b c\ns off\n" + V + F).encode(),
    "latin1.stl": stl().encode("latin-1"),
    "no_name.stl": stl("solid").encode(),
    "two_words.stl": stl("solid a vertex 1 2 3").encode(),
    "upper.stl": stl("solid a").upper().encode(),
    "windows.stl": stl("solid a").replace("\n", "\r\n").encode(),
    "binary.stl": binary_stl(),
    "binary_with_tail.stl": binary_stl(tail=b"\0\xffend"),
    "binary_solid.stl": binary_stl(head=b"solid facet \xe9"),
    "utf8.ply": ply("\xe9tude du b\xe2timent", "utf-8"),
    "latin1.ply": ply("\xe9tude", "latin-1"),
    "bom.ply": ply("a", "utf-8", head=b"\xef\xbb\xbf"),
    "windows.ply": ply("\xe9", "utf-8", "\r\n"),
    "old_ends.ply": ply("\xe9", "utf-8", "\r"),
    "bom.off": ("\ufeffOFF\n8 6 0\n" + OFF_V + OFF_F).encode(),
    "latin1.off": ("OFF # caf\xe9\n8 6 0\n" + OFF_V + OFF_F).encode("latin-1"),
    "lower.off": ("off\n8 6 0\n" + OFF_V + OFF_F).encode(),
    "two_counts.off": ("OFF\n8 6\n" + OFF_V + OFF_F).encode(),
    "counts_behind.off": ("OFF 8 6 0\n" + OFF_V + OFF_F).encode(),
    "one_line.off": ("OFF\n8 6 0\n" + OFF_V.replace("\n", "  ") + "\n" + OFF_F).encode(),
    "colours.off": ("COFF\n8 6 0\n" + OFF_V.replace("\n", " 1 0 0 1\n") + OFF_F.replace("\n", " 9 9 9\n")).encode(),
    "normals.off": ("NOFF\n8 6 0\n" + OFF_V.replace("\n", " 1 0 0\n") + OFF_F).encode(),
    "comments.off": ("# a\n\nOFF\n# b\n8 6 0 # c\n" + OFF_V + "\n# d\n" + OFF_F).encode(),
    "windows.off": ("OFF\n8 6 0\n" + OFF_V + OFF_F).replace("\n", "\r\n").encode(),
}


@pytest.mark.parametrize("name", CUBES)
def test_a_cube_is_a_cube(name, tmp_path):
    (tmp_path / name).write_bytes(CUBES[name])
    points = read_points(tmp_path / name).numpy()
    assert points.min() >= 0
    assert points.max() <= 1
    on_side = np.concatenate([points == 0, points == 1], 1)
    assert on_side.any(1).all()
    assert np.all(on_side.sum(0) > 1200)  # a sixth of 8192 is 1365, standard deviation 34


@pytest.mark.parametrize("name", ["relative", "absolute"])
def test_every_object_of_a_file_is_sampled(name, tmp_path):
    text = ""
    for part, z in enumerate((0, 10, 20)):
        text += f"o part{part}\nv 0 0 {z}\nv 1 0 {z}\nv 1 1 {z}\nv 0 1 {z}\nvn 0 0 1\n"
        text += (
            "f -4//-1 -3//-1 -2//-1 -1//-1\n"
            if name == "relative"
            else f"f {' '.join(str(4 * part + i) for i in (1, 2, 3, 4))}\n"
        )
    (tmp_path / "a.obj").write_text(text)
    heights, counts = np.unique(read_points(tmp_path / "a.obj")[:, 2].numpy(), return_counts=True)
    assert heights.tolist() == [0, 10, 20]
    assert counts.min() > 2500


def strip_ply(strips, faces=0):
    vertices = "0 0 0\n1 0 0\n0 1 0\n1 1 0\n0 0 5\n1 0 5\n0 1 5\n"
    lines = ["ply", "format ascii 1.0", "element vertex 7", *(f"property float {axis}" for axis in "xyz")]
    if faces:
        lines += ["element face 1", "property list uchar int vertex_indices"]
    lines += [f"element tristrips {len(strips)}", "property list int int vertex_indices", "end_header"]
    body = ("3 4 5 6\n" if faces else "") + "".join(f"{len(strip)} {' '.join(map(str, strip))}\n" for strip in strips)
    return "\n".join(lines) + "\n" + vertices + body


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        (strip_ply([[0, 1, 2, 3]]), {0: 1.0}),
        (strip_ply([[0, 1, 2, 3, -1, 4, 5, 6]]), {0: 2 / 3, 5: 1 / 3}),
        (strip_ply([[0, 1, 2, 3], [4, 5, 6]]), {0: 2 / 3, 5: 1 / 3}),
        (strip_ply([[0, 1, 2, 3]], faces=1), {0: 2 / 3, 5: 1 / 3}),
    ],
)
def test_strips_of_triangles_are_surfaces(text, shares, tmp_path):
    (tmp_path / "a.ply").write_text(text)
    points = read_points(tmp_path / "a.ply")
    assert len(points) == 8192
    assert {z: pytest.approx(share, abs=0.03) for z, share in shares.items()} == {
        z: float((points[:, 2] == z).float().mean()) for z in shares
    }


@pytest.mark.parametrize(
    ("vertices", "faces"),
    [
        *[("vertices", "faces"), ("points", "triangles"), ("V", "F"), ("xyz", "face"), ("vertices", "triangle")],
        *[("points", "cells"), ("vertices", "tris"), ("vertices", "tri_indices"), ("vertices", "indices")],
    ],
)
def test_faces_beside_vertices_in_an_npz_file_are_a_surface(vertices, faces, tmp_path):
    np.savez(tmp_path / "a.npz", **{vertices: np.array(CORNERS, float), faces: np.array(SIDES)})
    points = read_points(tmp_path / "a.npz").numpy()
    assert len(points) == 8192
    assert np.concatenate([points == 0, points == 1], 1).any(1).all()


@pytest.mark.parametrize(
    ("element", "row"),
    [
        ("element trifan 1\nproperty list int int vertex_indices", "4 0 1 2 3"),
        ("element triangle 1\nproperty int a\nproperty int b\nproperty int c", "0 1 2"),
    ],
)
def test_surfaces_given_by_other_elements_of_a_ply_file_are_refused(element, row, tmp_path):
    head = "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
    (tmp_path / "a.ply").write_text(f"{head}{element}\nend_header\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n{row}\n")
    with pytest.raises(DataError, match="gives its surface as tri"):
        read_points(tmp_path / "a.ply")


@pytest.mark.parametrize("name", ["label", "knn_idx", "normals_index"])
def test_other_arrays_beside_points_are_no_faces(name, tmp_path):
    np.savez(tmp_path / "a.npz", points=np.array(CORNERS, float), **{name: np.zeros((8, 3), int)})
    assert read_points(tmp_path / "a.npz").shape == (8, 3)


def test_points_beside_a_surface_are_the_cloud(tmp_path):
    np.savez(tmp_path / "a.npz", vertices=np.array(CORNERS, float), faces=np.array(SIDES), points=np.eye(3))
    assert read_points(tmp_path / "a.npz").tolist() == np.eye(3).tolist()


BAD = {
    "flat.npz": (
        lambda path: np.savez(path, vertices=np.eye(3), faces=np.arange(9)),
        r"faces must be indices .* \[9\]",
    ),
    "real.npz": (lambda path: np.savez(path, vertices=np.eye(3), faces=np.eye(3)), "faces must be indices"),
    "beyond.npz": (lambda path: np.savez(path, vertices=np.eye(3), faces=np.array([[0, 1, 9]])), "outside 0 to 2"),
    "axes.npz": (lambda path: np.savez(path, x=np.ones(3), y=np.ones(3), z=np.ones(2)), "different lengths: 3, 3, 2"),
    "zero.obj": (lambda path: path.write_text(V + "f 0 1 2\n"), "line 9: '0' is no index"),
    "before.obj": (lambda path: path.write_text("v 0 0 0\nf -1 -2 -3\n" + V), "vertex -2 of the 1 before"),
    "word.obj": (lambda path: path.write_text(V + "f a b c\n"), "line 9: 'a' is no index"),
    "short.obj": (lambda path: path.write_text("v 1 2\n"), "line 1 must hold three numbers, got '1 2'"),
    "strange.obj": (lambda path: path.write_text("v 1 2 3\nv1 2 3 4\n"), "line 2 begins with 'v1'"),
    "free.obj": (lambda path: path.write_text(V + "cstype bspline\nsurf 0 1 0 1 1 2\n"), "free-form"),
    "count.stl": (lambda path: path.write_bytes(binary_stl(11)), "announces 11 triangles, it has 12"),
    "cut.stl": (lambda path: path.write_bytes(binary_stl()[:-60]), "cut off: 10.8 triangles, 12 announced"),
    "cut_only.stl": (lambda path: path.write_bytes(binary_stl(1)[:124]), "cut off: 0.8 triangles, 1 announced"),
    "cut_text.stl": (lambda path: path.write_text(stl("solid a")[:-70]), "its last solid has no end"),
    "end.stl": (lambda path: path.write_text(stl("solid a").replace("endsolid a", "")), "its last solid has no end"),
    "corners.stl": (
        lambda path: path.write_text(stl("solid a").replace("vertex 0", "vertex x", 1)),
        "have no 3 corners",
    ),
    "short.stl": (lambda path: path.write_bytes(b"\0" * 60), "no STL file"),
    "four.off": (lambda path: path.write_text("4OFF\n1 0 0\n1 2 3 4\n"), "other than three dimensions"),
    "many.off": (lambda path: path.write_text("nOFF\n5\n1 0 0\n1 2 3 4 5\n"), "other than three dimensions"),
    "binary.off": (lambda path: path.write_bytes(b"OFF BINARY\n\0\0"), "NUL|binary OFF"),
    "more.off": (lambda path: path.write_text("OFF\n8 5 0\n" + OFF_V + OFF_F), r"14 lines .* 8 \+ 5 announced"),
    "cut.off": (lambda path: path.write_text("OFF\n8 6 0\n" + OFF_V + OFF_F[:-20]), "cut off"),
    "neither.ply": (
        lambda path: path.write_text(strip_ply([[0, 1, 2]]).replace("vertex_indices", "corners")),
        "its tristrips have neither vertex_indices nor vertex_index",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_understood_is_refused(name, tmp_path):
    write, words = BAD[name]
    write(tmp_path / name)
    with pytest.raises(DataError, match=f"{name}: .*({words})"):
        read_points(tmp_path / name)


@pytest.mark.parametrize("missing", [1, 10, 50])
def test_a_binary_stl_cut_off_in_its_last_triangle_gives_the_others_and_says_so(missing, tmp_path):
    whole, cut = tmp_path / "whole.stl", tmp_path / "cut.stl"
    whole.write_bytes(binary_stl()[: 84 + 11 * 50].replace(struct.pack("<I", 12), struct.pack("<I", 11), 1))
    cut.write_bytes(binary_stl()[:-missing])
    with pytest.warns(UserWarning, match=r"cut\.stl is cut off: the last of its 12 triangles is left out"):
        points = read_points(cut)
    assert points.equal(read_points(whole))
    with pytest.warns(UserWarning, match=r"^member\.stl is cut off"):
        assert read_bytes(cut.read_bytes(), ".stl", "member.stl").equal(points)
