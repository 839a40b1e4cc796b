import hashlib
import json
import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from pointpeft import files
from pointpeft.files import read_weights, save_tensors, sha256, tensors_of, write_atomically, write_json

TENSORS = {"norm.weight": torch.arange(5.0), "blocks.0.bias": torch.ones(2, 3)}


def equal(found, expected=TENSORS):
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("container", ["base_model", "state_dict", "model", "model_state_dict", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_tensors_are_found_where_published_files_keep_them(container, prefix, tmp_path):
    state = {prefix + key: tensor for key, tensor in TENSORS.items()}
    content = state | {"epoch": 3} if container is None else {container: state, "epoch": 3, "metrics": {"acc": 0.5}}
    torch.save(content, tmp_path / "last.pth")
    found, metadata = read_weights(tmp_path / "last.pth")
    assert equal(found)
    assert metadata == {}


def test_module_is_taken_out_of_the_middle_too_but_only_as_a_whole_part():
    found = tensors_of({"a.module.b": torch.ones(1), "submodule.c": torch.ones(1)}, "it")
    assert list(found) == ["a.b", "submodule.c"]


def test_the_old_file_format_of_torch_is_read(tmp_path):
    torch.save({"base_model": TENSORS}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert equal(read_weights(tmp_path / "old.pth")[0])


def test_safetensors_come_with_their_metadata(tmp_path):
    save_file(TENSORS, tmp_path / "w.safetensors", {"backbone": "point_mae"})
    found, metadata = read_weights(tmp_path / "w.safetensors")
    assert equal(found)
    assert metadata == {"backbone": "point_mae"}


class RunsCode:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_file_with_pickled_code_is_refused_with_the_reason_and_nothing_runs(new_format, tmp_path):
    trap = tmp_path / "it ran"
    content = {"base_model": TENSORS, "config": RunsCode(str(trap))}
    torch.save(content, tmp_path / "trap.pth", _use_new_zipfile_serialization=new_format)
    with pytest.raises(
        ValueError, match=r"trap.pth is refused, .* can run code: .*mkdir.* keep only its tensors"
    ) as info:
        read_weights(tmp_path / "trap.pth")
    assert "weights_only" not in str(info.value)  # torch's advice to load it regardless
    assert not trap.exists()


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -1])
@pytest.mark.parametrize("form", ["zip.pth", "legacy.pth", "it.safetensors"])
def test_truncated_files_are_refused_by_name(form, kept, tmp_path):
    path = tmp_path / form
    if path.suffix == ".pth":
        torch.save({"base_model": TENSORS}, path, _use_new_zipfile_serialization=form == "zip.pth")
    else:
        save_file(TENSORS, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=rf"{form} is (not a readable|refused)"):
        read_weights(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>404</html>", bytes(range(256)) * 8, b"\0" * 4096])
def test_other_files_under_a_weight_files_name_are_refused(suffix, content, tmp_path):
    path = tmp_path / f"page{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"page\{suffix} is not a readable"):
        read_weights(path)


def test_what_is_no_file_or_holds_no_tensors_is_named(tmp_path):
    for path in (tmp_path / "nothing.pth", tmp_path):
        with pytest.raises(ValueError, match="no weight file at "):
            read_weights(path)
    torch.save({"epoch": 3, "best": 0.5}, tmp_path / "log.pth")
    with pytest.raises(ValueError, match=r"log.pth holds no tensors .*got \['epoch', 'best'\]"):
        read_weights(tmp_path / "log.pth")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="must hold a dict of tensors, got list"):
        read_weights(tmp_path / "list.pth")


def test_checksums_are_those_of_hashlib(tmp_path):
    content = bytes(range(256)) * 10_000  # more than a chunk
    (tmp_path / "f").write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    assert sha256(tmp_path / "f") == expected
    with open(tmp_path / "f", "rb") as file:
        assert files._digest(file) == expected


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "config.json"
    write_json(path, {"a": 1})

    def half(temporary):
        temporary.write_text('{"a"')
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half)
    assert json.loads(path.read_text()) == {"a": 1}
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert os.listdir(tmp_path) == ["config.json"]


def test_a_write_leaves_the_mask_of_the_process_alone_and_obeys_it(tmp_path, monkeypatch):
    before = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", None)  # other threads would create files without a mask
        write_json(tmp_path / "a.json", {})
        write_atomically(tmp_path / "a.safetensors", lambda path: save_tensors(TENSORS, path, {"a": "b"}))
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in os.listdir(tmp_path)} == {0o640}


def test_no_link_laid_beforehand_leads_a_write_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "victim").write_text("precious")
    tokens = iter(["foreseen", "new"])
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: next(tokens))
    (tmp_path / ".a.json.foreseen.tmp").symlink_to(tmp_path / "victim")
    (tmp_path / f".a.json.{os.getpid()}.tmp").symlink_to(tmp_path / "victim")
    write_json(tmp_path / "a.json", {})
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "a.json").read_text() == "{}\n"


def test_the_folder_is_made_durable_after_the_rename(tmp_path, monkeypatch):
    calls = []
    sync, replace = os.fsync, os.replace

    def fsync(descriptor):
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def renamed(source, target):
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(files.os, "replace", renamed)
    write_json(tmp_path / "a.json", {})
    assert calls == ["file", "rename", "folder"]


def test_the_bytes_of_a_safetensors_file_depend_on_its_content_alone(tmp_path):
    facts = {f"fact {i}": 'ä "quoted"\n' * i for i in range(9)}
    contents = set()
    for i in range(4):  # the library shuffles the facts anew for every file
        save_tensors(TENSORS, tmp_path / f"{i}.safetensors", dict(sorted(facts.items(), reverse=i % 2 == 1)))
        contents.add((tmp_path / f"{i}.safetensors").read_bytes())
        assert read_weights(tmp_path / f"{i}.safetensors")[1] == facts
        assert equal(read_weights(tmp_path / f"{i}.safetensors")[0])
    assert len(contents) == 1
