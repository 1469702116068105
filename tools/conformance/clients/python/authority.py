"""Calls a Workload API with bare grpcio, once per spelling of the authority.

Called with the path of the socket and an id that this process has; prints one line per spelling that
works. Without an option gRPC's C core sends the path, percent-encoded and without its first slash.
"""

import concurrent.futures
import sys

import grpc


def spellings(path):
    yield "as it comes", f"unix:{path}", None
    yield "as it comes, with slashes", f"unix://{path}", None
    for authority in (
        "localhost",
        "localhost:80",
        path,
        path.lstrip("/").replace("/", "%2F"),
        f"unix:{path}",
        f"unix://{path}",
        "agent.example.org",
        "",
    ):
        yield authority, f"unix:{path}", authority


def same(message):
    return message


def check(target, authority, expected):
    options = [] if authority is None else [("grpc.default_authority", authority)]
    with grpc.insecure_channel(target, options=options) as channel:
        fetch = channel.unary_stream("/SpiffeWorkloadAPI/FetchX509SVID", same, same)
        header = [("workload.spiffe.io", "true")]

        # Many at once, so that header blocks follow each other on one connection; each with a header
        # of its own, so that the client's table changes.
        def one(number):
            metadata = header + [("x-number", str(number) * (number % 7 + 1))]
            answer = next(iter(fetch(b"", metadata=metadata, timeout=30)))
            assert expected in answer, "another identity"

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(one, range(24)))

        try:
            next(iter(fetch(b"", timeout=30)))
        except grpc.RpcError as refused:
            assert refused.code() == grpc.StatusCode.INVALID_ARGUMENT, refused
            assert refused.details() == "security header missing from request", refused
        else:
            raise AssertionError("a call without the header was answered")


def main(path, identity):
    for name, target, authority in spellings(path):
        check(target, authority, identity.encode())
        print(f"ok: {name or 'empty'}")


main(*sys.argv[1:])
