"""Clean English out of Python source: docstrings, comments and the topics of pydoc, without the code around them.

Docstrings are found in the syntax tree. So are comments, by what they are not: a line that begins with `#` is one
unless it lies in a string. Markup is read by its layout (reStructuredText, Markdown, numpy's and Google's sections),
and what is left counts as English if it has the little words that English cannot do without, and few signs of code.
"""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

Kind = Literal["module", "class", "function", "method", "property", "comment", "topic"]
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

TOPICS = "pydoc_data/topics.py"
"""The library's own manual on the language, one long dict."""


@dataclass(frozen=True, kw_only=True)
class Passage:
    """What one docstring, block of comments or topic says in English."""

    kind: Kind
    """What it documents."""
    name: str
    """Qualified name within the module, "" for the module."""
    text: str
    """Paragraphs separated by a blank line, each paragraph one line."""


def passages(source: str, *, path: str) -> Iterator[Passage]:
    """The English in a module, in the order of the source; nothing for a file that does not parse, or cannot be read
    for its nesting."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the parser's, on invalid escapes in other people's strings
        if (tree := _parse(source)) is None:
            return
        try:
            found = _topics(tree) if path.endswith(TOPICS) else [*_docstrings(tree), *_comments(tree, source)]
        except RecursionError:  # writing out a decorator
            return
    for _, kind, name, paragraphs in sorted(found, key=lambda item: item[0]):
        if paragraphs:
            yield Passage(kind=kind, name=name, text="\n\n".join(paragraphs))


Found = tuple[int, Kind, str, list[str]]
"""Line, kind, name and paragraphs."""


def _parse(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # also null bytes, and nesting beyond all measure
        return None


def _topics(tree: ast.Module) -> list[Found]:
    entries = [
        (key, value)
        for statement in tree.body if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict)
        for key, value in zip(statement.value.keys, statement.value.values, strict=True)
    ]  # fmt: skip
    return [
        (value.lineno, "topic", str(key.value), clean(str(value.value)))
        for key, value in entries if isinstance(key, ast.Constant) and isinstance(value, ast.Constant)
    ]  # fmt: skip


PROPERTY = re.compile(r"(\w*property|cache_readonly|getter|setter|deleter)$")
"""Last names of decorators that make a property: `functools.cached_property`, `size.setter`, `hybrid_property`."""

GIVES_DOCSTRING = re.compile(r"\badd_(docstr|newdoc|docstr_all)$")


def _docstrings(tree: ast.Module) -> Iterator[Found]:
    stack: list[tuple[ast.Module | Definition, str, Kind]] = [(tree, "", "module")]
    while stack:
        node, name, kind = stack.pop()
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            yield first.lineno, kind, name, clean(first.value.value)
        for statement in _statements(node):
            if isinstance(statement, Definition):
                inner = f"{name}.{statement.name}" if name else statement.name
                stack.append((statement, inner, _kind(statement, within=kind)))
            elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
                yield from _given_docstrings(statement.value)


def _given_docstrings(call: ast.Call) -> Iterator[Found]:
    """Docstrings of what is written in C, as numpy, scipy and torch give them: `add_docstr(torch.abs, "...")`."""
    if not GIVES_DOCSTRING.search(ast.unparse(call.func)):
        return
    constants = [(node.lineno, node.value) for node in ast.walk(call) if isinstance(node, ast.Constant)]
    strings = [(line, value) for line, value in constants if isinstance(value, str)]
    name = ".".join(value for _, value in strings if "\n" not in value) or ast.unparse(call.args[0])
    for line, value in strings:
        if "\n" in value:
            yield line, "function", name, clean(value)


COMPOUND = (
    ast.If, ast.For, ast.While, ast.With, ast.Try, ast.TryStar, ast.ExceptHandler, ast.Match, ast.match_case,
    ast.AsyncFor, ast.AsyncWith,
)  # fmt: skip


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """The statements of a body, also those under `if`, `try` and `with`, in any order."""
    stack = [node]
    while stack:
        outer = stack.pop()
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(outer, block, ())
            yield from inner
            stack += [statement for statement in inner if isinstance(statement, COMPOUND)]


def _kind(definition: Definition, *, within: Kind) -> Kind:
    if isinstance(definition, ast.ClassDef):
        return "class"
    if within != "class":
        return "function"
    is_property = any(PROPERTY.search(ast.unparse(decorator)) for decorator in definition.decorator_list)
    return "property" if is_property else "method"


# --- comments ---

MARK = re.compile(
    r"#\s*(?:!|@|%|-\*-|(?:noqa|nosec)\b|[\w-]+:\s*(?:ignore|disable|enable|skip|off|on)\b"
    r"|(?:type|pragma|pylint|mypy|pyright|fmt|ruff|isort|flake8|yapf|cython|doctest|coding|vim?)\s*[:=])", re.IGNORECASE
)  # fmt: skip
"""Comments that talk to tools."""
TO_DO = re.compile(r"^(?:TODO|FIXME|XXX|HACK|NOTE|BUG|NB)\b(?:\s*\([^)]*\)|\s*\[[^]]*\])?\s*[:\-]*\s*")


def _comments(tree: ast.Module, source: str) -> Iterator[Found]:
    lines = re.split(r"\r\n|\r|\n", source)  # as the parser counts them: not at form feeds
    marked = [number for number, line in enumerate(lines, 1) if line.lstrip(" \t\f").startswith("#")]
    inside = _lines_in_strings(tree, marked)
    numbers = [number for number in marked if number not in inside]
    for _, run in groupby(enumerate(numbers), key=lambda item: item[1] - item[0]):  # consecutive lines
        block = [number for _, number in run]
        if paragraphs := _uncommented([lines[number - 1].strip() for number in block]):
            yield block[0], "comment", "", paragraphs


def _lines_in_strings(tree: ast.Module, marked: list[int]) -> set[int]:
    """Which of some lines (ascending) begin inside a string. Only nodes that span such a line are entered."""
    inside: set[int] = set()
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.expr | ast.stmt | ast.pattern | ast.ExceptHandler | ast.keyword):
            decorators = getattr(node, "decorator_list", None) or [node]
            start, end = min(node.lineno, decorators[0].lineno), node.end_lineno or node.lineno
            spanned = marked[bisect_right(marked, start) : bisect_right(marked, end)]
            if not spanned:
                continue
            if isinstance(node, ast.Constant | ast.JoinedStr) or type(node).__name__ == "TemplateStr":
                inside.update(spanned)  # with the comments between the parts of a string in parentheses
                continue
        stack.extend(ast.iter_child_nodes(node))
    return inside


def _uncommented(block: list[str]) -> list[str]:
    """The English of consecutive lines of comment."""
    lines = [re.sub(r"^#+[:|!]? ?", "", line) for line in block if not MARK.match(line)]
    text = "\n".join(TO_DO.sub("", line) for line in lines)
    if LICENCE.search(text):
        return []
    return [paragraph for paragraph in clean(text, fewest_words=5) if _parse(paragraph) is None]


# --- markup: from lines to raw paragraphs ---

ITEMS, TEXT, DROPPED = "items", "text", "dropped"
SECTIONS: dict[str, str] = {
    **dict.fromkeys((
        "parameters", "other parameters", "args", "arguments", "keyword args", "keyword arguments", "kwargs", "params",
        "attributes", "properties", "returns", "return", "yields", "receives", "raises", "warns",
    ), ITEMS),
    **dict.fromkeys((
        "note", "notes", "warning", "warnings", "important", "caution", "tip", "details", "description", "summary",
    ), TEXT),
    **dict.fromkeys((
        "example", "examples", "references", "reference", "see also", "methods", "shape", "usage", "citation",
        "author", "authors", "license", "copyright", "example usage", "bibliography",
    ), DROPPED),
}  # fmt: skip
"""What stands under the headings that numpy's and Google's style have in common."""
PROSE_DIRECTIVES = {
    "note", "warning", "tip", "important", "caution", "attention", "hint", "danger", "admonition", "topic",
    "versionadded", "versionchanged", "deprecated", "versionremoved",
}  # fmt: skip
PROSE_FIELDS = {
    "param", "parameter", "arg", "argument", "key", "keyword", "return", "returns", "yield", "yields", "raise",
    "raises", "except", "exception", "var", "ivar", "cvar",
}  # fmt: skip
HEADER = re.compile(r"(?P<title>[A-Z][A-Za-z ]{2,20}):{1,2}")
RULE = re.compile(r"([^\w\s])\1{2,}")
TABLE = re.compile(r"[-=+|: ]*(?:--|==)[-=+|: ]*|\|.*\|")
DIRECTIVE = re.compile(r"\.\. *(?P<name>[\w:.-]+)::\s*(?:v?\d[\w.]*:?(?:\s+|$))?(?P<rest>.*)")
FIELD = re.compile(r"[:@](?P<name>[a-z]+)(?: [^:`]*)?:(?!`)\s*(?P<rest>.*)")
BULLET = re.compile(r"(?:[*\-+•·]|\(?(?:\d{1,2}|[a-z]|[ivx]+)\)|\d{1,2}(?:\.\d{1,2})*\.|\[\d+\]|#\.)\s+(?P<rest>.*)")
TERM = re.compile(r"[`*'\"]*[\w.]+(?:\([^)]*\))?(?:, ?[\w.*]+)*[`*'\"]*\s+(?:--|-|:)\s+(?P<rest>.*)")
"""`name -- what it is`, `name : what it is`."""
OPTION = re.compile(r"[a-z_]\w*:\s+(?P<rest>[A-Z].*)")
ITEM = re.compile(r"[`*\\]*[\w.]+`*(?:, ?[*\\]*[\w.]+)*\s*(?:\((?:[^()]|\([^()]*\))*\))?\s*(?::| --?)\s*(?P<rest>.*)")
"""Google's `name (type): what it is`."""


@dataclass
class _Reader:
    """Reads the lines of a text one by one, and collects its paragraphs."""

    paragraphs: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    """Of the paragraph that is being read."""
    indent: int = 0
    """Of its last line."""
    marked: bool = False
    """It began with a mark: a bullet, a name, ..."""
    above: str = ""
    """The line above, of whatever kind: the title of an underline."""
    skipped: int | None = None
    """Leave out all that is deeper than this."""
    skipping_block: bool = False
    """Leave out all up to the next empty line."""
    fenced: bool = False
    section: str = TEXT
    section_indent: int = 0
    below: bool = False
    """The section is Google's: deeper than its header."""

    def read(self, line: str) -> None:
        text, indent = line.strip(), len(line) - len(line.lstrip())
        if text.startswith(("```", "~~~")) or self.fenced or not text:
            self.flush()
            self.skipping_block = False
            self.fenced ^= text.startswith(("```", "~~~"))
        elif not (self.skipping_block or (self.skipped is not None and indent > self.skipped)):
            self.skipped = None
            if not self._markup(text, indent) and not self._of_section(text, indent):
                self._text(text, indent)
        self.above = text

    def flush(self) -> None:
        """End the paragraph."""
        if self.lines:
            self.paragraphs.append(" ".join(self.lines))
        self.lines, self.marked = [], False

    def _open(self, text: str, indent: int) -> None:
        """Begin a paragraph with what follows a mark."""
        self.flush()
        self.marked = True
        self._add(text, indent)

    def _open_named(self, text: str, indent: int) -> None:
        """Begin the paragraph on a name, after the name; its type (a word or two) is not part of it."""
        self._open(text if len(text.split()) > 2 or text.endswith(".") else "", indent)

    def _broken_before(self, text: str) -> bool:
        """Whether a line ends the sentence of the last one, however it is indented."""
        return text[0].islower() and bool(self.lines) and re.fullmatch(r"(\S+ ){3,}.*[\w,]", self.lines[-1]) is not None

    def _ended(self) -> bool:
        return bool(self.lines) and self.lines[-1].endswith((".", ":", "!", "?"))

    def _add(self, text: str, indent: int) -> None:
        self.indent = indent
        if literal := text.endswith("::"):
            text = text[:-2].rstrip() + ":"
        if text.strip(":"):
            self.lines.append(text)
        if literal:
            self._skip_deeper(indent)

    def _skip_deeper(self, indent: int) -> None:
        self.flush()
        self.skipped = indent

    def _markup(self, text: str, indent: int) -> bool:
        """Take a line of markup; says whether it was one."""
        if text.startswith(">>>"):
            self.flush()
            self.skipping_block = True
        elif RULE.fullmatch(text):
            self._underline(indent)
        elif TABLE.fullmatch(text):
            self.lines, self.skipping_block = [], True
        elif match := DIRECTIVE.match(text) or FIELD.match(text):
            if match["name"].lower() in PROSE_DIRECTIVES | PROSE_FIELDS:
                self._open(match["rest"], indent)
            else:
                self._skip_deeper(indent)
        elif text == ".." or text.startswith((".. ", "__ ")):
            self._skip_deeper(indent)
        else:
            return False
        return True

    def _underline(self, indent: int) -> None:
        if self.lines and self.lines[-1] == self.above:
            del self.lines[-1]
        self.flush()
        if self.above:
            self.section, self.section_indent, self.below = SECTIONS.get(self.above.lower(), TEXT), indent, False

    def _of_section(self, text: str, indent: int) -> bool:
        """Take a line that its section gives a meaning of its own; says whether it has one."""
        header = HEADER.fullmatch(text)
        if header and (section := SECTIONS.get(header["title"].lower())):
            self.flush()
            self.section, self.section_indent, self.below = section, indent, True
            return True
        if self.below and indent <= self.section_indent:
            self.section, self.below = TEXT, False
        if self.section == ITEMS and not self.below and indent <= self.section_indent:
            self.flush()  # numpy's `name : type`
            return True
        first = not self.lines or indent <= self.indent
        if self.section == ITEMS and self.below and first and (match := ITEM.fullmatch(text)):
            self._open_named(match["rest"], indent)
            return True
        return self.section == DROPPED

    def _text(self, text: str, indent: int) -> None:
        if match := BULLET.fullmatch(text):
            self._open(match["rest"], indent)
            return
        fresh = self.marked or not self.lines or indent != self.indent
        if match := (TERM.fullmatch(text) if fresh else OPTION.fullmatch(text) if self._ended() else None):
            self._open_named(match["rest"], indent)
            return
        hangs = len(self.lines) == 1 and self.marked and indent > self.indent
        if indent != self.indent and not hangs and not self._broken_before(text):
            self.flush()
        self._add(text, indent)


# --- English ---

LICENCE = re.compile(
    r"copyright\b|\blicen[cs]e[ds]?\b|rights reserved|redistribut|spdx|without warrant|permission (?:is|to use)"
    r"|hereby granted|in no event", re.IGNORECASE,
)  # fmt: skip
LITTLE_WORDS = frozenset((
    "a", "about", "after", "all", "also", "an", "and", "any", "are", "as", "at", "be", "because", "been",
    "before", "being", "between", "both", "but", "by", "can", "cannot", "could", "do", "does", "doesn't",
    "don't", "each", "either", "else", "every", "for", "from", "given", "has", "have", "how", "if", "in",
    "into", "is", "isn't", "it", "its", "just", "like", "many", "may", "might", "more", "most", "must", "no",
    "not", "of", "on", "once", "one", "only", "or", "other", "otherwise", "our", "out", "over", "same",
    "should", "since", "so", "some", "such", "than", "that", "the", "their", "them", "then", "there", "these",
    "they", "this", "those", "through", "to", "two", "under", "until", "up", "use", "used", "using", "was",
    "we", "were", "what", "when", "where", "whether", "which", "while", "who", "whose", "why", "will", "with",
    "without", "would", "you", "your",
))  # fmt: skip
"""Words of every English text, and of little else."""
LETTERS = r"(?:[A-Z]?[a-z]+|[A-Z]+s?)"
PLAIN_WORD = re.compile(rf"[\"'(\[\u201c\u2018]*{LETTERS}(?:[-/'\u2019]{LETTERS})*[\])\"'\u201d\u2019.,;:!?]*")
CODE = re.compile(
    r">>>|\\|[{}$^|`@~]|://|[=!<>+\-*/]=|=>|->|</|\w\[|__|\w=\w|\.\.\.,|[)\]]\.\w|^[\w.]+ = |\w\]_| \[\d+\]"
)
NEEDED = "".join(rf"(?<!\b{word})" for word in ("of", "in", "to", "by", "and", "from", "see", "See", "In"))
"""Not before a citation that may go: one that its sentence needs stays, a sign of code, and the paragraph goes."""
INLINE: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"!?\[([^][]*)\]\([^()\s]*\)"), r"\1"),  # Markdown's links
    (re.compile(r":[\w:+.-]+:`(?:~[\w.]*\.|[!.~])?([^`<]*?)\s*(?:<[^`>]*>)?`"), r"\1"),  # roles
    (re.compile(r"`([^`<]*?)\s*<[^`>]*>`_{1,2}"), r"\1"),  # links
    (re.compile(r"``(.+?)``|`[~.]?([^`]+)`_{0,2}"), r"\1\2"),
    (re.compile(r"(?<![\w*])(\*{1,3})(?=[^\s*])([^*]*[^\s*])\1(?![\w*])"), r"\2"),  # emphasis
    (re.compile(rf"(?<=\S)\[[\w#*.-]+\]_|{NEEDED}\s+\[(?:[\w#*.-]+\]_|\d+\](?!\w))"), ""),  # citations
    (re.compile(r"\|(\w+)\|"), r"\1"),  # substitutions
)
MARKED = re.compile(r"[`*|[]")


def clean(text: str, *, fewest_words: int = 4) -> list[str]:
    """The English paragraphs of a text in reStructuredText or Markdown, each as one line."""
    reader = _Reader()
    for line in [*inspect.cleandoc(text).splitlines(), ""]:
        reader.read(line)
    plain = (_without_markup(paragraph) for paragraph in reader.paragraphs)
    return [paragraph for paragraph in plain if is_english(paragraph, fewest_words=fewest_words)]


def _without_markup(paragraph: str) -> str:
    if MARKED.search(paragraph):
        for pattern, replacement in INLINE:
            paragraph = pattern.sub(replacement, paragraph)
    return " ".join(paragraph.split()).strip(" -")


def is_english(text: str, *, fewest_words: int = 4) -> bool:
    """Whether a paragraph reads as English rather than as code, a table, a list of names, or a licence."""
    if CODE.search(text) or LICENCE.search(text):
        return False
    if text.count("(") != text.count(")"):  # a fragment
        return False
    words = text.split()
    plain = [word.strip("\"'()[].,;:!?").lower() for word in words if PLAIN_WORD.fullmatch(word)]
    if len(plain) < fewest_words or len(plain) < 0.75 * len(words):
        return False
    if len(plain) < 6 and (text[0].islower() or text.endswith(":")):
        return False
    if sum(word in LITTLE_WORDS for word in plain) < 0.2 * len(plain):
        return False
    return len(re.sub("[^A-Za-z]+", "", text)) > 0.65 * len(text)
