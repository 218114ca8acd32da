"""How the sides of a cut are called, and what they give: on modules small enough to check by hand."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import serverlight.partition as package
from serverlight.errors import ConfigError, InputMismatch, NotExportable
from serverlight.partition import Partition, partition
from small_net import SmallNet, crossing

# -- inputs ----------------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0, **extra: Any) -> Tensor:
        y = x * scale
        y = y if mask is None else y.masked_fill(mask.bool(), 0.0)
        return y.exp() + extra.get("bias", 0.0)


def test_inputs_may_be_spelt_either_way() -> None:
    """Positional and keyword arguments mean the same, defaults may be passed or left out, as with the module."""
    module, x, mask = TwoInputs(), torch.randn(2, 4), torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0]])
    parts = partition(module, {"mask": mask, "x": x})
    assert [spec.name for spec in parts.inputs] == ["x", "mask"]
    head, tail = parts.split("forward:mul")
    for tensors in (head(x, mask), head(x=x, mask=mask), head(x, mask=mask), head(mask=mask, x=x, scale=1.0)):
        assert torch.equal(tail(*tensors), module(x, mask))


@pytest.mark.parametrize("defaults", [{"mask": None}, {"scale": 1.0}, {"mask": None, "scale": 1.0}])
def test_example_may_spell_out_defaults(defaults: dict[str, Any]) -> None:
    """An example that passes an argument at its default does not oblige later calls to pass it, nor forbid it."""
    module, x = TwoInputs(), torch.randn(2, 4)
    head, tail = partition(module, {"x": x, **defaults}).split("forward:mul")
    for kwargs in ({}, defaults, {"scale": float("1")}):
        assert torch.equal(tail(*head(x, **kwargs)), module(x))


def test_keyword_arguments_beyond_the_signature() -> None:
    """Tensors among **kwargs are inputs, and a constant that differs from the default is part of the partition."""
    module, x, bias = TwoInputs(), torch.randn(2, 4), torch.randn(2, 4)
    parts = partition(module, {"x": x, "scale": 2.0, "bias": bias})
    head, tail = parts.split("forward:exp")
    assert crossing(parts, "forward:exp") == ["bias", "forward:exp"]
    assert torch.equal(tail(*head(x, scale=2.0, bias=bias)), module(x, scale=2.0, bias=bias))
    with pytest.raises(InputMismatch, match=r"'scale': the module was partitioned with 2\.0, got 3\.0"):
        head(x, scale=3.0, bias=bias)
    with pytest.raises(InputMismatch, match="'scale' is missing"):
        head(x, bias=bias)


def test_nested_inputs() -> None:
    """Lists of tensors are taken apart and put together again."""

    class Adds(nn.Module):
        def forward(self, xs: list[Tensor], *more: Tensor) -> Tensor:
            return sum(more, xs[0].exp() + xs[1])

    module, (a, b, c) = Adds(), torch.randn(3, 2, 4)
    parts = partition(module, ([a, b], c))
    assert [spec.name for spec in parts.inputs] == ["xs_0", "xs_1", "more_0"]
    head, tail = parts.split("forward:exp")
    assert torch.equal(tail(*head([a, b], c)), module([a, b], c))


def test_example_of_one_sample_is_enough() -> None:
    """A single sample as example does not fix the batch to one; other inputs of one sample grow with it."""
    module = TwoInputs()
    parts = partition(module, (torch.randn(1, 4), torch.ones(1, 4, dtype=torch.long)))
    head, tail = parts.split("forward:mul")
    x, mask = torch.randn(7, 4), torch.randint(0, 2, (7, 4))
    assert torch.equal(tail(*head(x, mask)), module(x, mask))


def test_side_inputs_are_chosen() -> None:
    """By default what is not floating point goes to both sides; naming inputs overrides that, and wrong names are told."""
    x, mask = torch.randn(2, 4), torch.ones(2, 4, dtype=torch.long)
    spec = partition(TwoInputs(), (x, mask)).cut("forward:mul").tensors[1]
    assert (spec.name, spec.side_input, spec.is_feature) == ("mask", True, False)
    assert not any(s.side_input for c in partition(TwoInputs(), (x, mask), side_inputs=()).cuts for s in c.tensors)
    assert partition(TwoInputs(), (x, mask.float()), side_inputs=["mask"]).cut("forward:mul").tensors[1].side_input
    for wrong in ("x", "masc"):
        with pytest.raises(ConfigError, match="choose from: mask"):
            partition(TwoInputs(), (x, mask), side_inputs=[wrong])


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (3, "must be a tensor, a tuple of arguments or a dict"),
        ((), r"missing a required argument: 'x'"),
        (torch.tensor(1.0), "must have a batch dimension"),
        (torch.zeros(0, 4), "at least one sample"),
    ],
)
def test_examples_that_cannot_serve(example: object, message: str) -> None:
    """An example that is not a call of the module, or has no batch, is refused with what to pass."""
    with pytest.raises(InputMismatch, match=message):
        partition(TwoInputs(), example)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((torch.randn(1, 3, 9, 8),), {}, r"x: expected float32 of shape \(batch, 3, 9, 9\), got shape \(1, 3, 9, 8\)"),
        ((torch.randn(3, 9, 9),), {}, r"got shape \(3, 9, 9\)"),
        ((torch.randn(0, 3, 9, 9),), {}, r"got shape \(0, 3, 9, 9\)"),
        ((torch.randn(1, 3, 9, 9).double(),), {}, r"got float64; convert it with \.to\(torch\.float32\)"),
        (([[1.0]],), {}, "x: expected a torch tensor, got float"),
        ((), {}, "missing a required argument: 'x'"),
        ((torch.randn(1, 3, 9, 9), 2), {}, "too many positional arguments"),
        ((), {"y": torch.randn(1, 3, 9, 9)}, "missing a required argument: 'x'"),
    ],
)
def test_head_checks_its_inputs(parts: Partition, args: tuple[Any, ...], kwargs: dict[str, Any], message: str) -> None:
    """A wrong input is named, with what was expected, what came, and what to do."""
    head, _ = parts.split("stem")
    with pytest.raises(InputMismatch, match=message):
        head(*args, **kwargs)


def test_inputs_of_different_batches() -> None:
    """Inputs that hold different numbers of samples are refused."""
    head, _ = partition(TwoInputs(), (torch.randn(2, 4), torch.ones(2, 4))).split("forward:mul")
    with pytest.raises(InputMismatch, match="mask: holds 3 samples, the tensors before it 2"):
        head(torch.randn(2, 4), torch.ones(3, 4))
    with pytest.raises(InputMismatch, match="unexpected input 'bias'; the module was partitioned with x, mask"):
        head(torch.randn(2, 4), torch.ones(2, 4), bias=torch.ones(2, 4))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ((), r"expected 2 tensors \(stem, blocks\.0\.conv\), got 0"),
        ((torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 5, 4)), r"blocks\.0\.conv: expected float32 of shape"),
        ((torch.zeros(1, 4, 4, 4).half(), torch.zeros(1, 4, 4, 4)), "stem: expected float32 .* got float16"),
        ((torch.zeros(1, 4, 4, 4), torch.zeros(2, 4, 4, 4)), r"blocks\.0\.conv: holds 2 samples"),
        ((torch.zeros(1, 4, 4, 4), None), "expected a torch tensor, got NoneType"),
    ],
)
def test_tail_checks_what_it_is_given(parts: Partition, tensors: tuple[Any, ...], message: str) -> None:
    """Whatever a stranger sends, the tail runs on fitting tensors only and says which does not fit."""
    _, tail = parts.split("blocks.0.conv")
    with pytest.raises(InputMismatch, match=message):
        tail(*tensors)


# -- outputs ---------------------------------------------------------------------------------------


class Scores(NamedTuple):
    high: Tensor
    low: Tensor


class Structured(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Any]:
        y = x.exp()
        return {"scores": Scores(y + 1, y - 1), "extra": [y, None, "text", y], "table": torch.arange(3)}


def test_output_structure_is_the_modules_own() -> None:
    """Dictionaries, named tuples, constants and repeated tensors come back as the module returns them."""
    module, x = Structured(), torch.randn(2, 4)
    parts = partition(module, x)
    assert parts.output_names == ("scores.high", "scores.low", "extra.0", "extra.3", "table")
    wanted = module(x)
    for cut in parts.cuts:
        head, tail = parts.split(cut)
        got = tail(*head(x))
        assert isinstance(got["scores"], Scores)
        assert got["extra"][1:3] == [None, "text"]
        leaves = tail.flat(*head(x))
        flat = [*wanted["scores"], wanted["extra"][0], wanted["extra"][3], wanted["table"]]
        assert all(map(torch.equal, leaves, flat))
        assert torch.equal(parts.unflatten_outputs(leaves)["scores"].low, wanted["scores"].low)
    with pytest.raises(InputMismatch, match="expected 5 outputs"):
        parts.unflatten_outputs([x])


def test_output_may_relate_samples_to_each_other() -> None:
    """A similarity matrix has the batch in both dimensions: it can be an output, but nothing else that crosses."""

    class Similarity(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x @ x.T).softmax(-1)

    module = Similarity()
    parts = partition(module, torch.randn(2, 4))
    assert [cut.name for cut in parts.cuts] == ["input", "forward:permute", "output"]
    assert parts.cuts[-1].tensors[0].shape == (None, None)
    x = torch.randn(5, 4)
    for cut in parts.cuts:
        head, tail = parts.split(cut)
        assert torch.equal(tail(*head(x)), module(x)), cut.name


def test_function_is_not_a_module() -> None:
    """Something that is not a module is refused at once."""
    not_a_module: Any = torch.relu
    with pytest.raises(NotExportable, match=r"expected a torch\.nn\.Module, got builtin"):
        partition(not_a_module, torch.randn(2, 4))


def test_number_as_output_is_refused() -> None:
    """A module that returns a size is told to return tensors."""

    class Counts(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, int]:
            return x.exp(), x.shape[0]

    with pytest.raises(NotExportable, match="returns a number that depends on its input"):
        partition(Counts(), torch.randn(2, 4))


def test_package_can_be_called_like_the_function(net: SmallNet) -> None:
    """``serverlight.partition`` is a package and a function; either import order leaves it callable."""
    called: Any = package
    assert repr(called(net, torch.randn(2, 3, 9, 9))) == "Partition(SmallNet, 10 cuts)"
