"""A service that classifies clouds sent to it, or their parts, and a page that a scan is dropped on."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pointpeft.checkpoints.export import folded
from pointpeft.data import DataError
from pointpeft.data.formats.bounds import NUMBER_BYTES, brief, limited
from pointpeft.data.formats.readers import EXTENSIONS
from pointpeft.drawing import viewer
from pointpeft.drawing.card import PART
from pointpeft.tasks.adapted import Adapted
from pointpeft.tasks.base import AnyTask, create_task
from pointpeft.tasks.batches import fit
from pointpeft.tasks.inference import forward_all
from pointpeft.view import show
from pointpeft.view.service_page import page_of
from pointpeft.view.token_maps import observe

REMEDY = "the service needs packages that are not installed: pip install 'pointpeft[serve]'"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")


@dataclass(frozen=True)
class Limits:
    """Limits of requests.

    Attributes:
        megabytes: Largest file.
        seconds: From the end of a request's header to its answer.
        batch: Most clouds in one pass of the model.
        wait: Seconds that a pass waits for further clouds.
        queue: Most requests under way; more are turned away.
        header_seconds: From the opening of a connection to the end of a request's header.
        connections: Most open connections, where the system allows as many open files.
    """

    megabytes: float = 64.0
    seconds: float = 30.0
    batch: int = 16
    wait: float = 0.01
    queue: int = 64
    header_seconds: float = 5.0
    connections: int = 512

    def __post_init__(self) -> None:
        for name in ("megabytes", "seconds", "batch", "queue", "header_seconds", "connections"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0, got {getattr(self, name)}")
        if not self.wait >= 0:
            raise ValueError(f"wait must be at least 0, got {self.wait}")


class Batcher:
    """Batches clouds that arrive close together into one forward pass, in a thread of its own."""

    def __init__(self, adapted: Adapted, limits: Limits):
        self.adapted, self.limits = adapted, limits
        self.passes = 0
        self._waiting: asyncio.Queue[tuple[Tensor, asyncio.Future[Tensor]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "pointpeft-model")

    async def classify(self, cloud: Tensor) -> Tensor:
        """Probabilities of one cloud. [N, 3] -> [classes]"""
        answer: asyncio.Future[Tensor] = asyncio.get_running_loop().create_future()
        await self._waiting.put((cloud, answer))
        return await answer

    async def alone(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a function that calls the model itself, between the batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def run(self) -> None:
        """Serves until it is cancelled."""
        while True:
            batch = [await self._waiting.get()]
            end = time.monotonic() + self.limits.wait
            while len(batch) < self.limits.batch and (left := end - time.monotonic()) > 0:
                try:
                    batch.append(await asyncio.wait_for(self._waiting.get(), left))
                except asyncio.TimeoutError:
                    break
            clouds, answers = zip(*batch, strict=True)
            try:
                loop = asyncio.get_running_loop()
                probabilities = await loop.run_in_executor(self._thread, self._forward, torch.stack(clouds))
            except Exception as error:
                for answer in answers:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for answer, row in zip(answers, probabilities, strict=True):
                if not answer.done():  # its request may have run out of time
                    answer.set_result(row)

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    @torch.no_grad()
    def _forward(self, clouds: Tensor) -> Tensor:
        self.passes += 1
        return forward_all(self.adapted.model, clouds, self.limits.batch, self.adapted.device).softmax(1)


def server_config(app: Any, limits: Limits, host: str, port: int) -> Any:
    """How uvicorn runs the service: with bounds on the open connections and on the time of a request's header.

    Args:
        app: Of `create_app`.
        limits: The limits.
        host: Address to listen on.
        port: Port to listen on.

    Raises:
        ImportError: uvicorn is not installed.
        ValueError: The process may open too few files.
    """
    try:
        import uvicorn

        from pointpeft.view.service_connections import connection_limits, guarded
    except ImportError as error:
        raise ImportError(REMEDY) from error
    connections, waiting = connection_limits(limits.connections)
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=guarded(limits.header_seconds, connections),
        ws="none",
        loop="asyncio",  # another one accepts more connections at once than may wait
        backlog=waiting,
        log_level="warning",
        timeout_keep_alive=5,
    )


def create_app(
    adapted: Adapted,
    limits: Limits | None = None,
    hosts: tuple[str, ...] = LOOPBACK,
    *,
    drop_non_finite: bool = False,
) -> Any:
    """The service as an ASGI application.

    `POST /predict?name=scan.ply` with the file as its body gives the class, with `&layers=true` also the token maps; a
    model of part segmentation gives the part of each point, and `&category=chair` names the category of the cloud.
    `GET /health` gives the state of the service; `GET /` is the page. Requests for another host name, and those that
    pages of other origins make, are refused, so that a web site that a visitor opens cannot use a service on the
    visitor's own machine.

    Args:
        adapted: A classifier of clouds, or a model of part segmentation.
        limits: None for the defaults.
        hosts: Names under which it may be called; "*" for any.
        drop_non_finite: Leave points out that are not finite; an answer says how many as "left_out".

    Raises:
        ValueError: A model of scenes, or one that needs inputs beside the coordinates and the category.
        ImportError: FastAPI is not installed.
    """
    try:
        from fastapi import FastAPI, Request
        from fastapi.responses import HTMLResponse, JSONResponse
        from starlette.requests import ClientDisconnect
    except ImportError as error:
        raise ImportError(REMEDY) from error
    task = create_task(adapted.model.task)
    if not task.served or adapted.model.method.inputs:
        raise ValueError("serve is for classifiers of clouds and of parts that need nothing but coordinates")
    adapted = replace(adapted, model=folded(adapted.model))
    limits = limits or Limits()
    largest = int(limits.megabytes * 2**20)
    batcher = Batcher(adapted, limits)
    readers = ThreadPoolExecutor(4, "pointpeft-reader")
    started, busy, answered = time.monotonic(), 0, 0

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(batcher.run())
        yield
        running.cancel()
        batcher.close()
        readers.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(title="pointpeft", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Any:
        host = request.headers.get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        origin = request.headers.get("origin")
        if "*" not in hosts and name not in hosts:
            return JSONResponse({"error": f"this service does not answer for the host {name!r}"}, 400)
        if origin is not None and origin.partition("://")[2] != host:
            return JSONResponse({"error": "requests from pages of other origins are refused"}, 403)
        response = await call_next(request)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Content-Security-Policy"] = (
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        )
        return response

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "backbone": adapted.model.backbone_name,
            "method": adapted.model.method.name,
            "task": adapted.model.task,
            "classes": list(adapted.classes),
            "device": str(adapted.device),
            "seconds_up": round(time.monotonic() - started, 1),
            "requests_answered": answered,
            "requests_under_way": busy,
            "model_passes": batcher.passes,
        }

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(page_of(adapted, limits.megabytes))

    @app.post("/predict")
    async def predict(request: Request, name: str, layers: bool = False, category: str | None = None) -> JSONResponse:
        nonlocal busy, answered
        if busy >= limits.queue:
            return JSONResponse({"error": "too many requests under way; try again"}, 503)
        busy += 1
        try:
            result = await asyncio.wait_for(_answer(request, name, layers, category), limits.seconds)
        except asyncio.TimeoutError:
            return JSONResponse({"error": f"not done within {limits.seconds:g} seconds"}, 504)
        except _TooLarge:
            return JSONResponse({"error": f"the file must be of at most {limits.megabytes:g} MB"}, 413)
        except DataError as error:
            return JSONResponse({"error": str(error)}, 422)
        except ClientDisconnect:
            return JSONResponse({"error": "the connection was closed before the end of the file"}, 400)
        except OSError as error:  # no space, or no open file, left
            return JSONResponse({"error": f"the file cannot be stored now: {error.strerror}"}, 503)
        finally:
            busy -= 1
        answered += 1
        return JSONResponse(result)

    async def _answer(request: Request, name: str, looks: bool, category: str | None) -> dict[str, Any]:
        index = _category_index(task, adapted, category)
        suffix = Path(name).suffix.lower()
        if suffix not in EXTENSIONS:  # it becomes a part of a path
            raise DataError(f"{brief(name)}: unknown kind of file; known: {' '.join(EXTENSIONS)}")
        if int(request.headers.get("content-length", "0")) > largest:
            raise _TooLarge
        with tempfile.TemporaryDirectory(prefix="pointpeft-") as folder:
            path, size = Path(folder) / f"cloud{suffix}", 0
            with open(path, "wb") as file:
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > largest:
                        raise _TooLarge
                    file.write(chunk)
            loop = asyncio.get_running_loop()
            dropped: dict[str, int] = {}
            read = partial(_read, dropped=dropped) if drop_non_finite else _read
            cloud = await loop.run_in_executor(
                readers, _read_bounded, largest, read, task, adapted, path, Path(name).name
            )
        left_out = {"left_out": sum(dropped.values())} if dropped else {}
        name = Path(name).name
        if not task.streams:  # its answer is of the points, and is drawn
            card = await batcher.alone(task.card, adapted, cloud, name, observe, index)
            labels, parts = card.labels[PART]
            counts = labels.bincount(minlength=len(parts)).tolist()
            shares = {part: round(n / len(labels), 4) for part, n in zip(parts, counts, strict=True) if n}
            layers = show.entry(card)["layers"]
            return {
                "name": name,
                "category": card.predicted,
                "parts": shares,
                "points": viewer.quantised(cloud),
                "layers": layers,
                **left_out,
            }
        probabilities = await batcher.classify(cloud)
        best = probabilities.topk(min(3, len(adapted.classes)))
        top = [
            {"class": adapted.classes[i], "probability": round(p, 4)}
            for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        answer = {"name": name, **top[0], "top": top, "points": viewer.quantised(cloud), **left_out}
        if looks:
            observation = await batcher.alone(observe, adapted.model, cloud)
            answer["layers"] = {layer: viewer.amounts(values) for layer, values in observation.layers.items()}
        return answer

    return app


class _TooLarge(Exception):
    pass


def _category_index(task: AnyTask, adapted: Adapted, category: str | None) -> int:
    """Index of the category that a request names."""
    try:
        return task.category_index(adapted, category)
    except ValueError as error:
        raise DataError(str(error).replace("--category", "category=")) from error


def _read_bounded(
    largest: int, read: Callable[..., Tensor], task: AnyTask, adapted: Adapted, path: Path, name: str
) -> Tensor:
    with limited(NUMBER_BYTES * largest):  # what the largest file becomes where it is not compressed
        return read(task, adapted, path, name)


def _read(task: AnyTask, adapted: Adapted, path: Path, name: str, dropped: dict[str, int] | None = None) -> Tensor:
    """The cloud of a file as the model takes it; an error names the file as it was sent. [N, 3]"""
    try:
        points = task.read(adapted, path, False if dropped is None else dropped)
    except (DataError, OSError) as error:
        raise DataError(str(error).replace(str(path), name)) from error
    return fit(points, adapted.num_points)
