"""DATUM's prompts for a personalized model: one template over classes of Cityscapes, image j taking prompt j modulo their number.

"things" is the released code's list (yasserben/DATUM generate_dreambooth.py): ten plural names without an article. The other plans are the
rows of its ablation, whose prompts are on slides alone ("a photo of a V* [CLS] ..."): here with the released spelling, plural and without
the article before the token. The names of "stuff" are the nine other classes of Cityscapes, as the class table has them.
"""

from segjax.errors import ConfigError
from segjax.generation.prompts import Prompt

THINGS = {
    "traffic light": "traffic lights",
    "traffic sign": "traffic signs",
    "person": "persons",
    "rider": "riders",
    "car": "cars",
    "truck": "trucks",
    "train": "trains",
    "bus": "buses",
    "motorcycle": "motorcycles",
    "bicycle": "bicycles",
}
"""Class -> its name in a prompt."""
STUFF = {name: name for name in ("road", "sidewalk", "building", "wall", "fence", "pole", "vegetation", "terrain", "sky")}
NOTHING = {"": ""}

PLANS: dict[str, tuple[str, dict[str, str]]] = {
    "things": ("a photo of {token} {name}", THINGS),
    "stuff": ("a photo of {token} {name}", STUFF),
    "both": ("a photo of {token} {name}", THINGS | STUFF),
    "dash-cam": ("a photo of {token} {name} seen from the dash cam", THINGS),
    "scene": ("a photo of a {token} urban scene", NOTHING),
    "car-scene": ("a photo of {token} scene from a car", NOTHING),
    "in-car-scene": ("a photo of {name} in a {token} scene from a car", THINGS),
}
"""Name -> template, and class -> name in it. DATUM's is "things"; "scene" repeats the prompt that the model was personalized with."""


def prompts(plan: str, token: str) -> list[Prompt]:
    """The prompts of a plan, in the order in which images take them. token: the rare word that stands for the target, "sks" in DATUM.

    ConfigError: no such plan, no token.
    """
    if plan not in PLANS:
        raise ConfigError(f"plan={plan!r}: expected one of {', '.join(PLANS)}")
    if not token.strip():
        raise ConfigError(f"token={token!r}: expected the word that the model was personalized with, e.g. sks")
    template, names = PLANS[plan]
    return [Prompt(template.format(token=token.strip(), name=name), category) for category, name in names.items()]
