"""Specs to modules, the one place where the kinds of rankers are told apart."""

from __future__ import annotations

from typing import assert_never

from rayrank.models.cross import Cross
from rayrank.models.encoder import TextEncoder
from rayrank.models.ranker import Ranker
from rayrank.models.sequence import SequenceStudent
from rayrank.models.spec import (
    CrossSpec,
    RankerSpec,
    SequenceStudentSpec,
    Sizes,
    StudentSpec,
    TeacherSpec,
    TwoTowerSpec,
)
from rayrank.models.student import Student
from rayrank.models.teacher import Teacher
from rayrank.models.two_tower import TwoTower
from rayrank.schema import DatasetSchema


def build_ranker(spec: RankerSpec, schema: DatasetSchema, sizes: Sizes, encoder: TextEncoder | None = None) -> Ranker:
    """A ranker with fresh weights (seed torch before). A teacher without text needs no encoder.

    A student reads a table; an encoder that it is given is for items that the table lacks, and no part of its function.

    Raises:
        ConfigError: a cross teacher without text, or with texts that are longer than its encoder reads.
    """
    match spec:
        case TeacherSpec():
            return Teacher(spec, schema, sizes, encoder)
        case CrossSpec():
            return Cross(spec, schema, sizes, encoder)
        case StudentSpec():
            return Student(spec, schema, sizes).with_encoder(encoder)
        case SequenceStudentSpec():
            return SequenceStudent(spec, schema, sizes).with_encoder(encoder)
        case TwoTowerSpec():
            return TwoTower(spec, schema, sizes).with_encoder(encoder)
        case _:
            assert_never(spec)
