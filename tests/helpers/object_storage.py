"""Object storage on this machine: moto's S3 server, in a thread of the test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def bucket_on_this_machine() -> Iterator[tuple[str, dict[str, str]]]:
    """Name of an empty bucket, and the environment variables by which LanceDB finds it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address, name = f"http://{host}:{port}", f"bucket-{uuid.uuid4().hex}"
    environment = {
        "AWS_ENDPOINT": address,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
    }
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    client = boto3.client("s3", endpoint_url=address, region_name="us-east-1", **keys)
    try:
        client.create_bucket(Bucket=name)
        yield name, environment
    finally:
        client.close()
        server.stop()
