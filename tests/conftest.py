"""What every test needs: no telemetry, a CPU, and nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.golden import Golden

# Before any library reads them.
os.environ.update(
    {
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "HF_HUB_OFFLINE": "1",
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "Agg",
        # Tiny models gain nothing from threads, and threads of many processes wait for each other.
        "OMP_NUM_THREADS": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
        # Tiny programs run once: compiling them well takes longer than running them badly.
        "XLA_FLAGS": os.environ.get(
            "XLA_FLAGS",
            "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
            " --xla_cpu_use_fusion_emitters=false",
        ),
    }
)

# A busy machine is slow without being wrong.
settings.register_profile("tandem", deadline=None)
settings.load_profile("tandem")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The one command that changes golden texts."""
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Golden texts of the folder `golden` beside the test."""
    update = bool(request.config.getoption("--update-golden"))
    return Golden(Path(request.path).parent / "golden", update)
