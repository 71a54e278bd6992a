"""The words of the drawn notices: an opening, a line that tells, a line of no consequence, in any wording."""

from __future__ import annotations

import random

_THINGS = (
    "bicycles", "apple cake", "paper kites", "wooden boats", "old maps", "garden herbs", "board games",
    "guitars", "knitted scarves", "telescopes", "pottery", "tomato plants", "film cameras",
    "chess sets", "toy trains", "camping tents", "fresh bread", "painted lanterns", "story books",
    "drums", "honey", "rowing boats", "house plants", "vinyl records", "pumpkins", "puppets",
    "skateboards", "sewing machines", "strawberry jam", "walking boots", "bird boxes", "water colours",
)  # fmt: skip
_PLACES = (
    "in the old library", "behind the bakery", "by the canal", "at the corner of Mill ", "Lane",
    "in the school yard", "next to the fountain", "on the green", "at the boat house",
    "under the railway ", "arches", "in the church hall", "by the tram stop", "in the market square",
    "at number twelve", "in the barn on the ", "hill", "near the playground",
)  # fmt: skip
_TIMES = (
    "on Saturday morning", "this Sunday", "on Friday evening", "next Wednesday", "from nine to noon",
    "all weekend", "after work on Thursday", "on the first of May", "every Tuesday", "at half past six",
    "tomorrow afternoon", "until the end of the month", "the day after the fair", "on Monday at four",
)  # fmt: skip
_INVITING = (
    "We meet to talk about {thing} and everyone is welcome.",
    "Come along and bring your own {thing}, we share what we have.",
    "Who would like to join a small circle of people who love {thing}?",
    "Let us spend some hours together over {thing}.",
    "Neighbours gather for {thing}, no experience needed, just turn up.",
    "Bring a friend and help us mend {thing}.",
    "Our group looks forward to new faces, we do {thing}.",
    "Children and grandparents alike can take part: {thing} for all.",
    "An open table, {thing} and good company.",
    "Take a seat with us, we try out {thing} together.",
)
_SELLING = (
    "{thing} for twenty, two for thirty five.",
    "New stock of {thing} has arrived at our counter.",
    "We sell and deliver {thing}, cards accepted.",
    "Large choice of {thing}, order yours while they last.",
    "A third off all {thing} with this notice.",
    "Hand made {thing}, fair rates, ask for our list.",
    "Second hand {thing}, hardly used, make me an offer.",
    "{thing} to hire by the day, deposit required.",
    "Our shop has the finest {thing}, have a look at the window.",
    "Clearing the cellar: {thing}, cash only.",
)
_OPEN = (
    "{thing}, as every year.",
    "It is all about {thing} again.",
    "For everybody who cannot get enough of {thing}.",
    "You asked for {thing}, here it is.",
    "{thing}, come rain or shine.",
    "Have you thought of {thing} lately?",
    "Something for friends of {thing}.",
    "A word about {thing}.",
    "{thing} and a little more.",
    "Do not miss it: {thing}.",
)
_ASIDES = (
    "Please use the side door.", "Dogs are fine.", "Parking is scarce.", "Ring the upper ", "bell.",
    "Ask for Noor.", "Ask for Tomas.", "Write to the address below.", "The yard is lit.",
    "If it is wet we move inside.", "Tell the others.", "Mind the step.", "The blue gate is open.",
    "Call Ines before ", "noon.", "See you there.", "Look for the yellow sign.",
    "Thank you for last time.", "Bags are at hand.", "It is free of hurry.", "Coffee at the counter.",
    "There is room for a pram.",
)  # fmt: skip


def write_words(invitation: bool, vague: bool, chance: random.Random, told: set[str]) -> str:
    """A notice that `told` does not hold yet, and adds it there.

    Args:
        invitation: Which class the line that tells belongs to.
        vague: Put a line there that fits both classes.
        chance: Drawn from.
        told: Every notice written before.
    """
    while True:
        lines = _OPEN if vague else _INVITING if invitation else _SELLING
        telling = chance.choice(lines).format(thing=chance.choice(_THINGS))
        where = f"{chance.choice(_PLACES)} {chance.choice(_TIMES)}."
        parts = [telling[0].upper() + telling[1:], where[0].upper() + where[1:]]
        parts += chance.sample(_ASIDES, chance.randint(0, 2))
        chance.shuffle(parts)
        text = " ".join(parts)
        if text not in told:
            told.add(text)
            return text
