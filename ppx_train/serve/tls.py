"""TLS: a folder with cert.pem and key.pem, or a certificate that the server signs itself."""

import datetime
import socket
import ssl
import tempfile
from ipaddress import ip_address
from pathlib import Path

from model.errors import UserError
from model.extras import require
from ppx_train.serve.opus import EXTRA
from ppx_train.serve.settings import AUTO

DAYS = 30


def tls_context(where: str, host: str) -> ssl.SSLContext:
    """The context of a server. where: the folder, or "auto" for a new certificate for this machine.

    Raises: UserError if a file is missing or cannot be used, or "auto" lacks its package.
    """
    if where == AUTO:
        with tempfile.TemporaryDirectory() as folder:
            write_certificate(Path(folder), names_here(host))
            return _context(Path(folder))
    return _context(Path(where))


def _context(folder: Path) -> ssl.SSLContext:
    for name in ("cert.pem", "key.pem"):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: no such file; --ssl takes a folder with both, or auto", code="not-found")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem", password="")
    except (ssl.SSLError, OSError, ValueError) as why:
        raise UserError(
            f"{folder}: cert.pem and key.pem are no certificate with its key, without a password ({why})",
            code="unreadable",
        ) from why
    return context


def names_here(host: str) -> list[str]:
    """The names and addresses by which this machine may be called: its own, and `host` unless it stands for all."""
    names = ["localhost", "127.0.0.1", "::1", socket.gethostname(), local_address()]
    if host not in ("0.0.0.0", "::", ""):
        names.append(host.strip("[]"))
    return list(dict.fromkeys(names))


def local_address() -> str:
    """The address under which the local network sees this machine; nothing is sent to find it out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # An address for documentation, which nobody has.
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def write_certificate(folder: Path, names: list[str]) -> None:
    """Writes cert.pem and key.pem for some names and addresses, valid for 30 days.

    Raises: UserError ("missing-package") without the cryptography package.
    """
    x509 = require("cryptography.x509", extra=EXTRA)
    oid = require("cryptography.x509.oid", extra=EXTRA).NameOID
    hashes = require("cryptography.hazmat.primitives.hashes", extra=EXTRA)
    formats = require("cryptography.hazmat.primitives.serialization", extra=EXTRA)
    curves = require("cryptography.hazmat.primitives.asymmetric.ec", extra=EXTRA)
    key = curves.generate_private_key(curves.SECP256R1())
    name = x509.Name([x509.NameAttribute(oid.COMMON_NAME, "ppx-serve")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName([_general_name(x509, each) for each in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(formats.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(formats.Encoding.PEM, formats.PrivateFormat.PKCS8, formats.NoEncryption())
    )
    (folder / "key.pem").chmod(0o600)


def _general_name(x509: object, name: str) -> object:
    """A subject name of a certificate: an address or a host's name."""
    try:
        return x509.IPAddress(ip_address(name))  # type: ignore[attr-defined]
    except ValueError:
        return x509.DNSName(name)  # type: ignore[attr-defined]
