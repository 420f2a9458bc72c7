"""The closed vocabulary of the town: names, and the values a resident can have.

Every word is short and has one meaning here: no value is also a name, and no value belongs to two attributes, so
that an answer can be scored by looking for whole words.
"""

from __future__ import annotations

from groundup.data.town.draw import words

FIRST_NAMES = words(
    "Abel Ada Alma Anton Bela Ben Berta Bruno Cara Cleo Cora Dana Dario Dora Edda Elio Elsa Emil Enzo Fay "
    "Felix Fina Gala Gil Greta Hugo Ida Ines Iris Ivo Jana Jed Joan Kai Karl Kira Lars Lea Lena Leo Luca "
    "Mara Max Mia Milo Nell Nina Nora Olaf Olga Oona Otto Pia Remo Rita Rosa Sven Tess Toby Vera"
)

SURNAMES = words(
    "Alder Ashby Barlow Beck Birch Blythe Bolt Bramble Brand Brook Burr Cole Dale Dell Dunn Elm Fenn "
    "Finch Flint Ford Frost Gale Glen Grove Hale Hart Heath Holt Hurst Keel Kirk Lake Lark Linden Lowe "
    "Marsh Mead Mott Nash North Oakes Page Pike Quill Reed Ridge Rowan Rush Sedge Shaw Slate Stone Thorn "
    "Vale Wade Ward Webb Wick Wren Yates"
)

JOBS = words(
    "baker barber carpenter doctor farmer gardener miller nurse painter plumber postman potter sailor "
    "shepherd singer smith tailor teacher waiter weaver"
)

STREETS = [
    f"{name} {kind}"
    for kind, names in {
        "Street": words("Bridge Castle Church Garden Market Mill River School Tower Well"),
        "Lane": words("Apple Cherry Clover Copper Daisy Meadow Orchard Pepper Silver Willow"),
    }.items()
    for name in names
]

PETS = words(
    "canary cat dog donkey duck ferret frog goat goose hamster hen lamb lizard mouse parrot piglet pony "
    "rabbit snake turtle"
)

FOODS = words(
    "beans bread carrots cheese cherries dumplings fish honey mushrooms noodles pancakes pears pie plums "
    "porridge potatoes pudding rice soup stew"
)

HOBBIES = words(
    "carving climbing cycling dancing drawing drumming fishing hiking juggling knitting painting reading "
    "riding rowing running sewing skating skiing swimming whistling"
)

ATTRIBUTES = ("job", "street", "pet", "food", "hobby")
POOLS: dict[str, list[str]] = {"job": JOBS, "street": STREETS, "pet": PETS, "food": FOODS, "hobby": HOBBIES}
