"""Networks of timm, small: captured exactly, norms folded, cut into blocks."""

from __future__ import annotations

import pytest

from benchmarks.networks import measure, report
from common.errors import InputError
from quant.network.crossings import MOST_LAYERS
from quant.network.difference import TOLERANCE

pytest.importorskip("timm")

# Name -> layers, batch norms that stay because no layer is directly in front of them, units.
NETWORKS = {
    "mobilenetv3_small_050": (54, 0, 15),
    "tf_efficientnet_lite0": (50, 0, 19),
    "regnetx_002": (45, 0, 15),
    "convnext_atto": (41, 0, 17),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_timms_networks_are_captured_exactly_and_cut_into_blocks(name):
    row = measure(f"timm/{name}")
    assert row.difference <= TOLERANCE
    assert (row.layers, row.norms - row.folded, len(row.unit_sizes)) == NETWORKS[name]
    assert max(row.unit_sizes) <= MOST_LAYERS


def test_a_refused_network_has_its_reason_in_the_report(capsys, monkeypatch):
    def refused(network, images):
        raise InputError("weights must be finite | got NaN")

    monkeypatch.setattr("benchmarks.networks.capture", refused)
    assert report(["lenet"]) == 1
    text = capsys.readouterr().out
    assert "| lenet | no: weights must be finite / got NaN |" in text
    assert "0 of 1 networks captured (0.0 %)." in text
