"""The plan: JSON there and back, and which differences matter."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest

from serverlight.codec import CodecConfig
from serverlight.errors import ConfigError, PlanMismatch
from serverlight.plan import TOKEN_IDS, Plan

PLAN = Plan(model="demo-vision", revision="0f3a", cut="layer2", codec=CodecConfig(profile="slicer", sparsity=0.8))


def test_survives_a_file(tmp_path: pathlib.Path) -> None:
    """A plan is read back as it was saved, digest and all."""
    PLAN.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == PLAN
    assert loaded.digest == PLAN.digest


def test_digest_tells_plans_apart() -> None:
    """Any field that differs gives another digest."""
    digests = {
        dataclasses.replace(PLAN, **change).digest
        for change in ({}, {"model": "x"}, {"revision": "x"}, {"cut": "x"}, {"codec": CodecConfig()})
    }
    assert len(digests) == 5


@pytest.mark.parametrize("field", ["model", "revision", "cut"])
def test_difference_is_named(field: str) -> None:
    """The first field that differs is named, with both values."""
    with pytest.raises(PlanMismatch) as caught:
        PLAN.check_compatible(dataclasses.replace(PLAN, **{field: "other"}))
    assert (caught.value.field, caught.value.theirs) == (field, "other")


def test_codec_settings_may_differ() -> None:
    """A frame describes itself, so a device may change its settings."""
    PLAN.check_compatible(dataclasses.replace(PLAN, codec=CodecConfig(profile="slicer", sparsity=0.1)))


def test_token_ids_need_the_embeddings() -> None:
    """A plan that sends token ids is written and read, agrees with a server that takes them, and with no other."""
    ids = dataclasses.replace(PLAN, cut="layers.0", sends=TOKEN_IDS)
    assert Plan.from_json(ids.to_json()) == ids
    assert "sends" not in PLAN.to_dict()
    ids.check_compatible(ids)
    dataclasses.replace(ids, sends=None).check_compatible(ids)
    with pytest.raises(PlanMismatch) as caught:
        ids.check_compatible(dataclasses.replace(ids, sends=None))
    assert caught.value.field == "sends"
    for wrong in ({"sends": "letters"}, {"return_cut": "layers.2"}):
        with pytest.raises(ConfigError, match=r"^sends: "):
            dataclasses.replace(ids, **wrong)


def test_where_a_model_lies_does_not_matter() -> None:
    """The same weights in another folder are the same model."""
    PLAN.check_compatible(dataclasses.replace(PLAN, model="/opt/models/demo-vision/"))
    PLAN.check_compatible(dataclasses.replace(PLAN, model="C:\\models\\demo-vision"))


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("not json", "plan"),
        ("[1]", "plan"),
        (json.dumps({**PLAN.to_dict(), "extra": 1}), "extra"),
        (json.dumps({k: v for k, v in PLAN.to_dict().items() if k != "cut"}), "cut"),
        (json.dumps({**PLAN.to_dict(), "cut": ""}), "cut"),
        (json.dumps({**PLAN.to_dict(), "model": 7}), "model"),
        (json.dumps({**PLAN.to_dict(), "codec": 7}), "codec"),
        (json.dumps({**PLAN.to_dict(), "codec": {"sparsity": 2}}), "sparsity"),
        (json.dumps({**PLAN.to_dict(), "codec": {"sparsity": "much"}}), "sparsity"),
        (json.dumps({**PLAN.to_dict(), "codec": {"sparsity": None}}), "sparsity"),
    ],
)
def test_bad_plans_name_the_field(text: str, field: str) -> None:
    """A plan from a stranger is refused by the name of the wrong field."""
    with pytest.raises(ConfigError) as caught:
        Plan.from_json(text)
    assert caught.value.field == field


def test_missing_file_is_named(tmp_path: pathlib.Path) -> None:
    """A plan that is not there is a clear error."""
    with pytest.raises(ConfigError, match="cannot read"):
        Plan.load(tmp_path / "none.json")


def test_basis_must_be_there_on_the_other_side() -> None:
    """A plan with a basis goes with plans that have it; one without goes with any; old JSON without the field is read."""
    with_basis = dataclasses.replace(PLAN, basis="00112233445566ff")
    assert Plan.from_json(with_basis.to_json()) == with_basis
    assert "basis" not in PLAN.to_dict()
    PLAN.check_compatible(with_basis)
    with_basis.check_compatible(with_basis)
    with pytest.raises(PlanMismatch, match="basis"):
        with_basis.check_compatible(PLAN)
    for wrong in ("", "00", "00112233445566FF", 7):
        with pytest.raises(ConfigError, match="basis"):
            dataclasses.replace(PLAN, basis=wrong)
    with pytest.raises(ConfigError, match="basis"):
        with_basis.check_basis(None)
