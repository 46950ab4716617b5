"""ConversationDataset: records, tokenized as they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from duet_training.conversations import encode, truncate
from duet_training.records import BadDataError, Problem, Record

_CHARACTERS_PER_TOKEN = 4


class ConversationDataset(Dataset):
    """Samples as ``duet_training.collator.Collator`` takes them: tokens, and the paths of pictures still to be read.

    Args:
        records: as ``read_records`` gives them.
        processor: the model's.
        tokens_per_picture: visual tokens of a picture that enter the decoder, the most that any setting lets in.
        max_length: tokens of a sample at most, pictures expanded; what is longer is cut at its end.
    """

    def __init__(self, records: Sequence[Record], processor: Any, tokens_per_picture: int, max_length: int) -> None:
        self.records = records
        self.processor = processor
        self.tokens_per_picture = tokens_per_picture
        self.max_length = max_length

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """``index`` and ``id`` of the record, and ``input_ids``, ``labels``, ``guides`` and ``image_paths``.

        For a record that turns out to be bad data ``problem`` takes the place of the latter.
        """
        record = self.records[idx]
        name = {"index": record.index, "id": record.id}
        try:
            whole = encode(self.processor, record.turns)
            sample = truncate(whole, self.processor.image_token_id, self.tokens_per_picture, self.max_length)
        except BadDataError as error:
            return {**name, "problem": Problem(record.index, record.id, str(error))}
        tokens = {"input_ids": sample.input_ids, "labels": sample.labels, "guides": sample.guides}
        return {**name, **tokens, "image_paths": record.image_paths}

    @property
    def lengths(self) -> list[int]:
        """Roughly each sample's tokens, by its characters: enough to batch samples of like length together."""
        return [min(self._length(record), self.max_length) for record in self.records]

    def _length(self, record: Record) -> int:
        num_characters = sum(len(turn.text) for turn in record.turns)
        return num_characters // _CHARACTERS_PER_TOKEN + len(record.image_paths) * self.tokens_per_picture
