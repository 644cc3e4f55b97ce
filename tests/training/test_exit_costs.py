import pytest

from compress.errors import UserInputError
from compress.measure.exit_macs import macs_per_exit
from compress.training.exit_costs import exit_costs
from tests.training.exit_fakes import tiny_dynn
from tests.training.fakes import SIDE

SHAPE = (3, SIDE, SIDE)


def test_multiply_adds_are_the_costs_where_none_are_given() -> None:
    model = tiny_dynn()
    costs = exit_costs(model, SHAPE)
    macs = macs_per_exit(model, SHAPE)
    assert costs.macs == tuple(macs)
    assert costs.values == tuple(map(float, macs))
    assert not costs.measured
    assert costs.shares[-1] == 1
    assert costs.shares[0].item() == pytest.approx(macs[0] / macs[-1])


def test_measured_costs_take_their_place_and_multiply_adds_stay_known() -> None:
    costs = exit_costs(tiny_dynn(), SHAPE, (1.0, 3.0, 4.0))
    assert costs.measured
    assert costs.shares.tolist() == [0.25, 0.75, 1.0]
    assert costs.macs_shares.tolist() == exit_costs(tiny_dynn(), SHAPE).shares.tolist()
    assert costs.to_dict() == {"values": [1, 3, 4], "macs": list(costs.macs), "measured": True}


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        pytest.param((1.0, 2.0), "2 costs are given for 3 exits; expected rising", id="too few"),
        pytest.param((1.0, 2.0, 2.0), r"costs are \[1.0, 2.0, 2.0\]; expected rising", id="equal"),
        pytest.param((1.0, 3.0, 2.0), "expected rising", id="falling"),
        pytest.param((0.0, 1.0, 2.0), "above 0", id="nothing"),
        pytest.param((1.0, float("nan"), 2.0), "expected rising", id="NaN"),
        pytest.param((1.0, 2.0, float("inf")), "expected rising", id="infinite"),
        pytest.param((1.0, "2", 3.0), "expected rising", id="a word"),
    ],
)
def test_costs_that_cannot_be(costs: tuple[float, ...], message: str) -> None:
    with pytest.raises(UserInputError, match=message) as found:
        exit_costs(tiny_dynn(), SHAPE, costs)
    assert found.value.exit_code == 3
