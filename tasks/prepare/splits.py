"""Which document goes where: decided by its content alone, so that nothing leaks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import combinations

from tasks.artifacts import MixturePart, PackedRows, Split, SplitName
from tasks.prepare.spec import SplitShares

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


# Documents of each kind that the report names.
NAMED = 20


@dataclass(frozen=True)
class WrittenData:
    """What was written of a data set, whatever its kind; see `DataManifest`."""

    splits: dict[SplitName, Split]
    files: tuple[str, ...]
    vocabulary: int | None = None
    shape: tuple[int, ...] | None = None
    end: int | None = None
    rows: PackedRows | None = None
    parts: tuple[MixturePart, ...] | None = None


def split_of(identity: bytes, shares: SplitShares) -> SplitName:
    """The split of a document; more data never moves a document to another split.

    Args:
        identity: SHA-256 of the content, 32 bytes.

    >>> split_of(hashlib.sha256(b"import this").digest(), SplitShares())
    'test'
    """
    place = int.from_bytes(identity[:8], "big") / 2**64
    if place < shares.test:
        return "test"
    return "validation" if place < shares.test + shares.validation else "train"


@dataclass
class Sorter:
    """Deals documents to splits and drops those that say nothing new.

    Attributes:
        shares: what was asked for.
        empty: documents without a byte, dropped.
        duplicates: documents whose content came before, dropped.
        conflicts: duplicates that came before with another class.
        named: the first dropped documents of each kind, by name.
        documents: split -> documents kept.
        classes: split -> class -> documents kept.
        lengths: split -> power of two -> documents of at most that many bytes and more than half.
    """

    shares: SplitShares
    empty: int = 0
    duplicates: int = 0
    conflicts: int = 0
    named: dict[str, list[str]] = field(
        default_factory=lambda: {"empty": [], "duplicates": [], "conflicts": []}
    )
    documents: dict[SplitName, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    classes: dict[SplitName, dict[str, int]] = field(
        default_factory=lambda: {split: {} for split in SPLITS}
    )
    lengths: dict[SplitName, dict[int, int]] = field(
        default_factory=lambda: {split: {} for split in SPLITS}
    )
    _seen: dict[bytes, str | None] = field(default_factory=dict)
    _folded: dict[bytes, int] = field(default_factory=dict)

    def deal(
        self, content: bytes, *, name: str, label: str | None = None, folded: bytes | None = None
    ) -> SplitName | None:
        """The split of the next document, or None if it is dropped.

        Args:
            name: where it came from, for people.
            label: name of its class; None without classes.
            folded: what is left of it without case and white space; None where it has neither.
        """
        if not content:
            self.empty += 1
            self._name("empty", name)
            return None
        identity = hashlib.sha256(content).digest()
        if identity in self._seen:
            self.duplicates += 1
            self._name("duplicates", name)
            if self._seen[identity] != label:
                self.conflicts += 1
                self._name("conflicts", name)
            return None
        self._seen[identity] = label
        split = split_of(identity, self.shares)
        self.documents[split] += 1
        if label is not None:
            self.classes[split][label] = self.classes[split].get(label, 0) + 1
        if folded is not None:
            short = hashlib.blake2b(folded, digest_size=8).digest()
            self._folded[short] = self._folded.get(short, 0) | 1 << SPLITS.index(split)
        bucket = 1 << (len(content) - 1).bit_length()
        self.lengths[split][bucket] = self.lengths[split].get(bucket, 0) + 1
        return split

    def require_all_splits(self, *, classes: tuple[str, ...] = ()) -> None:
        """Refuse a data set in which a split has no document, or a class nothing to learn from.

        Raises:
            ValueError: names the split, its share and how many documents there are, or the class.
        """
        count = sum(self.documents.values())
        for split in SPLITS:
            if not self.documents[split]:
                share = 1 - self.shares.validation - self.shares.test
                share = share if split == "train" else getattr(self.shares, split)
                raise ValueError(
                    f"every split must hold a document; {split} got none of {count} with a share "
                    f"of {share:.3g}. Give data.source more and smaller documents (20 for each "
                    f"1 / share are safe), or raise data.split."
                )
        for name in classes:
            if name not in self.classes["train"]:
                held = sum(self.classes[split].get(name, 0) for split in SPLITS)
                raise ValueError(
                    f"every class must have a document in the training split; {name} has none of "
                    f"its {held}. Give data.source more documents of it, or drop the class."
                )

    def alike(self) -> dict[str, int]:
        """Contents that two splits share but for case and white space, for each two of them."""
        pairs = combinations(range(len(SPLITS)), 2)
        return {
            f"{SPLITS[one]} and {SPLITS[other]}": sum(
                held >> one & held >> other & 1 for held in self._folded.values()
            )
            for one, other in pairs
        }

    def _name(self, kind: str, name: str) -> None:
        if len(self.named[kind]) < NAMED:
            self.named[kind].append(name)
