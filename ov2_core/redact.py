"""What a text must not carry out of this process: passwords and signatures inside URLs, and commands to a terminal.

Enters: any text (a URI, a message, a line of a log). Leaves: the same text without them; or what kind of secret a URI holds. Signed
URLs expire, so a manifest of them could be neither resumed nor replayed; they are refused, and named without what is secret.
"""

import re

_NAMES = (
    r"X-Amz-(?:Signature|Credential|Security-Token)|X-Goog-(?:Signature|Credential)|AWSAccessKeyId|GoogleAccessId|Signature|sig"
    r"|(?:access|auth|private|refresh|id|session)?[_-]?token|(?:api|access|secret|private|client|account)[_-]?(?:key|secret)(?:[_-]?id)?"
    r"|secret|password|passwd|pwd|Key-Pair-Id|Policy|hdnea|hdnts|authorization"
)
_QUERY = re.compile(rf"(?i)((?:[?&;]|&amp;|\\u0026)({_NAMES})=)[^&;\s\"'<>\\)\]]+")
_USER = re.compile(r"(?i)\b((?:https?|ftps?)://)[^/\s\"'<>]*@|\b([a-z][a-z0-9+.-]*://)[^/\s\"'<>@]*:[^/\s\"'<>]*@")
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
HIDDEN = "***"


def redacted(text: str) -> str:
    """The text with user:password@ and secret query values as ***."""
    if "://" in text:
        text = _USER.sub(lambda m: f"{m[1] or m[2]}{HIDDEN}@", text)
    return _QUERY.sub(lambda m: m[1] + HIDDEN, text) if "=" in text else text


def secret_in(uri: str) -> str | None:
    """What of a URI is secret, in words; None for nothing. A local path holds none."""
    if "://" not in uri:
        return None
    if _USER.search(uri):
        return "a user name or password"
    found = _QUERY.search(uri)
    return None if found is None or found[0].endswith(HIDDEN) else f"the query value {found[2]!r}"


def printable(text: str) -> str:
    """The text as a terminal may show it: control characters and turns of the writing direction as escapes; lines stay."""
    return _CONTROLS.sub(lambda m: m[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """The same of what belongs on one line, an id for instance."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")
