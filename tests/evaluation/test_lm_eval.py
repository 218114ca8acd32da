"""Tasks of lm-evaluation-harness: uncut, in one process and over a server; no network."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

transformers = pytest.importorskip("transformers")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that the harness brings
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'serverlight[eval]'")
    pytest.importorskip("accelerate", reason="needs accelerate: pip install 'serverlight[eval]'")
    import lm_eval
    from lm_eval.tasks import TaskManager

    from serverlight.evaluation.lm_eval import SplitLM, evaluate_model, task_names, uncut_model

from serverlight.apps.cli import main  # noqa: E402
from serverlight.codec import CodecConfig  # noqa: E402
from serverlight.errors import ConfigError, PlanMismatch  # noqa: E402
from serverlight.evaluation import task_files  # noqa: E402
from serverlight.evaluation.task_files import task_folder  # noqa: E402
from serverlight.generation import LoadedDecoder  # noqa: E402
from serverlight.huggingface import SHIPPED  # noqa: E402
from serverlight.plan import Plan  # noqa: E402
from serverlight.runtime.server import Server  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

CUT = "layers.2"
TASKS = ["choice_local", "rolling_local", "writing_local"]
YAML = {
    "choice_local": """output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "rolling_local": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "writing_local": """output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{written}}"
generation_kwargs: {until: ["q"], do_sample: false, max_gen_toks: 12}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


def save_tasks(folder: pathlib.Path) -> str:
    """Files of a task of each kind, beside their data."""
    (folder / "tasks").mkdir()
    words = [f"{one}{other}" for one in ("once", "big", "red", "dog") for other in ("", "er", "s", "ly")]
    docs = [
        {"question": " ".join(words[i : i + 5]), "choices": [" " + word for word in words[i : i + 3]], "answer": i % 3,
         "text": " ".join(words[: 6 + i]), "written": words[i]}
        for i in range(5)
    ]  # fmt: skip
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    for name, text in YAML.items():
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: DATA_DIR/docs.jsonl}}}}\n"
        (folder / "tasks" / f"{name}.yaml").write_text(head + "test_split: test\n" + text)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tasks(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def tasks(data: str) -> Iterator[str]:
    with task_folder(data) as folder:
        assert folder
        yield folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama whose tokens are bytes; its embeddings are halves, so that they cross a cut behind them without loss."""
    tokenizers = pytest.importorskip("tokenizers")
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    raw = tokenizers.Tokenizer(tokenizers.models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    end = {"eos_token": alphabet[0], "bos_token": alphabet[0]}
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw, **end).save_pretrained(path)
    config = transformers.LlamaConfig(
        vocab_size=len(alphabet), hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = transformers.LlamaForCausalLM(config).requires_grad_(False)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight.half())
    model.save_pretrained(path)
    return str(path)


def answers(model: Any, tasks: str) -> dict[str, list[Any]]:
    results = evaluate_model(model, TASKS, folder=tasks)
    return {name: [sample["filtered_resps"] for sample in samples] for name, samples in results["samples"].items()}


@pytest.fixture(scope="module")
def uncut(folder: str, tasks: str) -> dict[str, list[Any]]:
    return answers(uncut_model(folder), tasks)


def assert_like(found: dict[str, list[Any]], uncut: dict[str, list[Any]]) -> None:
    """The same choices and texts, and probabilities but for the order of sums."""
    assert found["writing_local"] == uncut["writing_local"]
    for ours, theirs in zip(found["choice_local"], uncut["choice_local"], strict=True):
        assert [one for one, _ in ours] == pytest.approx([one for one, _ in theirs], abs=1e-4)
        assert [one for _, one in ours] == [one for _, one in theirs]
    ours, theirs = ([one for [one] in texts["rolling_local"]] for texts in (found, uncut))
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_lossless_cut_is_the_uncut_model(folder: str, tasks: str, uncut: dict[str, list[Any]]) -> None:
    """Where nothing is lost at the cut, choices, probabilities and texts are those of the harness's own hf model."""
    assert_like(answers(SplitLM(folder, cut="layers.0", profile="fp16"), tasks), uncut)


def test_uncut_model_is_the_stock_one(tasks: str) -> None:
    """What cuts are compared with has the scores of the harness's own hf model, started as everybody does."""
    stock = lm_eval.simple_evaluate(
        "hf", model_args={"pretrained": str(SHIPPED["demo-lm"]), "dtype": "float32"}, tasks=TASKS, device="cpu",
        batch_size=1, task_manager=TaskManager(include_path=tasks, include_defaults=False), bootstrap_iters=0,
    )  # fmt: skip
    ours = evaluate_model(uncut_model("demo-lm", "float32"), TASKS, folder=tasks)
    assert {name: dict(scores) for name, scores in ours["results"].items()} == stock["results"]


def test_demo_lm(tasks: str) -> None:
    """The shipped model in float32: lossless as the hf model, and over a server to the bit as in one process."""
    whole = answers(uncut_model("demo-lm", "float32"), tasks)
    assert_like(answers(SplitLM("demo-lm", cut="layers.0", profile="fp16", dtype="float32"), tasks), whole)
    here = SplitLM("demo-lm", cut=CUT, dtype="float32")
    with Server(LoadedDecoder.tail("demo-lm", CUT, dtype=torch.float32), [CUT]) as server:
        there = SplitLM("demo-lm", cut=CUT, dtype="float32", server=server.address)
        assert answers(there, tasks) == answers(here, tasks)
    assert there.traffic.frame_bytes == here.traffic.frame_bytes > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo-lm", "stories260K"])
def test_every_local_task(shared_data: pathlib.Path, name: str) -> None:
    """All tasks that lie here run, with equal samples in one process and over a server."""
    spec = name if name in SHIPPED else str(shared_data / "lm" / "stories260K_llama")
    files = sorted((shared_data / "nlp_tasks" / "lm_eval_yaml").glob("*.yaml"))
    here = SplitLM(spec, cut=CUT, dtype="float32")
    with (
        task_folder(str(shared_data / "nlp_tasks")) as folder,
        Server(LoadedDecoder.tail(spec, CUT, dtype=torch.float32), [CUT]) as server,
    ):
        there = SplitLM(spec, cut=CUT, dtype="float32", server=server.address)
        found = [
            evaluate_model(model, [file.stem for file in files], folder=folder, limit=2)["samples"]
            for model in (here, there)
        ]
    assert len(found[0]) == len(files) >= 11
    for task, samples in found[0].items():
        assert [s["filtered_resps"] for s in samples] == [s["filtered_resps"] for s in found[1][task]], task


@pytest.mark.parametrize("return_cut", [None, "layers.3"])
def test_server_gives_what_one_process_gives(
    folder: str, tasks: str, tmp_path: pathlib.Path, return_cut: str | None
) -> None:
    """Over a socket every figure is to the bit that of one process, and so are the frames' bytes."""
    head = LoadedDecoder.head(folder, CUT)
    codec = CodecConfig(sparsity=0.4)
    plan = Plan(model=head.name, revision=head.revision, cut=CUT, return_cut=return_cut, codec=codec)
    plan.save(tmp_path / "plan.json")
    part = LoadedDecoder.middle(folder, CUT, return_cut) if return_cut else LoadedDecoder.tail(folder, CUT)
    here = SplitLM(folder, plan=str(tmp_path / "plan.json"))
    with Server(part, [CUT]) as server:
        there = SplitLM(folder, plan=str(tmp_path / "plan.json"), server=server.address)
        assert answers(there, tasks) == answers(here, tasks)
    assert there.traffic.frame_bytes == here.traffic.frame_bytes == here.traffic.uplink_bytes
    assert there.traffic.uplink_bytes > there.traffic.frame_bytes
    assert there.traffic.num_tokens == here.traffic.num_tokens > 0


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({}, "plan"),
        ({"server": "127.0.0.1:1"}, "plan"),
        ({"cut": CUT, "colour": "red"}, "colour"),
        ({"plan": "no/such/plan.json"}, "plan"),
        ({"plan": "STRANGE"}, "colour"),
        ({"plan": "PLAN", "cut": CUT}, "cut"),
        ({"plan": "PLAN", "sparsity": 0.5}, "sparsity"),
        ({"cut": CUT, "sparsity": 2.0}, "sparsity"),
        ({"cut": CUT, "dtype": "int8"}, "dtype"),
    ],
)
def test_arguments_that_cannot_be(folder: str, tmp_path: pathlib.Path, arguments: dict[str, Any], field: str) -> None:
    """Each wrong argument is named, an unknown field of a plan too, and nothing runs."""
    plan = Plan(model="tiny-llama", revision="0", cut=CUT)
    plan.save(tmp_path / "PLAN")
    (tmp_path / "STRANGE").write_text(json.dumps(plan.to_dict() | {"colour": "red"}))
    if (name := arguments.get("plan", "")).isupper():
        arguments = arguments | {"plan": str(tmp_path / name)}
    with pytest.raises(ConfigError) as caught:
        SplitLM(folder, **arguments)
    assert caught.value.field == field


def test_plan_of_another_model(folder: str, tmp_path: pathlib.Path) -> None:
    """A plan made for other weights is refused."""
    Plan(model="tiny-llama", revision="0", cut=CUT).save(tmp_path / "plan.json")
    with pytest.raises(PlanMismatch):
        SplitLM(folder, plan=str(tmp_path / "plan.json"))


def test_tasks_by_name(tasks: str, tmp_path: pathlib.Path) -> None:
    """A local task may be called without its ending; one that is nowhere is named, with those that are there."""
    assert task_names(["choice", "rolling_local"], tasks) == ["choice_local", "rolling_local"]
    with pytest.raises(ConfigError, match=r"no_such_task.*choice_local"):
        task_names(["choice", "no_such_task"], tasks)
    with pytest.raises(ConfigError) as caught, task_folder(str(tmp_path)):
        pass
    assert caught.value.field == "data"


def test_code_is_not_run(folder: str, data: str, tmp_path: pathlib.Path) -> None:
    """A task that runs what the model wrote is refused unless that is allowed, and the option named."""
    text = (pathlib.Path(data) / "tasks" / "writing_local.yaml").read_text().replace("DATA_DIR", data)
    (tmp_path / "coding_local.yaml").write_text(text.replace("writing_local", "coding_local") + "unsafe_code: true\n")
    model = SplitLM(folder, cut=CUT)
    with pytest.raises(ConfigError) as caught:
        evaluate_model(model, ["coding_local"], folder=str(tmp_path), limit=1)
    assert caught.value.field == "run_code"
    assert evaluate_model(model, ["coding_local"], folder=str(tmp_path), limit=1, run_code=True)["samples"]


PROBLEMS = [  # whatever is written goes into a comment, and only the first is what its test wants
    {"task_id": "Test/0", "prompt": "def one():\n    return 1\n#", "entry_point": "one"},
    {"task_id": "Test/1", "prompt": "def one():\n    return 2\n#", "entry_point": "one"},
]


def test_humaneval(capfd: pytest.CaptureFixture[str], folder: str, tmp_path: pathlib.Path) -> None:
    """HumanEval runs from local problems without the hub, only where that is allowed, and tells right programs from wrong."""
    data = [{**problem, "test": "def check(f):\n    assert f() == 1\n"} for problem in PROBLEMS]
    (tmp_path / "humaneval.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in data))
    shipped = pathlib.Path(task_files.__file__).with_name("humaneval_local.yaml").read_text()
    short = shipped.replace("max_gen_toks: 512", "max_gen_toks: 8").replace('until: ["', 'until: ["\\n", "')
    (tmp_path / "humaneval_local.yaml").write_text(short)
    words = [
        folder,
        "--tasks",
        "humaneval",
        "--cut",
        CUT,
        "--data",
        str(tmp_path),
        "--json",
        str(tmp_path / "out.json"),
    ]
    code, out, err = run(capfd, *words)
    assert (code, out) == (2, "")
    assert "--run-code" in err
    code, out, err = run(capfd, *words, "--run-code")
    assert code == 0, err
    [score] = json.loads((tmp_path / "out.json").read_text())["rows"][0]["scores"]
    assert (score["metric"], score["uncut"], score["cut"]) == ("pass_at_1", 0.5, 0.5)
    assert "HF_ALLOW_CODE_EVAL" not in os.environ


def run(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["eval", *words])
    return int(stop.value.code or 0), *capfd.readouterr()


def test_command(capfd: pytest.CaptureFixture[str], folder: str, data: str, tmp_path: pathlib.Path) -> None:
    """The command compares each cut with the uncut model, in a table and in JSON; more elements kept take more bits."""
    path = tmp_path / "scores.json"
    words = [folder, "--tasks", "choice,rolling", "--cut", CUT, "--sparsity", "0,0.8", "--data", data, "--limit", "4"]
    code, out, err = run(capfd, *words, "--json", str(path))
    assert code == 0, err
    rows = json.loads(path.read_text())["rows"]
    assert [len(row["scores"]) for row in rows] == [4, 4]
    assert rows[0]["bits_per_element"] > rows[1]["bits_per_element"] > 0
    for row in rows:
        assert row["uplink_bytes_per_token"] == pytest.approx(row["bits_per_element"] * 32 / 8, abs=0.02)  # rounded
        for score in row["scores"]:
            assert score["num_samples"] == 4
            assert score["difference"]["value"] == pytest.approx(score["cut"] - score["uncut"])
            assert score["difference"]["low"] <= score["difference"]["value"] <= score["difference"]["high"]
    assert out.count("choice_local") >= 4


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--tasks", "choice"], "cut"),
        (["--tasks", "choice", "--cut", CUT, "--plan", "plan.json"], "cannot read plan.json"),
        (["--tasks", "nowhere", "--cut", CUT], "no task 'nowhere'"),
        (["--server", "127.0.0.1:1", "--cut", CUT], "--tasks"),
        ([], "--cut"),
    ],
)
def test_command_that_cannot_be(
    capfd: pytest.CaptureFixture[str], folder: str, data: str, words: list[str], complaint: str
) -> None:
    """What is missing or too much is said in a line, before anything is measured."""
    code, out, err = run(capfd, folder, *words, *(["--data", data] if "--tasks" in words else []))
    assert (code, out) == (2, "")
    assert complaint in err


def test_harness_command_line(folder: str, data: str, tasks: str, tmp_path: pathlib.Path) -> None:
    """The harness's own command line knows the model type when it is started through this package."""
    words = ["--model", "serverlight", "--model_args", f"pretrained={folder},cut={CUT},profile=fp16"]
    more = ["--tasks", "choice_local", "--include_path", tasks, "--limit", "2", "--output_path", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "serverlight.evaluation.lm_eval", *words, *more],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "choice_local" in done.stdout
