"""What a partition promises, on modules small enough to check by hand."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import serverlight.partition as package
from serverlight.errors import ConfigError, CutNotFound, InputMismatch, NotExportable
from serverlight.partition import Partition, TensorSpec, partition


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x) + x)


class SmallNet(nn.Module):
    """A stem, two residual blocks and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2)
        self.blocks = nn.Sequential(Block(), Block())
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def net() -> SmallNet:
    torch.manual_seed(0)
    return SmallNet()


@pytest.fixture(scope="module")
def parts(net: SmallNet) -> Partition:
    return partition(net, torch.randn(1, 3, 9, 9))


def crossing(parts: Partition, name: str) -> list[str]:
    return [spec.name for spec in parts.cut(name).tensors]


# -- cuts ------------------------------------------------------------------------------------------


def test_cuts_are_named_after_modules(parts: Partition) -> None:
    """A module's exit goes by the module's path, any other place by the path and the operation."""
    assert [(cut.name, cut.is_module_exit) for cut in parts.cuts] == [
        ("input", True),
        ("stem", True),
        ("blocks.0.conv", True),
        ("blocks.0:add", False),
        ("blocks.0", True),
        ("blocks.1.conv", True),
        ("blocks.1:add", False),
        ("blocks", True),
        ("forward:mean", False),
        ("output", True),
    ]
    assert [cut.index for cut in parts.cuts] == list(range(10))


def test_inner_modules_that_end_at_the_same_place_are_aliases(parts: Partition) -> None:
    """Every path of a module finds the cut at its exit, whichever of several gave the name."""
    assert parts.cut("blocks").aliases == ("blocks.1", "blocks.1.act")
    assert parts.cut("blocks.1") is parts.cut("blocks")
    assert parts.cut("fc").name == "output"
    assert parts.split("blocks.1.act")[0].cut is parts.cut("blocks")


def test_names_are_stable(net: SmallNet, parts: Partition) -> None:
    """Another process that partitions the same module with another example batch finds the same cuts."""
    assert partition(net, (torch.randn(4, 3, 9, 9),)).cuts == parts.cuts


def test_skip_connections_are_counted(parts: Partition) -> None:
    """Inside a residual block the skip crosses as well as the branch."""
    assert crossing(parts, "blocks.0.conv") == ["stem", "blocks.0.conv"]
    assert crossing(parts, "blocks.0") == ["blocks.0"]
    assert parts.cut("blocks.0.conv").elements_per_sample == 2 * 4 * 4 * 4


def test_macs_and_parameters_by_hand(parts: Partition) -> None:
    """Convolution: outputs x kernel x channels in; linear layer: in x out; per sample, whatever the example's batch."""
    stem, conv, fc = 16 * 4 * (9 * 3), 16 * 4 * (9 * 4), 4 * 10
    cut = parts.cut("blocks.0")
    assert (cut.head_macs, cut.tail_macs) == (stem + conv, conv + fc)
    assert (cut.head_parameters, cut.tail_parameters) == (112 + 148, 148 + 50)
    assert parts.cuts[0].tail_macs == parts.cuts[-1].head_macs == stem + 2 * conv + fc


def test_attention_is_counted() -> None:
    """Attention's two matrix products count, fused or not: 2 x length^2 x width for each head's share."""

    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            heads = x.unflatten(-1, (2, 4)).transpose(1, 2)
            return F.scaled_dot_product_attention(heads, heads, heads)

    assert partition(Attention(), torch.randn(2, 5, 8)).cuts[0].tail_macs == 2 * 5 * 5 * 8


def test_unknown_cut_names_the_nearest(parts: Partition) -> None:
    """A misspelt cut is answered with the names that come close."""
    with pytest.raises(CutNotFound, match=r"no cut 'block\.0'; did you mean 'blocks\.0'") as caught:
        parts.cut("block.0")
    assert caught.value.close[0] == "blocks.0"
    with pytest.raises(CutNotFound):
        parts.split("nonsense")


def test_places_that_are_not_one_tensor_are_not_offered() -> None:
    """Between the halves of a chunk the value is a tuple: no cut there, but at each half there is."""

    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            value, gate = x.exp().chunk(2, -1)
            return value * gate.sigmoid()

    names = [cut.name for cut in partition(Gate(), torch.randn(2, 6)).cuts]
    assert "forward:exp" in names
    assert not any("chunk" in name or "split" in name for name in names)
    assert names[-2:] == ["forward:sigmoid", "output"]


def test_modules_called_twice_have_two_exits() -> None:
    """The second call of a shared module is a place of its own, and its parameters count once on each side."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.last = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.layer(self.layer(x)))

    module = Twice()
    parts = partition(module, torch.randn(2, 4))
    assert [cut.name for cut in parts.cuts] == ["input", "layer", "layer@1", "output"]
    assert [cut.head_parameters for cut in parts.cuts] == [0, 20, 20, 30]
    assert [cut.tail_parameters for cut in parts.cuts] == [30, 30, 10, 0]


def test_submodule_called_like_an_end_does_not_hide_it() -> None:
    """A submodule named "output" does not take the name of the last cut."""
    module = nn.Sequential()
    module.add_module("output", nn.Linear(4, 4))
    module.add_module("input", nn.ReLU())
    module.add_module("last", nn.Linear(4, 2))
    names = [cut.name for cut in partition(module, torch.randn(2, 4)).cuts]
    assert names == ["input", "output@1", "input@1", "output"]


def test_sizes_deep_in_the_head_do_not_cross() -> None:
    """Windows hold several rows for each sample; the tail finds the batch size from them alone."""

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            batch = x.shape[0]
            windows = self.inner(x.reshape(batch * 8, 4, 4))
            return windows.view(batch, 8, 16) + torch.arange(batch).view(-1, 1, 1)

    module = Windows()
    parts = partition(module, torch.randn(2, 8, 16))
    spec = TensorSpec(name="inner", shape=(None, 4, 4), dtype="float32", batch_factor=8)
    assert parts.cut("inner").tensors == (spec,)
    assert spec.elements_per_sample == 128
    head, tail = parts.split("inner")
    for batch in (1, 2, 5):
        x = torch.randn(batch, 8, 16)
        assert torch.equal(tail(*head(x)), module(x))


def test_tensor_that_is_only_measured_does_not_cross() -> None:
    """Where only the shape of a tensor is used, nothing of it is sent, and it is not even computed."""

    class Measures(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.measured = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.measured(x)
            return x.exp().view(y.shape[0], 2, 2).sin()

    parts = partition(Measures(), torch.randn(2, 4))
    assert [cut.name for cut in parts.cuts] == ["input", "forward:exp", "forward:view", "output"]
    assert crossing(parts, "forward:exp") == ["forward:exp"]
    assert parts.cuts[0].tail_parameters == 0


def test_tail_must_be_able_to_find_the_batch_size() -> None:
    """No cut where all that crosses is the same for every batch, but the tail repeats it for each sample."""

    class Sums(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.exp().sum(0).expand(x.shape[0], -1).sin()

    module = Sums()
    parts = partition(module, torch.randn(2, 4))
    assert [cut.name for cut in parts.cuts] == ["input", "forward:exp", "forward:expand", "output"]
    head, tail = parts.split("forward:exp")
    x = torch.randn(5, 4)
    assert torch.equal(tail(*head(x)), module(x))


def test_noise_is_drawn_on_one_side_only() -> None:
    """A random operation in forward happens once: its result crosses, and both sides see the same."""

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            noise = torch.rand(4)
            return (x + noise).exp() - noise

    module = Noisy()
    parts = partition(module, torch.randn(2, 4))
    for cut in parts.cuts:
        head, tail = parts.split(cut)
        x = torch.randn(3, 4)
        torch.manual_seed(1)
        wanted = module(x)
        torch.manual_seed(1)
        assert torch.equal(tail(*head(x)), wanted), cut.name
    assert crossing(parts, "forward:exp") == ["forward:rand", "forward:exp"]


def test_sides_are_built_once() -> None:
    """A device that connects for the thousandth time needs no more memory than before: torch never forgets what it compiled."""
    parts = partition(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4))
    sides = parts.split("0")
    assert parts.split(parts.cut("0")) is sides
    assert parts.split("1") is not sides


def test_segments_lead_from_cut_to_cut(net: SmallNet, parts: Partition) -> None:
    """What lies between neighbouring cuts, one after the other, is the module, bit for bit; a segment needs no other weights."""
    x = torch.randn(3, 3, 9, 9)
    values: tuple[Tensor, ...] = (x,)
    for first, last in itertools.pairwise(parts.cuts):
        values = parts.segment(first, last)(*values)
    assert torch.equal(values[0], net(x))
    assert {name for name, _ in parts.segment("stem", "blocks.0").named_parameters()} == {
        "blocks.0.conv.weight",
        "blocks.0.conv.bias",
    }
    with pytest.raises(ConfigError, match="last"):
        parts.segment("blocks.0", "stem")


# -- the module is left alone ----------------------------------------------------------------------


def test_module_is_left_as_it_was() -> None:
    """Modes, parameters, buffers and attributes are untouched, also what forward itself stores."""

    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.dropout = nn.BatchNorm1d(4), nn.Dropout()
            self.cache: dict[str, Tensor] = {}

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.norm(x)
            self.cache["last"] = self.last
            return self.dropout(self.last)

    module = Caching().train()
    module.norm.eval()
    before = {name: (value, value.clone()) for name, value in module.state_dict(keep_vars=True).items()}
    partition(module, torch.randn(2, 4))
    assert (module.training, module.norm.training, module.dropout.training) == (True, False, True)
    assert not module.cache
    assert not hasattr(module, "last")
    for name, value in module.state_dict(keep_vars=True).items():
        assert value is before[name][0]
        assert torch.equal(value, before[name][1])
    assert "len" not in globals()


def test_trace_is_in_evaluation_mode(net: SmallNet) -> None:
    """Dropout of a module in training mode does not end up in the sides."""
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9)).train()
    head, tail = partition(module, torch.randn(2, 4)).split("0")
    x = torch.randn(2, 4)
    assert torch.equal(tail(*head(x)), module.eval()(x))


def test_sides_share_the_parameters(net: SmallNet, parts: Partition) -> None:
    """A split copies no weights, keeps the module's own names, and gives each side what it needs and no more."""
    head, tail = parts.split("blocks.0")
    own = dict(net.named_parameters())
    names = [set(dict(side.body.named_parameters())) for side in (head, tail)]
    assert all(own[name] is p for side in (head, tail) for name, p in side.body.named_parameters())
    assert names[0] == {name for name in own if name.startswith(("stem", "blocks.0"))}
    assert names[1] == set(own) - names[0]


def test_tied_parameters_count_once() -> None:
    """A weight with two names is one weight on each side that needs it."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.decode = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
            self.decode.weight = self.encode.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.decode(self.encode(x).relu())

    cuts = partition(Tied(), torch.randn(2, 6)).cuts
    assert [(cut.head_parameters, cut.tail_parameters) for cut in cuts] == [(0, 36), (36, 36), (36, 36), (36, 0)]


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
