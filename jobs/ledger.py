"""The ledger of what Ray's workers began. Next to nothing is loaded for it."""


class Ledger:
    """Remembers which span each worker began last, beyond the worker's death."""

    def __init__(self) -> None:
        self._begun: dict[str, tuple[str, int]] = {}

    def begin(self, actor: str, key: str, span: int) -> None:
        """Note that a span is begun."""
        self._begun[actor] = key, span

    def begun(self) -> dict[str, tuple[str, int]]:
        """Return what each worker began last, by its actor."""
        return self._begun
