"""A model profile: what the agent must know of a model, without its address and key."""

from dataclasses import dataclass, replace

from app.domain.models.message import Usage

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Prices for a million tokens, all in the same currency."""

    prompt: float
    completion: float
    cached: float | None = None
    """Price of prompt tokens from the provider's cache; None: as `prompt`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """One entry of the models that users can choose from."""

    name: str = "default"
    model: str = ""
    """Name of the model at its server."""
    identity: str = ""
    """Server and model. Provider fields of a turn are sent only to a model with the same identity."""
    context_tokens: int = 128_000
    """Size of the context window: prompt and reply together."""
    max_tokens: int = 2_000
    """Maximum length of one reply in tokens, unless a request asks for more."""
    output_limit: int = 2_000
    """Largest `max_tokens` that the model takes."""
    vision: bool = False
    """Whether the model reads pictures."""
    parallel_calls: bool = True
    """Whether the model makes several tool calls in one turn."""
    prices: Prices | None = None

    def priced(self, usage: Usage) -> Usage:
        """Return `usage` with its cost, if prices are known."""
        prices = self.prices
        if prices is None:
            return usage
        cached_price = prices.prompt if prices.cached is None else prices.cached
        cost = (
            (usage.prompt_tokens - usage.cached_tokens) * prices.prompt
            + usage.cached_tokens * cached_price
            + usage.completion_tokens * prices.completion
        )
        return replace(usage, cost=cost / _MILLION)
