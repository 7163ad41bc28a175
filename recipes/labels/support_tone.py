"""Labelling functions for support-tone, written after a look at its train split alone.

    adapterhub label apply recipes/labels/support_tone.py --data recipes/data/support-tone/train.jsonl --out votes.csv

Each knows a little and abstains from the rest. Some are wrong on sarcasm; that is for the label model to find out.
"""

from adapterhub.labeling import ABSTAIN, dictionary, keywords, labeling_function, pattern

praise = keywords(
    "delighted",
    ["thank you", "thanks to", "love", "lovely", "wonderful", "brilliant", "perfect", "thrilled", "delighted", "best",
     "amazing", "fantastic", "superb", "gorgeous", "happy", "kind", "beautiful", "beautifully", "marvellous"],
)  # fmt: skip
accuses = keywords(
    "angry",
    ["liars", "liar", "lying", "lie", "thieves", "stole", "stolen", "fraud", "frauds", "scam", "crooks", "robbed",
     "shameless", "rude", "insulting", "incompetent", "idiot", "idiots", "clowns", "pathetic", "disgrace"],
)  # fmt: skip
threatens = keywords(
    "angry", ["court", "lawyer", "solicitor", "police", "trading standards", "ombudsman", "never again"]
)
swears = pattern(
    "angry", r"\b(bloody|damn|hell|how dare|shame on|who do you think|what kind of|sick of|fed up with you)\b"
)
tired = keywords(
    "frustrated",
    ["still", "again", "disappointed", "disappointing", "out of ideas", "tired", "apparently", "frustrating", "hoped",
     "third time", "second time", "yet another", "at a loss", "given up", "no reply", "supposed to", "wits' end"],
)  # fmt: skip
polite = pattern(
    "calm", r"\b(could you|can you|may i|please|i'd like|i would like|is it possible|hello|no hurry|no rush)\b"
)
counts_days = pattern(
    "frustrated", r"\b(two|three|four|five|six|\d+) (days|weeks|months|times|calls|emails|hours|evenings)\b"
)
asks_first = pattern("calm", r"^(do|does|is|are|can|could|would|will|what|which|how|when|where|may)\b[^!]*$")
moods = dictionary(
    {
        "furious": "angry", "outrageous": "angry", "appalling": "angry", "vile": "angry", "worst": "angry",
        "sadly": "frustrated", "sigh": "frustrated", "honestly": "frustrated", "unfortunately": "frustrated",
        "joy": "delighted", "smile": "delighted", "smiling": "delighted", "grateful": "delighted", "wow": "delighted",
        "wondering": "calm", "noticed": "calm", "reference": "calm", "urgent": "calm",
    }
)  # fmt: skip


@labeling_function
def shouts(example):
    """Hear words in capitals as shouted, but not codes such as E4 or WINTER10."""
    words = [word.strip(".,!?\"'") for word in example.text.split()]
    return "angry" if any(len(word) > 2 and word.isalpha() and word.isupper() for word in words) else ABSTAIN


@labeling_function
def exclaims(example):
    """Take an exclamation for praise, where it is not at somebody."""
    text = example.text.lower()
    return "delighted" if "!" in text and "you" not in text.split() and "your" not in text.split() else ABSTAIN


@labeling_function(name="asks calmly")
def asks(example):
    """Take a short question without an exclamation for just that."""
    text = example.text
    return "calm" if text.rstrip().endswith("?") and "!" not in text and len(text.split()) < 20 else ABSTAIN
