"""The settings of the service, from environment variables or `.env`. `.env.example` describes each of them."""

import os
import re
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

NOT_YET = ("MCP_CONFIG",)
"""Settings that this version does not support yet. Setting one stops the start, so that it is not silently ignored."""

ONE_PROCESS_ONLY = "SANDBOX_PROVIDER: local sandboxes belong to one process; with MONGODB_URL use docker or remote"
"""Error text for a service with MongoDB, which may have several processes, that would use local sandboxes."""

_DOCKER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
_MEMORY = re.compile(r"[1-9][0-9]{0,5}[mMgG]")
_MIN_MEGABYTES = 512
_DATABASE_NAME = re.compile(r"[A-Za-z0-9_-]{1,38}")
_STORE_SCHEMES = {
    "mongodb_url": ("mongodb://", "mongodb+srv://"),
    "redis_url": ("redis://", "rediss://", "unix://"),
}


SECRETS_DIR = Path("/run/secrets")
"""Where containers get secrets: a file there is a setting, named by it, that is set nowhere else."""

Role = Literal["all", "api", "worker"]
"""What a process does: serve requests and carry runs, or only one of the two."""


def http_address(value: str) -> str:
    """Return an HTTP address without the slash at its end.

    Raises:
        ValueError: It is none. The text does not repeat it, because it may contain a password.
    """
    if not value.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    try:
        urlsplit(value)
    except ValueError:
        raise ValueError("is not a valid address") from None
    return value.rstrip("/")


class Settings(BaseSettings):
    """The settings of one process. A field is named as its environment variable."""

    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True)

    api_key: SecretStr = SecretStr("")
    api_base: str = "https://api.openai.com/v1"
    model_name: str = "gpt-4o"
    temperature: float = Field(0.7, ge=0, le=2)
    max_tokens: int = Field(2000, ge=1)
    llm_provider: str = ""
    llm_timeout_seconds: float = Field(120, gt=0)
    llm_retry_seconds: float = Field(120, ge=0)
    """Maximum silence of the model, before its reply and between two parts of it, in seconds."""
    model_context_tokens: int = Field(128_000, ge=1_000)
    models_config: str = ""
    planner_model: str = ""
    run_max_calls: int = Field(200, ge=1)
    """Maximum number of model calls until the user writes again."""
    run_max_steps: int = Field(30, ge=1)
    """Maximum number of steps that a run starts until the user writes again."""
    run_token_budget: int = Field(0, ge=0)
    """Maximum number of tokens of a run until the user writes again; 0 for no limit."""
    runs_per_process: int = Field(100, ge=1)
    """Number of runs that one process carries at once. Others wait, and owners take turns."""

    # Limits of each owner; 0 for no limit.
    limit_requests_per_second: int = Field(200, ge=0)
    limit_login_failures_per_minute: int = Field(60, ge=0)
    """Failed logins of each client address."""
    limit_sessions: int = Field(10_000, ge=0)
    limit_runs: int = Field(200, ge=0)
    limit_streams: int = Field(1_000, ge=0)
    limit_upload_bytes_per_day: int = Field(10 * 2**30, ge=0)
    limit_tokens_per_day: int = Field(0, ge=0)

    search_provider: str = "auto"
    google_search_api_key: SecretStr = SecretStr("")
    google_search_engine_id: str = ""

    sandbox_provider: str = "auto"
    sandbox_address: str = ""
    sandbox_token: SecretStr = SecretStr("")
    """Token of the sandbox at `SANDBOX_ADDRESS`. Other providers create one for each session."""
    sandbox_image: str = "simpleyyt/anker-sandbox"
    sandbox_name_prefix: str = "sandbox"
    sandbox_ttl_minutes: int = Field(30, ge=1)
    sandbox_network: str = "anker-network"
    sandbox_pool_size: int = Field(0, ge=0)
    sandbox_memory: str = "1g"
    sandbox_cpus: float = Field(1, gt=0)
    sandbox_egress: str = "open"
    sandbox_sudo: bool = False
    sandbox_runtime: str = ""

    mongodb_url: SecretStr = SecretStr("")
    mongodb_database: str = "anker"
    redis_url: SecretStr = SecretStr("")
    data_dir: Path = Path("./data")

    export_max_bytes: int = Field(10 * 2**30, ge=0)
    """Maximum number of bytes of a workspace in an export."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    worker_port: int | None = Field(None, ge=0, le=65535)
    """Port on which a worker serves `/health`, `/ready` and `/metrics`. None: it serves nothing."""
    auth: str = ""
    """How clients log in; see `auth_mode`."""
    auth_none_anywhere: bool = False
    auth_admins: Annotated[tuple[str, ...], NoDecode] = ()
    api_tokens: SecretStr = SecretStr("")
    oidc_issuer: str = ""
    oidc_audience: str = ""
    auth_proxy_header: str = ""
    auth_proxy_from: Annotated[tuple[str, ...], NoDecode] = ()
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = ()
    wire_compat: Literal["", "2025-06-02"] = ""
    mcp_config: str = ""
    otel_exporter_otlp_endpoint: str = ""
    """Address of an OpenTelemetry collector that takes traces over HTTP; empty for none."""
    otel_instrumentation_genai_capture_message_content: bool = False
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("allowed_origins", "auth_admins", "auth_proxy_from", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("api_base", "sandbox_address", "otel_exporter_otlp_endpoint")
    @classmethod
    def _http(cls, value: str) -> str:
        return http_address(value) if value else value

    @field_validator("model_name")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must not be blank")
        return value.strip()

    @field_validator("sandbox_name_prefix", "sandbox_network")
    @classmethod
    def _docker_name(cls, value: str) -> str:
        if not _DOCKER_NAME.fullmatch(value):
            raise ValueError(
                "must be at most 40 letters, digits, hyphens, dots or underscores, a letter or digit first"
            )
        return value

    @field_validator("mongodb_url", "redis_url")
    @classmethod
    def _store(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        schemes = _STORE_SCHEMES[str(info.field_name)]
        if (url := value.get_secret_value()) and not url.startswith(schemes):
            raise ValueError(f"must begin with {' or '.join(schemes)}")
        return value

    @field_validator("mongodb_database")
    @classmethod
    def _database(cls, value: str) -> str:
        if not _DATABASE_NAME.fullmatch(value):
            raise ValueError("must be at most 38 letters, digits, hyphens or underscores")
        return value

    @field_validator("limit_upload_bytes_per_day")
    @classmethod
    def _takes_a_body(cls, value: int) -> int:
        if 0 < value < 2**20:
            raise ValueError("must be 0 or at least 1048576, the largest body of one request")
        return value

    @field_validator("sandbox_memory")
    @classmethod
    def _memory(cls, value: str) -> str:
        if not _MEMORY.fullmatch(value):
            raise ValueError("must be a number followed by m or g, such as 1g")
        if value[-1] in "mM" and int(value[:-1]) < _MIN_MEGABYTES:
            raise ValueError(f"must be at least {_MIN_MEGABYTES}m: a desktop with a browser needs it")
        return value.lower()

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
                raise ValueError("must be a list of origins such as https://app.example")
        return value

    @model_validator(mode="after")
    def _usable(self) -> "Settings":
        for name in NOT_YET:
            value: object = getattr(self, name.lower())
            if value.get_secret_value() if isinstance(value, SecretStr) else value:
                raise ValueError(f"{name}: not supported by this version yet; leave it empty")
        if self.sandbox_provider == "local" and self.mongodb_url.get_secret_value():
            raise ValueError(ONE_PROCESS_ONLY)
        return self

    def check_role(self, role: Role) -> None:
        """Check that a process with `role` shares its stores with the processes of the other role.

        Raises:
            UnusableSetting: A store is not set.
        """
        if role == "all":
            return
        for name in ("MONGODB_URL", "REDIS_URL"):
            value: SecretStr = getattr(self, name.lower())
            if not value.get_secret_value():
                raise UnusableSetting(f"{name}: a process that does only the {role} part needs it")

    @property
    def is_loopback(self) -> bool:
        """Whether only programs on this machine can connect to the service."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def auth_mode(self) -> str:
        """How clients log in: `AUTH`, or when it is empty, `tokens` with `API_TOKENS` and `none` without."""
        return self.auth or ("tokens" if self.api_tokens.get_secret_value() else "none")

    @property
    def has_google_keys(self) -> bool:
        """Whether the keys for Google Custom Search are set."""
        return bool(self.google_search_api_key.get_secret_value() and self.google_search_engine_id)

    @property
    def model_provider(self) -> str:
        """The model provider to use: `LLM_PROVIDER`, or when it is empty, `demo` without a key and `MODELS_CONFIG`."""
        return self.llm_provider or ("openai" if self.api_key.get_secret_value() or self.models_config else "demo")


class UnusableSetting(ValueError):
    """A setting cannot be used. The message is one line that starts with the name of the variable."""


def load_settings(**overrides: object) -> Settings:
    """Return the settings from the environment, `.env` and files in `SECRETS_DIR`; `overrides` replace them.

    Raises:
        UnusableSetting: A variable cannot be used. The message names the first one, and never repeats its value.
    """
    try:
        # A missing folder would be a warning of the library.
        secrets = {"_secrets_dir": SECRETS_DIR} if SECRETS_DIR.is_dir() else {}
        return Settings(**{**secrets, **overrides})  # pyright: ignore[reportArgumentType] - names are checked by pydantic
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        reason = first["msg"].removeprefix("Value error, ")
        name = str(first["loc"][0]).upper() if first["loc"] else ""
        raise UnusableSetting(f"{name}: {reason}" if name else reason) from None


def environment() -> Mapping[str, str]:
    """Return the variables of the environment and of `.env`, for keys that another file names.

    As with settings, the environment takes precedence, and an empty value counts as unset.
    """
    from dotenv import dotenv_values

    both = (dotenv_values(str(Settings.model_config.get("env_file"))), os.environ)
    return {name: value for variables in both for name, value in variables.items() if value}
