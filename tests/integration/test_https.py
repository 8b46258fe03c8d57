"""The API over HTTPS, with a certificate of its own."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy.orm import Session, sessionmaker

from hipscore.api import ApiError, run_api
from hipscore.settings import Settings
from tests import servers
from tests.integration import shell_steps as steps
from tests.integration.access_steps import LOOK, PAGE, Site, site


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for this machine, signed by itself, and its key."""
    return self_signed(tmp_path_factory.mktemp("tls"))


def self_signed(folder: Path, *more: str) -> tuple[Path, Path]:
    chain, key = folder / "chain.pem", folder / "key.pem"
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-days", "2", "-out", str(chain), "-keyout", str(key)]
    subprocess.run(
        [*request, *names, *files, *(more or ("-nodes",))], check=True, capture_output=True
    )
    return chain, key


@pytest.fixture
def encrypted(
    settings: Settings, maker: sessionmaker[Session], certificate: tuple[Path, Path]
) -> Iterator[Site]:
    """An API over HTTPS that demands keys."""
    chain, key = certificate
    secured = settings.model_copy(
        update={"access": "keys", "http_certificate": chain, "http_private_key": key}
    )
    trusting = ssl.create_default_context(cafile=chain)
    with site(secured, maker, context=trusting) as running:
        yield running


@steps.sqlite_only
def test_https_protects_cookie_and_transport(encrypted: Site) -> None:
    browser = encrypted.client(headers=PAGE)
    answer = browser.post("/login", data={"key": encrypted.key()})
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"__Host-hipscore-{encrypted.settings.http_port}=")
    assert "; Secure" in cookie
    assert answer.headers["strict-transport-security"] == "max-age=31536000"
    assert browser.get(LOOK).status_code == 200


@steps.sqlite_only
def test_plain_http_gets_nothing_from_https(encrypted: Site) -> None:
    plain = encrypted.base.replace("https", "http")
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{plain}/healthz", trust_env=False)


@steps.sqlite_only
def test_old_versions_of_tls_are_refused(encrypted: Site) -> None:
    import socket
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    address = (servers.LOOPBACK, encrypted.settings.http_port)
    with socket.create_connection(address) as plain, pytest.raises((ssl.SSLError, OSError)):
        old.wrap_socket(plain)


@steps.sqlite_only
def test_a_certificate_that_cannot_be_used_is_told_in_one_line(
    settings: Settings, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    chain, key = certificate
    _, other = self_signed(tmp_path)
    (tmp_path / "locked").mkdir()
    locked = self_signed(tmp_path / "locked", "-passout", "pass:secret")
    for (one, two), words in (
        ((chain, other), "the private key belongs to another certificate"),
        ((key, chain), "not PEM"),
        (locked, "the private key is encrypted"),
        ((chain, tmp_path / "away"), "cannot be read: No such file"),
    ):
        wrong = settings.model_copy(update={"http_certificate": one, "http_private_key": two})
        with pytest.raises(ApiError, match=words) as told:
            run_api(wrong)
        assert "\n" not in str(told.value)


def test_the_whole_service_comes_up_with_https_and_keys(
    redis: servers.Redis, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    import os
    import sys

    chain, key = certificate
    port = servers.free_port()
    environment = {
        **os.environ,
        "HIPSCORE_DATA_DIR": str(tmp_path / "data"),
        "HIPSCORE_BROKER_URL": redis.url,
        "HIPSCORE_DICOM_PORT": str(servers.free_port()),
        "HIPSCORE_HTTP_PORT": str(port),
        "HIPSCORE_HTTP_CERTIFICATE": str(chain),
        "HIPSCORE_HTTP_PRIVATE_KEY": str(key),
        "HIPSCORE_ACCESS": "keys",
        "HIPSCORE_RESERVE_MB": "1",
    }
    log = tmp_path / "up.log"
    with log.open("wb") as out:
        up = subprocess.Popen(
            [sys.executable, "-m", "hipscore", "up"], env=environment, stdout=out, stderr=out
        )
    try:
        servers.wait_until(
            lambda: "hipscore is up" in log.read_text() or up.poll() is not None,
            what="it is up", seconds=90,
        )  # fmt: skip
        told = log.read_text()
        assert f"https://127.0.0.1:{port}/" in told
        assert "there is none: hipscore keys create NAME --role admin" in told
        made = subprocess.run(
            [sys.executable, "-m", "hipscore", "keys", "create", "first", "--role", "admin"],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        trusting = ssl.create_default_context(cafile=chain)
        headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
        with httpx.Client(verify=trusting, trust_env=False, headers=headers) as client:
            rows = client.get(f"https://localhost:{port}/audit").json()["items"]
        started = next(row for row in rows if row["action"] == "start")
        assert started["detail"] == {"access": "keys", "https": True}
    finally:
        up.terminate()
        up.wait(90)
