import struct
import sys

import laspy
import numpy as np
import plyfile
import pytest
import torch

from pointpeft.data import DataError, normalize, read_points
from pointpeft.data.formats.readers import EXTENSIONS, MESH_POINTS


def cloud(n=37, columns=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, columns)).astype(np.float32)


def write_ply(path, points, text=False, faces=None, byte_order="<"):
    vertices = np.array([tuple(p) for p in points], [("red", "u1"), ("x", "f4"), ("y", "f4"), ("z", "f4")][-3:])
    elements = [plyfile.PlyElement.describe(vertices, "vertex")]
    if faces is not None:
        table = np.empty(len(faces), [("vertex_indices", "O")])
        table["vertex_indices"] = [np.array(face, np.int32) for face in faces]
        elements.append(plyfile.PlyElement.describe(table, "face"))
    plyfile.PlyData(elements, text=text, byte_order="=" if text else byte_order).write(str(path))


def write_las(path, points):
    file = laspy.create(point_format=0, file_version="1.2")
    file.header.scales, file.header.offsets = [1e-6] * 3, [0.0] * 3
    file.x, file.y, file.z = points.astype(np.float64).T
    file.write(str(path))


def lines(points, delimiter=" "):
    return "\n".join(delimiter.join(f"{value:.9g}" for value in row) for row in points) + "\n"


def obj(points, faces=()):
    return "".join(f"v {x:.9g} {y:.9g} {z:.9g}\n" for x, y, z in points) + "".join(
        "f " + " ".join(str(i + 1) for i in face) + "\n" for face in faces
    )


def off(points, faces=(), head="OFF\n"):
    text = f"{head}{len(points)} {len(faces)} 0\n" + lines(points)
    return text + "".join(f"{len(face)} {' '.join(map(str, face))}\n" for face in faces)


def fields(points):
    table = np.zeros(len(points), [("intensity", "f4"), ("z", "f8"), ("X", "f4"), ("y", "f4")])
    table["X"], table["y"], table["z"] = points.T
    return table


CLOUDS = {
    "a.npy": lambda path, p: np.save(path, p),
    "double.npy": lambda path, p: np.save(path, p.astype(np.float64)),
    "fortran.npy": lambda path, p: np.save(path, np.asfortranarray(p)),
    "normals.npy": lambda path, p: np.save(path, np.concatenate([p, p + 1], 1)),
    "fields.npy": lambda path, p: np.save(path, fields(p)),
    "vector.npy": lambda path, p: np.save(path, np.array([(0, q) for q in p], [("i", "u1"), ("xyz", "f4", 3)])),
    "batch_of_one.npy": lambda path, p: np.save(path, p[None]),
    "axes.npz": lambda path, p: np.savez(path, X=p[:, 0], Y=p[:, 1], Z=p[:, 2], intensity=p[:, 0]),
    "pc.npz": lambda path, p: np.savez(path, Point_Cloud=p, label=3),
    "points.npz": lambda path, p: np.savez(path, color=p * 0, points=p),
    "only.npz": lambda path, p: np.savez_compressed(path, whatever=p),
    "text.ply": lambda path, p: write_ply(path, p, text=True),
    "little.ply": lambda path, p: write_ply(path, p),
    "big.ply": lambda path, p: write_ply(path, p, byte_order=">"),
    "UPPER.PLY": lambda path, p: write_ply(path, p),
    "a.off": lambda path, p: path.write_text(off(p)),
    "a.obj": lambda path, p: path.write_text(obj(p)),
    "a.xyz": lambda path, p: path.write_text(lines(p)),
    "a.txt": lambda path, p: path.write_text(lines(np.concatenate([p, p], 1), ",")),
    "a.asc": lambda path, p: path.write_text("//X Y Z\n" + lines(p)),
    "semicolons.txt": lambda path, p: path.write_text(lines(p, ";")),
    "tabs.txt": lambda path, p: path.write_text(lines(p, "\t").replace("\n", "\r\n")),
    "named.txt": lambda path, p: path.write_text("x,y,z\n" + lines(p, ",")),
    "comments.txt": lambda path, p: path.write_text("\ufeff//X Y Z\n# made up\n\n" + lines(p), "utf-8"),
    "counted.pts": lambda path, p: path.write_text(f"{len(p)}\n" + lines(p)),
    "plain.pts": lambda path, p: path.write_text(lines(p)),
    "a.las": write_las,
    "a.laz": write_las,
}


@pytest.mark.parametrize("name", CLOUDS)
def test_a_cloud_comes_back_as_written(name, tmp_path):
    points = cloud()
    CLOUDS[name](tmp_path / name, points)
    result = read_points(tmp_path / name)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, torch.from_numpy(points), atol=1e-6, rtol=1e-6)


def test_every_extension_is_tested():
    mesh_only, elsewhere = {".stl"}, {".pcd"}  # below, and in test_pcd.py
    assert {"." + name.split(".")[1].lower() for name in CLOUDS} | mesh_only | elsewhere == set(EXTENSIONS)


# A square of two triangles (area 1) at z = 0, and one triangle (area 3) at z = 5: a quarter of the points lies below.
VERTICES = np.array(
    [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 5], [3, 0, 5], [0, 2, 5], [9, 9, 9]], np.float32
)
FACES = [[0, 1, 2, 3], [4, 5, 6], [7, 7, 7]]


def write_stl(path, text=False):
    triangles = VERTICES[[[0, 1, 2], [0, 2, 3], [4, 5, 6]]]
    if text:
        corner = "".join(
            "facet normal 0 0 1\nouter loop\n"
            + "".join("vertex {} {} {}\n".format(*p) for p in t)
            + "endloop\nendfacet\n"
            for t in triangles
        )
        path.write_text(f"solid x\n{corner}endsolid x\n")
    else:
        body = b"".join(struct.pack("<12fH", 0, 0, 1, *t.reshape(-1), 0) for t in triangles)
        path.write_bytes(bytes(80) + struct.pack("<I", len(triangles)) + body)


MESHES = {
    "text.ply": lambda path: write_ply(path, VERTICES, text=True, faces=FACES),
    "binary.ply": lambda path: write_ply(path, VERTICES, faces=FACES),
    "a.off": lambda path: path.write_text(off(VERTICES, FACES)),
    "glued.off": lambda path: path.write_text(off(VERTICES, FACES, head="OFF")),  # as in many files of ModelNet40
    "colours.off": lambda path: path.write_text(
        "# made up\n" + off(np.concatenate([VERTICES, VERTICES * 0 + 1], 1), FACES, head="COFF\n")
    ),
    "a.obj": lambda path: path.write_text("mtllib missing.mtl\n" + obj(VERTICES, FACES)),
    "binary.stl": write_stl,
    "text.stl": lambda path: write_stl(path, text=True),
}


@pytest.mark.parametrize("name", MESHES)
def test_a_surface_gives_points_spread_by_area(name, tmp_path):
    path = tmp_path / name
    MESHES[name](path)
    points = read_points(path)
    assert points.shape == (MESH_POINTS, 3)
    low, high = points[points[:, 2] == 0], points[points[:, 2] == 5]
    assert len(low) + len(high) == MESH_POINTS  # none on the face without area
    assert len(low) / MESH_POINTS == pytest.approx(0.25, abs=0.02)  # standard deviation 0.005
    assert low[:, :2].min() >= 0
    assert low[:, :2].max() <= 1
    quadrant = (low[:, 0] > 0.5).long() * 2 + (low[:, 1] > 0.5).long()
    assert quadrant.bincount(minlength=4).min() > 430  # 512 expected, standard deviation 20
    assert (high[:, 0] / 3 + high[:, 1] / 2).max() <= 1 + 1e-6
    torch.testing.assert_close(high[:, :2].mean(0), torch.tensor([1, 2 / 3]), atol=0.05, rtol=0)


def test_the_generator_decides_which_points_of_a_surface(tmp_path):
    path = tmp_path / "a.off"
    path.write_text(off(VERTICES, FACES))
    draws = [read_points(path, 50, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert draws[0].shape == (50, 3)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    torch.rand(3)
    assert torch.equal(read_points(path, 50), read_points(path, 50))


@pytest.mark.parametrize(("asked", "got"), [(10, 10), (37, 37), (38, 37), (None, 37)])
def test_a_cloud_is_cut_to_at_most_num_points_without_repetition(asked, got, tmp_path):
    points = cloud()
    np.save(tmp_path / "a.npy", points)
    result = read_points(tmp_path / "a.npy", asked)
    assert result.shape == (got, 3)
    assert len(result.unique(dim=0)) == got
    assert {tuple(p) for p in result.tolist()} <= {tuple(p) for p in points.tolist()}


def test_normalized_keeps_the_detail_of_map_coordinates(tmp_path):
    points = cloud().astype(np.float64)
    np.save(tmp_path / "map.npy", points + np.array([500_000, 5_400_000, 120]))
    result = read_points(tmp_path / "map.npy", normalized=True)
    torch.testing.assert_close(result, normalize(torch.from_numpy(points)).float(), atol=1e-6, rtol=0)


def test_one_point_is_a_cloud(tmp_path):
    (tmp_path / "a.xyz").write_text("1 2 3\n")
    assert read_points(tmp_path / "a.xyz").tolist() == [[1, 2, 3]]
    assert read_points(tmp_path / "a.xyz", normalized=True).tolist() == [[0, 0, 0]]


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the pickle ran')",))


BAD = {
    "nan.npy": (
        lambda path: np.save(path, np.where(np.arange(30).reshape(10, 3) == 7, np.nan, 1)),
        "1 of 10 .* point 2",
    ),
    "inf.txt": (lambda path: path.write_text("1 2 3\n1 inf 3\n"), "not finite"),
    "huge.npy": (lambda path: np.save(path, np.full((4, 3), 1e300)), "float32"),
    "columns.npy": (lambda path: np.save(path, np.zeros((5, 2))), r"3 columns, got shape \[5, 2\]"),
    "flat.npy": (lambda path: np.save(path, np.zeros(6)), r"shape \[6\]"),
    "batch.npy": (lambda path: np.save(path, np.zeros((2, 5, 3))), r"shape \[2, 5, 3\]"),
    "transposed.npy": (lambda path: np.save(path, np.zeros((3, 100))), "transposed"),
    "none.npy": (lambda path: np.save(path, np.zeros((0, 3))), "no points"),
    "text.npy": (lambda path: np.save(path, np.full((5, 3), "a")), "numbers"),
    "fields.npy": (lambda path: np.save(path, np.zeros(4, [("a", "f4"), ("b", "f4")])), "got the fields a, b"),
    "plane.npy": (lambda path: np.save(path, np.zeros(4, [("x", "f4"), ("y", "f4")])), "no x, y and z, only x, y"),
    "complex.npy": (lambda path: np.save(path, np.zeros((5, 3), complex)), "numbers"),
    "object.npy": (lambda path: np.save(path, np.array([[Evil()] * 3]), allow_pickle=True), "allow_pickle"),
    "object.npz": (lambda path: np.savez(path, points=np.array([[Evil()] * 3])), "allow_pickle"),
    "pickle.npy": (lambda path: path.write_bytes(b"\x80\x04N."), "cannot be read"),
    "keys.npz": (lambda path: np.savez(path, a=cloud(), b=cloud()), "only a, b"),
    "no.npz": (lambda path: np.save(path.open("wb"), cloud()), "not a .npz"),
    "zipped.npy": (lambda path: np.savez(path.open("wb"), cloud()), "npz"),
    "columns.txt": (lambda path: path.write_text("1 2\n3 4\n"), "3 columns"),
    "ragged.txt": (lambda path: path.write_text("1 2 3\n1 2\n"), "cannot be read"),
    "words.txt": (lambda path: path.write_text("1 2 3\none two three\n"), "cannot be read"),
    "header.txt": (lambda path: path.write_text("x y z\n"), "no points"),
    "blank.xyz": (lambda path: path.write_text("\n\n"), "no points"),
    "binary.txt": (lambda path: path.write_bytes(bytes(range(256))), "cannot be read"),
    "short.pts": (lambda path: path.write_text("3\n1 2 3\n"), "announces 3 points, it has 1"),
    "novertex.ply": (lambda path: path.write_text("ply\nformat ascii 1.0\nend_header\n"), "no element 'vertex'"),
    "noz.ply": (
        lambda path: path.write_text(
            "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nend_header\n1 2\n"
        ),
        "no x, y and z",
    ),
    "garbage.ply": (lambda path: path.write_bytes(b"hello"), "cannot be read"),
    "corner.ply": (lambda path: write_ply(path, VERTICES, faces=[[0, 1, 99]]), "vertex outside 0 to 7"),
    "line.off": (lambda path: path.write_text(off(VERTICES, [[0, 1, 1]])), "no area"),
    "corner.off": (lambda path: path.write_text(off(VERTICES, [[0, 1, 99]])), "vertex outside 0 to 7"),
    "garbage.off": (lambda path: path.write_text("hello"), "start with OFF"),
    "counts.off": (lambda path: path.write_text("OFF\nmany 1 0\n"), "how many vertices"),
    "only.off": (lambda path: path.write_text("OFF\n"), "how many vertices"),
    "none.off": (lambda path: path.write_text("OFF\n0 0 0\n"), "no points"),
    "edges.off": (lambda path: path.write_text(off(VERTICES, [[0, 1]])), "at least 3 corners"),
    "face.off": (lambda path: path.write_text(off(VERTICES, [[0, 1, 2]])[:-3] + "\n"), "3 corners, it has 2"),
    "nothing.obj": (lambda path: path.write_text("# hello\n"), "."),
    "nan.obj": (lambda path: path.write_text(obj([[0, 0, np.nan], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])), "not finite"),
    "garbage.stl": (lambda path: path.write_text("hello"), "."),
    "garbage.las": (lambda path: path.write_text("hello"), "not a LAS file"),
    "garbage.laz": (lambda path: path.write_text("hello"), "not a LAS file"),
    "cloud.h5": (lambda path: path.write_text("hello"), "unknown kind of file '.h5'; known: .npy"),
    "cloud": (lambda path: path.write_text("1 2 3"), "unknown kind of file ''"),
    "folder.ply": (lambda path: path.mkdir(), "not a file"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_its_name_and_the_reason(name, tmp_path):
    write, reason = BAD[name]
    write(tmp_path / name)
    with pytest.raises(DataError, match=f"{name}: .*{reason}"):
        read_points(tmp_path / name)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_an_empty_or_missing_file_is_refused(extension, tmp_path):
    path = tmp_path / f"a{extension}"
    with pytest.raises(DataError, match=f"a{extension}: no such file"):
        read_points(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=f"a{extension}: the file is empty"):
        read_points(path)


@pytest.mark.parametrize(
    "name", ["a.npy", "points.npz", "text.ply", "little.ply", "a.off", "a.las", "a.laz", "counted.pts"]
)
def test_a_truncated_cloud_is_refused(name, tmp_path):
    path = tmp_path / name
    CLOUDS[name](path, cloud(400))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    with pytest.raises(DataError, match=name):
        read_points(path)


@pytest.mark.parametrize("name", ["text.ply", "binary.ply", "a.off"])
def test_a_truncated_surface_is_refused(name, tmp_path):
    path = tmp_path / name
    MESHES[name](path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=name):
        read_points(path)


@pytest.mark.parametrize(("library", "name"), [("plyfile", "a.ply"), ("laspy", "a.laz"), ("lazrs", "a.laz")])
def test_a_missing_library_names_the_extra(library, name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / name).write_text("anything")
    with pytest.raises(DataError, match=rf"{library}.*pip install 'pointpeft\[mesh\]'"):
        read_points(tmp_path / name)


def test_num_points_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="num_points must be at least 1, got 0"):
        read_points(tmp_path / "a.npy", 0)
