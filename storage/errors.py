"""The one family of errors. A message says what is wrong, where, what is kept, and what to do next."""


class OnwardError(Exception):
    """Anything that Onward itself reports; its text is written for the person who meets it."""


class ConfigError(OnwardError):
    """The configuration cannot be run; found before any work starts."""


class HubUnreachable(OnwardError):
    """The hub gives no answer; nothing is wrong with what was asked for, and the same command may be run again."""


class BadInput(OnwardError):
    """A file or document from outside cannot be used."""


class DamagedArtifact(OnwardError):
    """The bytes of a committed artifact are not what its manifest says."""


class StageFailed(OnwardError):
    """A stage could not finish; what it committed before is kept."""


class Interrupted(OnwardError):
    """Asked to stop; everything durable so far is kept and the same command goes on from there."""


def said(error: BaseException) -> str:
    """An error's text for people: ours say all themselves, of others the kind says half."""
    return str(error) if isinstance(error, OnwardError) else f"{type(error).__name__}: {error}"
