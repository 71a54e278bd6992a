"""A real S3 server in a thread: moto's, one request after the other, so that its conditions are kept."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager

BUCKET = "runs"


@contextmanager
def object_storage():
    """Give the environment variables by which boto3 reaches the server; it has one empty bucket."""
    import boto3
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=False)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    named = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        boto3.client(
            "s3", endpoint_url=named["AWS_ENDPOINT_URL"], region_name="us-east-1",
            aws_access_key_id="test", aws_secret_access_key="test",
        ).create_bucket(Bucket=BUCKET)  # fmt: skip
        yield named
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def emptied_bucket(storage, monkeypatch):
    """Point this process at the server, and return a client of its bucket, which is empty now."""
    import boto3

    for name, value in storage.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    for one in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=one["Key"])
    return client
