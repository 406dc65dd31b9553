"""Conversations that would not fit the context window: masking, summaries, refusals, crashes, and huge messages."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.errors import ContextTooLong, ModelFailure, StoreUnavailable
from app.domain.external.llm import ModelReply, ModelRequest
from app.domain.external.run_queue import Attempt
from app.domain.models.message import (
    AssistantMessage,
    MaskRecord,
    Message,
    SummaryRecord,
    ToolCall,
    ToolMessage,
    Transcript,
    TranscriptEntry,
    Usage,
    UserMessage,
)
from app.domain.models.model_profile import ModelProfile
from app.domain.models.plan import Plan, Step
from app.domain.models.run import Checkpoint
from app.domain.models.tool import Image
from app.domain.prompts import compaction, planning
from app.domain.repositories.event_log import Commit
from app.domain.services.agents.checkpointer import RunCheckpointer
from app.domain.services.agents.context import BoundedConversation
from app.domain.services.agents.limits import RunLimits
from app.domain.services.agents.window import ContextWindow, ContextWindows, text_tokens
from tests.fakes.memory_store import MemoryStore
from tests.fakes.scripted_llm import (
    Outcome,
    RecordedRequest,
    ScriptedLLM,
    calls,
    completes_step,
    creates_plan,
    runs_command,
    says,
)
from tests.support.agent_runs import make_worker
from tests.unit.test_runs_survive import check_conversation

WINDOW = 8_000
SUMMARY = "The file report.txt was written and the tests of the module were run, all passed. " * 3
FACT = "The password of the archive is heliotrope."
PLAN = Plan(goal="a report", steps=(Step(id="1", description="Write the report", status="running"),))


def profile(tokens: int = WINDOW, **more: object) -> ModelProfile:
    return replace(ModelProfile(identity="m", context_tokens=tokens, max_tokens=500), **more)  # type: ignore[arg-type]


class Conversation:
    """An executor's transcript in a memory store, sent to a scripted model."""

    def __init__(self, respond: Callable[[RecordedRequest], Outcome] | None = None, **more: object) -> None:
        self.store = MemoryStore()
        self.model = ScriptedLLM(respond or self.reply, profile=profile(**more))  # type: ignore[arg-type]
        self.windows = ContextWindows()
        self.turns = 0

    @staticmethod
    def reply(request: RecordedRequest) -> Outcome:
        return says(SUMMARY) if request.kind == "summarizing" else says("ok")

    async def open(self) -> None:
        await self.store.create("s", owner="", at=1)
        await self.resume()
        self.checkpointer.checkpoint = Checkpoint(phase="executing", plan=PLAN)
        await self.checkpointer.stage("executor", UserMessage(content=planning.user_message(FACT) + "\nGoal: a report"))

    async def resume(self) -> None:
        """Go on in another process."""
        self.checkpointer = RunCheckpointer("s", self.store, windows=self.windows)
        await self.checkpointer.load()
        self.bounded = BoundedConversation(self.checkpointer, self.model, "executor", RunLimits())

    async def turn(self, result: str = "", *, arguments: str = "{}", images: tuple[Image, ...] = ()) -> None:
        """Stage a turn of the model with one call and its result, and commit it."""
        self.turns += 1
        call = ToolCall(id=f"c{self.turns}", name="shell_exec", arguments=arguments)
        await self.checkpointer.stage("executor", AssistantMessage(tool_calls=(call,)))
        await self.checkpointer.stage("executor", ToolMessage(tool_call_id=call.id, content=result, images=images))
        await self.checkpointer.commit()

    async def ask(self) -> Sequence[Message]:
        """Send the transcript to the model and return the messages that it received."""
        await self.bounded.complete(())
        return self.model.requests[-1].messages

    async def stored(self) -> Sequence[TranscriptEntry]:
        return await self.store.load_transcript("s", "executor")

    async def records(self) -> list[TranscriptEntry]:
        return [entry for entry in await self.stored() if isinstance(entry, MaskRecord | SummaryRecord)]

    @property
    def summaries(self) -> int:
        return sum(request.kind == "summarizing" for request in self.model.requests)


def is_prefix(shorter: Sequence[Message], longer: Sequence[Message]) -> bool:
    return tuple(longer[: len(shorter)]) == tuple(shorter)


def tokens(messages: Sequence[Message]) -> int:
    return ContextWindow(profile()).weigh(messages)


async def test_short_conversation_is_sent_unchanged() -> None:
    conversation = Conversation()
    await conversation.open()
    await conversation.turn("x" * 4_000)
    sent = await conversation.ask()
    assert [type(message).__name__ for message in sent] == [
        "SystemMessage",
        "UserMessage",
        "AssistantMessage",
        "ToolMessage",
    ]
    assert await conversation.records() == []


async def test_old_results_are_masked_in_rare_batches_and_no_summary_is_written() -> None:
    conversation = Conversation(tokens=16_000)
    await conversation.open()
    for _ in range(40):
        await conversation.turn("word " * 500)
        await conversation.ask()
    records = await conversation.records()
    assert 2 <= len(records) <= 8
    assert all(isinstance(record, MaskRecord) for record in records)
    sent = conversation.model.requests[-1].messages
    results = [message.content for message in sent if isinstance(message, ToolMessage)]
    assert "removed to save room" in results[0]
    assert results[-1] == "word " * 500
    assert conversation.summaries == 0


async def test_pictures_are_masked_before_text() -> None:
    conversation = Conversation(vision=True)
    await conversation.open()
    picture = Image(media_type="image/png", base64="a", width=1_000, height=800)
    for number in range(5):
        await conversation.turn(f"text {number} " * 60, images=(picture,))
    results = [message for message in await conversation.ask() if isinstance(message, ToolMessage)]
    assert [len(result.images) for result in results] == [0, 0, 0, 0, 1]
    assert all(f"text {number}" in result.content for number, result in enumerate(results))


async def test_conversation_without_maskable_results_is_summarized_with_words_goal_plan_and_notes() -> None:
    conversation = Conversation()
    await conversation.open()
    for number in range(60):
        await conversation.turn("done", arguments='{"command": "' + f"{number} " * 60 + '"}')
        sent = await conversation.ask()
        assert tokens(sent) < WINDOW
    assert 1 <= conversation.summaries <= 8
    assert sent[1] == UserMessage(content=planning.user_message(FACT))
    assert isinstance(sent[2], UserMessage)
    assert "Goal: a report" in sent[2].content
    assert "Write the report [running]" in sent[2].content
    assert SUMMARY.strip() in sent[2].content
    assert sent[-1] == ToolMessage(tool_call_id="c60", content="done")
    check_conversation(sent[1:])


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 6_000), min_size=20, max_size=80), window=st.sampled_from([6_000, 16_000, 40_000]))
def test_prompts_extend_each_other_between_compactions_and_fit_and_survive_a_restart(
    sizes: list[int], window: int
) -> None:
    async def check() -> None:
        conversation = Conversation(tokens=window)
        await conversation.open()
        sent: Sequence[Message] = ()
        compactions = 0
        for number, size in enumerate(sizes):
            await conversation.turn("r" + "es " * (size // 3), arguments='{"a": "' + "v " * (size % 300) + '"}')
            following = await conversation.ask()
            known = len(await conversation.records())
            assert known > compactions or is_prefix(sent, following), number
            assert tokens(following) < window
            assert following[1].content.startswith(planning.user_message(FACT))
            check_conversation(following[1:])
            sent, compactions = following, known
            if size % 3 == 0:
                await conversation.resume()
        await conversation.resume()
        assert tuple((await conversation.checkpointer.transcript("executor")).since(0)) == tuple(sent)

    asyncio.run(check())


async def test_transcript_is_loaded_from_its_newest_summary_on_and_the_whole_shows_the_same() -> None:
    conversation = Conversation()
    await conversation.open()
    for _ in range(100):
        await conversation.turn("done", arguments='{"command": "' + "word " * 60 + '"}')
        sent = await conversation.ask()
    start = (await conversation.store.load_checkpoint("s")).transcript_starts["executor"]
    stored = await conversation.stored()
    assert isinstance(stored[start], SummaryRecord)
    assert not any(isinstance(entry, SummaryRecord) for entry in stored[start + 1 :])
    await conversation.resume()
    conversation.checkpointer._starts.clear()
    assert tuple((await conversation.checkpointer.transcript("executor")).since(0)) == tuple(sent)


@pytest.mark.parametrize("summary", [says(""), says("ok"), says('{"name": "x"}'), ModelFailure("m"), calls(("f", {}))])
async def test_summary_that_fails_is_replaced_by_what_the_service_knows(summary: Outcome) -> None:
    conversation = Conversation(lambda request: summary if request.kind == "summarizing" else says("ok"))
    await conversation.open()
    for _ in range(60):
        await conversation.turn("exit code 0", arguments='{"command": "make all ' + "word " * 60 + '"}')
        sent = await conversation.ask()
    assert isinstance(sent[2], UserMessage)
    assert "Newest calls:\n- shell_exec" in sent[2].content
    assert "exit code 0" in sent[2].content
    assert sent[1] == UserMessage(content=planning.user_message(FACT))


async def test_summaries_without_a_model_do_not_grow() -> None:
    conversation = Conversation(lambda request: says("") if request.kind == "summarizing" else says("ok"))
    await conversation.open()
    sizes: set[int] = set()
    for _ in range(200):
        await conversation.turn("exit code 0", arguments='{"command": "' + "word " * 60 + '"}')
        sizes.add(tokens((await conversation.ask())[2:3]))
    assert max(sizes) < WINDOW / 4


class StrictServer:
    """A model whose server refuses prompts with more than `limit` tokens."""

    def __init__(self, limit: int, *, named: bool) -> None:
        self.limit = limit
        self.named = named
        self.refusals = 0

    def __call__(self, request: RecordedRequest) -> Outcome:
        if tokens(request.messages) > self.limit - 500:
            self.refusals += 1
            return ContextTooLong("too long", limit_tokens=self.limit if self.named else None)
        return says(SUMMARY) if request.kind == "summarizing" else says("ok")


@pytest.mark.parametrize("named", [True, False])
async def test_smaller_window_of_the_server_is_learned_from_its_refusal(named: bool) -> None:
    server = StrictServer(6_000, named=named)
    conversation = Conversation(server, tokens=128_000)
    await conversation.open()
    for _ in range(60):
        await conversation.turn("word " * 500)
        await conversation.ask()
    assert 1 <= server.refusals <= 3
    assert 4_500 < conversation.windows.of(conversation.model.profile).tokens < 8_000
    assert conversation.windows.of(replace(conversation.model.profile, name="other")).tokens == 128_000


@pytest.mark.parametrize("limit_tokens", [200_000, None])
async def test_refusal_of_a_short_request_does_not_make_the_window_too_small_for_others(
    limit_tokens: int | None,
) -> None:
    refusals = iter([ContextTooLong("210000 tokens > 200000", limit_tokens=limit_tokens)])
    conversation = Conversation(lambda request: next(refusals, says("ok")), tokens=300_000)
    await conversation.open()
    for _ in range(3):
        await conversation.turn("word " * 500)
    await conversation.ask()
    window = conversation.windows.of(conversation.model.profile).tokens
    assert (
        window == limit_tokens if limit_tokens else window >= 2 * tokens(conversation.model.requests[-1].messages[:1])
    )
    await conversation.turn("word " * 50)
    assert (await conversation.ask())[-1].content == "word " * 50


async def test_server_that_refuses_everything_ends_in_an_error_and_teaches_nothing() -> None:
    conversation = Conversation(lambda request: ContextTooLong("no"))
    await conversation.open()
    for _ in range(3):
        await conversation.turn("word " * 500)
    with pytest.raises(ContextTooLong):
        await conversation.ask()
    assert len(conversation.model.requests) <= 10
    assert conversation.windows.of(conversation.model.profile).tokens == WINDOW


async def test_smaller_model_compacts_before_its_first_request() -> None:
    conversation = Conversation(tokens=128_000)
    await conversation.open()
    for _ in range(30):
        await conversation.turn("word " * 1_000)
    await conversation.ask()
    conversation.model.profile = profile(6_000, name="small", identity="small")
    await conversation.resume()
    assert tokens(await conversation.ask()) < 6_000


async def test_store_that_fails_during_a_compaction_leaves_nothing_half_written() -> None:
    conversation = Conversation()
    await conversation.open()
    for _ in range(60):
        await conversation.turn("done", arguments='{"command": "' + "word " * 60 + '"}')
    before = list(await conversation.stored())

    def fail(request: RecordedRequest) -> Outcome:
        conversation.store.trouble = "away"
        return says(SUMMARY)

    conversation.model.script = fail
    conversation.checkpointer.stop_retrying()
    with pytest.raises(StoreUnavailable):
        await conversation.ask()
    conversation.store.trouble = None
    assert list(await conversation.stored()) == before
    conversation.model.script = conversation.reply
    await conversation.resume()
    sent = await conversation.ask()
    await conversation.resume()
    assert tuple(await conversation.ask()) == tuple(sent)


async def test_newest_results_are_shortened_when_they_alone_are_too_large() -> None:
    conversation = Conversation()
    await conversation.open()
    await conversation.turn("start " + "word " * 20_000 + "end")
    sent = await conversation.ask()
    assert tokens(sent) < WINDOW
    assert isinstance(sent[-1], ToolMessage)
    assert sent[-1].content.startswith("start")
    assert sent[-1].content.endswith("end")


async def test_answer_of_the_user_to_a_question_is_kept_word_for_word() -> None:
    conversation = Conversation()
    await conversation.open()
    ask = ToolCall(id="q", name="message_ask_user", arguments='{"text": "Which colour?"}')
    await conversation.checkpointer.stage("executor", AssistantMessage(tool_calls=(ask,)))
    answer = planning.user_message("Blue, " + "really " * 60)
    await conversation.checkpointer.stage("executor", ToolMessage(tool_call_id="q", content=answer))
    for number in range(60):
        await conversation.turn("r " * (number % 2 * 800), arguments='{"command": "' + "word " * 60 + '"}')
        sent = await conversation.ask()
    assert conversation.summaries
    assert UserMessage(content=answer) in sent


async def run(store: MemoryStore, model: ScriptedLLM, message: str) -> list[str]:
    """Send a message, carry out the run, and return the types of its events."""
    last = (await store.append_user_message("s", message, at=1, key=None)).number
    await make_worker(store, model).work("s", Attempt(reason=""))
    return [record.type for record in await store.read("s", after=last, limit=1_000)]


async def test_message_larger_than_the_window_ends_in_an_error_and_the_next_message_works() -> None:
    store = MemoryStore()
    await store.create("s", owner="", at=1)
    model = ScriptedLLM(
        lambda request: creates_plan(message="Hello.") if request.kind == "planning" else says(SUMMARY),
        profile=profile(),
    )
    await run(store, model, FACT)
    requests = len(model.requests)
    assert await run(store, model, "start " + "word " * 30_000) == ["error"]
    assert len(model.requests) == requests
    error = (await store.read("s", after=0, limit=100))[-1].data.decode()
    assert "about 39,0" in error
    assert "8,000 tokens" in error
    assert await run(store, model, "And now?") == ["title", "message", "done"]
    sent = model.requests[-1].messages
    assert tokens(sent) < WINDOW
    assert sent[1].content == planning.user_message(FACT)
    assert sent[-1].content == planning.user_message("And now?")
    assert "start" in sent[2].content


async def test_planner_with_many_long_messages_compacts_and_keeps_the_first_and_the_newest() -> None:
    store = MemoryStore()
    await store.create("s", owner="", at=1)
    model = ScriptedLLM(
        lambda request: creates_plan(message="Hello.") if request.kind == "planning" else says(SUMMARY),
        profile=profile(),
    )
    await run(store, model, FACT)
    for number in range(40):
        assert await run(store, model, f"message {number} " + "word " * 500) == ["title", "message", "done"]
        sent = model.requests[-1].messages
        assert tokens(sent) < WINDOW
        assert sent[1].content == planning.user_message(FACT)
    assert sent[-1].content == planning.user_message("message 39 " + "word " * 500)


async def test_crash_after_a_compaction_while_answering_asks_once_for_the_answer() -> None:
    store = MemoryStore()
    await store.create("s", owner="", at=1)
    crashes = [True]

    def respond(request: RecordedRequest) -> ModelReply | BaseException:
        match request.kind:
            case "planning":
                return creates_plan("one")
            case "executing":
                return completes_step()
            case "summarizing":
                return says(SUMMARY)
            case _:
                return asyncio.CancelledError() if crashes and crashes.pop() else says("Done.")

    model = ScriptedLLM(respond, profile=profile())
    entries = [UserMessage(content=planning.user_message("word " * 800)) for _ in range(6)]
    await store.commit("s", Commit(timestamp=1, messages=[("planner", entry) for entry in entries]))
    model.profile = profile(9_000)
    last = (await store.append_user_message("s", FACT, at=1, key=None)).number
    worker = make_worker(store, model)
    with pytest.raises(asyncio.CancelledError):
        await worker.work("s", Attempt(reason=""))
    interrupted = model.requests[-1].messages
    await worker.work("s", Attempt(reason="", crashed=True))
    assert (await store.read("s", after=last, limit=100))[-1].type == "done"
    assert sum("The work is over" in message.content for message in model.requests[-1].messages) == 1
    assert is_prefix(interrupted, model.requests[-1].messages)


async def test_call_ids_are_new_after_a_summary_because_older_ones_are_unknown() -> None:
    store = MemoryStore()
    await store.create("s", owner="", at=1)

    def respond(request: RecordedRequest) -> Outcome:
        match request.kind:
            case "planning":
                return creates_plan("one")
            case "executing" if len(model.requests) < 60:
                return runs_command(f"{len(model.requests)} " + "word " * 150)
            case "executing":
                return completes_step()
            case _:
                return says(SUMMARY)

    model = ScriptedLLM(respond, profile=profile())
    await run(store, model, FACT)
    records = await store.read("s", after=0, limit=1_000)
    ids = [record.data.decode().partition('"tool_call_id":"')[2].partition('"')[0] for record in records]
    shown = [call_id for call_id in ids if call_id]
    assert len(set(shown)) == len(shown) / 2
    assert any(request.kind == "summarizing" for request in model.requests)


def test_estimate_is_calibrated_by_plausible_reports_and_only_for_its_own_model() -> None:
    windows = ContextWindows()
    window = windows.of(profile())
    transcript = Transcript([UserMessage(content="word " * 1_000)])
    asked = ModelRequest(transcript=transcript)
    raw = window.weigh(transcript.since(0))
    window.learn(asked, Usage(prompt_tokens=3), WINDOW)
    assert window.weigh(transcript.since(0)) == raw
    window.learn(asked, Usage(prompt_tokens=raw * 2), WINDOW)
    assert abs(window.weigh(transcript.since(0)) - raw * 2) <= 2
    assert windows.of(profile(name="other")).weigh(transcript.since(0)) == raw


def test_server_that_counts_only_a_part_of_long_prompts_is_not_learned_from(
    caplog: pytest.LogCaptureFixture,
) -> None:
    window = ContextWindow(profile())
    transcript = Transcript([UserMessage(content="word " * 1_000)])
    request = ModelRequest(transcript=transcript)
    window.learn(request, Usage(prompt_tokens=window.weigh(transcript.since(0))), WINDOW)
    for _ in range(3):
        transcript.append(UserMessage(content="word " * 1_000))
        known = window.weigh(transcript.since(0))
        window.learn(request, Usage(prompt_tokens=1_300), WINDOW)
        assert window.weigh(transcript.since(0)) == known
    assert caplog.text.count("it may cut long prompts") == 1


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("The quick brown fox jumps over the lazy dog. " * 100, 900, 1_400),
        ("数据" * 500, 900, 1_500),
        ("Zm9vYmFyYmF6cXV4" * 100, 800, 1_300),
        ('{"id": 17, "name": "abc", "tags": ["x", "y"]}' * 100, 1_500, 2_600),
        ("", 0, 0),
    ],
)
def test_estimate_of_each_kind_of_text_is_near_what_tokenizers_count(text: str, least: int, most: int) -> None:
    assert least <= text_tokens(text) <= most


def test_masked_result_names_its_file() -> None:
    message = ToolMessage(tool_call_id="c", content="x" * 1_000, file="~/r.txt")
    note = "[This result of 1,000 characters was removed to save room; the whole result is in ~/r.txt.]"
    assert compaction.masked([message], images_only=False) == [replace(message, content=note)]


@pytest.mark.parametrize("crashes_at", ["summarizing", "executing"])
async def test_process_that_dies_during_a_compaction_is_followed_by_the_same_prompt(crashes_at: str) -> None:
    store = MemoryStore()
    await store.create("s", owner="", at=1)
    dies = False

    def respond(request: RecordedRequest) -> Outcome:
        nonlocal dies
        summarized = any(compaction.is_summary(message) for message in request.messages)
        if dies and request.kind == crashes_at and (summarized or crashes_at == "summarizing"):
            dies = False
            return asyncio.CancelledError()
        match request.kind:
            case "planning":
                return creates_plan("one")
            case "executing" if len(model.requests) < 100:
                return runs_command(f"{len(request.messages)} " + "word " * 150)
            case "executing":
                return completes_step()
            case _:
                return says(SUMMARY)

    model = ScriptedLLM(respond, profile=profile())
    dies = True
    await store.append_user_message("s", FACT, at=1, key=None)
    with pytest.raises(asyncio.CancelledError):
        await make_worker(store, model).work("s", Attempt(reason=""))
    asked = len(model.requests)
    await make_worker(store, model).work("s", Attempt(reason="", crashed=True))
    assert model.requests[asked].messages == model.requests[asked - 1].messages
    assert (await store.read("s", after=0, limit=1_000))[-1].type == "done"
    entries = await store.load_transcript("s", "executor")
    check_conversation([entry for entry in entries if not isinstance(entry, MaskRecord | SummaryRecord)])


async def test_long_results_of_many_steps_are_clipped_for_the_answer() -> None:
    store = MemoryStore()
    await store.create("s", owner="", at=1)

    def respond(request: RecordedRequest) -> Outcome:
        match request.kind:
            case "planning":
                return creates_plan(*(f"step {number}" for number in range(12)))
            case "executing":
                done = len([each for each in model.requests if each.kind == "executing"])
                return completes_step(result=f"found {done} " + "word " * 800)
            case "summarizing":
                return says(SUMMARY)
            case _:
                return says("Done.")

    model = ScriptedLLM(respond, profile=profile())
    assert (await run(store, model, FACT))[-1] == "done"
    answering = model.requests[-1].messages
    assert tokens(answering) < WINDOW
    assert all(f"found {number} " in answering[-1].content for number in range(1, 13))


async def test_turn_with_huge_arguments_is_dropped_but_named_in_the_history_that_is_summarized() -> None:
    conversation = Conversation()
    await conversation.open()
    await conversation.turn("wrote 9 bytes", arguments='{"file": "~/huge.txt", "content": "' + "word " * 9_000 + '"}')
    sent = await conversation.ask()
    assert tokens(sent) < WINDOW
    assert not any(isinstance(message, ToolMessage) for message in sent)
    assert "~/huge.txt" in conversation.model.requests[-2].messages[-1].content
    assert "Do step 1 now" in sent[-1].content


async def test_long_answer_of_the_user_is_never_shortened() -> None:
    conversation = Conversation()
    await conversation.open()
    for _ in range(20):
        await conversation.turn("word " * 100)
    ask = ToolCall(id="q", name="message_ask_user", arguments='{"text": "What exactly?"}')
    await conversation.checkpointer.stage("executor", AssistantMessage(tool_calls=(ask,)))
    answer = planning.user_message("all of this: " + "word " * 4_000)
    await conversation.checkpointer.stage("executor", ToolMessage(tool_call_id="q", content=answer))
    sent = await conversation.ask()
    assert any(message.content == answer for message in sent)
    assert tokens(sent) < WINDOW


TURNS = st.one_of(
    st.tuples(st.just("calls"), st.lists(st.integers(0, 12_000), min_size=1, max_size=6), st.integers(0, 4_000)),
    st.tuples(st.just("user"), st.just([]), st.integers(0, 6_000)),
    st.tuples(st.just("text"), st.just([]), st.integers(1, 2_000)),
    st.tuples(st.just("service"), st.just([]), st.integers(0, 1_000)),
)


@settings(max_examples=60, deadline=None)
@given(turns=st.lists(TURNS, min_size=10, max_size=60), window=st.sampled_from([6_000, 16_000]))
def test_any_conversation_fits_and_holds_the_first_and_the_newest_words(
    turns: list[tuple[str, list[int], int]], window: int
) -> None:
    async def check() -> None:
        conversation = Conversation(tokens=window)
        await conversation.open()
        newest = planning.user_message(FACT)
        for number, (kind, results, size) in enumerate(turns):
            filler = f"{number} " + "word " * (size // 5)
            match kind:
                case "calls":
                    calls = [
                        ToolCall(id=f"{number}_{each}", name="f", arguments=filler) for each, _ in enumerate(results)
                    ]
                    await conversation.checkpointer.stage("executor", AssistantMessage(tool_calls=tuple(calls)))
                    for call, length in zip(calls, results, strict=True):
                        message = ToolMessage(tool_call_id=call.id, content="res " * (length // 4))
                        await conversation.checkpointer.stage("executor", message)
                case "text":
                    await conversation.checkpointer.stage("executor", AssistantMessage(content=filler))
                    continue
                case "user":
                    newest = planning.user_message(filler)
                    await conversation.checkpointer.stage("executor", UserMessage(content=newest))
                case _:
                    await conversation.checkpointer.stage("executor", UserMessage(content=filler))
            sent = await conversation.ask()
            assert tokens(sent) <= window - 500
            check_conversation(sent[1:])
            assert FACT in "".join(message.content for message in sent)
            assert any(newest in message.content for message in sent)

    asyncio.run(check())


async def test_instruction_in_the_result_of_a_completed_step_is_not_masked() -> None:
    conversation = Conversation(tokens=16_000)
    await conversation.open()
    call = ToolCall(id="done", name="complete_step", arguments="{}")
    instruction = ToolMessage(tool_call_id="done", content="Do step 2 now: " + "carefully " * 60)
    await conversation.checkpointer.stage("executor", AssistantMessage(tool_calls=(call,)), instruction)
    for _ in range(12):
        await conversation.turn("word " * 800)
        sent = await conversation.ask()
    assert [type(record) for record in await conversation.records()] == [MaskRecord]
    assert instruction in sent


async def test_instruction_that_is_kept_is_not_repeated_in_the_summary() -> None:
    conversation = Conversation()
    await conversation.open()
    for number in range(80):
        call = ToolCall(id=f"done{number}", name="complete_step", arguments='{"result": "' + "word " * 60 + '"}')
        instruction = ToolMessage(tool_call_id=call.id, content="Do step 1 now: Write the report")
        await conversation.checkpointer.stage("executor", AssistantMessage(tool_calls=(call,)), instruction)
        sent = await conversation.ask()
        assert not compaction.is_summary(sent[2]) or "Do step 1 now" not in sent[2].content
    assert conversation.summaries
