"""Every failure of the Hub's client, as one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants as hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from pruning.errors import ModelError
from pruning.loading.files import first_line


class Unreachable(Exception):
    """No answer from the Hub."""


class Gated(ModelError):
    """The owners of a model ask the caller to accept their terms first."""


@contextmanager
def hub_errors(hub_id: str, revision: str | None, local: bool = False) -> Iterator[None]:
    """Turn what the Hub client raises into one sentence.

    Args:
        hub_id: The model or dataset that is asked for.
        revision: The revision that is asked for.
        local: Whether the caller owns this machine, and may read where its files are.

    Raises:
        ModelError: The Hub refuses, or the files cannot be written; `Gated` if terms have to be accepted.
        Unreachable: The Hub does not answer.
    """
    try:
        yield
    except GatedRepoError:
        raise Gated(
            f"{hub_id} is gated: its owners ask you to accept their terms. Accept them on its page on "
            "the Hub, sign in with the same account, and try again."
        ) from None
    except RevisionNotFoundError:
        raise ModelError(
            f"{hub_id} has no revision {revision!r}. Leave the revision out to take the newest."
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"The Hub shows no model {hub_id!r}. Check the spelling; if it is private, sign in with "
            "an account that may see it."
        ) from None
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise Unreachable from error
        raise ModelError(f"{hub_id} has no config.json, so it is not a transformers model.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status == 401:
            raise ModelError(
                "The Hub did not accept the access token: it may have expired. Sign in again."
            ) from None
        if status is None or status >= 500 or status == 429:
            raise Unreachable from error
        raise ModelError(f"The Hub refused {hub_id} (HTTP {status}). Try again later.") from None
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise Unreachable from error
    except UnicodeEncodeError:
        raise ModelError(
            "The access token has characters that are not allowed in a token. Sign in again."
        ) from None
    except HFValidationError:
        raise ModelError(f"{hub_id[:100]!r} is not the name of a repository on the Hub.") from None
    except OSError as error:
        place = f" to {hub.HF_HUB_CACHE}" if local else ""
        advice = ", or set HF_HOME to another folder" if local else ""
        raise ModelError(
            f"{hub_id} could not be written{place}: {error.strerror or first_line(error)}. Make room{advice}."
        ) from error
