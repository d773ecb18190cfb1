"""What the demo's models read: eight sentences each of Moby-Dick, Alice and Pride and Prejudice (public domain)."""

MELVILLE = (
    "Call me Ishmael.",
    "I thought I would sail about a little and see the watery part of the world.",
    "Better sleep with a sober cannibal than a drunken Christian.",
    "It is not down in any map; true places never are.",
    "I know not all that may be coming, but be it what it will, I'll go to it laughing.",
    "Ignorance is the parent of fear.",
    "As for me, I am tormented with an everlasting itch for things remote.",
    "There she blows! There! There! There! She blows! She blows!",
)
CARROLL = (
    "Alice was beginning to get very tired of sitting by her sister on the bank.",
    "Begin at the beginning, and go on till you come to the end: then stop.",
    "It's no use going back to yesterday, because I was a different person then.",
    "We're all mad here. I'm mad. You're mad.",
    "How doth the little crocodile improve his shining tail!",
    "Why is a raven like a writing-desk?",
    "Oh dear! Oh dear! I shall be late!",
    "Why, sometimes I've believed as many as six impossible things before breakfast.",
)
AUSTEN = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, "
    "must be in want of a wife.",
    "I declare after all there is no enjoyment like reading!",
    "I could easily forgive his pride, if he had not mortified mine.",
    "You must allow me to tell you how ardently I admire and love you.",
    "My courage always rises with every attempt to intimidate me.",
    "What are men to rocks and mountains?",
    "Till this moment I never knew myself.",
    "A lady's imagination is very rapid; it jumps from admiration to love, from love to matrimony in a moment.",
)
SENTENCES = MELVILLE + CARROLL + AUSTEN
