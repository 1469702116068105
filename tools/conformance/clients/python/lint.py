"""Lints certificates with pkilint, an RFC 5280 linter.

Reads one certificate per line of standard input, base64 of its DER; prints each finding with the number
of its line, then how many certificates were looked at.
"""

import base64
import sys

from pkilint import loader
from pkilint.pkix import certificate, extension, name

CERTIFICATES = loader.RFC5280CertificateDocumentLoader()
LINTER = certificate.create_pkix_certificate_validator_container(
    certificate.create_decoding_validators(name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS),
    [
        certificate.create_issuer_validator_container([]),
        certificate.create_validity_validator_container(),
        certificate.create_subject_validator_container([]),
        certificate.create_extensions_validator_container([]),
        certificate.create_spki_validator_container([]),
    ],
)


def findings(der, number):
    document = CERTIFICATES.load_der_document(der, f"line {number}")
    for result in LINTER.validate(document.root):
        for found in result.finding_descriptions:
            if found.finding.severity.name in ("FATAL", "ERROR", "WARNING", "NOTICE"):
                yield f"{found.finding.severity.name} {found.finding.code} {found.message or ''}".strip()


def main():
    count = 0
    for count, line in enumerate(sys.stdin, start=1):
        for found in findings(base64.b64decode(line), count):
            print(f"{count}: {found}")
    print(f"{count} certificates")


main()
