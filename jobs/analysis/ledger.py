"""The ledger of a pass: who works, and at what. Next to nothing is loaded for it."""


class Ledger:
    """Remembers which span each worker began last, beyond the worker's death."""

    def __init__(self) -> None:
        self._workers: list[bytes] = []
        self._begun: dict[str, tuple[str, int]] = {}

    def join(self, worker: bytes) -> None:
        """Note that a worker takes part. Its handle stays pickled: to open it loads Ray Data."""
        self._workers.append(worker)

    def begin(self, actor: str, key: str, span: int) -> None:
        """Note that a span is begun."""
        self._begun[actor] = key, span

    def begun(self) -> dict[str, tuple[str, int]]:
        """Return what each worker began last, by its actor."""
        return self._begun

    def workers(self) -> list[bytes]:
        """Return the pickled handles of all that ever took part."""
        return self._workers
