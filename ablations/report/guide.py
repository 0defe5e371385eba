"""How to read the tables of a summary: what each number is, and what it is not."""

from __future__ import annotations

from ablations.analysis.claims import EQUIVALENCE
from ablations.analysis.margins import MARGIN, RATIO_MARGIN

ROWS = (
    "Best validation loss first, in nats per token: mean over seeds with its 95 % t interval, and their standard "
    "deviation (`sd`). `difference` is that to {baseline}, paired by seed over the seeds that both have: read it, and"
    " not two means, where seeds are marked \N{DAGGER}, which are not those of {baseline}. A loss in parentheses is "
    "that of a row that collapsed. `bits/byte` is the loss by byte of text.{masked} `speed` is that of the training "
    "step relative to {baseline}, with its 95 % interval, which holds the noise of the measurement: what {baseline} "
    "measured against itself, its own interval here.{sizes}"
)
MASKED = " Of the masked task it is not defined, as only the hidden tokens are predicted."
OTHER_SIZES = (
    " Rows of another size are measured against the block of {baseline} at their own size; across sizes, compare "
    "tokens per second."
)
SCREENED = (
    "The best of them, and those that go on in any case (the baseline, the named blocks, rows of claims), were trained "
    "in full on other seeds, and stand in the table of rows. Which rows train and the effects of the axes come from "
    "the screening, which has all rows: they speak of training this short."
)
BUDGETS = (
    "Each row at every budget for which it was trained, each with a learning-rate schedule of its own: validation "
    "loss, difference to {baseline} in brackets, and place among these rows. A verdict on losses is given only if it "
    "stands with more tokens. The extended runs must confirm it, with a difference one standard error nearer to where "
    "it turns; in a study without them it must not turn within {times:.0f} times the tokens, if the difference goes on "
    "changing by as much with every doubling."
)
TRAINING = (
    "At each row's best tuned values: rows of which no seed collapsed, diverged or failed, the share of all seeds that "
    "trained, and how the others ended."
)
TRAINED = "The effects on loss speak of the rows that train with every seed, and of these alone."
EFFECTS = (
    "A main effect is what a change does on average over the levels of all other axes; an axis of several levels has "
    "one for each change from its baseline level. An interaction, `a x b`, is the effect of a where b is changed minus "
    "its effect where b is not: if it is far from 0, read the simple effects below instead of the main effects. "
    "Largest first. Brackets are 95 % intervals. `*`: p below 0.05 after Holm's correction over all effects on loss, "
    "or all on speed."
)
STEPS = (
    "Each change against the row named under `where`, paired by seed, with 95 % intervals. `*`: p below 0.05 after "
    "Holm's correction over all changes."
)
PATH = (
    "Each step of the path against the one before it, paired by seed, with 95 % intervals. `*`: p below 0.05 after "
    "Holm's correction over all steps."
)
BASIS = {
    "rows": "the spread between rows", "seeds": "the spread between seeds", "rounds": "the rounds of the speed pass",
}
"""Where an interval comes from, by the word of the table of effects."""
SIMPLE = (
    "Simple effects: a main effect at each level of the axis with which it interacts most. These are not corrected for "
    "their number."
)
ALIASES = (
    "This design cannot separate some effects. What is joined by `=` is estimated as one number: the sum of these "
    "effects, those behind a minus sign subtracted."
)
CLAIMS = (
    f"Each row at its best tuned values, paired by seed, with 95 % t intervals. Level: the {EQUIVALENCE} interval lies"
    f" within {MARGIN:g} nats of no difference (two one-sided tests at 5 %), or within the claim's own margin; of "
    f"ratios within {RATIO_MARGIN:.0%}. Better, worse, faster, slower: the interval lies on that side of no "
    "difference. A verdict needs p below 0.05 after Holm's correction over all claims about losses, or all about "
    "speed (p Holm); in a study with looks these decide about losses. Inconclusive: the data neither support nor "
    "contradict the claim. A row that collapsed or diverged with every seed is worse than any loss. The verdicts are "
    "about this study's size, data and budget."
)
TUNED = (
    "Validation loss, mean ± standard deviation over the seeds that choose. Everywhere else each row is shown at its "
    "best tuned values, over the seeds that judge; these choose, too, where no others do."
)
SENSITIVITY = (
    "Sensitivity: what the worst value costs in nats, and by what factor the value may be off for at most "
    f"{MARGIN:g} nats more loss (1: only the best one is that good)."
)
PAIRS = (
    "Difference in validation loss in nats, paired by seed, and ratio of training speeds, each with its 95 % interval."
)
SMOKE_WARNING = "This scale only checks that everything works. The order of the rows means nothing after so few steps."
EMPTY_EFFECTS = "The rows do not allow any effect to be estimated."
EMPTY_CLAIMS = "The study has no claims."
