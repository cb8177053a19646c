"""The environment of the processes that this one starts: what they need, and no secret."""

import os
import re

_ALLOWED = re.compile(
    r"PATH|HOME|USER|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|TEMP|TMP|SYSTEMROOT|VIRTUAL_ENV|XDG_\w+_HOME"
    r"|PYTHON(?:PATH|HOME|UNBUFFERED|HASHSEED|WARNINGS|DONTWRITEBYTECODE|FAULTHANDLER)"
    r"|HF_(?:HOME|HUB_CACHE|ENDPOINT|HUB_OFFLINE|HUB_DISABLE_\w+|HUB_ETAG_TIMEOUT|HUB_DOWNLOAD_TIMEOUT)"
    r"|TRANSFORMERS_OFFLINE|SECATEUR_\w+|(?:OMP|MKL|OPENBLAS|KMP|GOMP)_\w+|THP_MEM_ALLOC_ENABLE|TOKENIZERS_PARALLELISM"
    r"|CUDA_\w+|NVIDIA_\w+|LD_LIBRARY_PATH|SSL_CERT_\w+|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE"
    r"|(?:https?|no|all)_proxy",
    re.IGNORECASE,
)
_SECRET = re.compile(r"TOKEN(?!IZERS)|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY", re.IGNORECASE)


def child_environment(**values: str) -> dict[str, str]:
    """Return the environment for a child process: a fixed list of names, so that no secret is handed on.

    Args:
        **values: Variables to set in addition.
    """
    allowed = {
        name: value
        for name, value in os.environ.items()
        if _ALLOWED.fullmatch(name) and not _SECRET.search(name)
    }
    return allowed | values
