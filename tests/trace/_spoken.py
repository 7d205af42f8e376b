"""The words that the bundled tasks are made of."""

from actkit.core.folder import files_of
from actkit.trace import tasks
from actkit.trace.tasks import _written


def spoken() -> list[str]:
    """Return every word of the lists and mappings that the files of the tasks hold."""
    files = [_written, *files_of("actkit.trace.tasks", str(tasks.__file__))]
    held = [value for f in files for name, value in vars(f).items() if name.isupper()]
    lists = [value for value in held if isinstance(value, list)]
    mappings = [value for value in held if isinstance(value, dict)]
    found = [word for words in lists for word in words]
    return [*found, *(word for m in mappings for pair in m.items() for word in pair)]
