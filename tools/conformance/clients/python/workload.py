"""Drives a Workload API with py-spiffe, as Python workloads do.

Called with the address of the API and the ids of two workloads that this process is both of; prints
one line per thing that works.
"""

import sys

from spiffe import JwtSource, SpiffeId, TrustDomain, WorkloadApiClient, X509Source


def main(address, first, second):
    ids = {SpiffeId(first), SpiffeId(second)}
    domain = TrustDomain("example.org")

    with WorkloadApiClient(address) as client:
        svids = client.fetch_x509_svids()
        assert {svid.spiffe_id for svid in svids} == ids, svids
        assert all(svid.leaf and svid.private_key for svid in svids)
        print("ok: x509 svids")

        bundle = client.fetch_x509_bundles().get_bundle_for_trust_domain(domain)
        assert bundle and bundle.x509_authorities
        print("ok: x509 bundles")

        token = client.fetch_jwt_svid(audience={"one", "two"}, subject=SpiffeId(first))
        assert token.spiffe_id == SpiffeId(first), token.spiffe_id
        assert len(client.fetch_jwt_svids(audience={"one"})) == 2
        print("ok: jwt svids")

        validated = client.validate_jwt_svid(token=token.token, audience="one")
        assert validated.spiffe_id == SpiffeId(first)
        try:
            client.validate_jwt_svid(token=token.token, audience="three")
        except Exception as refused:
            assert "audience" in str(refused), refused
        else:
            raise AssertionError("validated for another audience")
        print("ok: jwt validation by the api")

        bundles = client.fetch_jwt_bundles()
        assert bundles.get_bundle_for_trust_domain(domain).jwt_authorities
        print("ok: jwt bundles")

    with X509Source(socket_path=address, timeout_in_seconds=30) as source:
        assert source.svid.spiffe_id in ids
        assert source.get_bundle_for_trust_domain(domain).x509_authorities
        print("ok: x509 source")

    with JwtSource(socket_path=address, timeout_in_seconds=30) as source:
        svid = source.fetch_svid(audience={"one"}, subject=SpiffeId(second))
        assert svid.spiffe_id == SpiffeId(second)
        print("ok: jwt source")


main(*sys.argv[1:])
