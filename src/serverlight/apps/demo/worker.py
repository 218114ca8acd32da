"""One device of the demo, a process of its own: ``python -m serverlight.apps.demo.worker MODEL``.

It reads JSON lines from standard input and ends with it. The first line says how images are to be classified::

    {"data": "demo-vision", "limit": null, "modes": {KEY: MODE, ...}, "address": "127.0.0.1:50051"}

Each further line is a job, ``{"key": KEY, "images": [0, 3, ...], "lead_in": 1}``. For every image it prints a line with the
fields of :class:`Answer`, and at the end of a job ``{"done": KEY}``; before the first it prints ``{"ready": REVISION}``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from serverlight.apps.demo.modes import DEVICE, PNG, RAW, Mode
from serverlight.apps.vision import JPEG_QUALITY, load_model_images, predicted_class
from serverlight.errors import ConfigError, ServerlightError
from serverlight.models import LoadedModel, load_model
from serverlight.models.images import encode_jpeg, encode_png
from serverlight.partition import Partition, partition
from serverlight.runtime import Client, connect

__all__ = ["Answer", "main"]

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What one image gave and took."""

    key: str
    """The mode's key."""

    image: int
    """Index of the image."""

    is_lead_in: bool
    """Whether it was sent to warm up and does not count."""

    predicted: int
    """The class."""

    latency_ms: float
    """From the pixels to the class."""

    device_ms: float
    """Of that, the device's own work: file encoding, or preprocessing, head and codec."""

    uplink_bytes: int
    """Every byte of the request's message."""

    process_cpu_ms: float | None
    """CPU time of the server process since its start, as of this request's end; none without a server."""


class Device:
    """A model, its heads, and a connection for each mode that has a server."""

    def __init__(self, model: LoadedModel, parts: Partition, address: str) -> None:
        if model.preprocess is None:
            raise ConfigError("model", f"{model.name!r} has no known image preprocessing; use another")
        self._model, self._preprocess, self._parts, self._address = model, model.preprocess, parts, address
        self._answer: dict[str, Callable[[Pixels], tuple[Any, float, int, float | None]]] = {}

    def open(self, key: str, mode: Mode) -> None:
        """Makes ready to answer in this mode."""
        if mode.mode == DEVICE or mode.plan is None:
            _, whole = self._parts.split(self._parts.cuts[0])
            self._answer[key] = lambda image: self._alone(whole, image)
            return
        client = connect(self._address, plan=mode.plan, model=self._parts)
        if mode.mode in RAW:
            encode = encode_png if mode.mode == PNG else lambda image: encode_jpeg(image, JPEG_QUALITY)
            self._answer[key] = lambda image: self._send_file(client, encode, image)
        else:
            self._answer[key] = lambda image: self._send_feature(client, image)

    def answer(self, key: str, image: Pixels, index: int, *, is_lead_in: bool) -> Answer:
        """Classifies one image, uint8 (H, W, C)."""
        started_s = time.perf_counter()
        outputs, device_ms, uplink_bytes, process_cpu_ms = self._answer[key](image)
        return Answer(
            key=key,
            image=index,
            is_lead_in=is_lead_in,
            predicted=predicted_class(outputs),
            latency_ms=(time.perf_counter() - started_s) * 1e3,
            device_ms=device_ms,
            uplink_bytes=uplink_bytes,
            process_cpu_ms=process_cpu_ms,
        )

    def _alone(self, whole: torch.nn.Module, image: Pixels) -> tuple[Any, float, int, None]:
        started_s = time.perf_counter()
        with torch.inference_mode():
            outputs = whole(self._preprocess(image[None]))
        return outputs, (time.perf_counter() - started_s) * 1e3, 0, None

    def _send_file(
        self, client: Client, encode: Callable[[Pixels], bytes], image: Pixels
    ) -> tuple[Any, float, int, float]:
        started_s = time.perf_counter()
        file = encode(image)
        device_ms = (time.perf_counter() - started_s) * 1e3
        result = client.infer_image(file)
        return result.outputs, device_ms, result.uplink_bytes, result.server.process_cpu_ms

    def _send_feature(self, client: Client, image: Pixels) -> tuple[Any, float, int, float]:
        started_s = time.perf_counter()
        inputs = self._preprocess(image[None])
        preprocess_ms = (time.perf_counter() - started_s) * 1e3
        result = client.infer_detailed(inputs)
        device_ms = preprocess_ms + result.head_ms + result.encode_ms
        return result.outputs, device_ms, result.uplink_bytes, result.server.process_cpu_ms


def main() -> NoReturn:
    """Answers until standard input ends."""
    torch.set_num_threads(1)
    lines: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), name="serverlight-stdin", daemon=True).start()
    try:
        _work(sys.argv[1], lines)
    except Exception as error:
        name = "" if isinstance(error, ServerlightError) else f"{type(error).__name__}: "
        print(f"error: {name}{error}", file=sys.stderr, flush=True)
        os._exit(1)  # an ordinary exit would stumble over the thread that is reading standard input


def _listen(lines: queue.SimpleQueue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        lines.put(json.loads(line))
    os._exit(0)  # whatever it is doing: nobody waits for it any more


def _work(spec: str, lines: queue.SimpleQueue[dict[str, Any]]) -> NoReturn:
    model = load_model(spec)
    parts = partition(model.module, model.example_inputs)
    _say({"ready": model.revision})
    setup = lines.get()
    data = load_model_images(model, setup["data"], setup["limit"])
    device = Device(model, parts, setup["address"])
    for key, mode in setup["modes"].items():
        device.open(key, Mode.from_dict(mode))
    while True:
        job = lines.get()
        key, images = job["key"], job["images"]
        for i in images[: job["lead_in"]]:
            _say(dataclasses.asdict(device.answer(key, data.images[i], i, is_lead_in=True)))
        for i in images:
            _say(dataclasses.asdict(device.answer(key, data.images[i], i, is_lead_in=False)))
        _say({"done": key})


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
