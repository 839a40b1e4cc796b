import io
import json
import os
import re
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

from pointpeft import create_model
from pointpeft.checkpoints import save_adapter
from pointpeft.cli.main import COMMANDS, STOPPED, main
from tests.clouds import TINY, TINY_MODEL, write_clouds
from tests.hardening.faults.runs import interrupt_imports

QUICK = [
    *(f"--set={pair}" for pair in TINY_MODEL),
    *(f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, "epochs": 1}.items()),
    "--checkpoint=none",
    "--device=cpu",
    "--no-probe",
    "--quiet",
]


def failure(capsys, *arguments):
    """The message of a command that must end with code 1 and no traceback."""
    assert main([str(argument) for argument in arguments]) == 1
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert errors.startswith("pointpeft: error: ")
    return errors


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_teaches_and_loads_no_torch(command):
    code = (
        "import sys; from pointpeft.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules, 'torch was loaded'"
    )
    done = subprocess.run([sys.executable, "-c", code, command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"pointpeft {command}" in done.stdout


def test_overview_names_every_command(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert not end.value.code
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize("arguments", [["nope"], ["finetune", "--nope"], ["evaluate"], ["finetune", "--epochs=x"]])
def test_a_wrong_command_line_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pointpeft 0.")


def test_ctrl_c_ends_with_130(monkeypatch, capsys):
    import pointpeft.cli.commands.info

    def interrupted(command):
        raise KeyboardInterrupt

    monkeypatch.setattr(pointpeft.cli.commands.info, "run", interrupted)
    assert main(["info"]) == 130
    assert "--resume" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path, capsys):
    assert main(["evaluate", str(tmp_path), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_internal_error_says_so(monkeypatch, capsys):
    import pointpeft.cli.commands.info

    monkeypatch.setattr(pointpeft.cli.commands.info, "run", lambda command: {}["key"])
    assert main(["info"]) == 1
    assert "internal error: KeyError" in capsys.readouterr().err


def test_adapt_evaluate_and_predict(clouds_folder, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["finetune", str(clouds_folder), *QUICK, f"--output={run}"]) == 0
    text = capsys.readouterr().out
    assert "test overall accuracy" in text
    assert str(run) in text
    assert main(["evaluate", str(run), "--device=cpu", "--quiet"]) == 0
    assert "of 24 clouds" in capsys.readouterr().out
    files = sorted(map(str, (clouds_folder / "test" / "rod").iterdir()))
    assert main(["predict", str(run), *files, "--device=cpu"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(files)
    assert main(["predict", str(run), files[0], "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["class"] in ("ball", "disc", "rod")
    assert answer["top"][0] == [answer["class"], answer["probability"]]
    # One bad file does not keep the good ones from their answer.
    empty = tmp_path / "empty.npy"
    empty.touch()
    assert main(["predict", str(run), str(empty), files[0]]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert "empty.npy" in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("command", ["finetune", "pretrain"])
class TestBadData:
    def arguments(self, command, folder, tmp_path):
        options = (
            QUICK if command == "finetune" else [o for o in QUICK if o.startswith(("--set=w", "--set=n", "--device"))]
        )
        return [command, folder, *options, f"--output={tmp_path / 'run'}"]

    def test_an_empty_file(self, command, clouds_folder, tmp_path, capsys):
        (clouds_folder / "train" / "ball" / "0.npy").write_bytes(b"")
        assert "0.npy" in failure(capsys, *self.arguments(command, clouds_folder, tmp_path))

    def test_a_cloud_of_nan(self, command, clouds_folder, tmp_path, capsys):
        np.save(clouds_folder / "train" / "rod" / "3.npy", np.full((96, 3), np.nan, np.float32))
        assert "3.npy" in failure(capsys, *self.arguments(command, clouds_folder, tmp_path))

    def test_three_points(self, command, clouds_folder, tmp_path, capsys):
        np.save(clouds_folder / "train" / "disc" / "5.npy", np.eye(3, dtype=np.float32))
        message = failure(capsys, *self.arguments(command, clouds_folder, tmp_path))
        assert "5.npy" in message
        assert "3 points" in message

    def test_no_such_folder(self, command, tmp_path, capsys):
        assert "nowhere" in failure(capsys, *self.arguments(command, tmp_path / "nowhere", tmp_path))

    def test_a_truncated_h5(self, command, tmp_path, capsys):
        folder = tmp_path / "modelnet40_ply_hdf5_2048"
        folder.mkdir()
        (folder / "shape_names.txt").write_text("a\nb\n")
        for split in ("train", "test"):
            with h5py.File(folder / f"ply_data_{split}0.h5", "w") as file:
                file["data"] = np.random.default_rng(0).normal(size=(4, 64, 3)).astype(np.float32)
                file["label"] = np.array([[0], [1], [0], [1]], np.uint8)
            (folder / f"{split}_files.txt").write_text(f"data/modelnet40_ply_hdf5_2048/ply_data_{split}0.h5\n")
        path = folder / "ply_data_train0.h5"
        path.write_bytes(path.read_bytes()[:700])
        assert "ply_data_train0.h5" in failure(capsys, *self.arguments(command, folder, tmp_path))


def test_a_class_only_in_test(tmp_path, capsys):
    folder = write_clouds(tmp_path / "scans")
    (folder / "train" / "rod").rename(tmp_path / "away")
    assert "rod" in failure(capsys, "finetune", folder, *QUICK)


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_no_run(command, tmp_path, capsys):
    arguments = [tmp_path / "x.npy"] if command == "predict" else []
    assert "neither a run folder nor an adapter" in failure(capsys, command, tmp_path, *arguments)


def test_unknown_options_and_names_are_listed(clouds_folder, capsys):
    assert "known:" in failure(capsys, "finetune", clouds_folder, *QUICK, "--set=rnk=3")
    assert "dapt" in failure(capsys, "finetune", clouds_folder, "--method=nope")
    assert "point_mae_tiny" in failure(capsys, "finetune", clouds_folder, "--backbone=nope")


def test_data_check(clouds_folder, capsys):
    assert main(["data", "check", str(clouds_folder)]) == 0
    assert "ball" in capsys.readouterr().out
    (clouds_folder / "train" / "ball" / "0.npy").write_bytes(b"")
    assert main(["data", "check", str(clouds_folder), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert any("0.npy" in line for line in report["lines"])


def test_python_dash_m_is_the_console_script():
    done = subprocess.run(
        [sys.executable, "-m", "pointpeft", "--version"], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0
    assert done.stdout.startswith("pointpeft ")


@pytest.mark.parametrize("moment", [0.0, 0.3])
def test_ctrl_c_in_the_imports_ends_with_the_message(moment, tmp_path):
    # A library that is half loaded aborted the process when the exception came through it.
    code, said = interrupt_imports(["finetune", f"--output={tmp_path / 'run'}", "--epochs=500"], moment)
    assert (code, said.strip().splitlines()[-1:]) == (130, [STOPPED])


@pytest.fixture
def two_adapters(tmp_path, monkeypatch):
    """Adapters of the same name and form but of other classes, and a place of their own for what is predicted."""
    monkeypatch.chdir(tmp_path)
    for place, classes in (("here", ["ball", "box", "rod"]), ("there", ["cat", "dog", "cow"])):
        torch.manual_seed(0)
        model = create_model("point_mae_tiny", "linear", 3, depth=1, num_groups=8, group_size=8, width=24, num_heads=2)
        facts = {"classes": classes, "points": 64, "clouds_normalized": True}
        save_adapter(model, tmp_path / place / "run" / "adapter", facts)
    return tmp_path / "here" / "run", tmp_path / "there" / "run"


def test_each_adapter_gives_its_own_answers_for_the_same_folder(clouds_folder, two_adapters, tmp_path, capsys):
    first, second = two_adapters
    for number, (run, classes) in enumerate(((first, {"ball", "box", "rod"}), (second, {"cat", "dog", "cow"}))):
        assert main(["predict", str(run), str(clouds_folder / "test"), "--quiet", "--device=cpu"]) == 0
        said = capsys.readouterr().out
        assert "clouds now         24\n" in said
        output = next(line.split(maxsplit=1)[1] for line in said.splitlines() if line.startswith("output"))
        answers = [json.loads(line) for line in (tmp_path / output).read_text().splitlines()]
        assert len(answers) == 24
        assert {answer["class"] for answer in answers} <= classes
        assert len(list((tmp_path / "predictions").iterdir())) == number + 1
    assert main(["predict", str(first), str(clouds_folder / "test"), "--quiet", "--device=cpu", "--output=o"]) == 0
    capsys.readouterr()
    said = failure(capsys, "predict", second, clouds_folder / "test", "--quiet", "--device=cpu", "--output=o")
    assert "o/predictions.jsonl holds the answers of another adapter" in said


def test_a_name_that_the_terminal_cannot_write_loses_no_prediction(two_adapters, tmp_path, monkeypatch):
    np.save(tmp_path / "\u6d4b\u8bd5 \u00e9.npy", np.random.default_rng(0).normal(size=(80, 3)))
    written = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    for name, stream in written.items():  # as PYTHONIOENCODING=ascii makes them
        monkeypatch.setattr(sys, name, stream)
    code = main(["predict", str(two_adapters[0]), "\u6d4b\u8bd5 \u00e9.npy", "\u00e9.npy", "--device=cpu"])
    monkeypatch.undo()
    for stream in written.values():
        stream.flush()
    said, errors = (stream.buffer.getvalue().decode("ascii") for stream in written.values())
    assert code == 1  # of the file that is not there
    assert r"%  \u6d4b\u8bd5 \xe9.npy" in said
    assert r"\xe9.npy" in errors


def test_ctrl_c_is_put_back_as_it_was(monkeypatch):
    import pointpeft.cli.commands.info

    seen = []

    def note(command):
        seen.append(signal.getsignal(signal.SIGINT))
        return 0

    monkeypatch.setattr(pointpeft.cli.commands.info, "run", note)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    try:
        assert main(["info"]) == 0
        assert seen != [signal.default_int_handler]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("typed", "meant"), [("finetun", "finetune"), ("predit", "predict"), ("few_shot", "few-shot")])
def test_a_misspelt_command_gets_a_suggestion(typed, meant, capsys):
    with pytest.raises(SystemExit) as end:
        main([typed, "scans/"])
    assert end.value.code == 2
    assert capsys.readouterr().err == f"pointpeft: error: unknown command {typed!r}; did you mean {meant}?\n"


def test_a_misspelt_option_gets_a_suggestion(capsys):
    with pytest.raises(SystemExit) as end:
        main(["finetune", "--epoch=3"])
    assert end.value.code == 2
    assert "--epochs" in capsys.readouterr().err


def test_print_result_and_log_agree_on_the_epoch_and_a_log_gets_a_line_for_each(clouds_folder, tmp_path, capsys):
    run = tmp_path / "run"
    options = [option for option in QUICK if option != "--quiet" and not option.startswith("--epochs")]
    assert main(["finetune", str(clouds_folder), *options, "--epochs=3", "--select=last", f"--output={run}"]) == 0
    said = capsys.readouterr()
    assert re.search(r"epoch selected +3 of 3", said.out)
    assert json.loads((run / "result.json").read_text())["selection"]["epoch"] == 3
    log = (run / "log.csv").read_text().splitlines()
    assert log[0].startswith("epoch,")
    assert [line.split(",")[0] for line in log[1:]] == ["1", "2", "3"]
    assert "\r" not in said.err
    assert [line.split(", ")[0].rsplit(":", 1)[0] for line in said.err.splitlines() if "epoch" in line] == [
        f"dapt: epoch {epoch} of 3" for epoch in (1, 2, 3)
    ]
