"""The stages of a report, in their order."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from serverlight.apps.report import runner
from serverlight.apps.report.parts import Command, Function, Part, Stage
from serverlight.apps.report.records import Shelf
from serverlight.apps.report.settings import Settings, Subject
from serverlight.errors import ConfigError
from serverlight.evaluation.ablation import SPARSITIES
from serverlight.evaluation.tasks import catalogue

__all__ = ["BITS", "P95_MS", "STAGES", "STORIES"]

COMMANDS = "serverlight.apps.commands"
SERVE = f"{COMMANDS}.serve"
"""Started by what loads a server."""

P95_MS = 300.0
"""What the fleet's servers are counted for."""

BITS = 2.0
"""An element, of the fleet's frames."""

TOKENS_OF_A_DEVICE = 500
"""So many times fewer devices where each asks for a text instead of an image: a token is as much work for the simulation."""

TASK_SPARSITIES = "0.2,0.5"
MEMORY_TOKENS = (1, 16, 128, 512, 2048)
STORIES = "stories260K_llama"
"""A second language model, for its own cloze."""

CLOZE = "tinystories_cloze_dev"


def rates(settings: Settings) -> Iterator[Part]:
    """Every task of the codec's comparison."""
    budget = settings.budget
    for name in _task_names(settings):
        is_large = catalogue.is_large(name)
        count = budget.large_samples if is_large else budget.samples
        words = ["bench", "codec", "--tasks", name, "--no-speed", "--limit", str(count)]
        words += ["--codecs", budget.codecs] + (["--quick"] if budget.coarse else [])
        work = Command(words=(*words, *_data(settings)), modules=(f"{COMMANDS}.bench_codec",), resumes=True)
        yield _of_task(settings, name, work, minutes=0.7 if settings.is_quick else 3.5 if is_large else 2.5)


def ablation(settings: Settings) -> Iterator[Part]:
    """The tasks of the ablation."""
    budget = settings.budget
    for name in SPARSITIES if budget.ablation_tasks is None else budget.ablation_tasks:
        arguments = {"name": name, "data": _folder(settings), "samples": budget.ablation_samples}
        work = Function(module="serverlight.evaluation.ablation", name="ablate_task", arguments=arguments)
        yield _of_task(settings, name, work, minutes=0.2 if budget.ablation_samples else 1)


def frames(settings: Settings) -> Iterator[Part]:
    """What frames are made of, of every task."""
    for name in _task_names(settings):
        arguments = {"task": name, "data": _folder(settings)}
        work = Function(module="serverlight.apps.report.device_cost", name="frame_parts", arguments=arguments)
        yield _of_task(settings, name, work, minutes=0.2)


def device(settings: Settings) -> Iterator[Part]:
    """Time, memory and energy of the codec."""
    module = "serverlight.apps.report.device_cost"
    works: dict[str, tuple[dict[str, Any], float]] = {
        "times": ({"seconds": settings.budget.speed_s, "coarse": settings.is_quick}, 0.5 if settings.is_quick else 2.5),
        "memory": ({"tokens": MEMORY_TOKENS[1::2] if settings.is_quick else MEMORY_TOKENS}, 0.3),
        "energy": ({}, 0.2),
    }
    for name, (arguments, minutes) in works.items():
        yield Part(name=name, work=Function(module=module, name=name, arguments=arguments), minutes=minutes)


def quality(settings: Settings) -> Iterator[Part]:
    """What settings lose at each cut of each model."""
    for subject in settings.subjects:
        count = settings.budget.quality_texts if subject.kind == "language" else settings.budget.quality_samples
        words = ("calibrate", subject.spec, "--limit", str(count), *(("--data", subject.data) if subject.data else ()))
        work = Command(words=words, modules=(f"{COMMANDS}.calibrate",))
        yield _of_subject(subject, work, minutes=0.5 if settings.is_quick else 1.5)


def profile(settings: Settings) -> Iterator[Part]:
    """What each model costs at each cut."""
    for subject in settings.subjects:
        work = Command(words=("profile", subject.spec, "--fresh"), modules=(f"{COMMANDS}.profile", SERVE))
        yield _of_subject(subject, work, minutes=2)


def load(settings: Settings) -> Iterator[Part]:
    """Each model on a server with many devices."""
    budget = settings.budget
    clients = ",".join(map(str, budget.clients))
    pace = ("--clients", clients, "--duration", str(budget.turn_s), "--warmup", str(budget.turn_s / 5), "--rounds", "1")
    for subject in settings.subjects:
        if subject.kind == "language":
            own = ["--lm", subject.spec, "--vision", "none", "--tokens", str(budget.tokens)]
            own += ["--text", subject.data] if subject.data else []
        else:
            own = ["--vision", subject.spec, "--lm", "none", *(("--data", subject.data) if subject.data else ())]
        work = Command(words=("bench", "runtime", *own, *pace), modules=(f"{COMMANDS}.bench_runtime", SERVE))
        turns = 3 * len(budget.clients) + 2
        yield _of_subject(subject, work, minutes=0.5 + turns * 1.5 * budget.turn_s / 60)


def drift(settings: Settings) -> Iterator[Part]:
    """Language models over long texts."""
    budget = settings.budget
    for subject in settings.of_kind("language"):
        arguments = {
            "spec": subject.spec, "cut": f"layers.{max(1, subject.layers // 2)}", "files": _texts(settings, subject),
            "tokens": budget.drift_tokens, "windows": budget.drift_windows, "texts_written": budget.drift_texts,
            "rates": budget.drift_rates, "chunks": budget.drift_chunks,
        }  # fmt: skip
        work = Function(module="serverlight.evaluation.drift_runs", name="drift_of", arguments=arguments)
        yield _of_subject(subject, work, minutes=1 if settings.is_quick else 6)


def questions(settings: Settings) -> Iterator[Part]:
    """Language models on tasks of lm-evaluation-harness."""
    budget, folder = settings.budget, settings.data and settings.data / "nlp_tasks"
    pairs = [(subject, task) for subject in settings.of_kind("language") for task in budget.questionnaires]
    if settings.data and (settings.data / "lm" / STORIES).is_dir():
        small = Subject(spec=str(settings.data / "lm" / STORIES), kind="language", layers=5)
        pairs.append((small, CLOZE))
    for subject, task in pairs:
        words = ["eval", subject.spec, "--tasks", task, "--sparsity", TASK_SPARSITIES, "--limit", str(budget.questions)]
        for share in (4, 2):
            words += ["--cut", f"layers.{max(1, round(subject.layers / share))}"]
        missing = (
            ""
            if folder and folder.is_dir()
            else "needs the tasks' files; give the folder with nlp_tasks in it as --data"
        )
        work = Command(
            words=(*words, "--data", str(folder)), modules=(f"{COMMANDS}.evaluate", "serverlight.apps.task_eval")
        )
        name, minutes = f"{subject.name} on {task}", 0.7 if settings.is_quick else 1.5
        yield Part(name=name, work=work, minutes=minutes, files=_models(subject), missing=missing)


def fleet(settings: Settings) -> Iterator[Part]:
    """Each model's fleet, from its profile."""
    budget = settings.budget
    for entry in runner.look([PROFILE], settings, Shelf(settings.out)):
        record = entry.record
        file = settings.out / (record.file if record and record.status == "done" else "profile")
        is_text = entry.part.name in {subject.name for subject in settings.of_kind("language")}
        devices = budget.devices // (TOKENS_OF_A_DEVICE if is_text else 1)
        words = ["simulate", str(file), "--devices", str(devices), "--hours", str(budget.hours)]
        words += ["--p95", f"{P95_MS:g}", "--bits", f"{BITS:g}", "--arrivals", "poisson"]
        work = Command(words=tuple(words), modules=(f"{COMMANDS}.simulate",))
        missing = "" if file.is_file() else f"needs profile/{entry.part.name}, which comes first"
        yield Part(
            name=entry.part.name, work=work, minutes=0.3 if settings.is_quick else 2, files=(file,), missing=missing
        )


def _task_names(settings: Settings) -> Sequence[str]:
    chosen = settings.budget.tasks
    return tuple(getattr(catalogue, "UPLINK_TASKS", catalogue.TASK_NAMES)) if chosen is None else chosen


def _of_task(settings: Settings, name: str, work: Command | Function, *, minutes: float) -> Part:
    data, missing = settings.data or pathlib.Path("DATA"), ""
    try:
        catalogue.check_task(name, settings.data)
    except ConfigError as error:
        missing = str(error).removeprefix("task: ")
    return Part(
        name=name,
        work=work,
        minutes=minutes,
        files=() if missing else catalogue.task_files(name, data),
        missing=missing,
    )


def _of_subject(subject: Subject, work: Command | Function, *, minutes: float) -> Part:
    files = (*_models(subject), *([pathlib.Path(subject.data)] if subject.data else []))
    return Part(name=subject.name, work=work, minutes=minutes, files=files, missing=subject.problem)


def _models(subject: Subject) -> tuple[pathlib.Path, ...]:
    """Its own files; of a hub id the version is not looked at."""
    path = pathlib.Path(subject.spec)
    return (path,) if path.exists() else ()


def _texts(settings: Settings, subject: Subject) -> list[str]:
    """What a language model reads: its own data, or what the shared data has and the shipped model has not seen."""
    if subject.data:
        return [subject.data]
    names = ("chilit_valid_alice_pan.txt.xz", "fairytaleqa_valid.txt.xz")
    held_out = [settings.data / "text_corpora" / name for name in names] if settings.data else []
    return [str(path) for path in held_out if path.is_file()]


def _folder(settings: Settings) -> str | None:
    return None if settings.data is None else str(settings.data)


def _data(settings: Settings) -> tuple[str, ...]:
    return () if settings.data is None else ("--data", str(settings.data))


PROFILE = Stage(
    name="profile",
    title="What each cut costs",
    parts=profile,
    is_timed=True,
    budget=lambda _: "as `serverlight profile`",
)

STAGES: tuple[Stage, ...] = (
    Stage(
        name="rates", title="The codec beside its rivals", parts=rates,
        budget=lambda s: (
            f"{s.budget.samples} samples of a task, {s.budget.large_samples} of images of ImageNet and windows of demo-lm"
            + (", coarse grids" if s.budget.coarse else "")
        ),
    ),
    Stage(
        name="ablation", title="What each stage of the codec is worth", parts=ablation,
        budget=lambda s: f"{s.budget.ablation_samples or 300} samples of a task at most",
    ),
    Stage(name="frames", title="What frames are made of", parts=frames, budget=lambda _: "24 samples of a task"),
    Stage(
        name="quality", title="What settings lose at each cut", parts=quality,
        budget=lambda s: f"{s.budget.quality_samples} images, {s.budget.quality_texts} texts; a tenth of the runs",
    ),
    Stage(
        name="drift", title="Long texts", parts=drift,
        budget=lambda s: f"{s.budget.drift_windows} texts of {s.budget.drift_tokens} tokens, {s.budget.drift_texts} written",
    ),
    Stage(
        name="questions", title="Language tasks", parts=questions, budget=lambda s: f"{s.budget.questions} questions of a task"
    ),
    Stage(
        name="device", title="The codec's cost on a device", parts=device, is_timed=True,
        budget=lambda s: f"{s.budget.speed_s:g} s for each codec and size",
    ),
    PROFILE,
    Stage(
        name="load", title="A server with many devices", parts=load, is_timed=True,
        budget=lambda s: f"{s.budget.turn_s:g} s for each row, one turn, {max(s.budget.clients)} devices at most",
    ),
    Stage(
        name="fleet", title="A simulated fleet", parts=fleet,
        budget=lambda s: f"{s.budget.devices:,} devices for {60 * s.budget.hours:g} simulated minutes",
    ),
)  # fmt: skip
