"""ConversationDataset: records that are tokenized when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from duet_training.conversations import encode, truncate
from duet_training.records import BadDataError, Problem, Record

_CHARACTERS_PER_TOKEN = 4


class ConversationDataset(Dataset):
    """Samples for ``duet_training.collator.Collator``: tokens, and the paths of pictures that the collator reads.

    Args:
        records: the records from ``read_records``.
        processor: the model's processor.
        tokens_per_picture: entering visual tokens of a picture, under the setting that lets the most enter.
        max_length: the most tokens of a sample, visual tokens included; longer samples are cut at their end.
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

        A record that turns out to be bad data has ``problem`` instead of the last four.
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
        """Each sample's approximate number of tokens, from its characters: enough to group samples by length."""
        return [min(self._length(record), self.max_length) for record in self.records]

    def _length(self, record: Record) -> int:
        num_characters = sum(len(turn.text) for turn in record.turns)
        return num_characters // _CHARACTERS_PER_TOKEN + len(record.image_paths) * self.tokens_per_picture
