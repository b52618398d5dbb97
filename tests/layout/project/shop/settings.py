"""The settings that differ between machines. Imports nothing of the shop."""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict

from asgi_sqla.settings import DatabaseSettings


class Settings(BaseSettings):
    """The settings of the shop. The environment wins over ``.env``."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_nested_delimiter="_",  # DATABASE_URL is database.url
        env_nested_max_split=1,  # and DATABASE_POOL_SIZE is database.pool_size
        extra="ignore",
        hide_input_in_errors=True,  # the input holds a password
    )

    database: DatabaseSettings
    mail_sender: str


settings = Settings()  # type: ignore[call-arg]  # they come from the environment
