"""Sweeps on Ray: one machine, and two of which one is lost."""

from __future__ import annotations

import builtins
import threading
import time

import pytest

import run_script
from tests.test_sweeps import fake, starts  # noqa: F401  (a fixture)

FLAGS = ["--methods", "rtn", "--bits", "4,4", "--seeds", *"12345678", "--engine", "ray"]


def test_without_ray_the_error_says_what_to_install(tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def no_ray(name, *arguments, **options):
        if name == "ray":
            raise ImportError("No module named 'ray'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", no_ray)
    assert run_script.main(["digits_resnet", *FLAGS, "--output_dir", str(tmp_path)]) == 2
    assert "engine ray needs Ray (pip install -r requirements-ray.txt)" in capsys.readouterr().err


@pytest.fixture
def ray_home(tmp_path, monkeypatch):
    """Ray's own files apart from the user's; no token, no usage reports."""
    ray = pytest.importorskip("ray")
    home = tmp_path / "home"
    home.mkdir()
    settings = {
        "HOME": str(home),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    yield ray
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_runs_a_sweep_and_goes_on_with_another_engines(ray_home, fake, capsys):  # noqa: F811
    common = ["digits_resnet", "--output_dir", str(fake)]
    assert run_script.main([*common, *FLAGS[:4], "--seeds", "1", "2"]) == 0
    assert run_script.main([*common, *FLAGS]) == 0
    assert starts(fake) == 8
    assert len(list(fake.rglob("run.json"))) == 8


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_lost_machine_loses_no_run(ray_home, fake, monkeypatch):  # noqa: F811
    """One of two nodes is killed: the sweep finishes, and no finished run is run again."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("FAKE_SECONDS", "1.5")
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    second = cluster.add_node(num_cpus=1)
    try:

        def lose() -> None:
            deadline = time.monotonic() + 60
            while starts(fake) < 3 and time.monotonic() < deadline:
                time.sleep(0.1)
            cluster.remove_node(second, allow_graceful=False)

        thread = threading.Thread(target=lose)
        thread.start()
        flags = [*FLAGS, "--ray_address", cluster.address, "--output_dir", str(fake)]
        assert run_script.main(["digits_resnet", *flags]) == 0
        thread.join()
    finally:
        cluster.shutdown()
    assert len(list(fake.rglob("run.json"))) == 8
    assert starts(fake) <= 10  # those of the lost machine once more
