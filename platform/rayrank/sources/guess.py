"""A first dataset schema from somebody's files: keys, time and its unit, labels, features, text.

Every guess comes with the reason that ``init`` writes beside it. Knows column profiles and naming habits only.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from rayrank.config import ConfigError
from rayrank.schema import BinaryTask, CategoricalFeature, Feature, MulticlassTask, NumericFeature, RegressionTask
from rayrank.sources.profile import ColumnProfile

Profiles = Mapping[str, ColumnProfile]

_USER: tuple[str, ...] = ("userid", "user", "uid", "customerid", "customer", "visitorid", "memberid", "accountid")
_USER += ("visitor", "member", "viewerid", "viewer", "profileid", "sessionid")
_ITEM: tuple[str, ...] = ("itemid", "item", "iid", "productid", "product", "movieid", "movie", "videoid", "video")
_ITEM += ("articleid", "newsid", "contentid", "sku", "asin", "parentasin", "trackid", "songid", "bookid", "adid")
_ITEM += ("postid", "docid", "listingid")
_TIME: tuple[str, ...] = ("timestamp", "time", "ts", "eventtime", "unixtime", "timems", "createdat", "datetime")
_TIME += ("date", "eventdate", "clickedat", "viewedat")
_REQUEST = ("requestid", "impressionid", "imprid", "reqid", "queryid", "slateid")
_TITLE = ("title", "name", "headline", "productname", "itemname", "movietitle", "caption")
_TITLE_WORDS = ("title", "headline", "caption")  # at the end of a longer name: news_title, articleHeadline
_TEXT_WORDS: tuple[str, ...] = ("summary", "description", "desc", "abstract", "plot", "overview", "synopsis", "body")
_TEXT_WORDS += ("subtitle", "teaser")
_OUTCOME_WORDS = ("dwell", "watch", "watched", "listened", "played", "rating", "playtime", "watchtime", "completion")
_OUTCOME_PAIRS: tuple[set[str], ...] = (
    {"play", "time"},
    {"read", "time"},
    {"reading", "time"},
    {"time", "spent"},
    {"view", "time"},
)
_OUTCOME_PAIRS += ({"play", "duration"}, {"view", "duration"}, {"play", "seconds"}, {"scroll", "depth"})
_RATING = ("rating", "stars", "score", "grade")
_PROFILE = ("gender", "sex", "age", "agegroup", "agerange", "ageband")
_CONTEXT: tuple[str, ...] = ("device", "platform", "os", "browser", "country", "language", "locale", "tab", "page")
_CONTEXT += ("channel", "surface", "position", "slot", "network", "app", "appversion", "scene", "source", "weather")
_SEPARATORS = ("|", ";", ",", "/")
_FEW = 12


@dataclass(frozen=True)
class Guess:
    """A name and why."""

    name: str
    reason: str


def guess_key(profiles: Profiles, kind: str, where: str, other: Profiles | None = None) -> Guess:
    """The user or item key column of a table.

    Args:
        profiles: the table's columns.
        kind: "user" or "item".
        where: the file, for the error.
        other: the entity table's columns; a column that both have and that is unique there is the key.

    Raises:
        ConfigError: no column looks like one.
    """
    habit = _habit(profiles, kind)
    if habit is not None:
        return Guess(habit, "by its name")
    shared = [n for n in profiles if other is not None and n in other and other[n].distinct == other[n].rows]
    if shared:
        return Guess(shared[0], f"unique in the {kind}s table and present here")
    ending = _ending(profiles, kind)
    if ending is not None:
        return Guess(ending, "by its name")
    fix = f"name it {kind}_id, or give keys.{kind}=<column>"
    raise ConfigError(where, list(profiles), f"no column looks like the {kind} key", fix)


def named_key(profiles: Profiles, kind: str) -> str | None:
    """The column that has a name as user or item keys ("user", "item") have it."""
    return _habit(profiles, kind) or _ending(profiles, kind)


def guess_time(profiles: Profiles, where: str) -> tuple[Guess, str]:
    """The time column and its unit (s, ms, us or ns, by magnitude).

    Raises:
        ConfigError: no column looks like one.
    """
    named = [n for habit in _TIME for n in profiles if _plain(n) == habit]
    named += [n for n, p in profiles.items() if p.kind == "time"]
    named += [n for n, p in profiles.items() if p.kind == "number" and p.whole and 10**8 < p.median < 10**19]
    usable = [n for n in named if profiles[n].kind in ("time", "text") or profiles[n].median > 10**8]
    if not usable:
        fix = "add a column of unix times or ISO-8601 times, or give keys.timestamp=<column>"
        raise ConfigError(where, list(profiles), "no column looks like a time", fix)
    found = profiles[usable[0]]
    reason = {"number": "by name and magnitude", "time": "its values are timestamps"}.get(found.kind, "times as text")
    return Guess(usable[0], reason), time_unit(found)


def time_unit(column: ColumnProfile) -> str:
    """Unit of unix times by their magnitude: 10⁹ is seconds, 10¹² ms, 10¹⁵ µs, 10¹⁸ ns (years 1973–5138); or auto."""
    if column.kind != "number":
        return "s"
    usual, extremes = _unit_of(column.median), {_unit_of(column.low), _unit_of(column.high)}
    # a single zero or a typing error is for validate to find
    return "auto" if column.low > 1e8 and extremes != {usual} else usual


def _unit_of(time: float) -> str:
    return next((unit for unit, limit in (("s", 1e11), ("ms", 1e14), ("us", 1e17)) if time < limit), "ns")


def guess_request(profiles: Profiles) -> str | None:
    """The column that groups one request's impressions, if there is one."""
    return next((n for n in profiles if _plain(n) in _REQUEST), None)


def guess_tasks(profiles: Profiles, taken: Iterable[str]) -> list[tuple[BinaryTask | RegressionTask, str]]:
    """Event tasks with reasons: 0/1 columns are binary, a rating gives a binary and a regression task."""
    found: list[tuple[BinaryTask | RegressionTask, str]] = []
    used = set(taken)
    for name, column in profiles.items():
        if name in used:
            continue
        if _plain(name) in _RATING and column.kind == "number" and column.distinct > 2:
            low, high = column.low, column.high
            threshold = float(math.ceil(low + 0.7 * (high - low)))
            found.append((BinaryTask(name="like", column=name, at_least=threshold), f"{low:g}..{high:g}"))
            found.append((RegressionTask(name=_task_name(name), column=name, low=low, high=high), f"{low:g}..{high:g}"))
        elif column.is_flag:
            found.append((BinaryTask(name=_task_name(name), column=name), f"0/1, mean {column.mean:.3f}"))
    return found


def guess_outcomes(profiles: Profiles, taken: Iterable[str]) -> list[RegressionTask]:
    """Numbers that by their name tell what the user did with the item (dwell, watch time, a rating)."""
    found = []
    for name, column in profiles.items():
        words = set(_words(name))
        outcome = words & set(_OUTCOME_WORDS) or any(pair <= words for pair in _OUTCOME_PAIRS)
        if outcome and name not in set(taken) and column.kind == "number" and column.low < column.high:
            low = min(0.0, column.low)
            found.append(RegressionTask(name=_task_name(name), column=name, low=low, high=column.high))
    return found


def guess_profiles(profiles: Profiles, taken: Iterable[str]) -> list[MulticlassTask]:
    """User attributes with few values and a name that says they describe the person."""
    return [
        MulticlassTask(name=_task_name(n), column=n, classes=tuple(_texts(p.values)))
        for n, p in profiles.items()
        if n not in set(taken) and _plain(n) in _PROFILE and 2 <= len(p.values) <= _FEW
    ]


def guess_features(table: pa.Table, profiles: Profiles, taken: Iterable[str]) -> tuple[list[Feature], list[str]]:
    """Features of a table, and the columns left out (constant, empty, free text, nearly all different)."""
    features: list[Feature] = []
    left: list[str] = []
    for name, column in profiles.items():
        if name in set(taken):
            continue
        feature = _feature(table, column)
        if feature is None:
            left.append(name)
        else:
            features.append(feature)
    return features, left


def known_beforehand(feature: Feature) -> bool:
    """Whether an interaction column describes the situation (device, page …) rather than what the user then did.

    Anything else may be an outcome (play time, basket size): as context it would tell the label to the model.
    """
    return isinstance(feature, CategoricalFeature) and _plain(feature.column) in _CONTEXT


def guess_text(profiles: Profiles, taken: Iterable[str]) -> tuple[str | None, str | None, list[str]]:
    """Title column, text template and its columns; None where nothing reads like text."""
    names = [n for n, p in profiles.items() if n not in set(taken) and p.kind == "text" and p.distinct > 1]
    varied = [n for n in names if profiles[n].distinct > 0.3 * profiles[n].rows]
    title = next((n for habit in _TITLE for n in names if _plain(n) == habit), None)
    title = title or next((n for n in names if _words(n)[-1:] and _words(n)[-1] in _TITLE_WORDS), None)
    called = [n for n in names if set(_words(n)) & set(_TEXT_WORDS)]
    long = [n for n in names if profiles[n].words and (n in varied or n in called) and n != title and not _is_link(n)]
    columns = [*([title] if title else []), *long]
    return title, ". ".join(f"{{{n}}}" for n in columns) or None, columns


def find_separator(cells: Sequence[str]) -> tuple[str, int] | None:
    """Separator of a multi-valued text column and how many values 95 % of its cells have; None: single-valued."""
    for separator in _SEPARATORS:
        split = [[part.strip() for part in cell.split(separator)] for cell in set(cells)]
        several = sum(len(parts) > 1 for parts in split)
        pieces = Counter(part for parts in split for part in parts)
        if several >= 0.05 * len(split) and len(pieces) <= 0.5 * pieces.total() and max(map(len, pieces)) <= 40:
            counts = sorted(len(parts) for parts in split)
            return separator, max(2, min(8, counts[math.ceil(0.95 * (len(counts) - 1))]))
    return None


def _feature(table: pa.Table, column: ColumnProfile) -> Feature | None:
    name = column.name
    if column.kind in ("empty", "other", "time") or _is_link(name) or (column.kind != "list" and column.distinct < 2):
        return None
    if column.kind == "list":
        return CategoricalFeature(name=_task_name(name), column=name, max_values=5)
    if column.kind == "number" and not (column.whole and (name.lower().endswith("id") or column.distinct <= _FEW)):
        skewed = column.low >= 0 and column.mean > 2 * max(column.median, 1e-9)
        return NumericFeature(name=_task_name(name), column=name, log=skewed)
    if column.kind == "text":
        cells = [c for c in table[name].slice(0, 20_000).to_pylist() if c]
        several = find_separator(cells) if cells else None
        if several is not None:
            return CategoricalFeature(name=_task_name(name), column=name, separator=several[0], max_values=several[1])
    if column.distinct > max(50, 0.5 * column.rows) or column.mean_length > 60:
        return None
    return CategoricalFeature(name=_task_name(name), column=name, min_count=1 if column.distinct <= 50 else 5)


def _habit(profiles: Profiles, kind: str) -> str | None:
    habits = _USER if kind == "user" else _ITEM
    return next((name for habit in habits for name in profiles if _plain(name) == habit), None)


def _ending(profiles: Profiles, kind: str) -> str | None:
    return next((n for n in profiles if re.search(rf"{kind}.*id$|^id$", n.lower())), None)


def _task_name(column: str) -> str:
    return re.sub(r"\W+", "_", column.lower()).removeprefix("is_").strip("_") or "label"


def _texts(values: Iterable[object]) -> list[str]:
    return [str(int(v)) if isinstance(v, float) and v.is_integer() else str(v) for v in values]


def _is_link(name: str) -> bool:
    return any(word in name.lower() for word in ("url", "link", "image", "poster", "path"))


def _words(name: str) -> list[str]:
    """The words of a column's name: ``watch_time_s`` and ``watchTimeS`` have three."""
    return re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())
