"""The exceptions of actkit.

ActkitError
├── SiteError          an unknown site, or one that this network lacks
├── ModelError         a network that cannot be opened
├── MethodError        an unknown method or family, or a method's file that declares none
├── InputError         inputs that the network cannot take
├── EditError          an edit that does not fit, or never acts
├── NotFittedError     a method that is asked for results before it was fitted
├── StoreError         a store that cannot be read or written
│   ├── BusyError      a store that another process is writing
│   └── DamagedError   a shard or a manifest that is not what was written
├── DataError          a data set or a file of the user's that cannot be read
└── EngineError        an engine that is unknown, absent, or whose workers fail

ActkitWarning
├── InputWarning       inputs that are read otherwise than they were given
└── ModeWarning        a network in training mode, whose numbers change from run to run

Every message states the rule, then the value and the shape that broke it.
"""


class ActkitError(Exception):
    """Base of all errors raised on purpose; the command line prints them as one line."""


class SiteError(ActkitError, KeyError):
    """An unknown site, or one that this network lacks."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0]) if self.args else ""


class ModelError(ActkitError):
    """A network that cannot be opened."""


class MethodError(ActkitError, KeyError):
    """An unknown method or family, or a method's file that declares none."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0]) if self.args else ""


class InputError(ActkitError, ValueError):
    """Inputs that the network cannot take."""


class EditError(ActkitError, ValueError):
    """An edit that does not fit its site, or that never acts."""


class NotFittedError(ActkitError):
    """A method that is asked for results before it was fitted."""


class StoreError(ActkitError):
    """A store that cannot be read or written."""


class BusyError(StoreError):
    """A store that another process is writing."""


class DamagedError(StoreError):
    """A shard or a manifest that is not what was written."""


class DataError(ActkitError, ValueError):
    """A data set or a file of the user's that cannot be read."""


class EngineError(ActkitError):
    """An engine that is unknown, absent, or whose workers fail."""


class ActkitWarning(UserWarning):
    """Base of all warnings given on purpose."""


class InputWarning(ActkitWarning):
    """Inputs that are read otherwise than they were given."""


class ModeWarning(ActkitWarning):
    """A network in training mode, whose numbers change from run to run."""
