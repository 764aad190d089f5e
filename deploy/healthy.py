"""Health check for containers, which have no curl: `python healthy.py http://host:port/path` or `grpc://host:port`."""

import sys
import urllib.parse
import urllib.request

TIMEOUT_S = 4


def main(address: str) -> int:
    """Return 0 for a 2xx response or a gRPC status SERVING. Otherwise print the reason to standard error, return 1."""
    url = urllib.parse.urlsplit(address)
    try:
        if url.scheme == "grpc":
            _check_grpc(url.netloc)
        else:
            with urllib.request.urlopen(address, timeout=TIMEOUT_S):  # noqa: S310 - the address is our own
                pass
    except Exception as error:
        print(f"{address}: {error}", file=sys.stderr)
        return 1
    return 0


def _check_grpc(host: str) -> None:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(host) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="DagsterApi"), timeout=TIMEOUT_S
        )
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise ConnectionError(f"status {health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
