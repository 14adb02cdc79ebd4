"""A report on any subject, as parts with tables, pictures and notes, which Markdown and HTML show in the same way."""

from __future__ import annotations

from dataclasses import dataclass

from arrowquant_dist.report.cards import Card
from arrowquant_dist.report.pictures.svg import Picture
from arrowquant_dist.report.view import Table


@dataclass(frozen=True, slots=True)
class DocumentPart:
    """A part of a report. said: paragraphs before the tables. tables: the tables; those without rows are left out.
    pictures: pictures, which only pages show. notes: (name, text) of each note. A part without content is left out."""

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
    """A report. lead: one line that says what it is about. cards: cards, which only pages show."""

    title: str
    lead: str
    cards: tuple[Card, ...]
    parts: tuple[DocumentPart, ...]

    @property
    def shown_parts(self) -> tuple[DocumentPart, ...]:
        return tuple(part for part in self.parts if not part.is_empty)
