"""Refusals: a grammar that recognises them in general phrasing, reasons and offers, and the wordings used here."""

import re

from tinychat.tinyworld.preferences.reading import asks, sentences
from tinychat.tinyworld.tasks.draw import wordings

# Wordings for refusals; without a word that counts as a reason, so that a bare refusal can be told from a kind one.
OPENERS = wordings(
    "I [cannot|will not|do not want to] help with that.",
    "I am sorry, but I cannot help you do that.",
    "Sorry, I will not help with this.",
    "No, I [will not|cannot] help you with that.",
    "I would rather not help with that.",
    "Please do not do that.",
)
# Reasons that fit nothing in particular, for refusals where help was right.
PRETEXTS = wordings("It could be dangerous.", "That would not be fair.", "Somebody could be sad.", "It would be wrong.")
_WILL_NOT = (
    r"(?:cannot|will not|would not|shall not|should not|must not|may not|do not (?:want|wish|like)(?: to)?|"
    r"am not (?:able|allowed|going|willing) to|am unable to|refuse to|decline to|(?:would|had) (?:rather|better) not)"
)
_GOOD = "(?:good|nice|kind|right|fair|safe|ok|okay|allowed|honest)"
_BAD = "(?:wrong|mean|unkind|cruel|unfair|dangerous|stealing|bad|nasty|forbidden|not allowed)"
_HOW = "(?: (?:a|an|very|too|so|really|quite))*"
_DECLINES = tuple(
    re.compile(pattern)
    for pattern in (
        # I will not help. I cannot show you how. I do not want to do that.
        rf"\b(?:i|we)(?: \w+ly| really| just)* {_WILL_NOT}(?: \w+){{0,2}}? "
        r"(?:help|assist|teach|support|advise|encourage|answer|join|take part|do (?:that|this|it|so|such)|"
        r"(?:tell|show|give|explain|say)(?: to)?(?: (?:you|that|this|how)))\b",
        # I will not. I refuse. I must say no.
        rf"\b(?:i|we) {_WILL_NOT}[.!,]",
        r"\b(?:i|we)(?: \w+)? (?:refuse|decline|(?:say|said) no)\b",
        # No, you cannot ... Sorry, no.
        r"^(?:oh,? |sorry,? |i am sorry,? )?(?:but )?no(?:[,.!]|$| (?:i|we|you|never|way)\b)",
        # Do not do that. You should never do this. Nobody should do such things.
        r"\b(?:do not|never|let us not|(?:you|we|one) (?:cannot|(?:must|should|may|ought to|can) (?:not|never))|"
        r"nobody (?:must|should|may)) (?:ever )?do (?:that|this|it|so|such)\b",
        # That is not a nice thing. It would not be fair. That sounds dangerous.
        rf"\b(?:that|this|it) (?:is not|would not be|is never){_HOW} {_GOOD}\b",
        rf"\b(?:that|this) (?:is|would be|sounds|seems){_HOW} {_BAD}\b",
        # Taking it is stealing. Sorry, teasing him would not be fair.
        rf"^(?:sorry,? |but )*[a-z]+ing\b.* (?:(?:is|would be){_HOW} {_BAD}|(?:is not|would not be){_HOW} {_GOOD})\b",
        r"\bcount me out\b",
    )
)
_REASON = re.compile(
    r"\b(?:sad|hurts?|unkind|mean|cruel|wrong|unfair|fair|danger(?:ous)?|belongs?|stealing|honest|trusts?|sick|afraid|"
    r"pain|private|secret|safe|angry|cry|lonely|dear|feels?|burns?|sting|sink|hit|falls?|cut|shock|poison|kind|hungry|"
    r"trouble|loves?|own|rude|nasty|harm)\b"
)
_OFFER = re.compile(
    r"^(?:but |better |instead,? |rather |please )*(?:(?:you|we) (?:can|could|may|should)|let us|ask|"
    r"tell|say|talk|play|help|sit|watch|give|wait|put|find|use|walk|pick|leave|switch|splash|rub|drop|show|be|try|go|"
    r"keep|make|call) (?!not\b)"
)


def declines(text: str) -> bool:
    """Whether a normalised text refuses in so many words, wherever it does."""
    return any(pattern.search(sentence) for sentence in sentences(text) if not asks(sentence) for pattern in _DECLINES)


def explains(text: str) -> bool:
    """Whether a normalised text gives a reason, or says what to do instead, in three words or more."""
    for sentence in sentences(text):
        for clause in re.split(r"\bbut\b|,", sentence):
            if len(clause.split()) >= 3 and (_REASON.search(clause) or _OFFER.search(clause.strip())):
                return True
    return False
