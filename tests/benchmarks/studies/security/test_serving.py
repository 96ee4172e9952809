"""Short versions of the studies of a server: they run the real command in a process of its own."""

import sys
from pathlib import Path

import pytest

from headkit.benchmarks.studies.security import hanging_store, hostile_clients
from tests.backbones import SMALL

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, binds 127.0.0.2")


def test_server_answers_while_its_store_hangs(tmp_path: Path) -> None:
    result = hanging_store.measure(tmp_path, architecture=SMALL, usual=1.5, hanging=3.0)
    statuses = result["statuses"]
    assert set(statuses.pop("not in memory")) == {"503"}
    assert {status for counts in statuses.values() for status in counts} == {"200"}
    assert statuses["in memory"]["200"] >= 5
    # The bounds are those of the study, and more: this machine may be busy.
    assert result["healthz_max_ms"] < 3000
    assert result["heads_max_ms"] < 3000
    assert result["p99_ms"] < 2 * result["usual_p99_ms"] + 1000
    assert result["recovery_seconds"] < 6


def test_honest_client_is_answered_among_hostile_ones(tmp_path: Path) -> None:
    result = hostile_clients.measure(tmp_path, architecture=SMALL, seconds=2.0, share=0.3)
    for one in (result, result["other_address"], result["decoded_images"]):
        assert one["honest_requests"] >= 3
        assert one["honest_share"] >= 0.95
        assert one["peak_mb"] < 1000
        assert "half-open" in one["hostile_statuses"]
