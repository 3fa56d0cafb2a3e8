"""The tests are a package, so that pytest and the tests import one and the same conftest.py."""
