"""SplitMix64, compared with its published sequence."""

import numpy as np

from stillroom.data.cleaning.splitmix import splitmix64


def test_splitmix_maps_no_two_numbers_to_one_and_equals_the_published_sequence():
    numbers = np.arange(10_000, dtype=np.uint64)
    assert len(np.unique(splitmix64(numbers))) == len(numbers)
    assert splitmix64(numbers)[0] == 0xE220A8397B1DCDAF
