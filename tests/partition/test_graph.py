"""What a partition promises, on modules small enough to check by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serverlight.errors import ConfigError, CutNotFound
from serverlight.partition import Partition, TensorSpec, partition
from small_net import SmallNet, crossing

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
