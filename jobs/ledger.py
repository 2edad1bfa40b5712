"""The ledger of a pass: who works, and at what. Next to nothing is loaded for it."""

from typing import Any


class Ledger:
    """Remembers which span each worker began last, beyond the worker's death."""

    def __init__(self) -> None:
        self._workers: list[Any] = []
        self._begun: dict[str, tuple[str, int]] = {}

    def join(self, worker: Any) -> None:
        """Note that a worker, given by its handle, takes part."""
        self._workers.append(worker)

    def begin(self, actor: str, key: str, span: int) -> None:
        """Note that a span is begun."""
        self._begun[actor] = key, span

    def begun(self) -> dict[str, tuple[str, int]]:
        """Return what each worker began last, by its actor."""
        return self._begun

    def workers(self) -> list[Any]:
        """Return the handles of all that ever took part."""
        return self._workers
