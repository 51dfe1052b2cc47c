"""What stage=eval says of a checkpoint that cannot be measured."""

from __future__ import annotations

import math

import pytest

from tinychat.errors import UserError
from tinychat.stages.eval import check_numbers


@pytest.mark.parametrize("name", ["eval/loss", "eval/response_loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_fails_the_stage(name: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"^there: {name} is {value}: with these weights the model gives no numbers"):
        check_numbers({name: value, "eval/safe_rate": 0.5}, "there")
    check_numbers({name: 3.0, "eval/ppl": math.inf, "eval/safe_rate": 0.5}, "there")
