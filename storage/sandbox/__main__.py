"""The sandbox process: `python -m storage.sandbox PARENT_PID`. Answers one question (`storage.sandbox.wire`) and ends.

What takes time is done before the question comes, so that a process may be started ahead and wait: the imports, and a
connection of DuckDB. Nothing is imported after the files are restricted: it could not be read.
"""

import sys

from storage.sandbox import confine


def main() -> int:
    # Before any import starts a thread: see `confine`.
    is_offline = confine.leave_network()
    confine.die_with_parent(int(sys.argv[1]))
    from storage.sandbox.process import answer

    return answer(sys.stdin.buffer, sys.stdout.buffer, is_offline=is_offline)


if __name__ == "__main__":
    sys.exit(main())
