"""S3 servers for the tests: moto in memory, rclone as a real one. Both take the same credentials."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

KEY, SECRET, BUCKET = "retort-tests", "retort-tests-secret", "retort-tests"


@pytest.fixture(scope="session")
def aws_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@pytest.fixture(scope="session")
def s3_moto(aws_environment: None) -> Iterator[tuple[str, str]]:
    """(endpoint_url, bucket)"""
    import boto3  # type: ignore[import-untyped]
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint_url = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=endpoint_url).create_bucket(Bucket=BUCKET)
    yield endpoint_url, BUCKET
    server.stop()


@pytest.fixture(scope="session")
def s3_rclone(aws_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(endpoint_url, bucket)"""
    folder = tmp_path_factory.mktemp("rclone")
    (folder / BUCKET).mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    rclone = Path(sys.executable).with_name("rclone")
    command = [str(rclone), "serve", "s3", str(folder), "--addr", address, "--auth-key", f"{KEY},{SECRET}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"http://{address}", seconds=30)
        yield f"http://{address}", BUCKET
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(url: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            urlopen(url, timeout=1)
        except URLError as error:
            if hasattr(error, "code"):
                return  # it answers, if only to refuse
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return
