"""The order of the probes: the connection first, then streaming alone, then everything else side by side."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import TypeVar

from app.domain.errors import ModelFailure
from app.domain.external.llm import ModelRequest
from app.domain.models.message import ProviderFields, SystemMessage, Transcript, UserMessage
from app.domain.models.model_profile import ModelProfile
from app.infrastructure.llm.check import calls, requests
from app.infrastructure.llm.check.client import OutOfTime, ProbeClient
from app.infrastructure.llm.check.context import ContextProbe
from app.infrastructure.llm.check.findings import Finding, Level, Verdict, reason_of, verdict_of
from app.infrastructure.llm.failures import FailureClassifier, ModelCallError, RetryPolicy
from app.infrastructure.llm.openai_client import OpenAIClient
from app.infrastructure.llm.openai_model import OpenAIModel

CONNECT_SECONDS = 60.0
"""Maximum time of the first reply, in seconds. Local servers load the model before it."""

PATIENCE_SECONDS = 30.0
"""How long to repeat a request that fails for now, in seconds."""

CONCURRENCY = 4
"""Maximum number of requests at the same time."""

ONE_AT_A_TIME = ("llama.cpp", "Ollama")
"""Programs that mostly run on one machine and serve one request at a time."""

T = TypeVar("T")


async def check_endpoint(
    *,
    profile: ModelProfile,
    base_url: str,
    api_key: str,
    temperature: float | None,
    seconds: float,
    report: Callable[[Finding], None],
    in_file: bool = False,
) -> Verdict:
    """Run all probes against a model and return the verdict.

    Args:
        profile: The profile of the model.
        base_url: Address of its API.
        api_key: Key of its server.
        temperature: Sampling temperature; None for a model that takes none.
        seconds: Maximum time of all probes together.
        report: Receives each finding as soon as it and those before it are known.
        in_file: Whether the profile is from `MODELS_CONFIG`. Errors name the keys of that file then.
    """
    key = api_key.strip()
    failures = FailureClassifier(
        base_url=base_url, model=profile.model, api_key=key, profile=profile.name if in_file else ""
    )
    try:
        client = OpenAIClient(
            api_key=key, base_url=base_url, timeout_seconds=CONNECT_SECONDS, failures=failures, clock=time.time
        )
    except ModelCallError as failure:
        report(unusable := Finding(probe="connection", level="problem", text=str(failure)))
        return verdict_of([unusable])
    model = OpenAIModel(
        api_key=key,
        base_url=base_url,
        model=profile.model,
        temperature=temperature,
        profile=profile,
        in_file=in_file,
        retry=RetryPolicy(patience_seconds=min(PATIENCE_SECONDS, seconds / 3)),
    )
    probes = ProbeClient(client=client, failures=failures, model=model, temperature=temperature, seconds=seconds)
    try:
        return verdict_of(await _run_probes(probes, report, secret=key))
    finally:
        await model.close()
        await client.close()


async def _run_probes(client: ProbeClient, report: Callable[[Finding], None], *, secret: str) -> Sequence[Finding]:
    """Run all probes. Pass each finding to `report` as soon as it and those before it are known; return them all."""
    findings: list[Finding] = []

    def add(found: Finding | Sequence[Finding]) -> None:
        for finding in (found,) if isinstance(found, Finding) else found:
            # A server can make its model repeat the key.
            findings.append(replace(finding, text=finding.text.replace(secret, "[key]") if secret else finding.text))
            report(findings[-1])

    connection = await _check_connection(client)
    add(connection)
    if connection.level == "problem":
        return findings
    add(await _guard("streaming", requests.check_streaming(client)))
    if client.refuses_temperature:
        text = "the server refuses the one that is set; Anker leaves it out"
        add(Finding(probe="temperature", level="info", text=text, facts={"temperature": "none"}))
    first = await _guard("tool calls", calls.check_calls(client), level="problem")
    add(first if isinstance(first, Finding) else first.finding)
    if client.server not in ONE_AT_A_TIME:
        client.widen(CONCURRENCY - 1)
    probes: list[Coroutine[None, None, Finding | Sequence[Finding]]] = []
    fields: ProviderFields | None = None
    if not isinstance(first, Finding):
        fields = first.seen.reply.provider_fields
        probes += [
            _guard("tool results", calls.check_results(client, first)),
            _guard("parallel calls", calls.check_parallel_calls(client)),
            _guard("long arguments", calls.check_long_arguments(client)),
        ]
    probes += [
        _guard("history", requests.check_history(client, fields)),
        _guard("prompt caching", requests.check_caching(client)),
        _guard("vision", requests.check_vision(client)),
        _guard("strictness", requests.check_strictness(client, fields)),
        _guard("context", ContextProbe(client).run()),
    ]
    async with asyncio.TaskGroup() as tasks:
        for task in [tasks.create_task(probe) for probe in probes]:
            add(await task)
    return findings


async def _check_connection(client: ProbeClient) -> Finding:
    messages = [SystemMessage(content="You are an agent."), UserMessage(content="Reply with the word ready.")]
    request = ModelRequest(transcript=Transcript(messages))
    start = client.remaining
    try:
        await client.accept(request, seconds=CONNECT_SECONDS)
    except (ModelFailure, TimeoutError, OutOfTime) as error:
        text = str(error) or f"no reply within {start - client.remaining:.0f} s"
        advice = "" if str(error) else "Check API_BASE, and that the server is not busy or still loading the model."
        return Finding(probe="connection", level="problem", text=text, advice=advice)
    text = f"replied after {start - client.remaining:.1f} s"
    return Finding(probe="connection", level="ok", text=text)


async def _guard(name: str, probe: Awaitable[T], *, level: Level = "warning") -> T | Finding:
    """Return what the probe found, or a finding of `level` if it failed."""
    try:
        return await probe
    except OutOfTime:
        text, advice = "not tested: the time of the check was over", "Repeat the check when the server is less busy."
    except TimeoutError:
        text, advice = "no reply in time", "Repeat the check when the server is less busy."
    except (ModelCallError, ModelFailure) as failure:
        text, advice = f"not tested: {reason_of(failure)}", ""
    return Finding(probe=name, level=level, text=text, advice=advice, limit=f"{name} not tested")
