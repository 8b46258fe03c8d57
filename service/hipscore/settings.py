"""Everything an operator can set: environment ``HIPSCORE_*``, then a TOML file, then defaults.

The TOML file is named by ``HIPSCORE_CONFIG``; its keys are the field names below.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from hipscore.addresses import Destination, Peer, Sender, ae_title, destination, is_host_name

_SOCKET_PATH_BYTES = 100
_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def unknown_variables(environment: Mapping[str, str]) -> dict[str, str | None]:
    """Variables ``HIPSCORE_*`` that no setting is read from, each with the likely meant one."""
    known = ["HIPSCORE_CONFIG", *(f"HIPSCORE_{name.upper()}" for name in Settings.model_fields)]
    # case does not matter to the settings, so it does not here
    unknown = sorted(
        name
        for name in environment
        if name.upper().startswith("HIPSCORE_") and name.upper() not in known
    )
    return {
        name: next(iter(difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.8)), None)
        for name in unknown
    }


def _parts(value: object) -> Iterable[object]:
    """The items of a list, or of a comma separated text, without empty ones."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value if isinstance(value, list | tuple) else [value]


def is_loopback(host: str) -> bool:
    """Whether what is bound to this host is reached from this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _default_data_dir() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "hipscore"


class Settings(BaseSettings):
    """The effective settings of one process."""

    model_config = SettingsConfigDict(
        env_prefix="HIPSCORE_",
        env_ignore_empty=True,  # a compose file passes what is not set as ""
        extra="forbid",  # a misspelt key of the file must not be lost in silence
        frozen=True,
    )

    data_dir: Path = Field(
        default_factory=_default_data_dir,
        description="spool, results, embedded database and broker",
    )
    ae_title: str = Field("HIPSCORE", description="our AE title")
    dicom_host: str = Field("127.0.0.1", description="address the listener binds to")
    dicom_port: int = Field(11112, ge=1, le=65535, description="port the listener binds to")
    http_host: str = Field("127.0.0.1", description="address the API binds to")
    http_port: int = Field(8080, ge=1, le=65535, description="port the API binds to")
    http_allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="names the API is reached by beside localhost, comma separated; * for any"
    )
    http_certificate: Path | None = Field(
        None, description="certificate chain (PEM) of the API; with http_private_key: HTTPS"
    )
    http_private_key: Path | None = Field(None, description="its private key (PEM)")
    access: Literal["auto", "open", "keys"] = Field(
        "auto",
        description="keys: API and pages demand a key; open: nobody is asked; auto: keys unless "
        "the API is bound to this machine alone",
    )
    http_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="addresses or networks of reverse proxies whose X-Forwarded-For and "
        "X-Forwarded-Proto are believed, comma separated",
    )
    viewer_url: str | None = Field(
        None,
        description="link to a study in a viewer; {study} stands for its UID, for example "
        "https://viewer.example/viewer?StudyInstanceUIDs={study}",
    )
    database_url: SecretStr | None = Field(
        None, description="SQLAlchemy URL; default: SQLite in the data directory"
    )
    broker_url: SecretStr | None = Field(
        None,
        description="URL of a Redis or Valkey; default: an embedded Valkey in the data directory",
    )
    rules: Path | None = Field(
        None,
        description="TOML file: which series are scored, and which results go where; "
        "default: fat-suppressed coronal MR of hip or pelvis, everything to every destination",
    )
    explain_unmatched: bool = Field(
        default=True,
        description="a study in which no series matches a rule gets one report that says why",
    )
    destinations: Annotated[tuple[Destination, ...], NoDecode] = Field(
        (),
        description="where results go, comma separated: AET@HOST:PORT (DICOM), https://HOST/PATH "
        "(DICOMweb) or mllp://HOST:PORT (HL7)",
    )
    no_commitment: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="AE titles of destinations that are not asked for storage commitment, comma "
        "separated; * for all",
    )
    commitment_seconds: FiniteFloat = Field(
        3600.0, gt=0, description="a storage commitment without a report is asked for again after"
    )
    query_peer: Peer | None = Field(
        None,
        description="PACS asked by C-FIND how many images an open series has, AET@HOST:PORT",
    )
    worklist_peer: Peer | None = Field(
        None,
        description="modality worklist asked for orders that images do not name, AET@HOST:PORT",
    )
    earlier_reports: bool = Field(
        default=True,
        description="ask the query peer for earlier reports of the patient, for the change",
    )
    priority_score: FiniteFloat | None = Field(
        None, gt=0, description="a UNet-score from here on is flagged; default: none is"
    )
    priority_rise: FiniteFloat | None = Field(
        None, gt=0, description="a rise of so much since the earlier score is flagged"
    )
    senders: Annotated[tuple[Sender, ...], NoDecode] = Field(
        (),
        description="who may send, CALLING_AET@HOST, comma separated; * for any title, HOST a "
        "name, an address or a network such as 10.0.0.0/8; destinations may as well",
    )
    called_ae_titles: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="AE titles the listener answers to, comma separated, * for any; default: "
        "any while only this machine may send, else its own",
    )
    quiet_seconds: FiniteFloat = Field(
        30.0, gt=0, description="a series without other evidence closes after this long"
    )
    bundle_dir: Path | None = Field(None, description="model bundle; default: the shipped one")
    threads: int = Field(0, ge=0, description="inference threads; 0: one per core")
    provider: Literal["auto", "tensorrt", "cuda", "openvino", "cpu"] = Field(
        "auto", description="what runs the networks; auto: the first that gives the right answer"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = Field(
        "auto",
        description="in which numbers the networks compute; auto: the fastest here that the "
        "bundle was evaluated in",
    )
    engine_cache_dir: Path | None = Field(
        None, description="where TensorRT keeps built engines; default: under the data directory"
    )
    engine: Literal["auto", "shared", "own"] = Field(
        "auto",
        description="whether the processes of a worker share one engine; auto: where there are "
        "several and a GPU computes",
    )
    min_head_area_mm2: FiniteFloat = Field(
        100.0, gt=0, description="smallest scored head section, mm²"
    )
    lease_seconds: FiniteFloat = Field(
        180.0, gt=0, description="work of a worker that is silent this long goes to another"
    )
    reap_seconds: FiniteFloat = Field(5.0, gt=0, description="how often the reaper looks")
    max_attempts: int = Field(
        60,
        ge=1,
        description="tries before a job is FAILED or a delivery EXHAUSTED (60: about 8 days)",
    )
    reserve_mb: int = Field(512, ge=0, description="disk kept free: below it C-STORE gets 0xA700")
    watermark_mb: int = Field(
        2048,
        ge=0,
        description="free disk below which images of delivered results are purged early",
    )
    keep_images_days: FiniteFloat = Field(
        30.0, ge=0, description="images are kept this long after their results were delivered"
    )
    keep_results_days: FiniteFloat = Field(
        365.0, ge=0, description="files of delivered results are kept this long"
    )
    keep_rows_days: FiniteFloat = Field(
        0.0,
        ge=0,
        description="rows of a study (scores, ledger) are kept this long after its last change "
        "and until its images and results are purged; 0: for ever",
    )
    listeners: int = Field(1, ge=1, description="listener processes on the one port, under up")
    max_associations: int = Field(16, ge=1, description="associations served at once, per process")
    idle_seconds: FiniteFloat = Field(
        60.0, gt=0, description="an association without a message for so long is ended"
    )
    association_seconds: FiniteFloat = Field(
        3600.0, gt=0, description="longest life of an association"
    )
    max_object_mb: int = Field(256, ge=1, description="largest object accepted by C-STORE")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")

    @field_validator("ae_title")
    @classmethod
    def _check_title(cls, value: str) -> str:
        return ae_title(value)

    @field_validator("viewer_url")
    @classmethod
    def _check_viewer(cls, value: str | None) -> str | None:
        if value is not None and (
            "{study}" not in value or not value.startswith(("https://", "http://", "/"))
        ):
            msg = f"{value!r} is no link to a study; write https://VIEWER/…?…={{study}}"
            raise ValueError(msg)
        return value

    @field_validator("data_dir", "bundle_dir", "rules", "http_certificate", "http_private_key")
    @classmethod
    def _from_home(cls, value: Path | None) -> Path | None:
        """Expand ``~``: no shell does it in a unit file or in TOML."""
        return value.expanduser() if value is not None else None

    @field_validator("log_level")
    @classmethod
    def _check_level(cls, value: str) -> str:
        if value.upper() not in _LOG_LEVELS:
            msg = f"{value!r} is not a log level; use {', '.join(_LOG_LEVELS)}"
            raise ValueError(msg)
        return value.upper()

    @field_validator("http_allowed_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: object) -> object:
        if isinstance(value, str):
            value = value.split(",")
        if isinstance(value, list | tuple):
            hosts = [host.strip().lower() if isinstance(host, str) else host for host in value]
            return tuple(host for host in hosts if host)
        return value

    @field_validator("http_allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if host != "*" and not is_host_name(host):
                msg = f"{host!r} is not a host name; write hip.example.org, without port or scheme"
                raise ValueError(msg)
        return value

    @field_validator("http_proxies", mode="before")
    @classmethod
    def _split_proxies(cls, value: object) -> object:
        return tuple(_parts(value))

    @field_validator("http_proxies")
    @classmethod
    def _check_proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in value:
            try:
                ip_network(proxy)
            except ValueError as error:
                msg = f"{proxy!r} is no address or network; write 10.0.0.5 or 10.0.0.0/24"
                raise ValueError(msg) from error
        return value

    @field_validator("destinations", mode="before")
    @classmethod
    def _parse_destinations(cls, value: object) -> object:
        if isinstance(value, str):
            value = [part for part in value.split(",") if part.strip()]
        if isinstance(value, list | tuple):
            return tuple(destination(part) if isinstance(part, str) else part for part in value)
        return value

    @field_validator("senders", mode="before")
    @classmethod
    def _parse_senders(cls, value: object) -> object:
        return tuple(
            Sender.parse(part) if isinstance(part, str) else part for part in _parts(value)
        )

    @field_validator("query_peer", "worklist_peer", mode="before")
    @classmethod
    def _parse_peer(cls, value: object) -> object:
        return Peer.parse(value) if isinstance(value, str) else value

    @field_validator("called_ae_titles", "no_commitment", mode="before")
    @classmethod
    def _split_titles(cls, value: object) -> object:
        return tuple(
            part if part == "*" else ae_title(part) if isinstance(part, str) else part
            for part in _parts(value)
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments over environment over file."""
        del dotenv_settings, file_secret_settings
        path = os.environ.get("HIPSCORE_CONFIG")
        if path and not Path(path).is_file():
            msg = f"HIPSCORE_CONFIG names {path}, which is not a file"
            raise FileNotFoundError(msg)
        toml = (TomlConfigSettingsSource(settings_cls, Path(path)),) if path else ()
        return (init_settings, env_settings, *toml)

    @property
    def keys_demanded(self) -> bool:
        """Whether the API answers nobody without a key."""
        if self.access != "auto":
            return self.access == "keys"
        # what comes through a proxy comes from elsewhere, wherever the API is bound to
        return bool(self.http_proxies) or not is_loopback(self.http_host)

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The DICOM peers among the destinations."""
        return tuple(each for each in self.destinations if isinstance(each, Peer))

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the database in force."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.data_dir / 'hipscore.db'}"

    @property
    def engine_cache(self) -> Path:
        """Where engines that were built for a GPU are kept."""
        return self.engine_cache_dir or self.data_dir / "engines"

    @property
    def broker_socket(self) -> Path:
        """Unix socket of the embedded Valkey, in a folder that only this user may enter.

        A socket's path is limited to about 100 bytes (unix(7)); that of a deeper data
        directory lies in the temporary directory, in a folder named by a digest.
        """
        path = self.broker_dir / "valkey.sock"
        if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
            return path
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"hipscore-{digest}" / "valkey.sock"

    @property
    def broker_dir(self) -> Path:
        """Where the embedded Valkey keeps its files."""
        return self.data_dir.absolute() / "broker"

    @property
    def broker(self) -> str:
        """Celery broker URL in force."""
        if self.broker_url is not None:
            return self.broker_url.get_secret_value()
        return self._embedded_broker

    @property
    def broker_embedded(self) -> bool:
        """Whether the broker is the embedded Valkey, by default or by its own URL."""
        return self.broker == self._embedded_broker

    @property
    def _embedded_broker(self) -> str:
        return f"redis+socket://{self.broker_socket}"
