"""Decoded vectors are as close to the originals as their bytes allow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.encoders.vectors.quantise import (
    Calibration,
    pack_signs,
    read_calibrations,
    unpack_signs,
    write_calibrations,
)
from stillroom.errors import UserError


def normal(rows, dims, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, dims)).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 40), st.integers(0, 99))
def test_int8_errs_by_half_a_step_at_most_and_clips_at_its_range(rows, dims, seed):
    vectors = normal(rows, dims, seed)
    vectors[:, 0] = 0.25  # a constant dimension
    calibration = Calibration.fit(vectors)
    decoded = calibration.decode(calibration.encode(vectors))
    assert (np.abs(decoded - vectors) <= 0.5001 * calibration.step + 1e-6).all()
    clipped = calibration.decode(calibration.encode(vectors * 3))
    assert (clipped >= vectors.min(axis=0) - 1e-6).all()
    assert (clipped <= vectors.max(axis=0) + 1e-5).all()


@pytest.mark.parametrize("dims", [1, 8, 13, 384])
def test_signs_round_trip_and_take_one_bit_each(dims):
    vectors = normal(7, dims)
    vectors[0] = 0  # nothing is above 0
    bits = pack_signs(vectors)
    assert bits.nbytes == 7 * -(-dims // 8)
    np.testing.assert_array_equal(unpack_signs(bits, dims), np.where(vectors > 0, 1, -1))


def test_calibrations_of_all_sizes_are_read_as_written(tmp_path):
    calibrations = {dims: Calibration.fit(normal(9, dims)) for dims in (32, 8)}
    write_calibrations(tmp_path, calibrations)
    loaded = read_calibrations(tmp_path)
    assert set(loaded) == {32, 8}
    for dims, calibration in calibrations.items():
        np.testing.assert_array_equal(loaded[dims].low, calibration.low)
        np.testing.assert_array_equal(loaded[dims].step, calibration.step)
    with pytest.raises(UserError, match="does not exist"):
        read_calibrations(tmp_path / "elsewhere")
