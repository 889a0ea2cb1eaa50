SUBJECTS = (
    "the Golden Gate Bridge",
    "quantum mechanics",
    "a hurricane",
    "the Silk Road",
    "coral reefs",
    "chocolate cake",
    "human rights",
    "a goalkeeper",
    "vaccines",
    "the Bible",
)  # chosen, and committed, before anything was looked for
