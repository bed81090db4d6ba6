"""Golden losses: a change of structure changes no number. On one machine `tools.golden compare` asks for equal bits."""

import copy
import json
from pathlib import Path

import pytest

from tools.golden import CASES, differences, record
from torchrec_xd.models import MODELS

GOLDEN = json.loads((Path(__file__).parent / "support" / "golden.json").read_text(encoding="utf-8"))
LOSSES = {"rel": 1e-4}
WEIGHTS = {"rel": 2e-3, "abs": 1e-2}
"""Other CPUs add up in another order. A Xeon with AMX recorded them; an EPYC, with AVX-512 and
with AVX2 alone, has losses within 2e-5. An honest change of mathematics moves them by more, and then
`python -m tools.golden write tests/support/golden.json`. A bias that starts at zero is less sure: where a gradient is
nearly nothing, its sign decides which way Adam's first steps go."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", CASES)
def test_losses_and_weights_are_the_recorded_ones(recorded, name):
    assert recorded[name]["losses"] == pytest.approx(GOLDEN[name]["losses"], **LOSSES)
    assert recorded[name]["weights"] == pytest.approx(GOLDEN[name]["weights"], **WEIGHTS)


def test_every_model_has_a_case():
    assert {case.model["name"] for case in CASES.values()} == set(MODELS)
    assert set(GOLDEN) == set(CASES)


def test_a_difference_of_one_bit_is_found(recorded):
    assert differences(recorded, recorded) == []
    other = copy.deepcopy(recorded)
    other["ple"]["losses"][-1] += 2.0**-24
    other["star"]["sha256"] = "another"
    del other["mmoe"]["weights"]["net.gates.m_click@target.linear.weight"]
    found = differences(recorded, other)
    assert [line.split(":")[0] for line in found] == ["mmoe", "ple", "star"]
