"""Templates compiled for a tokenizer: samples given as integers become token ids by a few array operations.

Shapes: N samples, S units of all samples one behind the other, U units of a variant, P places.

A template with its placeholders is a row of fixed texts and holes (`template_parts.py`). Every text, and
every line that may stand in a hole, is a unit, tokenised once (`units.py`). A sample is a row of unit
numbers, its ids are the units' ids laid end to end. Where two units meet at no cut (a title that begins with
"/"), the sample goes through `Renderer`. So ids, spans and slots are always those of `Renderer.render`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain

import numpy as np

from recloom.data_shards.errors import UserError
from recloom.data_shards.ragged import Ragged, end_to_end, ranges, row_sums
from recloom.data_shards.rendered_batch import RenderedBatch, batch_of, join_batches
from recloom.data_shards.renderer import Rendered, Renderer
from recloom.data_shards.samples import Literal, Sample, Segment
from recloom.data_shards.template_parts import Form, Hole, Part, answer_hole, prompt_parts
from recloom.data_shards.textualize.template import ANSWER, Template
from recloom.data_shards.units import FITS, Units, control_unit, join_units, make_units

Rows = Sequence[Sequence[Segment]]


@dataclass(frozen=True)
class Place:
    """A part among the units of a variant: where the hole's rows begin, in their forms as only, first, middle
    and last row; for a fixed unit (`hole` None) its number, four times."""

    hole: Hole | None
    only: int
    first: int
    middle: int
    last: int


@dataclass(frozen=True)
class Variant:
    """A template with certain placeholders filled: start token, prompt, answer, end token. The first
    `num_prompt_places` are prompt, the start token counted."""

    parts: list[Part]
    places: list[Place]
    num_prompt_places: int
    units: Units


class CompiledTemplate:
    """A template for one tokenizer and one set of tables.

    constants: placeholders whose text is the same in all samples, such as the noun. tables: for each other
    placeholder, {answer} included, the rows of segments that its numbers stand for, such as every item's
    title; for titles with ratings, a row for each pair that occurs. A block whose placeholder has no content
    is left out. Lines are tokenised when a prompt first needs their placeholder.
    Raises UserError for a table whose placeholder the template lacks.
    """

    def __init__(
        self, renderer: Renderer, template: Template, constants: Mapping[str, str], tables: Mapping[str, Rows]
    ) -> None:
        unknown = sorted(set(tables) - template.fields)
        if unknown:
            raise UserError(
                f"template {template.name}: there is content for {{{unknown[0]}}} and no such placeholder: "
                "add it to the template, or switch the content off."
            )
        self._renderer, self._template = renderer, template
        self._constants, self._tables = dict(constants), dict(tables)
        self._units: dict[tuple[int | None, Form, bool], Units] = {}
        self._variants: dict[tuple[frozenset[str], frozenset[str]], Variant] = {}

    def fingerprint(self) -> str:
        """A hash that changes when the same numbers would give other sequences."""
        digest = hashlib.sha256(self._renderer.fingerprint().encode())
        digest.update(repr((self._template.blocks, sorted(self._constants.items()))).encode())
        for name, rows in sorted(self._tables.items()):
            digest.update(name.encode())
            for row in rows:
                digest.update(repr(row).encode())
        return digest.hexdigest()

    def render(self, values: Mapping[str, Ragged]) -> RenderedBatch:
        """N samples: as `Renderer.render` gives them where values has {answer}, else as `render_text` does.

        values: by placeholder, N rows of integers, the numbers of the table's rows to show, one a line.
        Raises ValueError for a placeholder without a table, a number outside of it, an empty answer, or
        several rows for a placeholder that shares its line with text; UserError for two in one line.
        """
        num_samples = check_values(values, {name: len(rows) for name, rows in self._tables.items()})
        names = sorted(values)
        pattern_N = sum((values[name].length_N > 0) << bit for bit, name in enumerate(names))
        batches, index = [], []
        for pattern in np.unique(pattern_N).tolist():
            index_M = np.flatnonzero(pattern_N == pattern)
            shown = frozenset(name for bit, name in enumerate(names) if pattern >> bit & 1)
            part = {name: values[name].take(index_M) for name in shown}
            several = frozenset(name for name, rows in part.items() if rows.length_N.max() > 1)
            batches.append(self._render(self._variant(shown, several), part, len(index_M)))
            index.append(index_M)
        assert sum(map(len, batches)) == num_samples
        return (
            batches[0] if len(batches) == 1 else join_batches(batches).take(np.argsort(np.concatenate(index)))
        )

    def _render(self, variant: Variant, values: Mapping[str, Ragged], num_samples: int) -> RenderedBatch:
        """Samples of one variant."""
        length_NP = place_lengths(variant.places, values, num_samples)
        unit_S = unit_numbers(variant.places, values, length_NP)
        num_units_N = length_NP.sum(axis=1)
        num_prompt_N = length_NP[:, : variant.num_prompt_places].sum(axis=1)
        batch = compose(variant.units, unit_S, num_units_N, num_prompt_N)
        odd_M = np.flatnonzero(~fitting(variant.units, unit_S, num_units_N, num_prompt_N))
        if not len(odd_M):
            return batch
        one_by_one = batch_of([self._rendered(variant, values, n) for n in odd_M.tolist()])
        index_N = np.arange(num_samples)
        index_N[odd_M] = num_samples + np.arange(len(odd_M))
        return join_batches([batch, one_by_one]).take(index_N)

    def _rendered(self, variant: Variant, values: Mapping[str, Ragged], index: int) -> Rendered:
        """One sample by the renderer."""
        prompt: list[Segment] = []
        answer: list[Segment] = []
        for part in variant.parts:
            place = answer if isinstance(part, Hole) and part.name == ANSWER else prompt
            place += self._segments(part, values, index)
        sample = Sample(str(index), tuple(prompt), tuple(answer), {})
        return self._renderer.render(sample) if answer else self._renderer.render_text(sample)

    def _segments(self, part: Part, values: Mapping[str, Ragged], index: int) -> list[Segment]:
        if isinstance(part, str):
            return [Literal(part)]
        numbers = values[part.name].row(index).tolist()
        forms = (
            [part.first, *[part.middle] * (len(numbers) - 2), part.last] if len(numbers) > 1 else [part.only]
        )
        rows = self._tables[part.name]
        return list(chain.from_iterable(form.of(rows[k]) for form, k in zip(forms, numbers, strict=True)))

    def _variant(self, shown: frozenset[str], several: frozenset[str]) -> Variant:
        key = (shown, several)
        if key not in self._variants:
            self._variants[key] = self._compile(*key)
        return self._variants[key]

    def _compile(self, shown: frozenset[str], several: frozenset[str]) -> Variant:
        """several: the placeholders with more than one row in a sample; others need one form only."""
        parts = prompt_parts(self._template, shown - {ANSWER}, self._constants, self._tables)
        num_prompt_places = 1 + len(parts)
        units = Collected()
        places = [Place(None, *[units.number(control_unit(self._renderer.prefix_ids))] * 4)]
        if ANSWER in shown:
            parts.append(answer_hole())
        for k, part in enumerate(parts):
            hole = part if isinstance(part, Hole) else None
            numbers = [units.number(self._tokenised(*key)) for key in form_keys(part, k == 0, several)]
            places.append(Place(hole, *numbers))
        if ANSWER in shown:
            places.append(Place(None, *[units.number(control_unit([self._renderer.eos_id]))] * 4))
        return Variant(parts, places, num_prompt_places, join_units(units.parts))

    def _tokenised(self, name: str | None, form: Form, is_start: bool) -> Units:
        """A table in one form, or (no name) the form's text alone; each is made once."""
        rows: Rows = [()] if name is None else self._tables[name]
        key = (None if name is None else id(rows), form, is_start and self._renderer.start_differs)
        if key not in self._units:
            self._units[key] = make_units(self._renderer, map(form.of, rows), is_start)
        return self._units[key]


def form_keys(part: Part, is_start: bool, several: Set[str]) -> list[tuple[str | None, Form, bool]]:
    """What the only, first, middle and last row of a part are made of; the first line of a sequence has other
    tokens for some tokenizers."""
    if isinstance(part, str):
        return [(None, Form(part, ""), is_start)] * 4
    if part.name not in several:
        return [(part.name, part.only, is_start)] * 4
    heads = [(part.name, form, is_start) for form in (part.only, part.first)]
    return [*heads, *((part.name, form, False) for form in (part.middle, part.last))]


class Collected:
    """Units of several tables behind one another, each table once."""

    def __init__(self) -> None:
        self.parts: list[Units] = []
        self._bases: dict[int, int] = {}
        self._count = 0

    def number(self, units: Units) -> int:
        """The number of a table's first unit."""
        if id(units) not in self._bases:
            self._bases[id(units)] = self._count
            self.parts.append(units)
            self._count += len(units)
        return self._bases[id(units)]


def check_values(values: Mapping[str, Ragged], table_sizes: Mapping[str, int]) -> int:
    """The number of samples."""
    counts = {len(rows) for rows in values.values()}
    if len(counts) != 1:
        raise ValueError("values: give each placeholder one row a sample, and at least one placeholder.")
    for name, rows in values.items():
        if name not in table_sizes:
            raise ValueError(f"values: {{{name}}} has no table: give it when compiling.")
        flat = rows.flat()
        if len(flat) and not 0 <= flat.min() <= flat.max() < table_sizes[name]:
            raise ValueError(f"values: the numbers of {{{name}}} must lie in 0..{table_sizes[name] - 1}.")
    if ANSWER in values and not values[ANSWER].length_N.all():
        raise ValueError("values: a sample has no answer to train on: leave {answer} out for prompts alone.")
    return counts.pop()


def place_lengths(places: Sequence[Place], values: Mapping[str, Ragged], num_samples: int) -> np.ndarray:
    """Units of every sample at every place, (N, P)."""
    length_NP = np.ones((num_samples, len(places)), np.int64)
    for p, place in enumerate(places):
        if place.hole:
            length_NP[:, p] = values[place.hole.name].length_N
            if not place.hole.alone and (length_NP[:, p] > 1).any():
                raise ValueError(
                    f"values: {{{place.hole.name}}} is part of a line: it takes one row a sample."
                )
    return length_NP


def unit_numbers(places: Sequence[Place], values: Mapping[str, Ragged], length_NP: np.ndarray) -> np.ndarray:
    """The units of all samples, (S,)."""
    unit_S = np.empty(int(length_NP.sum()), np.int64)
    flat_start = np.cumsum(length_NP.reshape(-1)).reshape(length_NP.shape) - length_NP
    for p, place in enumerate(places):
        start_N, length_N = flat_start[:, p], length_NP[:, p]
        if place.hole is None:
            unit_S[start_N] = place.middle
            continue
        unit_S[ranges(start_N, length_N)] = values[place.hole.name].flat() + place.middle
        many_N = length_N > 1
        last_N = start_N + length_N - 1
        for base, where in (
            (place.only, start_N[~many_N]),
            (place.first, start_N[many_N]),
            (place.last, last_N[many_N]),
        ):
            if base != place.middle:
                unit_S[where] += base - place.middle
    return unit_S


def compose(
    units: Units, unit_S: np.ndarray, num_units_N: np.ndarray, num_prompt_units_N: np.ndarray
) -> RenderedBatch:
    """Units laid end to end, sample by sample."""
    ids = units.ids.take(unit_S)
    length_S = ids.length_N
    bound_S1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(length_S)])
    first_N = np.cumsum(num_units_N) - num_units_N
    start_N = bound_S1[first_N]
    position_S = bound_S1[:-1] - np.repeat(start_N, num_units_N)
    return RenderedBatch(
        Ragged(ids.flat(), start_N, bound_S1[first_N + num_units_N] - start_N),
        shifted(units.spans, 2, unit_S, position_S, num_units_N),
        shifted(units.slots, 1, unit_S, position_S, num_units_N),
        bound_S1[first_N + num_prompt_units_N] - start_N,
    )


def shifted(
    rows: Ragged, num_places: int, unit_S: np.ndarray, position_S: np.ndarray, num_units_N: np.ndarray
) -> Ragged:
    """The spans or slots of the units by sample, their first `num_places` columns counted from its start."""
    count_S = rows.length_N[unit_S]
    moved = rows.values[ranges(rows.start_N[unit_S], count_S)]
    moved[:, :num_places] += np.repeat(position_S, count_S)[:, None]
    return end_to_end(moved, row_sums(count_S, num_units_N))


def fitting(
    units: Units, unit_S: np.ndarray, num_units_N: np.ndarray, num_prompt_units_N: np.ndarray
) -> np.ndarray:
    """Whether all units of a sample meet at cuts, bool (N,). Prompt and answer are apart in any case."""
    unfit_S = np.zeros(len(unit_S), np.int64)
    unfit_S[:-1] = units.right_U[unit_S[:-1]] + units.left_U[unit_S[1:]] < FITS
    end_N = np.cumsum(num_units_N)
    unfit_S[end_N - 1] = 0
    unfit_S[end_N - num_units_N + num_prompt_units_N - 1] = 0
    return row_sums(unfit_S, num_units_N) == 0
