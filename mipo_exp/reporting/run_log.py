"""Messages of a run: to the terminal, and with times to `mipo_exp.log` in its folder; neither has secrets in it."""

import contextlib
import logging
import sys
from pathlib import Path

from mipo_exp.config.redaction import redact
from mipo_exp.execution.progress import TO_FILE

LOG_FILE = "mipo_exp.log"
NOISY_LOGGERS = ("httpx", "httpx2", "openai", "matplotlib", "datasets", "filelock", "urllib3", "absl", "lm_eval")


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _LogFile(logging.FileHandler):
    """Says once that the file cannot be written, a full disk perhaps, and leaves it at that: the results say more."""

    def handleError(self, record: logging.LogRecord) -> None:
        if self.level < logging.CRITICAL + 1:
            self.setLevel(logging.CRITICAL + 1)
            reason = sys.exc_info()[1]
            sys.stderr.write(f"{self.baseFilename} cannot be written ({reason}); messages are on the terminal only\n")


def set_up_logging(output: Path) -> None:
    """Begin the messages of a run whose folder is `output`; those of an earlier one in this process end."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        with contextlib.suppress(OSError):  # the last lines found no room
            handler.close()
    root.setLevel(logging.INFO)
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(_Redacting("%(message)s"))
    console.addFilter(lambda record: not getattr(record, TO_FILE, False))
    root.addHandler(console)
    with contextlib.suppress(OSError):  # an output folder that cannot be written gets its own message later
        output.mkdir(parents=True, exist_ok=True)
        file = _LogFile(output / LOG_FILE, encoding="utf-8")
        file.setFormatter(_Redacting("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(file)
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
