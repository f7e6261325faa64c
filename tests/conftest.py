"""Fixtures every test folder shares: one local Ray cluster for the session, and where the real data is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "platform"), str(ROOT)])
"""Workers and subprocesses import rayrank and jobs from this checkout."""


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """One local Ray for the session (4 logical CPUs); yields its address. Tests that need another start their own."""
    import ray

    context = ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=300 * 2**20,
        include_dashboard=False,
        configure_logging=False,
        log_to_driver=False,
        _system_config={"metrics_report_interval_ms": 3_600_000},
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield str(context.address_info["gcs_address"])
    ray.shutdown()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real datasets (``RAYRANK_DATA``, else ``../shared/data``); skips when absent."""
    folder = Path(os.environ.get("RAYRANK_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "ml-1m" / "ratings.dat").is_file():
        pytest.skip(f"real data not found in {folder}; set RAYRANK_DATA")
    return folder


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """URL of an empty bucket of an S3-compatible server on this machine; subprocesses reach it too."""
    import logging

    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    settings |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    boto3.client("s3").create_bucket(Bucket="tests")
    yield "s3://tests"
    server.stop()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
