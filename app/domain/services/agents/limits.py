"""Limits of what one message of the user may cost, and the message with which a run rests at one of them."""

from dataclasses import dataclass

from app.domain.errors import RunLimitReached
from app.domain.models.run import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """Limits of what a run may use until the user writes again. Every message grants the same again."""

    max_calls: int = 200
    """Maximum number of model calls."""
    max_steps: int = 30
    """Maximum number of steps that are started."""
    token_budget: int = 0
    """Maximum number of tokens, prompts and replies together; 0 for no limit."""
    tokens_per_day: int = 0
    """Maximum number of tokens of all runs of the session's owner in a day (UTC); 0 for no limit."""

    def reached(self, checkpoint: Checkpoint) -> str:
        """Return which limit the run has reached, for the user; "" if none."""
        used, granted = checkpoint.usage, checkpoint.usage_at_grant
        if checkpoint.steps_started > self.max_steps:
            return f"{self.max_steps} steps (RUN_MAX_STEPS)"
        if used.calls - granted.calls >= self.max_calls:
            return f"{self.max_calls} model calls (RUN_MAX_CALLS)"
        if self.token_budget and used.total_tokens - granted.total_tokens >= self.token_budget:
            return f"{self.token_budget} tokens (RUN_TOKEN_BUDGET)"
        return ""

    def check(self, checkpoint: Checkpoint, *, tokens_today: int) -> None:
        """Check that the run may call the model.

        Args:
            checkpoint: The state of the run.
            tokens_today: Number of tokens that all runs of the session's owner have used today.

        Raises:
            RunLimitReached: It has reached a limit.
        """
        if limit := self.reached(checkpoint):
            raise RunLimitReached(limit)
        if self.tokens_per_day and tokens_today >= self.tokens_per_day:
            raise RunLimitReached(f"{self.tokens_per_day} tokens a day (LIMIT_TOKENS_PER_DAY)", is_daily=True)


def rest_message(limit: RunLimitReached, checkpoint: Checkpoint) -> str:
    """Return the message to the user: what was done, what it cost, and what is left."""
    plan, usage = checkpoint.plan, checkpoint.usage
    groups = {
        "Done": [step.description for step in plan.steps if step.status == "completed"],
        "Failed": [step.description for step in plan.steps if step.status == "failed"],
        "Not finished": [step.description for step in plan.steps if step.status == "running"],
        "Not started": [step.description for step in plan.steps if step.status == "pending"],
    }
    reason = "the day's allowance is used up" if limit.is_daily else "this task has used what one message allows"
    parts = [f"I paused because {reason}: {limit}."]
    parts += [f"{name}:\n" + "\n".join(f"- {each}" for each in steps) for name, steps in groups.items() if steps]
    if not plan.steps:
        parts.append("The work is not planned yet.")
    elif plan.running is None:
        parts.append("Only the final answer is left.")
    cost = "" if usage.cost is None else f", cost {usage.cost:.4f}"
    parts.append(f"Used so far: {usage.calls} model calls, {usage.total_tokens} tokens{cost}.")
    if limit.is_daily:
        parts.append("Write to me after 00:00 UTC, for example “go on”, and I continue.")
    else:
        parts.append("Write to me, for example “go on”, and I continue with the same allowance.")
    return "\n\n".join(parts)
