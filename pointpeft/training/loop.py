"""The training loop: forward, backward and step in one place, for pre-training, adaptation and the probe."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from pointpeft.progress import log_epoch, make_bar
from pointpeft.training.checkpoint_format import FORMAT, upgraded
from pointpeft.training.divergence import Divergence, require_finite_weights
from pointpeft.training.ema import averaged, follow, load
from pointpeft.training.memory import keep_freed_memory, peak_memory
from pointpeft.training.processes import augment_share, broadcast_trained, largest, sum_gradients, total_of
from pointpeft.training.run_folder import RunFolder
from pointpeft.training.seeds import derive_seed
from pointpeft.training.sync_batch_norm import average_statistics

FLOOR = 1e-6  # learning rate at the very start and end


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of training.

    Attributes:
        epochs: Passes over the data, the length of the cosine.
        warmup: Share of the schedule with a linearly rising learning rate.
        per_epoch: Whether the learning rate changes between epochs alone, as published, or at every step.
        double_step: Steps twice per batch with one gradient, before clipping and after, as the published segmentation
            code does.
        ema: Decay per step of the average of the trained weights which is measured and kept; None: of none.
        patience: Epochs without a better one after which training stops; None: never.
        stop: Epochs after which training stops, whatever the schedule; None: with the schedule.
        time_limit: Seconds of training after which the schedule has ended, whatever the epochs; None: no limit.
    """

    epochs: int
    lr: float
    weight_decay: float = 0.05
    clip: float = 10.0
    warmup: float = 0.0
    accumulate: int = 1
    per_epoch: bool = True
    time_limit: float | None = None
    seed: int = 0
    double_step: bool = False
    ema: float | None = None
    patience: int | None = None
    stop: int | None = None

    def __post_init__(self) -> None:
        for name, bound in (("epochs", 1), ("accumulate", 1), ("lr", 0), ("weight_decay", 0), ("warmup", 0)):
            if not getattr(self, name) >= bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        for name in ("lr", "weight_decay"):
            if math.isinf(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"ema must be at least 0 and below 1, got {self.ema}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1, got {self.patience}")
        for name in ("clip", "time_limit"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def rate(self, progress: float) -> float:
        """Learning rate at a share of the schedule: linear up from the floor, then a cosine down to it."""
        if progress < self.warmup:
            return FLOOR + (self.lr - FLOOR) * progress / self.warmup
        along = min(1.0, (progress - self.warmup) / max(1e-9, 1.0 - self.warmup))
        return FLOOR + 0.5 * (self.lr - FLOOR) * (1.0 + math.cos(math.pi * along))


@dataclass
class State:
    """Progress of a run; all of it is in the checkpoint.

    Attributes:
        epoch: Finished epochs; also the number of the last of them, in the log and in results.
        elapsed: Seconds of training, before and after a resumption.
        samples: Clouds seen by all processes.
        busy: Seconds of `elapsed` in forward, backward and step.
        peak_memory: Largest bytes in use so far.
        history: One row per epoch.
        ema: The average of the trained weights, by name.
        best: What `after_epoch` keeps of the selected epoch.
    """

    epoch: int = 0
    elapsed: float = 0.0
    samples: int = 0
    busy: float = 0.0
    peak_memory: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    ema: dict[str, Tensor] = field(default_factory=dict)


def train(
    accelerator: Accelerator,
    model: nn.Module,
    recipe: Recipe,
    batches: Callable[[int], Any],
    loss_of: Callable[[nn.Module, Tensor, Tensor], dict[str, Tensor]],
    folder: RunFolder,
    after_epoch: Callable[[nn.Module, State], dict[str, float]] | None = None,
    progress_bar: str | None = None,
    after_step: Callable[[], None] | None = None,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    compiled: Callable[[nn.Module], nn.Module] | None = None,
) -> State:
    """Trains what requires gradients, from the folder's checkpoint where it has one, and checkpoints every epoch.

    Every epoch starts by seeding all generators from (seed, epoch), so that a resumed run repeats what the killed one
    would have done, bit for bit on the CPU.

    Args:
        model: The bare model; changed in place.
        batches: The batches of an epoch: of several processes each gets its rows, `share`, of the same batch, and the
            sum of losses, each weighted by its share of the clouds, is minimised.
        loss_of: (model, points, labels) -> named losses, means over the clouds, whose sum is minimised.
        after_epoch: (model, state) -> numbers for the log; may keep the selected weights in `state.best`.
        progress_bar: Its title, or None for none.
        after_step: Called after every step, before the gradients are thrown away.
        augment: Changes points, with a generator on the device; the same numbers for any number of processes.
        compiled: What the training steps call instead of the model, such as `compiled_step`.

    Raises:
        NotFiniteError: The run diverged: a gradient, a loss or a weight is not finite. The last checkpoint stays.
    """
    device = accelerator.device
    model.to(device)
    fused = device.type in ("cpu", "cuda")  # one pass over a method's many small parameters
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe.weight_decay), lr=recipe.lr, fused=fused)
    state = _restore(folder, model, optimizer, device)
    world = accelerator.num_processes
    if world > 1:
        broadcast_trained(model)
    # In evaluation mode accelerate puts no DistributedDataParallel around it: see sum_gradients.
    wrapped = accelerator.prepare_model(model, evaluation_mode=world > 1)
    stepped = wrapped if compiled is None else compiled(wrapped)
    optimizer = accelerator.prepare_optimizer(optimizer)
    trainable = [p for p in model.parameters() if p.requires_grad]
    divergence = Divergence(recipe, device)
    title = progress_bar if accelerator.is_main_process else None
    bar = make_bar(title=title, total=recipe.epochs, initial=state.epoch, unit="epoch")
    while state.epoch < recipe.epochs and _progress(recipe, state, 0.0, 0.0) < 1.0 and not _is_over(recipe, state):
        generator = seed_everything(device, recipe.seed, state.epoch, 0)  # of augmentation, on all processes the same
        if world > 1:  # masks of dropout are each process's own
            torch.manual_seed(derive_seed(recipe.seed, state.epoch, accelerator.process_index))
        epoch_batches = batches(state.epoch)
        divergence.begin(state.epoch)
        started, totals, clouds = time.perf_counter(), {}, 0
        wrapped.train()
        for step, (points, labels) in enumerate(epoch_batches):
            within = (step + 1) / len(epoch_batches)
            progress = _progress(recipe, state, within, time.perf_counter() - started)
            if recipe.time_limit is not None:
                progress = largest(progress, device)
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(progress)
            boundary = (step + 1) % recipe.accumulate == 0 or step + 1 == len(epoch_batches)
            points, total = points.to(device), epoch_batches.sizes[step]
            with accelerator.autocast():
                if augment is not None:
                    points = augment_share(augment, points, total, generator)
                losses = divergence.losses(partial(loss_of, stepped, points, labels.to(device)), points)
                loss = sum(losses.values()) / recipe.accumulate
                if world > 1:
                    loss = loss * (len(labels) / total)
            accelerator.backward(loss)
            if boundary:
                if world > 1:
                    sum_gradients(trainable)
                if recipe.double_step:
                    optimizer.step()
                norm = accelerator.clip_grad_norm_(trainable, recipe.clip)
                divergence.step(step, recipe.rate(progress), norm)
                optimizer.step()
                if after_step is not None:
                    after_step()
                if recipe.ema is not None:
                    follow(state.ema, model, recipe.ema)
                optimizer.zero_grad()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.detach() * len(labels)
            clouds += total
            bar.set_postfix_str(f"step {step + 1}/{len(epoch_batches)}", refresh=False)
            bar.update(0)
            if recipe.time_limit is not None and progress >= 1.0:
                break
        row = {"epoch": state.epoch + 1, "lr": recipe.rate(progress)}
        row |= {name: float(total_of(value)) / clouds for name, value in totals.items()}
        divergence.end(row, _snapshot(model, optimizer, state))
        state.epoch += 1
        state.samples += clouds
        state.busy += time.perf_counter() - started
        state.peak_memory = max(state.peak_memory, peak_memory(device))
        if world > 1:
            average_statistics(model)
        wrapped.eval()
        with averaged(state.ema, model):
            measured = {} if after_epoch is None else divergence.measure(partial(after_epoch, model, state))
            if not measured:
                divergence.require_finite_loss(partial(loss_of, wrapped, points, labels.to(device)), points)
        row |= measured
        state.elapsed += largest(time.perf_counter() - started, device)
        row["seconds"] = state.elapsed
        state.history.append(row)
        folder.save_checkpoint(_snapshot(model, optimizer, state))
        folder.log(state.history)
        bar.set_postfix({name: f"{value:.4g}" for name, value in row.items() if name not in ("epoch", "seconds")})
        bar.update(1)
        if title is not None:
            log_epoch(title, row, recipe.epochs)
    load(state.ema, model)
    bar.close()
    accelerator.wait_for_everyone()
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False).eval()
    return state


def _progress(recipe: Recipe, state: State, within: float, seconds: float) -> float:
    """Completed share of the schedule: of the epochs, or of the time limit where that is larger."""
    by_epochs = (state.epoch + 1) / (recipe.epochs + 1) if recipe.per_epoch else (state.epoch + within) / recipe.epochs
    by_time = 0.0 if recipe.time_limit is None else (state.elapsed + seconds) / recipe.time_limit
    return max(by_epochs, by_time)


def _is_over(recipe: Recipe, state: State) -> bool:
    """Whether training is to stop, or the last `patience` epochs were no better than the one that is kept."""
    if recipe.stop is not None and state.epoch >= recipe.stop:
        return True
    if recipe.patience is None or not state.best:
        return False
    return state.epoch - state.best["epoch"] >= recipe.patience


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: 1-D ones, biases and tokens do not decay (the published rule)."""
    decay, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            small = parameter.ndim == 1 or name.endswith(".bias") or "token" in name
            (plain if small else decay).append(parameter)
    if not decay and not plain:
        raise ValueError("the model has nothing to train: no parameter requires a gradient")
    return [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all that training changes: trainable parameters, and buffers (statistics of normalisation layers)."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: value.detach().clone() for name, value in model.state_dict().items() if name not in frozen}


def restore_trained(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Puts `trained_state` back.

    Raises:
        ValueError: The state is that of another model.
    """
    expected = trained_state(model).keys()
    if expected != state.keys():
        differing = sorted(expected ^ state.keys())
        raise ValueError(f"the checkpoint is that of another model; {len(differing)} entries differ: {differing[:5]}")
    model.load_state_dict(state, strict=False)


def _snapshot(model: nn.Module, optimizer: Any, state: State) -> dict[str, Any]:
    return {"format": FORMAT, "model": trained_state(model), "optimizer": optimizer.state_dict(), **vars(state)}


def _restore(folder: RunFolder, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> State:
    saved = folder.load_checkpoint(device)
    if saved is None:
        return State()
    saved = upgraded(saved, f"the checkpoint in {folder.path}")
    require_finite_weights(saved["model"], f"the checkpoint in {folder.path}")
    restore_trained(model, saved.pop("model"))
    optimizer.load_state_dict(saved.pop("optimizer"))
    return State(**saved)


def seed_everything(device: torch.device, *keys: int | str) -> torch.Generator:
    """Seeds torch's own generators by a hash of `keys`, and returns another one on the device, seeded likewise."""
    seed = derive_seed(*keys)
    torch.manual_seed(seed)
    return torch.Generator(device=device).manual_seed(derive_seed(seed, "augmentation"))


def make_accelerator(device: str, precision: str = "float32") -> Accelerator:
    """An accelerator on the device; under `accelerate launch` each process takes its own.

    Raises:
        ValueError: The device does not exist here.
    """
    if device != "auto":
        try:
            chosen = torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}") from error
        if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device {device!r} is not here: {torch.cuda.device_count()} CUDA devices are visible")
    if "WORLD_SIZE" not in os.environ:  # accelerate keeps the first choice of a process; a later run may want another
        AcceleratorState._reset_state(reset_partial_state=True)
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)
    keep_freed_memory()
    mixed = {"float32": "no", "bf16": "bf16"}[precision]
    return Accelerator(cpu=device == "cpu", mixed_precision=mixed)
