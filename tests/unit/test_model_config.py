"""`MODELS_CONFIG`: what profiles contain, what they leave out, and one line for every mistake."""

import os
from pathlib import Path

import pytest

from app.domain.models.model_profile import Prices
from app.infrastructure.llm.families import facts_of
from app.model_config import NO_KEY, ModelConfig, load_models
from app.providers import check_providers
from app.settings import Settings, UnusableSetting, load_settings

FULL = """\
default = "slow"
planner = "fast"

[models.fast]
model = "acme/tiny"
base_url = "https://models.example/v1/"
api_key_env = "FAST_KEY"
context_tokens = 32_000
max_tokens = 1_000
output_limit = 4_000
temperature = 0
vision = true
parallel_calls = false
thinking_replay = false
timeout_seconds = 30
prices = { prompt = 1, cached = 0.1, completion = 4.5 }

[models.slow]
model = "gpt-5-mini"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAST_KEY", "sk-secret")
    return tmp_path


def load(text: str, **settings: object) -> ModelConfig:
    Path("models.toml").write_text(text)
    return load_models(Settings(models_config="models.toml", **settings))  # type: ignore[arg-type]


def test_profile_has_every_value_of_the_file() -> None:
    config = load(FULL)
    fast = config.models["fast"]
    assert (list(config.models), config.default, config.planner) == (["fast", "slow"], "slow", "fast")
    assert (fast.base_url, fast.api_key.get_secret_value()) == ("https://models.example/v1", "sk-secret")
    assert (fast.temperature, fast.thinking_replay, fast.timeout_seconds) == (0, False, 30)
    profile = fast.profile
    assert (profile.name, profile.model, profile.identity) == (
        "fast",
        "acme/tiny",
        "acme/tiny at https://models.example/v1",
    )
    assert (profile.context_tokens, profile.max_tokens, profile.output_limit) == (32_000, 1_000, 4_000)
    assert (profile.vision, profile.parallel_calls) == (True, False)
    assert profile.prices == Prices(prompt=1, cached=0.1, completion=4.5)


def test_value_that_is_left_out_comes_from_the_family_then_from_the_settings() -> None:
    config = load(
        FULL + '\n[models.own]\nmodel = "acme"\nbase_url = "http://localhost:1"\n',
        api_key="the-key",
        temperature=0.3,
        max_tokens=500,
        model_context_tokens=64_000,
        llm_timeout_seconds=7,
    )
    slow, own = config.models["slow"], config.models["own"]
    assert (slow.profile.context_tokens, slow.profile.output_limit, slow.profile.vision) == (272_000, 128_000, True)
    assert (slow.temperature, slow.profile.max_tokens, slow.timeout_seconds) == (None, 500, 7)
    assert (slow.base_url, slow.api_key.get_secret_value()) == ("https://api.openai.com/v1", "the-key")
    assert (own.profile.context_tokens, own.temperature, own.profile.vision) == (64_000, 0.3, False)
    assert (own.profile.prices, own.profile.output_limit) == (None, 8_192)


def test_api_key_is_not_sent_to_another_address() -> None:
    own = load('[models.own]\nmodel = "m"\nbase_url = "http://localhost:1"\n', api_key="the-key").models["own"]
    assert own.api_key.get_secret_value() == NO_KEY


def test_first_profile_is_the_default_unless_the_file_names_one() -> None:
    assert load('[models.b]\nmodel = "m"\n[models.a]\nmodel = "m"\n').default == "b"


def test_key_of_a_profile_is_read_from_dotenv_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAST_KEY")
    Path(".env").write_text('FAST_KEY="from the file"\nMODELS_CONFIG=models.toml\n')
    Path("models.toml").write_text(FULL)
    assert load_models(load_settings()).models["fast"].api_key.get_secret_value() == "from the file"
    monkeypatch.setenv("FAST_KEY", "from the environment")
    assert load_models(load_settings()).models["fast"].api_key.get_secret_value() == "from the environment"
    monkeypatch.setenv("FAST_KEY", "")
    assert load_models(load_settings()).models["fast"].api_key.get_secret_value() == "from the file"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (128_000, 2_000, 16_384)),
        ({"model_context_tokens": 16_000}, (16_000, 2_000, 8_000)),
        ({"model_context_tokens": 128_000, "model_name": "gpt-4"}, (8_192, 2_000, 4_096)),
        ({"model_context_tokens": 1_000}, (1_000, 500, 500)),
        ({"model_name": "unheard-of"}, (128_000, 2_000, 8_192)),
        ({"max_tokens": 20_000}, (128_000, 20_000, 20_000)),
    ],
)
def test_without_a_file_the_settings_are_the_default_profile(
    settings: dict[str, object], expected: tuple[int, int, int]
) -> None:
    config = load_models(Settings(api_key="k", **settings))  # type: ignore[arg-type]
    options = config.models["default"]
    profile = options.profile
    assert (list(config.models), config.default, config.planner) == (["default"], "default", "")
    assert (profile.context_tokens, profile.max_tokens, profile.output_limit) == expected
    assert (options.temperature, options.api_key.get_secret_value()) == (0.7, "k")


def test_temperature_that_is_set_precedes_the_one_of_the_family() -> None:
    assert load_models(Settings(api_key="k", model_name="o3")).models["default"].temperature is None  # type: ignore[arg-type]
    settings = Settings(api_key="k", model_name="o3", temperature=1)  # type: ignore[arg-type]
    assert load_models(settings).models["default"].temperature == 1


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ('context_tokens = "sk-secret"', "context_tokens: must be a whole number"),
        ("context_tokens = true", "context_tokens: must be a whole number"),
        ("context_tokens = 5", "context_tokens: must be greater than or equal to 1000"),
        ("max_tokens = 128_000", "max_tokens: must be less than the 128000 tokens of the context"),
        ("max_tokens = 9\noutput_limit = 8", "max_tokens: must be at most output_limit"),
        ('api_key = "sk-secret"', "api_key: unknown key"),
        ("prices.fast = 1", "prices.fast: unknown key"),
        ("modle = 1", "modle: unknown key"),
        ('api_key_env = "gsk_secret"', "api_key_env: must be the name of an environment variable, in capitals"),
        ('api_key_env = "MISSING_KEY"', "api_key_env: MISSING_KEY is not set, in the environment or in .env"),
        ('api_key_env = "BAD_KEY"', "api_key_env: BAD_KEY contains characters that cannot be sent"),
        ('base_url = "sk-secret"', "base_url: must begin with http:// or https://"),
        ('base_url = "http://u:secret@[x/v1"', "base_url: is not a valid address"),
        ('temperature = "secret"', 'temperature: must be a number from 0 to 2, or "none"'),
        ("temperature = true", 'temperature: must be a number from 0 to 2, or "none"'),
        ("temperature = 2.1", 'temperature: must be a number from 0 to 2, or "none"'),
        ("vision = 1", "vision: must be true or false"),
        ("timeout_seconds = 0", "timeout_seconds: must be greater than 0"),
        ("prices = 1", "prices: must be a table"),
        ("prices = { prompt = 1 }", "prices.completion: missing"),
        ("prices = { prompt = -1, completion = 1 }", "prices.prompt: must be greater than or equal to 0"),
        ("prices = { prompt = nan, completion = 1 }", "prices.prompt: must be a finite number"),
    ],
)
def test_unusable_value_is_one_line_with_the_line_and_the_key(
    monkeypatch: pytest.MonkeyPatch, key: str, reason: str
) -> None:
    monkeypatch.setenv("BAD_KEY", "sk-secr\u00e9t")
    with pytest.raises(UnusableSetting) as caught:
        load(f'default = "fast"\n\n[models.fast]\nmodel = "m"\n{key}\n')
    assert str(caught.value).startswith(f"MODELS_CONFIG: models.toml, line 5, models.fast.{reason}")
    assert "\n" not in str(caught.value)
    assert "secr" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", ", models: missing"),
        ("models = 5", ", line 1, models: must be a table"),
        ("[[models]]", ", line 1, models: must be a table"),
        ("[models]\n", ", line 1, models: must name at least one model"),
        ("[models.a]\n", ", line 1, models.a.model: missing"),
        ('[models."a b"]\nmodel = "m"\n', ", line 1, models.a b: a name has up to 64 letters, digits,"),
        ('model = "m"\n[models.a]\nmodel = "m"\n', ", line 1, model: unknown key"),
        ('[models.a]\nmodel = ""\n', ", line 2, models.a.model: must not be empty"),
        ("[models.a]\nmodel = 5\n", ", line 2, models.a.model: must be a string"),
        ('[models.a.prices]\nprompt = "x"\n[models.a]\nmodel = "m"\n', ", line 2, models.a.prices.prompt: must be"),
        ('[models]\na = { model = "m", vision = 1 }\n', ", line 2, models.a.vision: must be true or false"),
        ('default = "b"\n[models.a]\nmodel = "m"\n', ", line 1, default: unknown; the models are a"),
        ('planner = "b"\n[models.a]\nmodel = "m"\n', ", line 1, planner: unknown; the models are a"),
        ('[models.a]\nmodel = "m"\n[models.a]\n', ", line 3: Cannot declare ('models', 'a') twice"),
        ('[models.a]\nmodel = "m"\nmodel = "n"\n', ", line 3, model: Cannot overwrite a value"),
        ("[models.a]\nmodel = m\n", ", line 2, model: Invalid value"),
        ("[models.a\n", ", line 1: Expected ']' at the end of a table declaration"),
        ('[models.a]\nmodel = """m', ", end of the file: Unterminated string"),
        pytest.param("a = " + "[" * 3_000, ": a number is too large, or values are nested too deeply", id="deep"),
        pytest.param("a = " + "1" * 5_000, ": a number is too large, or values are nested too deeply", id="digits"),
        ('"a\\nb" = 1', ", line 1, 'a\\nb': unknown key"),
        ("# \u2028\nmodel = 1", ", line 2, model: unknown key"),
    ],
)
def test_unusable_file_is_one_line_with_the_place_and_the_reason(text: str, problem: str) -> None:
    with pytest.raises(UnusableSetting) as caught:
        load(text)
    assert str(caught.value).startswith(f"MODELS_CONFIG: models.toml{problem}")
    assert "\n" not in str(caught.value)


def test_file_that_cannot_be_read_is_named(folder: Path) -> None:
    for content, reason in ((None, "no such file or directory"), (b"\xff\xfe", "not UTF-8")):
        if content is not None:
            (folder / "other.toml").write_bytes(content)
        with pytest.raises(UnusableSetting, match=f"^MODELS_CONFIG: other.toml: {reason}$"):
            load_models(Settings(models_config="other.toml"))
    with pytest.raises(UnusableSetting, match=r"^MODELS_CONFIG: \.: is a directory$"):
        load_models(Settings(models_config="."))


def test_byte_order_mark_is_ignored(folder: Path) -> None:
    (folder / "models.toml").write_bytes(b"\xef\xbb\xbf" + FULL.encode())
    assert load_models(Settings(models_config="models.toml")).default == "slow"


def test_planner_model_precedes_the_file_and_must_exist() -> None:
    assert load(FULL, planner_model="slow").planner == "slow"
    with pytest.raises(UnusableSetting, match=r"^PLANNER_MODEL: unknown; the models are fast, slow$"):
        load(FULL, planner_model="x")
    with pytest.raises(UnusableSetting, match=r"^PLANNER_MODEL: unknown; the models are default$"):
        load_models(Settings(api_key="k", planner_model="x"))  # type: ignore[arg-type]


def test_models_config_selects_openai_without_an_api_key() -> None:
    Path("models.toml").write_text(FULL)
    os.environ.pop("API_KEY", None)
    settings = Settings(models_config="models.toml")
    assert settings.model_provider == "openai"
    check_providers(settings)


def test_keys_are_not_in_the_repr() -> None:
    assert "secret" not in repr(load(FULL)).replace("SecretStr", "")


@pytest.mark.parametrize(
    ("model", "facts"),
    [
        ("gpt-4o-mini", (128_000, 16_384, True, None)),
        ("openai/gpt-4o", (128_000, 16_384, True, None)),
        ("gpt-5.1-codex", (272_000, 128_000, True, "none")),
        ("o4-mini", (200_000, 100_000, True, "none")),
        ("us.anthropic.claude-sonnet-4-20250514-v1:0", (200_000, 64_000, True, None)),
        ("claude-opus-4-1-20250805", (200_000, 32_000, True, None)),
        ("claude-opus-4-5", (200_000, 64_000, True, None)),
        ("claude-3-5-haiku-latest", (200_000, 8_192, True, None)),
        ("models/gemini-2.5-flash", (200_000, 65_535, True, None)),
        ("google/gemini-3-pro-preview", (200_000, 65_536, True, 1.0)),
        ("deepseek-chat", (128_000, 8_192, None, None)),
        ("deepseek-ai/DeepSeek-R1", (64_000, 8_192, None, None)),
        ("kimi-k2.5", (262_144, 32_768, True, "none")),
        ("moonshotai/Kimi-K2-Thinking", (262_144, 32_768, None, 1.0)),
        ("Qwen/Qwen3-Coder-480B-A35B-Instruct", (262_144, 65_536, None, None)),
        ("qwen2.5:7b", (32_768, 8_192, None, None)),
        ("Qwen/Qwen2.5-VL-7B-Instruct", (131_072, 8_192, True, None)),
        ("z-ai/glm-4.6", (200_000, 65_536, None, None)),
        ("glm-4.5v", (65_536, 16_384, True, None)),
        ("mistral-large-latest", (32_000, 8_192, None, None)),
        ("mistral-medium-2505", (128_000, 16_384, True, None)),
        ("codestral-latest", (128_000, 16_384, None, None)),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", (131_072, 4_096, None, None)),
        ("llama3:8b", (8_192, 4_096, None, None)),
        ("openai/gpt-oss-120b", (131_072, 32_768, None, None)),
        ("MiniMax-M2", (196_608, 65_536, None, 1.0)),
        ("smollm2-135m", (8_192, 2_048, None, None)),
        ("not-gpt-4o", (None, None, None, None)),
        ("unheard-of", (None, None, None, None)),
    ],
)
def test_family_of_a_model_is_found_by_its_name(model: str, facts: tuple[object, ...]) -> None:
    found = facts_of(model)
    assert (found.context_tokens, found.output_limit, found.vision, found.temperature) == facts
