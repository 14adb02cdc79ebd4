"""A report as parts with tables, pictures and notes, whatever it is about: Markdown and HTML draw it alike."""

from __future__ import annotations

from dataclasses import dataclass

from arrowquant_dist.report.cards import Card
from arrowquant_dist.report.pictures.svg import Picture
from arrowquant_dist.report.view import Table


@dataclass(frozen=True, slots=True)
class DocumentPart:
    """said: paragraphs before the tables. pictures: of pages alone. notes: (name, text). Tables without rows are left
    out, and so are parts without anything."""

    title: str
    said: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()

    @property
    def shown_tables(self) -> tuple[Table, ...]:
        return tuple(table for table in self.tables if table.rows)

    @property
    def is_empty(self) -> bool:
        return not (self.said or self.shown_tables or self.pictures or self.notes)


@dataclass(frozen=True, slots=True)
class Document:
    """lead: what it is of, in a line. cards: of pages alone."""

    title: str
    lead: str
    cards: tuple[Card, ...]
    parts: tuple[DocumentPart, ...]

    @property
    def shown_parts(self) -> tuple[DocumentPart, ...]:
        return tuple(part for part in self.parts if not part.is_empty)
