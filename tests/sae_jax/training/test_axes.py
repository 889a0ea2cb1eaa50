"""The axes of --mesh: what is accepted, and what is refused with the fix."""

import pytest

from harvest.errors import InputError
from sae_jax.training.axes import Axes, axes_asked, possible_axes, refuse_axes


def test_axes_are_read_and_written_alike():
    assert axes_asked("auto") is None
    assert axes_asked("features=2, members=3") == Axes(members=3, features=2)
    assert axes_asked(str(Axes(2, 3, 4))) == Axes(2, 3, 4)


@pytest.mark.parametrize(
    "text", ["", "4", "members", "members=0", "members=-1", "members=x", "rows=2", "data=2,data=2"]
)
def test_other_texts_are_refused(text):
    with pytest.raises(InputError, match="use auto, or"):
        axes_asked(text)


def test_every_way_to_use_eight_devices_is_listed_once():
    axes = list(possible_axes(8))
    assert len(axes) == len(set(axes)) == 10 and {one.devices for one in axes} == {8}


@pytest.mark.parametrize(
    "axes, reason",
    [
        (Axes(members=3), "JAX_NUM_CPU_DEVICES=3"),
        (Axes(members=2), "members is only 1"),
        (Axes(data=2), "not a multiple of 2"),
        (Axes(features=2), "15 features"),
    ],
)
def test_axes_that_do_not_divide_the_work_are_refused(axes, reason):
    with pytest.raises(InputError, match=reason):
        refuse_axes(axes, members=1, micro_batch=7, widths=[15], devices=2)
