"""The closed vocabulary of the town: names, and the values a resident can have.

Every word is short and has one meaning here: no value is also a name, and no value belongs to two attributes, so
that an answer can be scored by looking for whole words.
"""

from __future__ import annotations

from groundup.data.town.draw import words

# One resident each. Were first names shared, a model tuned on the taught residents would learn to finish a first name
# with the one surname it was asked about, and answer for the wrong person.
FIRST_NAMES = words(
    "Abby Abel Ada Adam Agnes Alan Albert Alec Alice Alma Amos Amy Anita Anna Anton Arno Arthur Astrid Axel "
    "Basil Beatrix Bela Ben Berta Bianca Boris Brenda Bruno Cara Carl Carol Cecil Celia Chloe Clara Cleo "
    "Colin Conrad Cora Cyril Cyrus Dana Daphne Dario David Debra Derek Diana Dirk Donald Dora Doris Duncan "
    "Dylan Edda Edgar Edith Edwin Eileen Elena Elias Elio Ella Ellis Elmer Elsa Emil Emma Enzo Eric Ernest "
    "Ethan Eva Fanny Fay Felix Fergus Fina Fiona Flora Floyd Fred Gala Gavin George Gil Gilda Gloria Gordon "
    "Greta Gwen Hanna Harold Harry Hector Heidi Helen Henry Herman Hilda Howard Hugo Ida Ines Ingrid Irene "
    "Iris Isaac Ivan Ivo Jacob James Jana Janet Jason Jed Jenny Jerome Joan Jonas Judith Julia Julius Kai "
    "Karen Karl Kevin Kira Klara Lara Lars Laura Lea Lena Leo Lewis Linda Lionel Lloyd Louis Luca Lucy Lydia "
    "Mabel Magda Mara Martha Martin Max Megan Mia Milo Miriam Monica Morris Myra Nadia Naomi Nathan Nell "
    "Nigel Nina Noel Nora Norman Olaf Olga Olive Oona Oscar Oswald Otto Pablo Paula Percy Petra Philip Pia "
    "Priya Quentin Ralph Ramon Remo Rita Roger Rosa Ruben Rufus Sabine Samuel Selma Sidney Silas Simon Sven "
    "Tess Theo Toby Ursula Vera"
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
