"""The SQL of the storage layer lies in files: storage/sql/<name>.sql."""

from importlib.resources import files


def statement(name: str) -> str:
    return files("storage").joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")
