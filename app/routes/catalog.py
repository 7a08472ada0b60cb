"""The catalog: architectures, data sets and recipes."""

from __future__ import annotations

from fastapi import APIRouter

from app.core.errors import NotFound
from gkl import recipes
from gkl.catalog import ARCHITECTURES, DATASETS, Architecture, Dataset
from gkl.errors import InvalidInput
from gkl.spec import DistillSpec, TrainSpec

router = APIRouter(tags=["catalog"])


@router.get("/architectures", summary="List the architectures")
def list_architectures() -> list[Architecture]:
    return list(ARCHITECTURES.values())


@router.get("/datasets", summary="List the data sets")
def list_datasets() -> list[Dataset]:
    return list(DATASETS.values())


@router.get("/recipes", summary="List the recipes")
def list_recipes() -> dict[str, TrainSpec | DistillSpec]:
    """Full specs by name, ready to be edited and sent as jobs."""
    return {name: make() for name, make in recipes.RECIPES.items()}


@router.get("/recipes/{name}", summary="Get a recipe")
def get_recipe(name: str) -> TrainSpec | DistillSpec:
    try:
        return recipes.recipe(name)
    except InvalidInput as error:
        raise NotFound(str(error)) from error
