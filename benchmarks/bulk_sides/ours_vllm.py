"""RecLoom's bulk engine with `scoring: vllm`: prefix caching with small blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ours

from recloom.launcher.bulk import Engine


class Counting(Engine):
    """Counts the tokens that the prefix cache did not have."""

    computed = 0

    def outputs(self, stepped: Callable[[], None]) -> Iterator[Any]:
        for output in super().outputs(stepped):
            self.computed += len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
            yield output


ours.measure(lambda work, settings: Counting(Path(work.model), settings, False, False))
