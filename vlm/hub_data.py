"""What training and evaluation both need of the `datasets` library."""

from typing import Any


def undecoded(data: Any) -> Any:
    """A data set, or a stream of one, with pictures as bytes or paths: whoever looks at one opens it."""
    import datasets

    plain = datasets.Image(decode=False)
    for name, feature in (data.features or {}).items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(name, plain)
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            data = data.cast_column(name, datasets.List(plain))
    return data
