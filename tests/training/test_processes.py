"""Two gloo processes against one: the same batches, losses and weights."""

import csv
import json
import multiprocessing
import os
import socket
import traceback
from unittest import mock

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn

from pointpeft.runs.config import FinetuneConfig
from pointpeft.runs.finetune import finetune
from pointpeft.runs.plan import ModelPlan
from pointpeft.training.processes import share, sum_gradients
from pointpeft.training.sync_batch_norm import sync_batch_norm
from tests.clouds import TINY, TINY_MODEL

# Processes add the same numbers in another order. In float64 that is all: measured up to 2e-11. In float32 AdamW makes
# more of it, as it divides by the size of the gradient: that of a bias before a BatchNorm is nothing but rounding.
ROUNDING = 1e-8


def _child(work, rank, world, port, errors):
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    if world > 1:  # what torch.distributed.run and accelerate launch set
        os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    # GNU's OpenMP hangs in the first parallel region of a fork whose parent has had one.
    os.environ["OMP_NUM_THREADS"] = "1"  # or accelerate sets as many as there are cores
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        work(rank)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    except BaseException:
        errors.put(traceback.format_exc())
        raise


def launch(world, work):
    """Runs `work(rank)` in forked processes, which spares them the imports; all must succeed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    errors = context.SimpleQueue()
    children = [context.Process(target=_child, args=(work, r, world, port, errors)) for r in range(world)]
    for child in children:
        child.start()
    try:
        for child in children:
            child.join(300)
        codes = [child.exitcode for child in children]
        assert codes == [0] * world, "no error" if errors.empty() else errors.get()
    finally:
        for child in children:
            child.kill()


def config_of(data, output, **changes):
    options = {"method": "full", "lr": 1e-3, "sync_batchnorm": True, "checkpoint": "none", "device": "cpu", **TINY}
    options |= {"set": TINY_MODEL[:-1], "quiet": True} | changes
    return FinetuneConfig(data=str(data), output=output, **options)


def in_float64(config):
    """A run without dropout, of which every process draws its own."""

    build = ModelPlan.build

    def build_double(plan, outputs):
        model = build(plan, outputs).double()
        model.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
        return model

    def work(rank):
        with mock.patch.object(nn.Dropout, "forward", lambda self, x: x):
            with mock.patch.object(ModelPlan, "build", build_double):
                finetune(config)

    return work


def history(folder):
    with open(folder / "log.csv") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def weights(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize(("method", "accumulate"), [("full", 1), ("dapt", 2)])
def test_two_processes_train_as_one(clouds_folder, tmp_path, method, accumulate):
    options = ("rank=4", "dropout=0") if method == "dapt" else ()
    changes = {"method": method, "set": (*TINY_MODEL[:-1], *options), "accumulate": accumulate}
    folders = [tmp_path / "one", tmp_path / "two"]
    for world, folder in zip((1, 2), folders, strict=True):
        launch(world, in_float64(config_of(clouds_folder, folder, **changes)))
    one, two = map(history, folders)
    assert len(one) == len(two) == TINY["epochs"]
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        for name in first.keys() - {"seconds"}:
            # Logits are measured in float32.
            assert second[name] == pytest.approx(first[name], abs=1e-6 if "val" in name else ROUNDING), name
    results = [json.loads((folder / "result.json").read_text()) for folder in folders]
    for part in ("test", "validation", "clouds"):  # each cloud counted once
        assert results[1][part] == results[0][part], part
    if method == "dapt":
        assert results[1]["linear_probe"]["loss"] == pytest.approx(results[0]["linear_probe"]["loss"], abs=0.02)
    first, second = map(weights, folders)
    assert first.keys() == second.keys()
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=0, atol=ROUNDING, msg=lambda text, n=name: f"{n}: {text}")


def test_two_processes_resume_to_the_same_weights(clouds_folder, tmp_path):
    changes = {"method": "dapt", "set": TINY_MODEL, "probe": False, "sync_batchnorm": False, "epochs": 2}
    changes["select"] = "last"

    class Stopped(Exception):
        pass

    def stop(model, state):
        if state.epoch == 2:
            raise Stopped
        return {}

    def work(rank):
        finetune(config_of(clouds_folder, tmp_path / "whole", **changes))
        with mock.patch("pointpeft.training.selection.Selector.after_epoch", lambda self, *args: stop(*args)):
            with pytest.raises(Stopped):
                finetune(config_of(clouds_folder, tmp_path / "part", **changes))
        assert not (tmp_path / "part" / "adapter").exists()
        finetune(FinetuneConfig(resume=tmp_path / "part", device="cpu"))

    launch(2, work)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "part")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_batch_norm_of_two_processes_is_that_of_one(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = 3 + torch.randn(7, 5, 4, dtype=torch.float64, generator=generator)
    weight = torch.randn(7, 5, 4, dtype=torch.float64, generator=generator)  # of the outputs in the loss

    def step(rows):
        norm = nn.BatchNorm1d(5, dtype=torch.float64)
        assert sync_batch_norm(norm) == 1
        part = x[rows].clone().requires_grad_()
        y = norm(part)
        (y * weight[rows]).sum().backward()
        return norm, part, y

    def work(rank):
        torch.distributed.init_process_group("gloo")
        norm, part, y = step(share(7, rank, 2))
        sum_gradients([*norm.parameters(), unused := nn.Parameter(torch.zeros(2))])
        assert unused.grad is None
        grads = [p.grad for p in norm.parameters()]
        torch.save([part.grad, y.detach(), *grads, *norm.buffers()], tmp_path / f"{rank}.pt")

    launch(2, work)
    norm, part, y = step(slice(None))  # one process: torch's own
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    expected = [part.grad, y, *(p.grad for p in norm.parameters()), *norm.buffers()]
    for i, want in enumerate(expected):
        got = [torch.cat([first[i], second[i]])] if i < 2 else [first[i], second[i]]
        for value in got:
            torch.testing.assert_close(value, want.detach(), rtol=1e-12, atol=1e-12)


def test_the_gradient_of_a_penalty_on_gradients_is_that_of_one_process(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x, weight = 3 + torch.randn(2, 7, 5, dtype=torch.float64, generator=generator)

    def step(rows):
        norm = nn.BatchNorm1d(5, dtype=torch.float64)
        sync_batch_norm(norm)
        part = x[rows].clone().requires_grad_()
        (first,) = torch.autograd.grad((norm(part) ** 3 * weight[rows]).sum(), part, create_graph=True)
        return torch.autograd.grad((first * weight[rows]).square().sum(), part)[0]

    def work(rank):
        torch.distributed.init_process_group("gloo")
        torch.save(step(share(7, rank, 2)), tmp_path / f"{rank}.pt")

    launch(2, work)
    got = torch.cat([torch.load(tmp_path / f"{rank}.pt") for rank in range(2)])
    torch.testing.assert_close(got, step(slice(None)), rtol=1e-9, atol=1e-9)
