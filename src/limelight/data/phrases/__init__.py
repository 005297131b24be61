"""The embedded corpus: date, time, duration and unit phrases of any two locales, with gold word alignments.

Written by the rules of Unicode's CLDR as the `babel` package carries them; nothing is downloaded.

    train, dev, test = split_phrases(generate("en", "es"))
    train[0].source, train[0].target, sorted(train[0].links)
"""

from limelight.data.phrases.locales import available_locales
from limelight.data.phrases.pairs import Phrase, generate, split_phrases
from limelight.data.phrases.words import words

__all__ = ["Phrase", "available_locales", "generate", "split_phrases", "words"]
