"""The analytic count agrees with every golden row and the memory columns of the paper's Tables 2 and 3."""

from functools import cache

import pytest
from goldens import PUBLISHED_METHODS

from tinytl.networks.lite_residual import LiteResidualConfig
from tinytl.networks.spec import NetworkSpec
from tinytl.paper.count import count_as_paper, count_bare


def test_every_golden_row(golden):
    count = cache(count_bare)  # rows differ in the batch size alone
    for row in golden("memory.json"):
        lite = LiteResidualConfig() if row["lite_residual_in_network"] else None
        spec = NetworkSpec("proxylessnas_mobile", "gn", row["classes"], lite)
        counted = count(spec, PUBLISHED_METHODS[row["method"]], row["resolution"])
        assert counted.total_bytes(row["batch_size"]) / 1e6 == pytest.approx(row["total_mb"], abs=1e-6), row
        assert counted.params_bytes / 1e6 == pytest.approx(row["param_mb"], abs=1e-6)
        assert (counted.total_params, counted.trainable_params) == (
            row["total_params"],
            row["trainable_params"],
        )


@pytest.mark.parametrize(
    ("method", "mb"),
    [("last", 31), ("bias", 32), ("tinytl_l", 37), ("tinytl", 37), ("norm_last", 192), ("full", 391)],
)
def test_table_2(method, mb):
    """Whatever the method, the paper's ProxylessNAS carries lite residuals."""
    counted = count_as_paper(NetworkSpec("proxylessnas_mobile", "gn", 102), method, 224)
    assert round(counted.total_bytes(8) / 1e6) == mb


@pytest.mark.parametrize(
    ("model", "resolution", "mb"),
    [("mobilenetv2_140", 224, 644), ("resnet50", 224, 802), ("inception_v3", 299, 850)],
)
def test_table_3_full(model, resolution, mb):
    counted = count_as_paper(NetworkSpec(model, "bn", 102), "full", resolution)
    assert counted.total_bytes(8) / 1e6 == pytest.approx(mb, rel=0.03)


def test_norm_changes_nothing_but_statistics():
    counts = {
        norm: count_bare(NetworkSpec("mobilenetv2_100", norm, 10), "bias", 96)
        for norm in ("bn", "gn", "bn_frozen")
    }
    assert counts["bn"] == counts["gn"] == counts["bn_frozen"]
