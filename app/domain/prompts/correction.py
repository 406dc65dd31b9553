"""Corrections of replies that cannot be used, for every agent."""

_MAX_REASON = 500
"""Maximum number of characters of a server's reason that the model reads."""

_MAX_GENERATED = 2_000
"""Maximum number of characters of a rejected reply that the model reads."""

CUT_OFF = (
    "Not used: your reply was cut off at the length limit (MAX_TOKENS). Think less and write less in one reply; write "
    "a long file in pieces: file_write, then file_write with append."
)

TEXT_CALLS = (
    "Not run: you wrote the call as text, and it cannot be understood. Make a tool call, with arguments in valid JSON."
)

CONTINUE = (
    "Your answer was cut off at the length limit. Go on exactly where it stopped, within a word if need be. Repeat "
    "nothing and add no introduction."
)

CUT_ANSWER = "\n\n[The answer is cut off here: it is longer than MAX_TOKENS allows.]"


def rejected(reason: str, generated: str) -> str:
    """Return the correction of a reply that the server rejected."""
    text = f"Your reply could not be used. The server says: {reason[:_MAX_REASON]}"
    if generated:
        text += f"\nYou wrote:\n{generated[:_MAX_GENERATED]}"
    return f"{text}\nWrite it again, correctly."
