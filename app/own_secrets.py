"""Find the service's own secrets in its settings, to mask them."""

import re
from collections.abc import Iterable, Mapping
from urllib.parse import unquote, unquote_plus

from pydantic import SecretStr

from app.model_config import NO_KEY, load_models
from app.settings import Settings


def secrets_of(settings: Settings) -> Mapping[str, str]:
    """Return the service's own secrets by the names of their settings: all `SecretStr`, and the keys of the models.

    Of an address, the secrets are its password and the values of its query that are named as keys.
    """
    named: dict[str, str] = {}
    for name in type(settings).model_fields:
        match getattr(settings, name):
            case SecretStr() as secret if not name.endswith("_url"):
                text = secret.get_secret_value()
                tokens = [entry.partition(":")[2] for entry in text.split(",")] if name == "api_tokens" else [text]
                named |= _numbered(name.upper(), tokens)
            case SecretStr() as address:
                named |= _secrets_in(name.upper(), address.get_secret_value())
            case str() as text:
                named |= _secrets_in(name.upper(), text)
            case _:
                pass
    if settings.model_provider == "openai":
        for name, options in load_models(settings).models.items():
            if (key := options.api_key.get_secret_value()) != NO_KEY:
                named[f"the key of the model {name}"] = key
            named |= _secrets_in(f"the address of the model {name}", options.base_url)
    return named


def _secrets_in(name: str, text: str) -> dict[str, str]:
    """Return the secrets in an address, as they are in it and decoded; none if `text` is no address.

    A password that contains `/`, `?` or `#`, which should be encoded, is found too.
    """
    _, is_address, rest = text.partition("://")
    if not is_address:
        return {}
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    found = [(authority if "@" in authority else rest).rpartition("@")[0].partition(":")[2]]  # the password
    for pair in rest.partition("?")[2].partition("#")[0].split("&"):
        key, _, value = pair.partition("=")
        # NAME:VALUE,NAME:VALUE in one parameter: authMechanismProperties of MongoDB.
        parts = [(key, value), *((part.partition(":")[::2]) for part in unquote(value).split(","))]
        found += [secret for label, secret in parts if _KEY_NAME.search(unquote(label))]
    return _numbered(
        name, dict.fromkeys(each for value in found for each in (value, unquote(value), unquote_plus(value)))
    )


def _numbered(name: str, values: Iterable[str]) -> dict[str, str]:
    return {name if index == 0 else f"{name} ({index + 1})": value for index, value in enumerate(values)}


_KEY_NAME = re.compile(r"(?i)key|token|secret|passw|sig|credential")
"""Matches names of parameters whose values are secrets."""
