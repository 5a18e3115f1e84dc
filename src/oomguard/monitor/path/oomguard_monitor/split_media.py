"""Find out which pixels and sounds of a batch belong to which row: by its placeholder tokens.

A model puts the media of a batch into the placeholder tokens of its rows, in their order. So each
row has the media that fill its placeholders; where they do not fill all of them exactly, the
mapping is not known.
"""

from __future__ import annotations

from .split_batch import IDS, NotRowsError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Entries = list[list[int]]

#: Source: transformers 5.23, models/*/modeling_*.py, `get_placeholder_mask` and what calls it.
_GRIDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
_AUDIO = ("qwen2_audio",)
_EQUAL = ("llava",)
#: The names of a medium's inputs: entries by patch, its grids, and others with one entry each.
_OF_GRIDS = (
    ("image_token_id", "pixel_values", "image_grid_thw", ()),
    ("video_token_id", "pixel_values_videos", "video_grid_thw", ("second_per_grid_ts",)),
)


class Media:
    """How the media of a model's inputs follow from its `config`."""

    def __init__(self, config: Any) -> None:
        self._config = config
        self._kind = str(getattr(config, "model_type", ""))
        self.placeholders = tuple(
            token
            for name in ("image_token_id", "image_token_index", "video_token_id",
                         "audio_token_id", "audio_token_index")
            for token in [getattr(config, name, None)]
            if isinstance(token, int)
        )  # fmt: skip

    @classmethod
    def of(cls, model: Any) -> Media | None:
        """Return the media of a model, None if it has none that are known."""
        config = getattr(model, "config", None)
        known = getattr(config, "model_type", None) in (*_GRIDS, *_AUDIO, *_EQUAL)
        return cls(config) if known else None

    def owned(self, batch: dict[Any, Any]) -> dict[str, Entries]:
        """Return, for each input of media, the entries that belong to each row of the batch.

        Raises:
            NotRowsError: if that is not known.
        """
        found: dict[str, Entries] = {}
        if self._kind in _GRIDS:
            for token_name, patches, grids, others in _OF_GRIDS:
                if batch.get(grids) is not None:
                    token = getattr(self._config, token_name)
                    found.update(self._of_grids(batch, token, patches, grids, others))
        elif self._kind in _AUDIO and batch.get("feature_attention_mask") is not None:
            names = ("input_features", "feature_attention_mask")
            frames = batch[names[1]].sum(-1).tolist()
            tokens = [((int(one) - 1) // 2 + 1 - 2) // 2 + 1 for one in frames]
            found.update(dict.fromkeys(names, self._filled(batch, tokens, names[0])))
        elif batch.get("pixel_values") is not None:
            images = int(batch["pixel_values"].shape[0])
            each, rest = divmod(sum(self._places(batch)), images)
            if rest:
                raise NotRowsError("pixel_values does not fill the tokens that stand for it")
            found["pixel_values"] = self._filled(batch, [each] * images, "pixel_values")
        return found

    def _of_grids(
        self, batch: dict[Any, Any], token: int, patches: str, grids: str, others: tuple[str, ...]
    ) -> Iterator[tuple[str, Entries]]:
        """Yield the entries of images or videos whose sizes are given in patches."""
        merged = int(self._config.vision_config.spatial_merge_size) ** 2
        sizes = [int(one) for one in batch[grids].prod(-1).tolist()]
        media = self._filled(batch, [size // merged for size in sizes], grids, token)
        starts = [sum(sizes[:n]) for n in range(len(sizes))]
        if int(batch[patches].shape[0]) != sum(sizes):
            raise NotRowsError(f"{patches} does not have the patches of {grids}")
        yield grids, media
        yield (
            patches,
            [[starts[n] + patch for n in row for patch in range(sizes[n])] for row in media],
        )
        for name in others:
            value = batch.get(name)
            if value is not None:
                if len(value) != len(sizes):
                    raise NotRowsError(f"{name} has {len(value)} entries for {len(sizes)} videos")
                yield name, media

    def _filled(
        self, batch: dict[Any, Any], tokens: list[int], name: str, token: int | None = None
    ) -> Entries:
        """Return the media of each row: in their order they fill its placeholders."""
        rows: Entries = []
        following = 0
        for places in self._places(batch, token):
            own: list[int] = []
            left = places
            while left > 0 and following < len(tokens):
                own.append(following)
                left -= tokens[following]
                following += 1
            if left:
                raise NotRowsError(f"{name} does not fill the tokens that stand for it")
            rows.append(own)
        if following != len(tokens):
            raise NotRowsError(f"{name} has more entries than tokens stand for")
        return rows

    def _places(self, batch: dict[Any, Any], token: int | None = None) -> list[int]:
        """Return the number of placeholders in each row."""
        ids: Any = batch.get(IDS)
        if ids is None:
            raise NotRowsError("there are media and no input_ids")
        kinds = self.placeholders if token is None else (token,)
        counts = sum((ids == one).sum(-1) for one in set(kinds))
        return [int(count) for count in counts.tolist()]
