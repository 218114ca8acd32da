"""Models whose plans the benchmarks of the search measure, over sockets and an imitated link: the server is a process."""

from __future__ import annotations

import contextlib
import lzma
import os
import pathlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from serverlight.apps.load_run import Cores, bound_to
from serverlight.codec import CodecConfig
from serverlight.evaluation import load_images
from serverlight.generation import LoadedDecoder, num_layers_of
from serverlight.huggingface import find_folder
from serverlight.link import LinkConfig, LinkProxy
from serverlight.models import load_model
from serverlight.models.images import encode_jpeg
from serverlight.partition import partition
from serverlight.plan import TOKEN_IDS, Plan
from serverlight.runtime.connecting import connect
from serverlight.runtime.decoder_client import DecoderClient
from serverlight.search.calibrate import calibrate_table
from serverlight.search.constraints import Workload
from serverlight.search.measure import profile_model
from serverlight.search.quality import QualityTable
from serverlight.search.serving import served
from serverlight.search.steady import loop_ms

SHARED = pathlib.Path(os.environ.get("SERVERLIGHT_SHARED", pathlib.Path(__file__).parents[2] / "shared" / "data"))
JPEG_QUALITY = 90

PROMPT_TOKENS, NEW_TOKENS, TEXT_TOKENS = 64, 24, 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Of one plan: medians, or another quantile, over requests, or over the steps of some texts."""

    latency_ms: float
    first_token_ms: float | None
    uplink_bytes: float
    server_ms: float
    """Processor time of the server's whole process for a request or step."""


class Subject(Protocol):
    """A model with what it runs on."""

    name: str
    spec: str
    workload: Workload

    def calibrate(
        self, cuts: Sequence[str], configs: Sequence[CodecConfig] | None, budget: float | None
    ) -> QualityTable:
        """On the calibration set."""

    def evaluate(self, cut: str, configs: Sequence[CodecConfig]) -> dict[CodecConfig, float]:
        """Losses in percentage points on other samples, in full."""

    def measure(
        self, address: str, cut: str, codec: CodecConfig, *, is_raw: bool, requests: int, quantile: float = 0.5
    ) -> Measured:
        """Over a link."""


class Images:
    """A classifier of images."""

    def __init__(self, name: str, spec: str, calibration: str, test: str, *, samples: int, offset: int = 0) -> None:
        self.name, self.spec = name, spec
        self._model = load_model(spec)
        self._parts = partition(self._model.module, self._model.example_inputs)
        channels = (self._model.image_shape or (0, 0, 3))[2]
        self._calibration = load_images(calibration, channels=channels).images[:samples]
        self._test = load_images(test, channels=channels).images[offset : offset + samples]
        self._files = [encode_jpeg(image, JPEG_QUALITY) for image in self._test]
        # What the image costs is known from those that are not measured.
        sizes = [len(encode_jpeg(image, JPEG_QUALITY)) for image in self._calibration]
        self.workload = Workload(input_bytes=round(statistics.fmean(sizes)))

    def calibrate(
        self, cuts: Sequence[str], configs: Sequence[CodecConfig] | None, budget: float | None
    ) -> QualityTable:
        """On the calibration set."""
        return self._table(self._calibration, cuts, configs, budget)

    def evaluate(self, cut: str, configs: Sequence[CodecConfig]) -> dict[CodecConfig, float]:
        """On the others."""
        return {row.codec: row.loss_pp for row in self._table(self._test, [cut], configs, None).rows}

    def _table(
        self, images: Any, cuts: Sequence[str], configs: Sequence[CodecConfig] | None, budget: float | None
    ) -> QualityTable:
        assert self._model.preprocess is not None
        samples = self._model.preprocess(images)
        return calibrate_table(self._model, samples, cuts=cuts, configs=configs, budget=budget, parts=self._parts)

    def measure(
        self, address: str, cut: str, codec: CodecConfig, *, is_raw: bool, requests: int, quantile: float = 0.5
    ) -> Measured:
        """Over a link."""
        assert self._model.preprocess is not None
        plan = Plan(model=self._model.name, revision=self._model.revision, cut=cut, codec=codec)
        times_ms, sizes, servers_ms = list[float](), list[float](), list[float]()
        before_ms: float | None = None
        inputs = [self._model.preprocess(image[None]) for image in self._test[: requests + 3]]
        with connect(address, plan=plan, model=self._parts) as client:
            for i, x in enumerate(inputs):
                started_s = time.perf_counter()
                result = client.infer_image(self._files[i]) if is_raw else client.infer_detailed(x)
                took_ms, now_ms = (time.perf_counter() - started_s) * 1e3, result.server.process_cpu_ms
                if i >= 3 and before_ms is not None:
                    times_ms.append(took_ms)
                    sizes.append(result.uplink_bytes)
                    servers_ms.append(now_ms - before_ms)
                before_ms = now_ms
        return Measured(
            latency_ms=_quantile(times_ms, quantile),
            first_token_ms=None,
            uplink_bytes=statistics.fmean(sizes),
            server_ms=_quantile(servers_ms, quantile),
        )


class Texts:
    """A language model."""

    def __init__(self, name: str, spec: str, text: str, *, samples: int) -> None:
        self.name, self.spec = name, spec
        self.workload = Workload(prompt_tokens=PROMPT_TOKENS, new_tokens=NEW_TOKENS)
        self._head = LoadedDecoder.head(spec, f"layers.{num_layers_of(spec)}", dtype=torch.float32)
        self._tail = LoadedDecoder.tail(spec, "layers.0", dtype=torch.float32)
        windows = _windows(SHARED / text, spec)
        self._calibration, self._test = windows[:samples], windows[samples : 2 * samples]

    def calibrate(
        self, cuts: Sequence[str], configs: Sequence[CodecConfig] | None, budget: float | None
    ) -> QualityTable:
        """On the calibration set."""
        return calibrate_table((self._head, self._tail), self._calibration, cuts=cuts, configs=configs, budget=budget)

    def evaluate(self, cut: str, configs: Sequence[CodecConfig]) -> dict[CodecConfig, float]:
        """On the others."""
        table = calibrate_table((self._head, self._tail), self._test, cuts=[cut], configs=configs, budget=None)
        return {row.codec: row.loss_pp for row in table.rows}

    def measure(
        self, address: str, cut: str, codec: CodecConfig, *, is_raw: bool, requests: int, quantile: float = 0.5
    ) -> Measured:
        """Over a link."""
        sends = TOKEN_IDS if is_raw else None
        plan = Plan(model=self._head.name, revision=self._head.revision, cut=cut, codec=codec, sends=sends)
        client = DecoderClient([address], plan=plan, head=self._head)
        times_ms, firsts_ms, sizes, servers_ms = list[float](), list[float](), list[float](), list[float]()
        for number, text in enumerate(self._test):
            before_ms: float | None = None
            last_s = time.perf_counter()
            for step, token in enumerate(client.stream(text[:PROMPT_TOKENS], max_new_tokens=NEW_TOKENS)):
                now_s, now_ms = time.perf_counter(), token.cost.server.process_cpu_ms
                if step and before_ms is not None:
                    times_ms.append((now_s - last_s) * 1e3)
                    sizes.append(token.cost.uplink_bytes)
                    servers_ms.append(now_ms - before_ms)
                elif number:  # the first of all also connects
                    firsts_ms.append((now_s - last_s) * 1e3)
                last_s, before_ms = now_s, now_ms
            if len(times_ms) >= requests and number:
                break
        return Measured(
            latency_ms=_quantile(times_ms, quantile),
            first_token_ms=_quantile(firsts_ms, quantile),
            uplink_bytes=statistics.fmean(sizes),
            server_ms=_quantile(servers_ms, quantile),
        )


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _windows(path: pathlib.Path, spec: str) -> list[list[int]]:
    from tokenizers import Tokenizer

    data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    tokenizer = Tokenizer.from_file(str(find_folder(spec, ["tokenizer.json"]) / "tokenizer.json"))
    ids = tokenizer.encode(data.decode()[:2_000_000]).ids
    return [ids[at : at + TEXT_TOKENS] for at in range(0, len(ids) - TEXT_TOKENS, TEXT_TOKENS)]


def load_subject(name: str, samples: int) -> Subject:
    """By the name that the benchmarks' options take."""
    cifar = str(SHARED / "vision_cifar10" / "cifar10_test_first1000.npz")
    match name:
        case "demo-vision":
            return Images(name, name, "demo-vision:calibration", "demo-vision", samples=samples)
        case "resnet56":
            spec = str(SHARED / "vision_cifar10" / "resnet56.safetensors")
            return Images(name, spec, cifar, cifar, samples=min(samples, 500), offset=500)
        case "demo-lm":
            return Texts(name, name, "text_corpora/fairytaleqa_valid.txt.xz", samples=max(8, samples // 10))
        case "stories260K":
            spec = str(SHARED / "lm" / "stories260K_llama")
            return Texts(name, spec, "tinystories/tinystories_excerpt_30k.txt", samples=max(8, samples // 10))
    raise SystemExit(f"no model {name!r}")


NAMES = ("demo-vision", "demo-lm", "resnet56", "stories260K")


def quality_table(subject: Subject, folder: pathlib.Path | None, budget: float | None) -> QualityTable:
    """What settings lose at each cut, from the folder where it lies there already."""
    path = None if folder is None else folder / f"{subject.name}.quality.json"
    if path is not None and path.exists():
        return QualityTable.load(path)
    cuts = [cut.name for cut in profile_model(subject.spec).cuts if cut.name != "output"]
    table = subject.calibrate(cuts, None, budget)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        table.save(path)
    return table


class Linked:
    """A server behind a link that can be set."""

    def __init__(self, proxy: LinkProxy, core: int | None) -> None:
        self._proxy, self._core, self.address = proxy, core, proxy.address

    def set(self, link: LinkConfig) -> None:
        """From now on."""
        self._proxy.set_link(link)

    def core_ms(self) -> float:
        """What a fixed loop takes just now on the server's core: longer where others have a part of it."""
        with bound_to(self._core):
            return loop_ms()


@contextlib.contextmanager
def linked_server(subject: Subject, cuts: Sequence[str]) -> Iterator[Linked]:
    """One thread in a process of its own; device and server have a core each where there are two."""
    cores = Cores.choose()
    with contextlib.ExitStack() as stack:
        with bound_to(cores.server):  # what is started now inherits it
            serving = stack.enter_context(served(subject.spec, threads=1))
        stack.enter_context(bound_to(cores.devices))
        with LinkProxy(serving.address(list(cuts)), LinkConfig()) as proxy:
            yield Linked(proxy, cores.server)
