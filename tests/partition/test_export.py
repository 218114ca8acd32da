"""What cannot be traced says which line is to blame and what to do; what can be traced is."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from serverlight.errors import InputMismatch, NotExportable
from serverlight.partition import partition


class Model(nn.Module):
    """Runs a body and then a function of its output, which is where tracing may fail."""

    def __init__(self, ending: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.end = End(ending)
        self.body = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.body(x))


class End(nn.Module):
    def __init__(self, ending: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.ending = ending
        self.unused = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.ending(x)


def branches_on_values(x: Tensor) -> Tensor:
    if x.sum() > 0:  # blamed
        return x
    return -x


def loops_over_values(x: Tensor) -> Tensor:
    for _ in range(int(x.abs().sum())):  # blamed
        x = x + 1
    return x


def fixes_the_batch_in_a_view(x: Tensor) -> Tensor:
    return x.view(2, 2, 2)  # blamed


def branches_on_the_batch(x: Tensor) -> Tensor:
    if x.shape[0] == 2:  # blamed
        return x
    return x + 1


def limits_the_batch(x: Tensor) -> Tensor:
    if x.shape[0] > 4:  # blamed
        return x
    return x + 1


def iterates_over_the_batch(x: Tensor) -> Tensor:
    for i in range(len(x)):  # blamed
        x = x + i
    return x


def leaves_torch(x: Tensor) -> Tensor:
    return torch.from_numpy(x.detach().numpy())  # blamed


@pytest.mark.parametrize(
    ("ending", "reason", "remedy"),
    [
        (branches_on_values, "branches on the values of a tensor", "torch.where"),
        (loops_over_values, "branches on the values of a tensor", "torch.where"),
        (fixes_the_batch_in_a_view, "does not take every batch size", r"x\.shape\[0\] or -1"),
        (branches_on_the_batch, "does not take every batch size", r"x\.shape\[0\] or -1"),
        (limits_the_batch, "does not take every batch size", r"x\.shape\[0\] or -1"),
        (iterates_over_the_batch, "does not take every batch size", r"x\.shape\[0\] or -1"),
        (leaves_torch, r"cannot be traced .*numpy", "use tensor operations"),
    ],
)
def test_blames_the_line_and_offers_a_way_out(ending: Callable[[Tensor], Tensor], reason: str, remedy: str) -> None:
    """The error shows file, line and code of the model's source, what to write instead, and a part that can be cut."""
    lines, start = inspect.getsourcelines(ending)
    offset, code = next((i, line.strip()) for i, line in enumerate(lines) if "# blamed" in line)
    with pytest.raises(NotExportable, match=f"Model {reason}") as caught:
        partition(Model(ending), torch.rand(2, 4))
    message = str(caught.value)
    assert f"{__file__}:{start + offset} in {ending.__name__}: `{code}`" in message
    assert message.endswith("partition a submodule that does not contain it, such as 'body'")
    with pytest.raises(NotExportable, match=remedy):
        raise caught.value


def test_blames_nobody_where_the_model_has_no_line() -> None:
    """A module of torch's own that fixes the batch has no line to show; the caller's is not taken for it."""
    with pytest.raises(NotExportable, match="Unflatten does not take every batch size; write") as caught:
        partition(nn.Unflatten(0, (2, 1)), torch.rand(2, 4))
    assert __file__ not in str(caught.value)


def test_part_that_does_not_contain_the_line_can_be_cut() -> None:
    """The way out that the error offers works."""
    model = Model(branches_on_values)
    assert partition(model.body, torch.rand(2, 4)).cuts[-1].head_parameters == 20


def test_written_buffer_is_refused() -> None:
    """A module that keeps state in a buffer is refused by the buffer's name, and the buffer keeps its value."""

    class Counting(nn.Module):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return x + self.calls

    module = Counting()
    with pytest.raises(NotExportable, match=r"forward of Counting writes to 'calls'.*return new tensors instead"):
        partition(module, torch.rand(2, 4))
    assert module.calls == 0


def test_written_input_is_refused() -> None:
    """A module that overwrites its input is refused: the caller would not see the change."""
    with pytest.raises(NotExportable, match="forward of ReLU writes to 'input'"):
        partition(nn.ReLU(inplace=True), torch.rand(2, 4))


def test_in_place_operations_on_views_keep_their_effect() -> None:
    """Writing into a slice of a new tensor is made functional, not lost."""

    class Masks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mask = torch.zeros_like(x)
            mask[:, 1:3] = x[:, :2]
            return mask.exp()

    module, x = Masks(), torch.rand(3, 4)
    parts = partition(module, torch.rand(2, 4))
    for cut in parts.cuts:
        head, tail = parts.split(cut)
        assert torch.equal(tail(*head(x)), module(x)), cut.name


def test_example_that_the_module_itself_refuses() -> None:
    """If the module does not even run with the example, the example is to blame, not the export."""
    with pytest.raises(InputMismatch, match="Linear does not run with the example inputs: mat1 and mat2"):
        partition(nn.Linear(4, 4), torch.rand(2, 5))


def test_len_of_a_tensor_follows_the_batch() -> None:
    """``len(x)`` in model code does not fix the batch, and the model's own module has its ``len`` back afterwards."""

    class Averages(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.exp() / len(x) + len([1, 2])

    module = Averages()
    parts = partition(module, torch.rand(2, 4))
    assert "len" not in globals()
    head, tail = parts.split("forward:exp")
    for batch in (1, 5):
        x = torch.rand(batch, 4)
        assert torch.equal(tail(*head(x)), module(x))


def test_len_is_given_back_after_a_failure() -> None:
    """Also a trace that fails leaves modes and globals as they were."""
    model = Model(branches_on_values).train()
    with pytest.raises(NotExportable):
        partition(model, torch.rand(2, 4))
    assert model.training
    assert "len" not in globals()


def test_failure_prints_nothing(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """The error says it all: torch's hints and partial graphs do not reach the terminal, and its log is as before."""
    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    before = log.handlers, log.level, log.propagate
    for ending in (branches_on_values, limits_the_batch):
        with pytest.raises(NotExportable):
            partition(Model(ending), torch.rand(2, 4))
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert (log.handlers, log.level, log.propagate) == before
