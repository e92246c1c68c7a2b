"""Names of files inside installed packages reach these packages only."""

from pathlib import Path

import numpy
import pytest

from stillroom.encoders.files.packages import package_path
from stillroom.errors import UserError


@pytest.mark.parametrize("path", ["", "/linalg", "/linalg/", "/./linalg"])
def test_a_name_locates_a_folder_of_the_package(path):
    located = package_path(f"package:numpy{path}")
    assert located == Path(numpy.__file__).parent / path.strip("/").removeprefix("./")


@pytest.mark.parametrize(
    "name",
    [
        "numpy//etc", "numpy///etc/passwd", "numpy/../pip", "numpy/..", "numpy/linalg/../../pip",
        "numpy//", "typing_extensions/numpy/linalg", "/etc", "../numpy", "", "os/path", ".",
    ],
)  # fmt: skip
def test_a_name_does_not_reach_outside_of_the_package(name):
    with pytest.raises(UserError, match="leads outside|holds no|is not installed"):
        package_path(f"package:{name}")
