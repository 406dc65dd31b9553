"""An unusable setting raises one line that names the variable and never repeats its value."""

import pytest

from app.providers import check_providers
from app.settings import Role, UnusableSetting, load_settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "secret"),
        ("PORT", "70000"),
        ("TEMPERATURE", "9"),
        ("MAX_TOKENS", "0"),
        ("MODEL_NAME", " "),
        ("API_BASE", "secret"),
        ("API_BASE", "http://u:secret@[x"),
        ("LLM_PROVIDER", "secret"),
        ("LOG_LEVEL", "secret"),
        ("SANDBOX_PROVIDER", "secret"),
        ("SEARCH_PROVIDER", "secret"),
        ("SANDBOX_MEMORY", "secret"),
        ("SANDBOX_MEMORY", "100m"),
        ("SANDBOX_CPUS", "0"),
        ("SANDBOX_NAME_PREFIX", "-secret"),
        ("SANDBOX_NETWORK", "secret network"),
        ("SANDBOX_ADDRESS", "secret"),
        ("ALLOWED_ORIGINS", "secret"),
        ("ALLOWED_ORIGINS", "https://app.example/path"),
        ("MONGODB_URL", "secret://"),
        ("MONGODB_DATABASE", "sec.ret"),
        ("REDIS_URL", "http://secret"),
        ("API_TOKENS", "me:secret"),
        ("API_TOKENS", "secret-file"),
        ("API_TOKENS", ":secret-token-1"),
        ("API_TOKENS", "me:secret-token-1,me:secret-token-2"),
        ("API_TOKENS", "me:secret-token-1,you:secret-token-1"),
        ("API_TOKENS", "me:secret-token-1,"),
        ("API_TOKENS", "me:secret token 1"),
        ("AUTH", "secret"),
        ("OIDC_ISSUER", "secret"),
        ("AUTH_ADMINS", "secret"),
        ("MCP_CONFIG", "secret.json"),
        ("RUN_MAX_CALLS", "0"),
        ("RUN_MAX_STEPS", "0"),
        ("RUN_TOKEN_BUDGET", "-1"),
    ],
)
def test_unusable_value_raises_one_line_with_the_variable_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UnusableSetting) as caught:
        check_providers(load_settings())
    text = str(caught.value)
    assert text.startswith(f"{name}: ")
    assert "\n" not in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"SANDBOX_PROVIDER": "remote"}, "SANDBOX_ADDRESS"),
        ({"LLM_PROVIDER": "openai"}, "API_KEY"),
        ({"SEARCH_PROVIDER": "google"}, "GOOGLE_SEARCH_API_KEY"),
    ],
)
def test_missing_setting_of_a_provider_is_named(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], named: str
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UnusableSetting, match=f"^{named}: "):
        check_providers(load_settings())


def test_local_sandboxes_with_mongodb_url_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_PROVIDER", "local")
    load_settings()
    monkeypatch.setenv("MONGODB_URL", "mongodb://secret")
    with pytest.raises(UnusableSetting) as caught:
        load_settings()
    assert str(caught.value) == (
        "SANDBOX_PROVIDER: local sandboxes belong to one process; with MONGODB_URL use docker or remote"
    )


def test_empty_value_means_default_and_api_key_selects_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "")
    monkeypatch.setenv("ALLOWED_ORIGINS", "https://a.example, http://b.example:3000")
    settings = load_settings()
    assert settings.port == 8000
    assert settings.allowed_origins == ("https://a.example", "http://b.example:3000")
    assert settings.model_provider == "demo"
    monkeypatch.setenv("API_KEY", "k")
    assert load_settings().model_provider == "openai"


def test_repr_of_settings_hides_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "sk-secret")
    monkeypatch.setenv("GOOGLE_SEARCH_API_KEY", "g-secret")
    assert "secret" not in repr(load_settings()).replace("SecretStr", "")


@pytest.mark.parametrize("role", ["api", "worker"])
@pytest.mark.parametrize("missing", ["MONGODB_URL", "REDIS_URL"])
def test_single_role_without_both_stores_raises_unusable_setting(
    monkeypatch: pytest.MonkeyPatch, role: Role, missing: str
) -> None:
    for name, value in (("MONGODB_URL", "mongodb://secret"), ("REDIS_URL", "redis://secret")):
        if name != missing:
            monkeypatch.setenv(name, value)
    settings = load_settings()
    settings.check_role("all")
    with pytest.raises(UnusableSetting, match=missing) as caught:
        settings.check_role(role)
    assert "secret" not in str(caught.value)
