"""Cut language models as a model type of lm-evaluation-harness: the one file that knows it.

``python -m serverlight.evaluation.lm_eval`` is its command line with the model type ``serverlight`` in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from typing import Any, cast

import lm_eval
import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import model_registry, register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from serverlight.codec import CodecConfig
from serverlight.errors import ConfigError
from serverlight.generation import LANGUAGE_CODEC, DecoderLoopback, Likelihood, LoadedDecoder
from serverlight.huggingface import find_folder, load_tokenizer
from serverlight.plan import Plan
from serverlight.runtime.decoder_client import DecoderClient, StepCost, Token
from serverlight.split_lm import SplitCausalLM

__all__ = ["SplitLM", "Traffic", "evaluate_model", "task_names", "uncut_model"]

MODEL_TYPE = "serverlight"

PASSED_ON = {"add_bos_token", "chat_template_args", "enable_thinking", "max_length", "prefix_token_id", "think_end_token",
             "truncation"}  # fmt: skip
"""Arguments of the harness's own ``hf`` that mean the same for a cut model."""

WITHOUT_EFFECT = {"batch_size", "device", "max_batch_size"}
"""Arguments that the harness always gives; each sequence crosses by itself, and the parts are where they were loaded."""

DTYPES = ("float32", "bfloat16", "float16")

CODEC_FIELDS = {field.name for field in dataclasses.fields(CodecConfig)}


@dataclasses.dataclass(kw_only=True, slots=True)
class Traffic:
    """What has crossed the cut so far."""

    num_tokens: int = 0
    """Tokens, those of each choice with all of its context."""

    frame_bytes: int = 0
    """Their frames."""

    uplink_bytes: int = 0
    """What was sent, gRPC and HTTP/2 framing included; in one process the frames alone."""

    def add(self, num_tokens: int, frame_bytes: int, uplink_bytes: int) -> None:
        """Counts some more."""
        self.num_tokens += num_tokens
        self.frame_bytes += frame_bytes
        self.uplink_bytes += uplink_bytes


class _Metered:
    """What makes tokens, with a count of what that takes."""

    def __init__(self, generator: DecoderClient | DecoderLoopback) -> None:
        self._generator = generator
        self.head, self.plan = generator.head, generator.plan
        self.traffic = Traffic()

    def stream(self, token_ids: list[int], **options: Any) -> Generator[Any, None, None]:
        num_tokens = len(token_ids)
        with contextlib.closing(self._generator.stream(token_ids, **options)) as stream:
            for token in stream:
                cost = token.cost if isinstance(token, Token) else token
                uplink_bytes = cost.uplink_bytes if isinstance(cost, StepCost) else cost.frame_bytes
                self.traffic.add(num_tokens, cost.frame_bytes, uplink_bytes)
                num_tokens = 1
                yield token

    def likelihood(self, token_ids: list[int], num_targets: int) -> Likelihood:
        found = self._generator.likelihood(token_ids, num_targets)
        self.traffic.add(found.num_tokens, found.frame_bytes, found.uplink_bytes)
        return found


class SplitLM(HFLM):  # type: ignore[misc]
    """A cut model, in one process or across a real server, whose scores are equal.

    Args:
        pretrained: folder or hub id, as the harness calls it.
        plan: file of a plan, or the plan.
        cut: without a plan, where to cut, such as ``layers.8``.
        return_cut: without a plan, the second cut, if any.
        server: ``HOST:PORT`` of a server with the rest of the model; by default that is loaded here as well.
        dtype: of the weights, by default as stored.
        options: without a plan, fields of :class:`~serverlight.codec.CodecConfig`; and those of ``hf`` that say how texts become
            tokens.

    Raises:
        ConfigError: an argument that means nothing here, or a plan that is none; ``field`` names it.
        PlanMismatch: the plan is another model's.
        ModelError: there is no such model, or it cannot be cut.
    """

    def __init__(
        self,
        pretrained: str,
        plan: str | Plan | None = None,
        *,
        cut: str | None = None,
        return_cut: str | None = None,
        server: str | None = None,
        dtype: str | None = "auto",
        **options: Any,
    ) -> None:
        knobs = {name: options.pop(name) for name in CODEC_FIELDS & options.keys()}
        _check_arguments(plan, cut, return_cut, server, knobs, options)
        wanted = _read_plan(plan, cut, return_cut, knobs)
        self.metered = _Metered(_generator(pretrained, wanted, server, dtype))
        model = SplitCausalLM(cast(DecoderLoopback, self.metered), model=pretrained)  # which asks for no more than this
        tokenizer = load_tokenizer(pretrained, model.generator.head.vocab_size)
        passed = {name: options[name] for name in PASSED_ON & options.keys()}
        with _silenced("lm_eval.models.huggingface"):  # it warns that it was given a model
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=1, **passed)
        self.pretrained = pretrained

    @property
    def traffic(self) -> Traffic:
        """What has crossed so far."""
        return self.metered.traffic

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        return [self._answer(*request) for request in requests]

    def _answer(self, request: tuple[str, str] | None, context: list[int], following: list[int]) -> tuple[float, bool]:
        text = [*context, *following][-(self.max_length + 1) :]
        found = self.metered.likelihood(text, min(len(following), len(text) - 1))
        answer = found.logprob, found.is_likeliest
        if request is not None:  # windows of longer texts are not remembered one by one
            self.cache_hook.add_partial("loglikelihood", request, answer)
        return answer

    def get_model_info(self) -> dict[str, Any]:
        """What the harness notes beside the figures."""
        return {"plan": self.metered.plan.to_dict(), "model_dtype": str(self.model.dtype)}


if MODEL_TYPE not in model_registry:  # later releases know it from the package's entry point, and take no second word
    register_model(MODEL_TYPE)(SplitLM)


def uncut_model(pretrained: str, dtype: str | None = "auto") -> Any:
    """The harness's own ``hf`` model, whole, on the processor; raises :class:`ModelError` where there is none.

    Probabilities are float32 whatever the weights are, as across a cut.
    """
    folder = find_folder(pretrained, ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"])
    return HFLM(pretrained=str(folder), dtype=dtype, softmax_dtype="float32", device="cpu", batch_size=1)


def task_names(tasks: Sequence[str], folder: str | None) -> list[str]:
    """The tasks by their full names: ``piqa`` is also ``piqa_local`` where only that is in the folder.

    Raises :class:`ConfigError` for one that is neither there nor one of the harness's own.
    """
    local = set(_manager(folder, defaults=False).all_tasks) if folder else set[str]()
    found = [task if task in local or f"{task}_local" not in local else f"{task}_local" for task in tasks]
    if strange := sorted(set(found) - local):
        known = set(_manager(None, defaults=True).all_tasks)
        if missing := [task for task in strange if task not in known]:
            there = f"in the folder are {', '.join(sorted(local))}" if local else "`lm-eval ls tasks` lists them"
            raise ConfigError("tasks", f"no task {missing[0]!r}; {there}")
    return found


def evaluate_model(
    model: Any, tasks: Sequence[str], *, folder: str | None = None, limit: int | None = None, run_code: bool = False
) -> Mapping[str, Any]:
    """The harness's results for one model, with a sample for each question.

    Args:
        model: what :class:`SplitLM` or :func:`uncut_model` makes.
        tasks: full names.
        folder: of task files beside the harness's own.
        limit: the first so many questions of each task.
        run_code: whether tasks may run what the model wrote, on this machine.

    Raises :class:`ConfigError` for a task that runs code where that is not allowed, or whose data cannot be had.
    """
    local = set(_manager(folder, defaults=False).all_tasks) if folder else set[str]()
    manager = _manager(folder, defaults=not local.issuperset(tasks))
    try:
        with _code_allowed(run_code):
            results = lm_eval.simple_evaluate(
                model,
                tasks=list(tasks),
                task_manager=manager,
                limit=limit,
                bootstrap_iters=0,
                confirm_run_unsafe_code=run_code,
            )
    except ValueError as exc:
        if "unsafe" in str(exc) or "untrusted" in str(exc):  # the harness's word, or the metric's
            raise ConfigError("run_code", "a task runs code that the model wrote; allow it with --run-code") from exc
        raise
    except (ConnectionError, FileNotFoundError) as exc:  # what `datasets` raises without a network
        raise ConfigError("tasks", f"the data of a task cannot be had: {exc}; give a folder of task files") from exc
    return cast(Mapping[str, Any], results)


def _manager(folder: str | None, *, defaults: bool) -> Any:
    return TaskManager(include_path=folder, include_defaults=defaults)


@contextlib.contextmanager
def _code_allowed(is_allowed: bool) -> Iterator[None]:
    """The metric that runs code asks for a word of its own in the environment."""
    if not is_allowed:
        yield
        return
    before = os.environ.get("HF_ALLOW_CODE_EVAL")
    os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HF_ALLOW_CODE_EVAL"]
        else:
            os.environ["HF_ALLOW_CODE_EVAL"] = before


@contextlib.contextmanager
def _silenced(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


# -- arguments -------------------------------------------------------------------------------------


def _check_arguments(
    plan: str | Plan | None,
    cut: str | None,
    return_cut: str | None,
    server: str | None,
    knobs: Mapping[str, Any],
    options: Collection[str],
) -> None:
    if strange := sorted(set(options) - PASSED_ON - WITHOUT_EFFECT):
        raise ConfigError(strange[0], "means nothing for a cut model; leave it away")
    if plan is None and cut is None:
        what = "a server needs to know the cut" if server else "the model is not cut (for that take --model hf)"
        raise ConfigError("plan", f"{what}; give plan=FILE or cut=layers.N")
    given = {"cut": cut, "return_cut": return_cut, **knobs}
    if plan is not None and (spare := [name for name, value in given.items() if value is not None]):
        raise ConfigError(spare[0], "is in the plan already; give either")


def _read_plan(plan: str | Plan | None, cut: str | None, return_cut: str | None, knobs: Mapping[str, Any]) -> Plan:
    """The plan; where only a cut is known, with a model and weights that are filled in later."""
    if plan is None:
        codec = dataclasses.replace(LANGUAGE_CODEC, **knobs)
        return Plan(model="?", revision="?", cut=str(cut), return_cut=return_cut, codec=codec)
    agreed = plan if isinstance(plan, Plan) else Plan.load(plan)
    if agreed.basis:
        raise ConfigError("basis", "sessions of language models take no frames under a basis yet; take another plan")
    return agreed


def _read_dtype(name: str | None) -> torch.dtype | None:
    if name in (None, "auto"):
        return None
    if name not in DTYPES:
        raise ConfigError("dtype", f"must be auto, {', '.join(DTYPES)}, got {name!r}")
    kind: torch.dtype = getattr(torch, name)
    return kind


def _generator(spec: str, plan: Plan, server: str | None, dtype: str | None) -> DecoderClient | DecoderLoopback:
    kind = _read_dtype(dtype)
    head = LoadedDecoder.head(spec, plan.cut, dtype=kind)
    if plan.revision == "?":
        plan = dataclasses.replace(plan, model=head.name, revision=head.revision)
    tail = middle = None
    if plan.return_cut or not server:
        tail = LoadedDecoder.tail(spec, plan.return_cut or plan.cut, dtype=kind)
    if server:
        return DecoderClient([server], plan=plan, head=head, tail=tail)
    if plan.return_cut:
        middle = LoadedDecoder.middle(spec, plan.cut, plan.return_cut, dtype=kind)
    assert tail is not None
    return DecoderLoopback(plan, head, tail, middle)


if __name__ == "__main__":
    cli_evaluate()
