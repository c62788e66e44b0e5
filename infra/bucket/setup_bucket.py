"""Create the bucket for artifacts, the ledger and MLflow's files if it does not exist, and set its rules.

    python infra/bucket/setup_bucket.py [--bucket NAME] [--versions] [--workers ARN]

Running it again changes nothing. Credentials, region and server come from the environment, as for every AWS tool
(AWS_ACCESS_KEY_ID, AWS_DEFAULT_REGION, AWS_ENDPOINT_URL); the credentials must be an administrator's, not a worker's.
No rule here ever removes a current object: `retort maintain` decides what is kept and for how long.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from string import Template
from typing import Any

import boto3  # type: ignore[import-untyped]
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

HERE = Path(__file__).parent


def main() -> None:
    """Exit codes: 0 success, 1 the server refuses or is unreachable, 2 wrong arguments."""
    options = _options()
    client = boto3.client("s3")
    try:
        make_bucket(client, options.bucket)
        if options.versions:
            keep_versions(client, options.bucket)
        client.put_bucket_lifecycle_configuration(Bucket=options.bucket, LifecycleConfiguration=lifecycle())
        if options.workers:
            client.put_bucket_policy(Bucket=options.bucket, Policy=policy(options.bucket, options.workers))
    except (BotoCoreError, ClientError) as error:
        sys.exit(f"error: bucket '{options.bucket}' cannot be set up: {error}")
    print(f"bucket '{options.bucket}' is ready")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bucket", default=os.environ.get("RETORT_BUCKET"), help="default: $RETORT_BUCKET")
    parser.add_argument("--versions", action="store_true", help="keep replaced and deleted objects for 30 days")
    parser.add_argument("--workers", metavar="ARN", help="the role or user of the workers, which gets policy.json")
    options = parser.parse_args()
    if not options.bucket:
        parser.error("no bucket: give --bucket NAME, or set RETORT_BUCKET")
    return options


def make_bucket(client: Any, bucket: str) -> None:
    """Create the bucket unless it exists. Raises ClientError if it belongs to somebody else."""
    region = client.meta.region_name
    # AWS rejects a location for us-east-1 and requires one for every other region.
    place = {} if region in (None, "us-east-1") else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    try:
        client.create_bucket(Bucket=bucket, **place)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise
        client.head_bucket(Bucket=bucket)  # some servers say "exists" even for your own bucket


def keep_versions(client: Any, bucket: str) -> None:
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})


def lifecycle() -> dict[str, Any]:
    rules: dict[str, Any] = json.loads((HERE / "lifecycle.json").read_text(encoding="utf-8"))
    return rules


def policy(bucket: str, workers: str) -> str:
    """policy.json for this bucket and these workers, as JSON text."""
    return Template((HERE / "policy.json").read_text(encoding="utf-8")).substitute(BUCKET=bucket, WORKERS=workers)


if __name__ == "__main__":
    main()
