"""Names of classes and files, which may hold any sign, written where some signs mean something else."""

from __future__ import annotations

import hashlib
import re
import string
import unicodedata

FILE_NAME_BYTES = 100  # of a name in UTF-8; a file system takes 255 of the whole, with what stands before and behind it
# What Markdown, HTML or MathJax would read as more than itself: signs; what makes a link, or at the start a list, a
# heading or a footnote; white space that would be dropped or begin another line. An underscore within a word is itself.
_MEANT = re.compile(r"[&<>$\\`*\[\]|~#@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\."
                    r"|^[-+=:^]|^\d(?=\d*[.)](?:\s|$))|^\s|\s$|[\t\n\r]")
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com[\d¹²³]|lpt[\d¹²³])(?:\..*)?", re.IGNORECASE)  # files' names on Windows


def in_markdown(name: str) -> str:
    """A name in Markdown that renders as just that name, in text, headings, lists, links and cells of tables.

    `$`, the backslash and `@` stand in an element of their own: MathJax reads the finished page, where only that keeps
    it from taking what lies between two of them for a formula (a code such as `&#36;` does not), and JupyterLab marks
    formulas with `@@`. Control signs other than tabs and line breaks have no form in HTML and are left as they are.
    """
    return _MEANT.sub(lambda found: _written(found[0]), name)


def _written(sign: str) -> str:
    if sign in "$\\@":
        return f"<span>&#{ord(sign)};</span>"
    return f"\\{sign}" if sign in string.punctuation else f"&#{ord(sign)};"


def in_file_name(name: str) -> str:
    """A name as part of a file's name on Linux, macOS and Windows: different names give different parts.

    An ordinary name stays as it is. One that is long, or holds signs that not all systems take alike, is cut or gets
    hyphens in their place, and then `~` and a digest of the whole name. Names that differ in upper and lower case only
    still do so: on Windows and macOS they mean the same file.
    """
    if _is_ordinary(name):
        return name
    kept = "".join(sign if _is_plain(sign) and sign != "." else "-" for sign in unicodedata.normalize("NFC", name))
    start = kept.strip().encode()[:FILE_NAME_BYTES - 9].decode(errors="ignore")  # without half a sign
    return f"{start}~{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def _is_ordinary(name: str) -> bool:
    return (name == unicodedata.normalize("NFC", name).strip(" .") != "" and all(map(_is_plain, name))
            and len(name.encode()) <= FILE_NAME_BYTES and not _DEVICE.fullmatch(name))


def _is_plain(sign: str) -> bool:
    """Letters with their marks and digits of any script, and signs that all systems take wherever they stand."""
    return unicodedata.category(sign)[0] in "LMN" or sign in "_ ,.+-()"
