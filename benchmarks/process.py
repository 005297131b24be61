"""The other end of `peer.py`: a framework that runs in a process of its own, so that no two meddle with each other."""

import json
import subprocess
from pathlib import Path
from typing import Any


class Process:
    """`peer.py NAME`, run by another Python; or any other command that serves in the same way."""

    def __init__(self, python: Path, name: str, *command: str):
        self.name = name
        arguments = command or (str(Path(__file__).with_name("peer.py")), name)
        self._process = subprocess.Popen(
            [str(python), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def prepare(self, case: dict[str, Any]) -> list[str]:
        """Set up a case; the names of its sides that can be timed."""
        names = self._ask({"case": case})
        if not isinstance(names, list):
            print(f"{self.name} cannot run {case['name']}: {names['error']}")
            return []
        return [name for name in names if self.seconds(name) is not None]

    def seconds(self, side: str) -> float | None:
        """What one call takes; None if it fails."""
        answer = self._ask({"side": side})
        return None if isinstance(answer, dict) else answer

    def memory(self, side: str) -> int | None:
        """Bytes that one call takes at most beyond what was there; None if it fails."""
        answer = self._ask({"memory": side})
        return None if isinstance(answer, dict) else answer

    def close(self) -> None:
        """End it."""
        self._process.communicate()

    def _ask(self, order: dict[str, Any]) -> Any:
        to, back = self._process.stdin, self._process.stdout
        assert to is not None
        assert back is not None
        try:
            to.write(json.dumps(order) + "\n")
            to.flush()
            line = back.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            return {"error": "its process has ended"}
        answer = json.loads(line)
        if isinstance(answer, dict):
            print(f"{self.name}, {order}: {answer['error']}")
        return answer
