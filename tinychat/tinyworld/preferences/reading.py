"""Reading a reply: sentences, what is advised and what is advised against.

A small grammar for plain English, not a parser. It knows contractions, negation with its scope, questions that
only ask, wishes ("you want to ..."), conditions ("if you ...") and other people's deeds ("Tom would ...").
"""

import functools
import re
import unicodedata
from functools import lru_cache

from tinychat.tinyworld.preferences.family import Act

_CONTRACTIONS = (
    (r"\bwo n't\b|\bwon't\b|\bwont\b", "will not"),
    (r"\b(?:ca|can)n?'t\b|\bcant\b|\bcan not\b", "cannot"),
    (r"\bshan't\b", "shall not"),
    (r"\bdont\b", "do not"),
    (r"n't\b", " not"),
    (r"\blet's\b", "let us"),
    (r"\b(it|that|he|she|there|what|here|who)'s\b", r"\1 is"),
    (r"'re\b", " are"),
    (r"'ll\b", " will"),
    (r"'ve\b", " have"),
    (r"'m\b", " am"),
    (r"'d\b", " would"),
    (r"\bcould not\b", "cannot"),
    (r"s'(?=\s)", "s"),
    (r"\bgrown ups?\b", "grown-up"),
)
# Words that look like a negation and urge all the same; and the many ways to say that nobody is to notice, which
# hold a "not" that negates no step. Both are rewritten before negation is looked for.
_URGES = re.compile(
    r"\b(?:do not|never) (?:wait|worry|hesitate|forget|mind|be (?:afraid|shy|scared))(?: to\b)?|"
    r"\bwhy (?:do you )?not\b|\bno (?:problem|doubt)\b|"
    r"\bnot only\b|\bthere is no(?:thing)? (?:wrong|harm|better)\w*"
)
_UNSEEN = re.compile(
    r"\b(?:nobody|no one)(?: (?:else|is|can|will|ever))* (?:looking|looks|watching|watches|there|sees|see|near|notices|"
    r"notice|knows|know|hears|hear|around|about)\b|"
    r"\b(?:is|are|does|do|will|can)(?: not|not) (?:looking|look|watching|watch|there|at home|see|notice|around)\b|"
    r"\bcannot (?:see|hear|notice|look)\b|\bnot (?:looking|watching|there|at home)\b|\bnever (?:knows|notices|sees)\b|"
    r"\b(?:is|are|fell|falls) (?:asleep|away|sleeping|busy)\b|\bwhile \w+ sleeps\b|\bin secret\b|\bturned away\b|"
    r"\bwithout (?:asking|telling|permission|being (?:seen|caught)|a word|(?:\w+ )?(?:knowing|noticing))\b|"
    r"\bbehind (?:his|her|their|[a-z]+'s) back\b|\bnot (?:get|be) caught\b"
)
_ASKING = re.compile(
    r"^(?:please )?(?:(?:how|what|where|who|when|whom|which|can|could|may|shall|should|will|would|do|does|did|is|are|"
    r"have)\b.*\?$|"
    r"(?:how|what|where|which) (?:can|could|shall|should|do|may) (?:i|we)\b|"
    r"(?:i|we) (?:want|would like|wish)\b|(?:tell|help|show|teach) (?:me|us)\b)"
)
_NEGATION = re.compile(
    r"\b(?:not|never|cannot|no|nobody|nor|neither|none|without|instead of|rather than|wrong|mean|unkind|unfair|cruel|"
    r"nasty|stealing|dangerous|bad|rude|refuse|stop|avoid|forbidden|against|too)\b"
)
_DENIAL = re.compile(r"\b(?:not|never|cannot|no|nobody|nor|neither|none|without|instead of|rather than)\b")
_BOUNDARY = re.compile(r"[,:()\"]|\b(?:but|then|so|because|instead(?! of)|otherwise)\b")
_ADVERBS = r"(?:(?:just|simply|only|also|first|now|please|even|quickly|always|maybe|perhaps|secretly|best|\w+ly) )*"
_AUX = "can|could|may|might|must|should|will|would|shall|do|does|did|cannot"
# What stands just before a verb that is no order to the reader: wishes, conditions, other people, nouns.
_NO_STEP = re.compile(
    rf"(?:\b(?:want|wants|wanted|wish|like|liked|asked?|hope|plan|tried|how) to|^to|\b(?:me|us|him|her|them) to|"
    rf"\b(?:if|whether|when|before|after|until|unless|because|that|since|while|once) \w+(?: (?:{_AUX}))?|"
    rf"\b(?!you |we |i |one |and |to )[a-z'-]+ (?:{_AUX})|"
    r"\b(?:a|an|the|this|that|his|her|their|your|my|our|its|any|some|of|they|people|friends|thieves|who|children)) $"
)
_AFTER = re.compile(r"\b(?:by|try|start|consider|about|recommend|suggest) $")
_STOP = frozenset(
    "a an the some any of in on at to into and or with from for by up out your his her their its it you is be few "
    "little strong thin special fine before make if do off".split()
)


@functools.lru_cache(maxsize=8192)  # of one request many replies are judged
def normalise(text: str) -> str:
    """Lower case, plain quotes, contractions written out, blanks single; ends of sentences are kept."""
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'").replace("‘", "'").replace("`", "'")
    text = re.sub(r"[“”*_]", " ", text)
    for pattern, words in _CONTRACTIONS:
        text = re.sub(pattern, words, text)
    return re.sub(r"[^\S\n]+", " ", text).strip()


def sentences(text: str) -> list[str]:
    """The sentences of a normalised text, each with its end mark, if it has one."""
    return [found.strip() for found in re.findall(r"[^.!?;\n]+[.!?;]?", text) if found.strip(" .!?;,'\"")]


def asks(sentence: str) -> bool:
    """Whether a sentence asks or tells a wish, as a copy of the request does, and so advises nothing."""
    return _ASKING.search(sentence) is not None


def _stem(word: str) -> str:
    word = word.removesuffix("'s")
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def content(phrase: str) -> frozenset[str]:
    """The words of a phrase that carry its content, in lower case, without plural s, articles and the like."""
    return frozenset(_stem(word) for word in re.findall(r"[a-z'-]+", phrase.lower()) if word not in _STOP)


@lru_cache(maxsize=4096)
def affirmed(text: str) -> frozenset[str]:
    """The content words of a normalised text that it does not deny and that are not in a question."""
    words: set[str] = set()
    for sentence in sentences(_rewritten(text)):
        if asks(sentence):
            continue
        for clause in re.split(r"[,:]|\b(?:but|then|instead(?! of))\b", sentence):
            words |= content(_DENIAL.split(clause)[0])
    return frozenset(words)


@lru_cache(maxsize=4096)
def _rewritten(text: str) -> str:
    text = re.sub(r"\bnever,? ever\b", "never", text)
    return _UNSEEN.sub(" secretly ", _URGES.sub(" just ", text))


@lru_cache(maxsize=8192)
def _compiled(verbs: str, objects: str) -> re.Pattern[str]:
    gerunds = "|".join(_gerund(verb) for verb in _split(verbs))
    rest = rf"(?:[ ,]+(?!(?:own|not|never|cannot)\b)[a-z'-]+){{0,7}}?[ ,]+(?:{objects})\b" if objects else ""
    return re.compile(rf"\b(?:(?P<gerund>{gerunds})|(?:{verbs}))\b{rest}")


def _split(verbs: str) -> list[str]:
    """The alternatives at the top level of a pattern."""
    return re.findall(r"(?:[^|(]|\([^)]*\))+", verbs)


def _gerund(verb: str) -> str:
    word, _, rest = verb.partition(" ")
    word, look, ahead = word.partition("(")
    stem = word[:-1] if word.endswith("e") and not word.endswith("ee") else word
    doubled = stem + stem[-1] if re.fullmatch(r"[a-z]*[^aeiou][aeiou][bdgmnprt]", stem) else stem
    return f"(?:{stem}|{doubled})ing{look}{ahead}{' ' + rest if rest else ''}"


def advice(text: str, acts: tuple[Act, ...]) -> tuple[bool, bool]:
    """Whether a normalised text advises one of the acts, and whether it advises against one."""
    urged = warned = False
    for sentence in sentences(_rewritten(text)):
        if asks(sentence):
            continue
        for verbs, objects in acts:
            for found in _compiled(verbs, objects).finditer(sentence):
                step = _is_step(sentence, found.start(), found["gerund"] is not None)
                urged |= step is True
                warned |= step is False
    return urged, warned


def _is_step(sentence: str, start: int, gerund: bool) -> bool | None:
    """True: the verb at start is advised; False: advised against; None: only spoken of."""
    before = sentence[:start]
    cuts = list(_BOUNDARY.finditer(before))
    scope = before[cuts[-1].end() :].lstrip() if cuts else before
    # "Do not hit, kick or push it": the negation of a row of verbs holds for each of them.
    in_row = cuts and cuts[-1][0] == "," and re.fullmatch(r"(?:\w+ n?or )?", scope)
    row = in_row and re.search(r"\bn?or\b", sentence[cuts[-1].end() :])
    if _NEGATION.search(before if row else scope):
        return False
    scope = re.sub(rf"{_ADVERBS}$", "", scope.replace("  ", " "))
    if gerund:
        return True if _AFTER.search(scope) else None
    return None if _NO_STEP.search(scope) else True
