"""Addresses that texts for a person show or hide."""

import pytest

from app.infrastructure.llm.addresses import hide_addresses

BASE_URL = "https://user:secret@llm.gateway.example:8443/v1"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET http://10.1.2.3:8000/v1/chat failed", "GET [address] failed"),
        ("upstream http://ollama:11434 failed", "upstream [address] failed"),
        ("dial tcp 172.17.0.1:11434: connection refused", "dial tcp [address]: connection refused"),
        (
            "dial tcp: lookup ollama on 127.0.0.11:53: no such host",
            "dial tcp: lookup [address] on [address]: no such host",
        ),
        ("HTTPConnectionPool(host='vllm', port=8000): timed out", "HTTPConnectionPool(host='[address]): timed out"),
        ("Cannot connect to host host.docker.internal:11434", "Cannot connect to host [address]:11434"),
        ("no route to [fd00::17]:80 or fe80::1", "no route to [address] or [address]"),
        ("ollama.models.svc.cluster.local:80 is down", "[address] is down"),
        ("localhost:4000 is down", "[address] is down"),
        ("LLM.gateway.example:8443 is down", "[address] is down"),
        ("https://llm.gateway.example/v1/models: 404", "[address] 404"),
    ],
)
def test_addresses_of_the_installation_are_hidden(text: str, shown: str) -> None:
    assert hide_addresses(text, BASE_URL) == shown


@pytest.mark.parametrize(
    "text",
    [
        "Get a key at https://platform.openai.com/account/api-keys.",
        "max_tokens:4096 exceeds 2048 at 12:30:45",
        "the models gpt-4.1-mini and llama-3.1:8b are not local",
        "Rate limit reached: 10.5 of 10, version 1.2.3",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert hide_addresses(text, BASE_URL) == text
