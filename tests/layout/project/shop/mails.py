"""The mails of the shop. Imports the settings."""

from __future__ import annotations

import logging

from shop.settings import settings

logger = logging.getLogger(__name__)


async def confirm(email: str, item: str) -> None:
    """Confirm an order. This one writes to the log: call your mail service instead."""
    logger.warning("mail from %s to %s: we have your order of %s", settings.mail_sender, email, item)
