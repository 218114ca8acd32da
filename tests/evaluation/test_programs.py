"""Programs that a model wrote: what passes, what does not, and that none runs unasked."""

from __future__ import annotations

import json
import os
import pathlib

import pytest

from serverlight.evaluation.programs import ALLOWED, complete, pass_at_1, passes
from serverlight.evaluation.task_files import task_folder

TEST = "assert double(4) == 8"


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED, "1")


@pytest.mark.usefixtures("allowed")
def test_share_that_passes() -> None:
    """A program passes where the tests behind it do."""
    right, wrong = "def double(x):\n    return 2 * x\n", "def double(x):\n    return x\n"
    assert pass_at_1([TEST], [[right]]) == 1
    assert pass_at_1([TEST, TEST], [[right, wrong], [wrong, wrong]]) == 0.25


@pytest.mark.parametrize(
    "program",
    [
        "def double(x):",  # no program at all
        "raise SystemExit(0)",  # leaves before the tests
        "import os\nos._exit(0)",
        "import sys\nsys.exit()",
        "while True:\n    pass",
        "x = bytearray(1 << 33)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        "double = lambda x: 7\n" + TEST,
    ],
)
def test_what_does_not_pass(program: str) -> None:
    """Neither an early end, nor an endless one, nor one for want of memory is a pass."""
    assert not passes(program, time_limit_s=1.0)


def test_programs_are_ended_with_all_they_started(tmp_path: pathlib.Path) -> None:
    """A child that would sleep for minutes is gone with the program: nobody holds the other end of its pipe any more."""
    os.mkfifo(tmp_path / "pipe")
    child = f"import time\npipe = open({str(tmp_path / 'pipe')!r}, 'w')\nprint(file=pipe, flush=True)\nprint()\ntime.sleep(600)"
    start = f"subprocess.Popen([sys.executable, '-u', '-c', {child!r}], stdout=subprocess.PIPE)"
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert passes(f"import subprocess, sys\n{start}.stdout.readline()")
    os.set_blocking(reader, True)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"\n"  # and then its end


def test_programs_know_nothing_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """They run in an empty folder of their own, without the environment and its secrets."""
    monkeypatch.setenv("SECRET", "1")
    assert passes("import os\nassert 'SECRET' not in os.environ\nassert os.listdir('.') == []")
    assert not passes("assert False")


def test_nothing_runs_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the word in the environment no program is run."""
    monkeypatch.delenv(ALLOWED, raising=False)
    with pytest.raises(ValueError, match="untrusted code is not run"):
        pass_at_1([TEST], [["double = print"]])


def test_the_beginning_belongs_to_the_program() -> None:
    """What a model wrote goes behind what it was given."""
    assert complete([["    a", "    b"]], [{"prompt": "def f():\n"}]) == [["def f():\n    a", "def f():\n    b"]]


def test_task_file_comes_along(tmp_path: pathlib.Path) -> None:
    """Where the problems are the task file of ours is there too, with their path; a file of that name beside them wins."""
    (tmp_path / "humaneval.jsonl").write_text("{}\n")
    with task_folder(str(tmp_path)) as folder:
        assert folder
        assert f"test: {tmp_path}/humaneval.jsonl" in (pathlib.Path(folder) / "humaneval_local.yaml").read_text()
    (tmp_path / "humaneval_local.yaml").write_text("task: mine\n")
    with task_folder(str(tmp_path)) as folder:
        assert folder
        assert (pathlib.Path(folder) / "humaneval_local.yaml").read_text() == "task: mine\n"


@pytest.mark.usefixtures("allowed")
def test_solutions_of_humaneval_pass(shared_data: pathlib.Path) -> None:
    """Each of the first problems is solved by its own solution, and by nothing less."""
    lines = (shared_data / "nlp_tasks" / "humaneval.jsonl").read_text().splitlines()[:12]
    docs = [json.loads(line) for line in lines]
    tests = [f"{doc['test']}\ncheck({doc['entry_point']})" for doc in docs]
    assert pass_at_1(tests, complete([[doc["canonical_solution"]] for doc in docs], docs)) == 1
    assert pass_at_1(tests, complete([["    pass\n"] for _ in docs], docs)) == 0
