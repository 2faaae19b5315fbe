"""Show how far long work is: a bar on a terminal, one line a minute elsewhere."""

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 60.0


class Progress:
    """Progress of one run in optimizer steps, with tokens per second and the time left."""

    def __init__(self, name: str, steps: int, first_step: int, tokens_per_step: int) -> None:
        self.name = name
        self.steps = steps
        self.first_step = first_step
        self.tokens_per_step = tokens_per_step
        self.started = self.last_line = time.perf_counter()
        self.bar = tqdm(total=steps, initial=first_step, desc=name, unit="step") if sys.stderr.isatty() else None

    def advance(self, step: int, lm_loss: float | None) -> None:
        """Say that `step` steps are done; `lm_loss`, where known, is shown in nats."""
        now = time.perf_counter()
        speed = (step - self.first_step) * self.tokens_per_step / (now - self.started)
        if self.bar is not None:
            self.bar.update(step - self.bar.n)
            if lm_loss is not None:
                self.bar.set_postfix_str(f"{speed:,.0f} tokens/s, LM loss {lm_loss:.3f} nats")
        elif now - self.last_line >= SECONDS_BETWEEN_LINES or step == self.steps:
            self.last_line = now
            left = (self.steps - step) * self.tokens_per_step / speed
            print(
                f"{self.name}: step {step}/{self.steps}, {speed:,.0f} tokens/s, {left / 60:.1f} min left",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Leave the last state on the screen."""
        if self.bar is not None:
            self.bar.close()
