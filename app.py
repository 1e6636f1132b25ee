"""The application: `streamlit run app.py`. Starts the service, and with it the queue's supervisor; stops it at the end.

Runs that are being worked on go on when the app ends: they are processes of their own. Nobody gets past the guard
(core/guard.py): other sites, other machines without a token or a login.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Any

import streamlit as st
from starlette.middleware import Middleware
from streamlit.errors import StreamlitSecretNotFoundError

from core.errors import InputError
from core.guard import Guard, Rules, require_safe_address
from core.service import close_service, get_service
from pages._parts.feed import ROUTES


def login_ready() -> bool:
    """Whether Streamlit's login is configured and can work."""
    try:
        return "auth" in st.secrets and find_spec("authlib") is not None
    except StreamlitSecretNotFoundError:
        return False


def safe_rules() -> Rules:
    """The guard's rules; ends the process where the app would be open to other machines."""
    try:
        rules = Rules.from_environment()
        require_safe_address(st.get_option("server.address"), rules, login_ready=login_ready())
    except InputError as error:
        sys.exit(f"espalier: {error}")
    return rules


@asynccontextmanager
async def lifespan(_: st.App) -> AsyncIterator[dict[str, Any]]:
    """One service per process, from the first moment, so that a queue that was left goes on without a visitor."""
    await asyncio.to_thread(get_service)
    # The first time that this home is opened; pages answer meanwhile.
    reference = asyncio.create_task(asyncio.to_thread(get_service().travel.take_reference_in))
    try:
        yield {}
    finally:
        await reference
        await asyncio.to_thread(close_service)


app = st.App("pages/_main.py", lifespan=lifespan, routes=ROUTES, middleware=[Middleware(Guard, rules=safe_rules())])
