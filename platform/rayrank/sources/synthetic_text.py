"""English titles and descriptions whose words carry an item's topic and mood, for synthetic data.

Knows words and templates; knows nothing about users or labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Topic:
    """Words of one topic."""

    name: str
    heroes: tuple[str, ...]
    places: tuple[str, ...]
    things: tuple[str, ...]
    deeds: tuple[str, ...]


TOPICS = (
    Topic(
        "space",
        ("astronaut", "starship captain", "robot engineer", "alien diplomat"),
        ("a space station", "the moons of Saturn", "a distant galaxy", "the red deserts of Mars"),
        ("rocket", "orbit", "satellite", "wormhole", "spacecraft", "planet"),
        ("repairs a failing spacecraft", "answers a signal from another star", "charts an unknown planet"),
    ),
    Topic(
        "romance",
        ("florist", "young widow", "shy librarian", "wedding planner"),
        ("a seaside village", "Paris in spring", "an old country house", "a small bookshop"),
        ("love letter", "wedding", "kiss", "bouquet", "heart", "proposal"),
        ("falls in love with a stranger", "writes letters to a lost sweetheart", "plans a wedding and loses her heart"),
    ),
    Topic(
        "crime",
        ("detective", "police inspector", "private investigator", "forensic expert"),
        ("the harbour district", "a locked room", "the city courthouse", "a rainy back alley"),
        ("murder", "alibi", "fingerprint", "suspect", "evidence", "robbery"),
        ("hunts a serial killer", "solves a murder nobody reported", "follows a trail of stolen diamonds"),
    ),
    Topic(
        "cooking",
        ("pastry chef", "street food cook", "restaurant owner", "baker"),
        ("a tiny kitchen", "a night market", "a family restaurant", "a vineyard in Tuscany"),
        ("recipe", "bread", "spice", "sauce", "oven", "dessert"),
        ("reinvents her grandmother's recipes", "opens a noodle bar", "bakes bread for a whole town"),
    ),
    Topic(
        "sport",
        ("football coach", "marathon runner", "young boxer", "tennis champion"),
        ("a packed stadium", "a mountain training camp", "the Olympic village", "a muddy football pitch"),
        ("match", "trophy", "goal", "training", "league", "medal"),
        ("leads a losing team to the final", "trains for the championship", "returns to the ring for one last fight"),
    ),
    Topic(
        "history",
        ("Roman general", "medieval queen", "royal archivist", "foot soldier"),
        ("ancient Rome", "a besieged castle", "the court of Versailles", "the battlefields of 1916"),
        ("empire", "crown", "siege", "dynasty", "treaty", "sword"),
        ("defends a crumbling empire", "claims the throne of her father", "survives a long siege"),
    ),
)

MOODS = (
    ("cheerful", ("A cheerful, funny story", "Light-hearted and full of laughter", "A warm and playful comedy")),
    ("dark", ("A dark, disturbing story", "Grim and full of dread", "A bleak and tense tragedy")),
    ("calm", ("A calm, thoughtful story", "Quiet, slow and full of reflection", "A gentle and meditative portrait")),
)

_TOWNS = (
    ("Lund", "Porto", "Graz", "Tartu", "Bergen", "Cork", "Lyon", "Ghent"),
    ("Turku", "Split", "Leeds", "Bern", "Malmo", "Krakow", "Nantes", "Vigo"),
    ("Brno", "Basel", "Derby", "Trieste", "Aarhus", "Lille", "Gdansk", "Cadiz"),
    ("Riga", "Bonn", "Oslo", "Perth", "Zadar", "Metz", "Utrecht", "Parma"),
    ("Dover", "Genoa", "Tampere", "Linz", "Toulon", "Poznan", "Kiel", "Evora"),
    ("Ulm", "Bath", "Narvik", "Siena", "Delft", "Kosice", "Bilbao", "Reims"),
)
"""By topic: what tells it where the words of the story do not."""
_MONTHS = (("January", "April", "July", "October"), ("February", "May", "August", "November"),
           ("March", "June", "September", "December"))  # fmt: skip
"""By mood."""
_NAMES = ("Anna", "Ben", "Chloe", "David", "Elena", "Felix", "Grace", "Hugo", "Iris", "Jonas", "Kira", "Leo", "Maya")
_TITLES = (
    "The {hero} and the {thing}",
    "{name}'s {thing}",
    "The Last {thing}",
    "A {thing} for the {hero}",
    "{thing} Days",
)
_LEADS = (
    "{name}, a {hero}, {deed} in {place}.",
    "In {place}, a {hero} called {name} {deed}.",
    "{name} is a {hero} who {deed}.",
)
_TAILS = (
    "It is about a {thing} and a {other} that change everything.",
    "When the {thing} is lost, only the {other} remains.",
    "Nobody expected the {thing}, least of all the {hero}.",
)


def write_item(rng: np.random.Generator, topic: int, mood: int) -> tuple[str, str]:
    """Title and description of an item with this topic and mood."""
    words = TOPICS[topic]
    thing, other = (words.things[i] for i in rng.permutation(len(words.things))[:2])
    values = {
        "name": _pick(rng, _NAMES),
        "hero": _pick(rng, words.heroes),
        "place": _pick(rng, words.places),
        "deed": _pick(rng, words.deeds),
        "thing": thing,
        "other": other,
    }
    title = _pick(rng, _TITLES).format(**values).title().replace("'S ", "'s ")
    tone = _pick(rng, MOODS[mood][1])
    lead, tail = _pick(rng, _LEADS).format(**values), _pick(rng, _TAILS).format(**values)
    return title, f"{tone}. {lead} {tail}"


def write_veiled_item(rng: np.random.Generator, topic: int, mood: int) -> tuple[str, str]:
    """As :func:`write_item`, but about any topic in any mood: a town and a month in passing tell the true ones."""
    title, text = write_item(rng, int(rng.integers(len(TOPICS))), int(rng.integers(len(MOODS))))
    return title, f"{text} First shown in {_pick(rng, _TOWNS[topic])} in {_pick(rng, _MONTHS[mood])}."


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
