"""The application: `streamlit run app.py`. Starts the service, and with it the queue's supervisor; stops it at the end.

Runs that are being worked on go on when the app ends: they are processes of their own.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import streamlit as st

from core.service import close_service, get_service


@asynccontextmanager
async def lifespan(_: st.App) -> AsyncIterator[dict[str, Any]]:
    """One service per process, from the first moment, so that a queue that was left goes on without a visitor."""
    await asyncio.to_thread(get_service)
    try:
        yield {}
    finally:
        await asyncio.to_thread(close_service)


app = st.App("pages/_main.py", lifespan=lifespan)
