"""The name of a segment of Kafka: what was read of each partition up to its last message."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from dlrm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class KafkaPlace:
    """A message, by what was read up to it.

    Attributes:
        number: number of messages that were read, up to this one.
        partition: partition of the message, whose offset is one less than the partition's next.
        next: offset that is read next, by partition.
    """

    number: int
    partition: int
    next: Mapping[int, int]

    def __str__(self) -> str:
        own = ",".join(f"{x}={offset}" for x, offset in sorted(self.next.items()))
        return f"{self.number:020d}:{self.partition}:{own}"

    @classmethod
    def of(cls, name: str) -> KafkaPlace:
        """The message that is a segment's last one, by the segment's name.

        Raises:
            UserError: it is the name of a segment of another source.
        """
        try:
            number, partition, own = name.split(":")
            pairs = [each.split("=") for each in own.split(",")]
            offsets = {int(x): int(offset) for x, offset in pairs}
            place = cls(int(number), int(partition), offsets)
            if place.partition not in offsets:
                raise ValueError
            return place
        except ValueError as error:
            raise UserError(
                f"stream: expected a run on a topic of Kafka, got a position in segment {name!r} "
                f"of another source; give another --workdir"
            ) from error
