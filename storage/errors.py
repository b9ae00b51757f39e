"""The error classes. A message says what is wrong, where, what is kept, and what to do next."""


class OnwardError(Exception):
    """Base class of all errors that Onward itself reports. The text is written for the user.

    `passing` says whether the same again may succeed, because the machine, the network or a person was the cause. None:
    nobody knows.
    """

    passing: bool | None = False

    def __init__(self, *arguments: object, passing: bool | None = False) -> None:
        super().__init__(*arguments)
        if passing is not False:
            self.passing = passing


class ConfigError(OnwardError):
    """The configuration cannot be run. Raised before any work starts."""


class HubUnreachable(OnwardError):
    """The hub does not answer. The request itself may be correct, so the same command may be run again."""

    passing = True


class BadInput(OnwardError):
    """A file or document from outside the project cannot be used."""


class DamagedArtifact(OnwardError):
    """The bytes of a committed artifact differ from its manifest."""

    passing = True
    way_out = "start the run that made it again, which makes it anew"


class DamagedInput(DamagedArtifact):
    """What a stage reads, or has read, is damaged. It was set aside, and so was what may have been made of it.

    `artifacts`: (stage, first 16 digits of the key) of each.
    """

    def __init__(self, message: str, artifacts: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.artifacts = artifacts


class StageFailed(OnwardError):
    """A stage could not finish. Everything that it committed before is kept."""


class Interrupted(OnwardError):
    """The user or the system asked to stop. Everything durable is kept, and the same command resumes from there."""

    passing = True


def said(error: BaseException) -> str:
    """The text of an error for users. Errors of other libraries get their class name too; our own texts are complete."""
    return str(error) if isinstance(error, OnwardError) else f"{type(error).__name__}: {error}"
