"""``/people``, with sync handlers: FastAPI runs them in threads, and they use ``db.session``."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from shop.db import db
from shop.models import Person

router = APIRouter(prefix="/people", tags=["people"])


class NewPerson(BaseModel):
    """What a client sends."""

    email: str


class PersonSeen(NewPerson):
    """What a client gets."""

    id: int


@router.post("", status_code=201, response_model=PersonSeen)
def add_person(new: NewPerson) -> Person:
    """Add a person. A second one with the same address is an IntegrityError: ``main.py`` makes it a 409."""
    person = Person(email=new.email)
    db.session.add(person)
    db.session.flush()  # sets the id, which the response needs
    return person


@router.get("/{person_id}", response_model=PersonSeen)
def show_person(person_id: int) -> Person:
    """Show a person. An unknown id is a NotFoundError: ``main.py`` makes it a 404."""
    return Person.get_or_404(db.session, person_id)
