"""What went wrong with S3, in the words of `storage.errors`: what a person must change, and what may pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigParseError,
    InvalidRegionError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)

from storage.errors import Misconfigured, Unavailable

CONFLICTS = {"ConditionalRequestConflict", "OperationAborted", "NoSuchUpload"}
"""Codes of a put that met another one, or whose own earlier attempt was done after all: it is to be made again."""

_HINTS = {
    "NoSuchBucket": "there is no such bucket: create it, or give another URL",
    "InvalidBucketName": "that is no name of a bucket: give another URL",
    "AccessDenied": "these credentials may not do it: allow s3:PutObject, GetObject, DeleteObject, ListBucket and"
    " AbortMultipartUpload on the bucket and its objects",
    "403": "these credentials may not do it, or are wrong",
    "InvalidAccessKeyId": "the access key is not known there: check the credentials",
    "SignatureDoesNotMatch": "the secret key is wrong: check the credentials",
    "ExpiredToken": "the credentials have expired",
    "InvalidToken": "the session token is wrong: check the credentials",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "PermanentRedirect": "the bucket is in another region: give that one",
    "AuthorizationHeaderMalformed": "the bucket is in another region: give that one",
    "NotImplemented": "that server cannot do what the lake needs",
}
_CREDENTIALS = {"ExpiredToken", "InvalidToken"}
"""Codes that come with another status than 401 and 403."""
_PASSING = {"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentChecksumMismatch", "SlowDown", "Throttling"}
_PASSING_STATUSES = {408, 409, 412, 425, 429}
_FOR_PEOPLE = (ConfigParseError, InvalidRegionError, ParamValidationError, PartialCredentialsError, ProfileNotFound)


@contextmanager
def our_errors(what: str, where: str) -> Iterator[None]:
    """Errors of botocore become `Misconfigured` and `Unavailable`. `where` is the bucket, `what` is done there."""
    try:
        yield
    except ClientError as error:
        raise _from_answer(error, what, where) from error
    except NoCredentialsError as error:
        raise Misconfigured(
            f"{where}: no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the"
            " machine a role"
        ) from error
    except _FOR_PEOPLE as error:
        raise Misconfigured(f"{where}: {what}: {error}") from error
    except BotoCoreError as error:
        raise Unavailable(f"{where}: {what}: {error}") from error
    except OSError as error:
        raise Unavailable(f"{what}: {error}") from error


def may_be_credentials(error: NoCredentialsError | ClientError) -> bool:
    """Whether other credentials may help. HEAD has no body that tells why it is refused."""
    if isinstance(error, NoCredentialsError):
        return True
    return status_of(error) in (401, 403) or code_of(error) in _CREDENTIALS


def code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _from_answer(error: ClientError, what: str, where: str) -> Misconfigured | Unavailable:
    code, status = code_of(error), status_of(error)
    text = f"{where}: {what}: {_HINTS.get(code, error)} ({code})"
    is_passing = code in _PASSING or status in _PASSING_STATUSES or (status >= 500 and code != "NotImplemented")
    return Unavailable(text) if is_passing else Misconfigured(text)


def raise_first(errors: list[dict[str, Any]], what: str, where: str) -> None:
    """Of an answer that holds an error for each object."""
    for error in errors:
        text = f"{where}: {what} {error.get('Key', '')}: {error.get('Message', '')} ({error.get('Code', '')})"
        raise Misconfigured(text) if error.get("Code") in _HINTS else Unavailable(text)
