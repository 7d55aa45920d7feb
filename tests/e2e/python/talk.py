"""A talk on a terminal: it answers, remembers, stops an answer at Ctrl-C, forgets, and ends.

Usage: talk.py KEDGE MODEL
"""

import os
import pty
import select
import sys
import time

pid, terminal = pty.fork()
if pid == 0:
    os.environ["TERM"] = "dumb"
    os.execv(sys.argv[1], [sys.argv[1], "infer", "run", sys.argv[2], "--temperature", "0", "--verbose"])

seen = ""


def until(text, seconds=60):
    """Reads until the terminal shows `text`; what it showed before."""
    global seen
    end = time.monotonic() + seconds
    while text not in seen:
        left = end - time.monotonic()
        ready, _, _ = select.select([terminal], [], [], max(left, 0))
        if not ready:
            raise SystemExit(f"{text!r} did not come; the terminal shows {seen!r}")
        try:
            more = os.read(terminal, 65536).decode(errors="replace")
        except OSError:
            more = ""
        if not more:
            raise SystemExit(f"it ended before {text!r} came; the terminal shows {seen!r}")
        seen += more
    before, _, seen = seen.partition(text)
    return before


def say(text):
    os.write(terminal, text.encode() + b"\n")


until(">>> ")
say("What is a pod?")
answer = until("tokens/s")
assert "smallest thing Kubernetes runs" in answer, answer
until(">>> ")
say("What is a pod?")
known = until(" of them known").rpartition("(")[2]
assert int(known) > 0, "the second question follows the first"
until(">>> ")
os.write(terminal, b"\x03")
until("/bye or Ctrl-D ends the talk.")
until(">>> ")

# Ctrl-S holds the terminal, and so the answer; Ctrl-C lets go of both.
for patience in (1, 4, 16):
    os.write(terminal, b"\x13")
    say("What is a pod?")
    time.sleep(patience)
    os.write(terminal, b"\x03")
    if "(stopped)" in until(">>> "):
        break
else:
    raise SystemExit("Ctrl-C did not stop an answer")
say("What is a node?")
until("tokens/s")
until(">>> ")

say("/clear")
until("forgotten")
until(">>> ")
say("/nonsense")
until("/nonsense is not known")
until(">>> ")
say("/bye")
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
print("everything was as it should be")
