"""What the data is: the `data` section."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from models.spec import Spec


class StandardLibrary(Spec):
    """The source text of the running Python's standard library, one document a file."""

    kind: Literal["standard_library"] = "standard_library"


class TextFiles(Spec):
    """Text files in UTF-8, one document a file."""

    kind: Literal["text"] = "text"
    path: str = Field(description="a file or a folder, searched recursively")
    label: Literal["folder"] | None = Field(
        None, description="what names a document's class: the first folder; null without classes"
    )


class RowFiles(Spec):
    """JSONL, CSV or Parquet files, one document a row."""

    kind: Literal["jsonl", "csv", "parquet"]
    path: str = Field(description="a file or a folder, searched recursively")
    field: str = Field("text", description="the field or column that holds the text")
    label: str | None = Field(
        None, description="the field or column that names the class; null without classes"
    )


class HuggingFaceDisk(Spec):
    """A data set that `datasets.Dataset.save_to_disk` wrote."""

    kind: Literal["hugging_face"] = "hugging_face"
    path: str = Field(description="the folder")
    field: str = Field("text", description="the column that holds the text")
    label: str | None = Field(
        None, description="the column that names the class; null without classes"
    )


class Digits(Spec):
    """scikit-learn's 1,797 handwritten digits, 8 x 8, grey; as frames, rows of 8 pixels."""

    kind: Literal["digits"] = "digits"


class ImageFolder(Spec):
    """PNG and JPEG files, one folder for each class."""

    kind: Literal["image_folder"] = "image_folder"
    path: str = Field(description="a folder of folders, each named by its class")
    height: int = Field(ge=1, description="rows of an image after resizing, in pixels")
    width: int = Field(ge=1, description="columns of an image after resizing, in pixels")
    channels: Literal[1, 3] = Field(3, description="1 for grey, 3 for red, green and blue")
    filter: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = Field(
        "bilinear", description="how pixels are interpolated when resizing (Pillow's names)"
    )


class NumpyFiles(Spec):
    """A folder with `x.npy` and `y.npy`: images or sequences, and the class of each.

    `x` is (N, height, width) or (N, height, width, channels) for images, and (N, frames, features)
    for frames; bytes, which are divided by 255, or floating-point numbers. `y` is (N,) integers or
    strings. Sequences of different lengths are padded and have `lengths.npy`, (N,) frames.
    """

    kind: Literal["numpy"] = "numpy"
    path: str = Field(description="the folder")


TextSource = Annotated[
    StandardLibrary | TextFiles | RowFiles | HuggingFaceDisk, Field(discriminator="kind")
]


class Part(Spec):
    """One source of a mixture."""

    weight: float = Field(gt=0, description="share of the samples, against the other parts'")
    source: TextSource = Field(description="where the part's documents come from")


class Mixture(Spec):
    """Several sources of text; a part is walked exactly once before it is walked again."""

    kind: Literal["mixture"] = "mixture"
    parts: tuple[Part, ...] = Field(min_length=2, description="the sources and their weights")

    @model_validator(mode="after")
    def _weighed(self) -> Self:
        least = sum(part.weight for part in self.parts) / 10_000
        for number, part in enumerate(self.parts):
            if part.weight < least:
                raise ValueError(
                    "each weight of data.source.parts must be at least a ten-thousandth of their "
                    f"sum, {least:.3g}; got {part.weight} for part {number}."
                )
        return self

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        sources = [part.source for part in self.parts]
        if len(set(sources)) < len(sources):
            raise ValueError(
                "data.source.parts must name different sources: a repeated one is dropped as "
                "duplicates. Raise the weight of the part instead."
            )
        return self


Source = Annotated[
    StandardLibrary
    | TextFiles
    | RowFiles
    | HuggingFaceDisk
    | Digits
    | ImageFolder
    | NumpyFiles
    | Mixture,
    Field(discriminator="kind"),
]


class ByteBpe(Spec):
    """Byte-level BPE (Sennrich et al. 2016), trained on the training split only."""

    kind: Literal["byte_bpe"] = "byte_bpe"
    vocabulary: int = Field(ge=258, description="most tokens; 256 bytes and the end mark are kept")


class GivenTokenizer(Spec):
    """A `tokenizer.json` on disk; its truncation, padding and templates are left out."""

    kind: Literal["given"] = "given"
    path: str = Field(description="the file, as the tokenizers library writes it")
    end: str = Field(description="its token that ends a document; it is renamed to <|end|>")


TokenizerSpec = Annotated[ByteBpe | GivenTokenizer, Field(discriminator="kind")]


class CutAnywhere(Spec):
    """Windows of model.inputs.context + 1 tokens of the stream of all documents."""

    kind: Literal["windows"] = "windows"


class Packed(Spec):
    """Whole documents fitted into rows (best fit, decreasing); longer ones are cut to rows.

    Source: Ding et al. 2024, "Fewer truncations improve language modeling", arXiv:2404.10830.
    """

    kind: Literal["packed"] = "packed"
    length: int = Field(ge=2, description="tokens of a row; at most model.inputs.context")


class Padded(Spec):
    """One document a row, padded behind it; longer ones are cut to rows."""

    kind: Literal["padded"] = "padded"
    length: int = Field(ge=2, description="tokens of a row; at most model.inputs.context")


class Language(Spec):
    """Text, whose every token is predicted."""

    kind: Literal["language"] = "language"
    tokenizer: TokenizerSpec
    packing: Annotated[CutAnywhere | Packed | Padded, Field(discriminator="kind")] = CutAnywhere()


class TextClasses(Spec):
    """Text with one class a document, whose first model.inputs.context tokens are read."""

    kind: Literal["text_classes"] = "text_classes"
    tokenizer: TokenizerSpec


class ImageClasses(Spec):
    """Images with one class each."""

    kind: Literal["images"] = "images"


class FrameClasses(Spec):
    """Sequences of frames with one class each."""

    kind: Literal["frames"] = "frames"


Task = Annotated[Language | TextClasses | ImageClasses | FrameClasses, Field(discriminator="kind")]


class Shuffled(Spec):
    """Every epoch walks through an order of its own; any samples may share a batch."""

    kind: Literal["shuffled"] = "shuffled"


class SortedByLength(Spec):
    """The same walk, but samples of about one length share a batch, which is cut to the longest.

    Source: Khomenko et al. 2017, "Accelerating recurrent neural network training using sequence
    bucketing and multi-GPU data parallelization", arXiv:1708.05604.
    """

    kind: Literal["by_length"] = "by_length"
    batches: int = Field(32, ge=2, description="batches whose samples are sorted together")
    lengths: int = Field(
        4,
        ge=1,
        le=64,
        description="lengths that batches are cut to, at most; JAX compiles a step for each",
    )


class SplitShares(Spec):
    """Shares of the documents, decided by the hash of each document's content."""

    validation: float = Field(0.05, gt=0, lt=1, description="share watched during training")
    test: float = Field(0.1, gt=0, lt=1, description="share that only the evaluation reads")

    @model_validator(mode="after")
    def _rest(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(
                "data.split.validation + data.split.test must leave something to train on; "
                f"got {self.validation} + {self.test}."
            )
        return self


# The token that ends a document, of a tokenizer that is trained here.
END_TOKEN = 0
TEXT = frozenset({"standard_library", "text", "jsonl", "csv", "parquet", "hugging_face", "mixture"})
# The sources that can become samples of each kind.
SOURCES: dict[str, frozenset[str]] = {
    "language": TEXT,
    "text_classes": TEXT - {"standard_library"},
    "images": frozenset({"digits", "image_folder", "numpy"}),
    "frames": frozenset({"digits", "numpy"}),
}


class DataSpec(Spec):
    """Where samples come from and what they become."""

    source: Source
    task: Task
    split: SplitShares = SplitShares()
    order: Annotated[Shuffled | SortedByLength, Field(discriminator="kind")] = Field(
        Shuffled(), description="which samples of the training split share a batch"
    )

    @property
    def parts(self) -> tuple[Source, ...]:
        """The sources, one by one."""
        if self.source.kind == "mixture":
            return tuple(part.source for part in self.source.parts)
        return (self.source,)

    @model_validator(mode="after")
    def _source_for_task(self) -> Self:
        able = SOURCES[self.task.kind]
        for source in (self.source, *self.parts):
            if source.kind not in able:
                raise ValueError(
                    f"data.task.kind={self.task.kind} needs data.source.kind "
                    f"{', '.join(sorted(able))}; got {source.kind}."
                )
        labels = [getattr(source, "label", None) for source in self.parts]
        if self.task.kind == "text_classes" and None in labels:
            raise ValueError(
                "data.source.label must name the class of each document for "
                "data.task.kind=text_classes; got null. Name a field, or take task.kind=language."
            )
        if self.task.kind == "language" and any(label is not None for label in labels):
            raise ValueError(
                "data.source.label must be null for data.task.kind=language, which reads no "
                f"classes; got {next(label for label in labels if label is not None)}."
            )
        return self

    @model_validator(mode="after")
    def _order_for_task(self) -> Self:
        if self.order.kind == "shuffled":
            return self
        if self.source.kind == "mixture":
            raise ValueError(
                "data.order.kind=by_length needs a single source: the parts of a mixture would no "
                "longer have their shares of every batch. Take data.order.kind=shuffled."
            )
        full = self.task.kind == "images" or (
            self.task.kind == "language" and self.task.packing.kind != "padded"
        )
        if full:
            raise ValueError(
                "data.order.kind=by_length needs samples of different lengths: data.task.kind "
                "text_classes or frames, or data.task.packing.kind=padded; got "
                f"data.task.kind={self.task.kind}. Take data.order.kind=shuffled."
            )
        return self
